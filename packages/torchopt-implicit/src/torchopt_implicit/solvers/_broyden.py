"""Broyden's method for roots."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import flat_function, value_and_jacobian
from torchopt_implicit.solvers._linear_step import LinearSolve, derivative_solver
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Number, is_finite, like, read, select
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["broyden"]

#: trials without an accepted step before the search is given up
MAX_TRIALS = 30


class _State(NamedTuple):
    x: torch.Tensor
    # function value at `x`, and the approximate inverse of the Jacobian
    value: torch.Tensor
    inverse: torch.Tensor
    # how much of the step to try
    length: Number
    trials: Any
    error: Number
    failure: Any


def broyden(
    function: Callable[..., Any],
    *,
    maxiter: int = 200,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
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
        derivative_solve: As in :func:`newton`.
        linear_solve: The former name of ``derivative_solve``.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`. A singular Jacobian at ``init`` ends it with ``Status.BREAKDOWN``.

    Raises:
        TypeError: If ``function`` or ``derivative_solve`` is not callable.
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
    derivative_solve = derivative_solver(derivative_solve, linear_solve)
    check_arguments(
        function,
        "function",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Broyden:
        return _Broyden(flat_function(function, layout, args))

    differentiate = functools.partial(
        custom_root,
        function,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "broyden",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _Broyden(Method[_State]):
    value_of: Callable[[torch.Tensor], torch.Tensor]

    def init_state(self, x: torch.Tensor) -> _State:
        value, jacobian = value_and_jacobian(self.value_of, square=True)(x)
        inverse, singular = torch.linalg.inv_ex(jacobian.detach())
        error, broken = read(torch.linalg.vector_norm(value), singular != 0)
        failure = select(broken, int(Status.BREAKDOWN), like(error, 0))
        return _State(x, value, inverse, like(error, 1.0), like(error, 0), error, failure)

    def update(self, state: _State) -> _State:
        move = -state.length * (state.inverse @ state.value)
        trial = state.x + move
        value = self.value_of(trial)
        move = move.detach()
        predicted = state.inverse @ (value - state.value).detach()
        error, along, square = read(torch.linalg.vector_norm(value), move @ predicted, move @ move)
        accept = error <= (1 - 1e-4 * state.length) * state.error

        # without a tenth of the predicted change the updated inverse would be near singular
        sound = (abs(along) > 0.1 * square) & is_finite(error)
        if sound is False:
            inverse = state.inverse
        else:
            left = (move - predicted) / along
            update = torch.outer(left, move @ state.inverse)
            inverse = select(sound, state.inverse + update, state.inverse)
        trials = select(accept, like(error, 0), state.trials + 1)
        failure = select(trials > MAX_TRIALS, int(Status.STAGNATED), state.failure)
        full = like(error, 1.0)
        taken = _State(trial, value, inverse, full, trials, error, failure)
        kept = state._replace(
            inverse=inverse, length=0.5 * state.length, trials=trials, failure=failure
        )
        return select(accept, taken, kept)  # type: ignore[no-any-return]
