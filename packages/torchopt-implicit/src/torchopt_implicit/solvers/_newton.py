"""Newton's method for roots, with backtracking."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import (
    ValueAndJacobian,
    flat_function,
    square_value,
    value_and_jacobian,
)
from torchopt_implicit.solvers._linear_step import LinearSolve, solve_step
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import (
    Flag,
    Number,
    add_scaled,
    is_finite,
    like,
    negate,
    read,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

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
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
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
        linear_solve: Solves for the steps: a callable ``(matvec, b) -> x`` as those of
            :mod:`torchopt_implicit.linear_solve`. It needs no matrix, which makes this the method
            of Newton and Krylov, for many unknowns. By default the dense Jacobian is factorised.
        derivative_solve: Solves with the Jacobian in derivatives; ``linear_solve`` if that is
            given, else a factorisation for up to 256 unknowns and GMRES beyond.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`. A singular Jacobian ends it with ``Status.BREAKDOWN``.

    Raises:
        TypeError: If ``function`` or a linear solver is not callable.
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
    check_arguments(
        function,
        "function",
        maxiter,
        tol,
        linear_solve=linear_solve,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    derivative_solve = linear_solve if derivative_solve is None else derivative_solve

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Newton:
        flat = flat_function(function, layout, args)
        if linear_solve is None:
            return _Newton(_Dense(value_and_jacobian(flat, square=True)))
        return _Newton(_Krylov(flat, linear_solve, layout))

    differentiate = functools.partial(
        custom_root,
        function,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "newton",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


class _Linearize(abc.ABC):
    """Evaluates the function, and solves with its Jacobian ``J``, a constant to autograd.

    Where steps are differentiated, the derivative of a step then is that of the root, up to terms
    that vanish with the value.
    """

    @abc.abstractmethod
    def at(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return the value, and what :meth:`step` needs."""

    @abc.abstractmethod
    def step(self, x: torch.Tensor, value: torch.Tensor, known: Any) -> tuple[torch.Tensor, Flag]:
        """Return :math:`-J^{-1} F` and whether J is singular."""


@dataclasses.dataclass(frozen=True)
class _Dense(_Linearize):
    linearize: ValueAndJacobian

    def at(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return self.linearize(x)

    def step(self, x: torch.Tensor, value: torch.Tensor, known: Any) -> tuple[torch.Tensor, Flag]:
        step, info = torch.linalg.solve_ex(known.detach(), -value.unsqueeze(-1))
        step = step.squeeze(-1)
        # a sum is finite if its terms are
        code, total = read(info, step.sum())
        return step, (code != 0) | negate(is_finite(total))


@dataclasses.dataclass(frozen=True)
class _Krylov(_Linearize):
    function: Callable[[torch.Tensor], torch.Tensor]
    linear_solve: LinearSolve
    layout: Layout

    def at(self, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return square_value(self.function, x), None

    def step(self, x: torch.Tensor, value: torch.Tensor, known: Any) -> tuple[torch.Tensor, Flag]:
        J = LinearOperator.jacobian(self.function, x.detach())
        step = solve_step(self.linear_solve, J, -value, self.layout)
        (total,) = read(step.sum())
        return step, negate(is_finite(total))


@dataclasses.dataclass(frozen=True)
class _Newton(Method[_State]):
    problem: _Linearize

    def init_state(self, x: torch.Tensor) -> _State:
        value, known = self.problem.at(x)
        (error,) = read(torch.linalg.vector_norm(value))
        direction, singular = self.problem.step(x, value, known)
        zero = like(error, 0)
        return _State(x, direction, like(error, 1.0), zero, error, _failure(singular, zero))

    def update(self, state: _State) -> _State:
        trial = add_scaled(state.x, state.length, state.direction)
        value, known = self.problem.at(trial)
        (error,) = read(torch.linalg.vector_norm(value))
        accept = error <= (1 - 1e-4 * state.length) * state.error
        trials = select(accept, like(error, 0), state.trials + 1)
        shorter = state._replace(
            length=0.5 * state.length, trials=trials, failure=_failure(False, trials)
        )
        if accept is False:
            return shorter
        direction, singular = self.problem.step(trial, value, known)
        full = like(error, 1.0)
        taken = _State(trial, direction, full, trials, error, _failure(singular, trials))
        return select(accept, taken, shorter)  # type: ignore[no-any-return]


def _failure(singular: Flag, trials: Any) -> Any:
    stagnated = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
    return select(singular, int(Status.BREAKDOWN), stagnated)
