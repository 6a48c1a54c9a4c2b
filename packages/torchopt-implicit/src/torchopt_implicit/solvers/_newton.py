"""Newton's method for roots, with backtracking."""

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

__all__ = ["newton"]

#: halvings of a step before the search is given up
MAX_TRIALS = 30


class _State(NamedTuple):
    x: torch.Tensor
    # function value at `x`, and Newton's step from there
    value: torch.Tensor
    direction: torch.Tensor
    # how much of the step to try
    length: torch.Tensor
    trials: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def newton(
    function: Callable[..., Any],
    *,
    maxiter: int = 100,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for roots by Newton's method with backtracking.

    .. math::
        F(x^\star(\theta), \theta) = 0, \qquad
        x_{k+1} = x_k - t_k \, \partial_x F(x_k, \theta)^{-1} F(x_k, \theta)

    One iteration evaluates the function and its dense Jacobian once. A step is halved until it
    decreases :math:`\|F\|`. To minimize, give the gradient ``torch.func.grad(objective)``.

    Args:
        function: ``function(x, *args)`` returns a tree like ``x``, which is a tree like ``init``.
        maxiter: The most evaluations.
        tol: Stop when :math:`\|F\|` is at most ``tol * max(1, its value at the start)``; 3.7e-11 in
            float64 and 2.4e-5 in float32 by default.
        linear_solve: Solves with the Jacobian in derivatives: a callable ``(matvec, b) -> x``. A
            factorisation for up to 256 unknowns and GMRES beyond by default.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`. A singular Jacobian ends it with ``Status.BREAKDOWN``.

    Raises:
        TypeError: If ``function`` or ``linear_solve`` is not callable.
        ValueError: If a number is out of its range, or the function has not as many values as
            unknowns.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import newton
        >>> kepler = newton(lambda E, M, e: E - e * torch.sin(E) - M)
        >>> M, e = torch.tensor(1.0), torch.tensor(0.5, requires_grad=True)
        >>> E = kepler(M, M, e)
        >>> torch.autograd.grad(E, e)  # sin(E) / (1 - e cos(E))
        (tensor(1.0347),)

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), algorithm 11.4.
    """
    check_arguments(function, "function", maxiter, tol, linear_solve)

    def search(init: Any, *args: Any) -> tuple[Any, Info]:
        layout = Layout.of(init, "init")
        linearize = value_and_jacobian(flat_function(function, layout, args), square=True)
        x = layout.ravel(init, "init")
        value, jacobian = linearize(x)
        direction, singular = _direction(value, jacobian)
        zero = torch.zeros((), dtype=torch.int64, device=x.device)
        error = torch.linalg.vector_norm(value)
        state = _State(
            x=x,
            value=value,
            direction=direction,
            length=torch.ones_like(error),
            trials=zero,
            error=error,
            failure=_failure(singular, zero),
        )
        state, info = iterate(
            functools.partial(_step, linearize),
            state,
            target=target_of(state, tol),
            maxiter=maxiter,
        )
        return layout.unravel(state.x), info

    differentiate = functools.partial(
        custom_root,
        function,
        solve=by_size(solves.GMRES) if linear_solve is None else linear_solve,
    )
    return Solver("newton", search, differentiate, throw=throw)


def _direction(value: torch.Tensor, jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    step, info = torch.linalg.solve_ex(jacobian, value.unsqueeze(-1))
    step = -step.squeeze(-1)
    return step, (info != 0) | ~torch.isfinite(step).all()


def _failure(singular: torch.Tensor, trials: torch.Tensor) -> torch.Tensor:
    stagnated = torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
    return torch.where(singular, int(Status.BREAKDOWN), stagnated)


def _step(
    linearize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], state: _State
) -> _State:
    trial = state.x + state.length * state.direction
    value, jacobian = linearize(trial)
    error = torch.linalg.vector_norm(value)
    accept = error <= (1 - 1e-4 * state.length) * state.error
    direction, singular = _direction(value, jacobian)
    trials = torch.where(accept, 0, state.trials + 1)
    return _State(
        x=torch.where(accept, trial, state.x),
        value=torch.where(accept, value, state.value),
        direction=torch.where(accept, direction, state.direction),
        length=torch.where(accept, 1.0, 0.5 * state.length),
        trials=trials,
        error=torch.where(accept, error, state.error),
        failure=_failure(accept & singular, trials),
    )
