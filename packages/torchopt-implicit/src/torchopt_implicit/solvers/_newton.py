"""Newton's method for roots, with backtracking."""

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
from torchopt_implicit.solvers._flat import ValueAndJacobian, flat_function, value_and_jacobian
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Flag, Number, add_scaled, like, read, select
from torchopt_implicit.solvers._solver import LinearSolve, Solver, by_size, check_arguments

__all__ = ["newton"]

#: halvings of a step before the search is given up
MAX_TRIALS = 30


class _State(NamedTuple):
    x: torch.Tensor
    # Newton's step from `x`
    direction: torch.Tensor
    # how much of the step to try
    length: Number
    trials: Any
    error: Number
    failure: Any


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

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Newton:
        return _Newton(value_and_jacobian(flat_function(function, layout, args), square=True))

    differentiate = functools.partial(
        custom_root,
        function,
        solve=by_size(solves.GMRES) if linear_solve is None else linear_solve,
    )
    return Solver("newton", bind, differentiate, maxiter=maxiter, tol=tol, throw=throw)


@dataclasses.dataclass(frozen=True)
class _Newton(Method[_State]):
    linearize: ValueAndJacobian

    def init_state(self, x: torch.Tensor) -> _State:
        value, jacobian = self.linearize(x)
        direction, singular = _direction(value, jacobian)
        (error,) = read(torch.linalg.vector_norm(value))
        zero = like(error, 0)
        return _State(x, direction, like(error, 1.0), zero, error, _failure(singular, zero))

    def update(self, state: _State) -> _State:
        trial = add_scaled(state.x, state.length, state.direction)
        value, jacobian = self.linearize(trial)
        (error,) = read(torch.linalg.vector_norm(value))
        accept = error <= (1 - 1e-4 * state.length) * state.error
        trials = select(accept, like(error, 0), state.trials + 1)
        shorter = state._replace(
            length=0.5 * state.length, trials=trials, failure=_failure(False, trials)
        )
        if accept is False:
            return shorter
        direction, singular = _direction(value, jacobian)
        full = like(error, 1.0)
        taken = _State(trial, direction, full, trials, error, _failure(singular, trials))
        return select(accept, taken, shorter)  # type: ignore[no-any-return]


def _direction(value: torch.Tensor, jacobian: torch.Tensor) -> tuple[torch.Tensor, Flag]:
    # the matrix is a constant where steps are differentiated: the step's derivative then is that
    # of the root, up to terms that vanish with the value
    step, info = torch.linalg.solve_ex(jacobian.detach(), value.unsqueeze(-1))
    step = -step.squeeze(-1)
    (sound,) = read(torch.isfinite(step).all() & (info == 0))
    return step, ~sound if isinstance(sound, torch.Tensor) else not sound


def _failure(singular: Flag, trials: Any) -> Any:
    stagnated = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
    return select(singular, int(Status.BREAKDOWN), stagnated)
