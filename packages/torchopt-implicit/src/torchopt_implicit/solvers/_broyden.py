"""Broyden's method for roots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Info, Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.solvers._loop import iterate, target_of
from torchopt_implicit.solvers._solver import (
    LinearSolve,
    Solver,
    by_size,
    check_arguments,
    flat_function,
    value_and_jacobian,
)

__all__ = ["broyden"]

#: trials without an accepted step before the search is given up
MAX_TRIALS = 30


class _State(NamedTuple):
    x: torch.Tensor
    # function value at `x`, and the approximate inverse of the Jacobian
    value: torch.Tensor
    inverse: torch.Tensor
    # how much of the step to try
    length: torch.Tensor
    trials: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def broyden(
    function: Callable[..., Any],
    *,
    maxiter: int = 200,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for roots by Broyden's method, which differentiates the function once.

    .. math::
        F(x^\star(\theta), \theta) = 0, \qquad x_{k+1} = x_k - t_k H_k F(x_k, \theta), \qquad
        H_{k+1} = H_k + \frac{(s - H_k y) s^\top H_k}{s^\top H_k y}

    with :math:`s` the move tried and :math:`y` the change of :math:`F` along it. :math:`H_0` is the
    inverse of the exact Jacobian at ``init``; afterwards one iteration evaluates the function once
    and costs :math:`O(n^2)`. A trial that does not decrease :math:`\|F\|` is not taken, but still
    corrects :math:`H`, and the next one is half as long. For many unknowns use :func:`anderson`.

    Args:
        function: ``function(x, *args)`` returns a tree like ``x``, which is a tree like ``init``.
        maxiter: The most evaluations.
        tol: As in :func:`newton`.
        linear_solve: As in :func:`newton`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`. A singular Jacobian at ``init`` ends it with ``Status.BREAKDOWN``.

    Raises:
        TypeError: If ``function`` or ``linear_solve`` is not callable.
        ValueError: If a number is out of its range, or the function has not as many values as
            unknowns.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import broyden
        >>> def circle_and_line(p, radius):
        ...     return torch.stack([p @ p - radius**2, p[0] - p[1]])
        >>> radius = torch.tensor(2.0, requires_grad=True)
        >>> p = broyden(circle_and_line)(torch.tensor([1.0, 2.0]), radius)
        >>> torch.autograd.grad(p[0], radius)  # 1 / sqrt(2)
        (tensor(0.7071),)

    References:
        C. G. Broyden: A class of methods for solving nonlinear simultaneous equations (1965).
    """
    check_arguments(function, "function", maxiter, tol, linear_solve)

    def search(init: Any, *args: Any) -> tuple[Any, Info]:
        layout = Layout.of(init, "init")
        value_of = flat_function(function, layout, args)
        x = layout.ravel(init, "init")
        value, jacobian = value_and_jacobian(value_of, square=True)(x)
        inverse, singular = torch.linalg.inv_ex(jacobian)
        zero = torch.zeros((), dtype=torch.int64, device=x.device)
        error = torch.linalg.vector_norm(value)
        state = _State(
            x=x,
            value=value,
            inverse=inverse,
            length=torch.ones_like(error),
            trials=zero,
            error=error,
            failure=torch.where(singular != 0, int(Status.BREAKDOWN), zero),
        )
        state, info = iterate(
            functools.partial(_step, value_of), state, target=target_of(state, tol), maxiter=maxiter
        )
        return layout.unravel(state.x), info

    differentiate = functools.partial(
        custom_root,
        function,
        solve=by_size(solves.GMRES) if linear_solve is None else linear_solve,
    )
    return Solver("broyden", search, differentiate, throw=throw)


def _step(value_of: Callable[[torch.Tensor], torch.Tensor], state: _State) -> _State:
    move = -state.length * (state.inverse @ state.value)
    trial = state.x + move
    value = value_of(trial).to(trial.dtype)
    error = torch.linalg.vector_norm(value)
    accept = error <= (1 - 1e-4 * state.length) * state.error

    predicted = state.inverse @ (value - state.value)
    denominator = move @ predicted
    # without a tenth of the predicted change the updated inverse would be near singular
    sound = denominator.abs() > 0.1 * (move @ move)
    update = torch.outer((move - predicted) / denominator, move @ state.inverse)
    trusted = sound & torch.isfinite(update).all()
    trials = torch.where(accept, 0, state.trials + 1)
    return _State(
        x=torch.where(accept, trial, state.x),
        value=torch.where(accept, value, state.value),
        inverse=torch.where(trusted, state.inverse + update, state.inverse),
        length=torch.where(accept, 1.0, 0.5 * state.length),
        trials=trials,
        error=torch.where(accept, error, state.error),
        failure=torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), state.failure),
    )
