"""Descent by line searches for the strong Wolfe conditions, along directions of any rule."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import (
    Objective,
    ValueAndGrad,
    flat_value_and_grad,
    gradient_of,
)
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import (
    Flag,
    Number,
    add_scaled,
    clamp,
    divide,
    is_finite,
    like,
    maximum,
    minimum,
    negate,
    read,
    root,
    select,
    sign,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["Directions", "descent_solver"]

SUFFICIENT_DECREASE = 1e-4
#: trials in a row without a step that decreases before the search is given up
MAX_TRIALS = 40
#: as a multiple of the rounding of values, what their differences need to be of use to a cubic
NOISE = 1000

Memory = TypeVar("Memory")


def descent_solver(
    name: str,
    objective: Objective,
    directions: Directions[Any],
    *,
    maxiter: int,
    tol: float | None,
    derivative_solve: LinearSolve | None,
    differentiation: Differentiation | None,
    throw: bool,
) -> Solver:
    """Return the solver that minimizes along directions of a rule."""
    check_arguments(
        objective,
        "objective",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )

    def bind(layout: Layout, args: tuple[Any, ...]) -> _WolfeDescent:
        return _WolfeDescent(flat_value_and_grad(objective, layout, args), directions, layout.eps)

    differentiate = functools.partial(
        custom_root,
        gradient_of(objective),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        name,
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


class Directions(abc.ABC, Generic[Memory]):
    """How a descent chooses its directions, from what it remembers of the steps taken.

    A memory is a tuple of vectors, matrices and numbers, never written to.
    """

    @property
    @abc.abstractmethod
    def curvature(self) -> float:
        """How small the slope has to become along a line, relative to the slope at its start."""

    @abc.abstractmethod
    def start(self, gradient: torch.Tensor, norm: Number) -> Memory:
        """Return the memory before the first step, which goes along ``-gradient``."""

    @abc.abstractmethod
    def learn(
        self,
        memory: Memory,
        useful: Flag,
        move: torch.Tensor,
        change: torch.Tensor,
        product: Number,
    ) -> Memory:
        """Return the memory after a step.

        Args:
            memory: That before it.
            useful: Whether the step is taken and has positive curvature; elsewhere the memory is
                to stay as it is.
            move: By how much the iterate moved, a constant.
            change: By how much the gradient changed, a constant.
            product: Their inner product.
        """

    @abc.abstractmethod
    def direction(
        self, memory: Memory, gradient: torch.Tensor, previous: torch.Tensor
    ) -> torch.Tensor:
        """Return where to search next, given the direction before; linear in the gradient."""

    @abc.abstractmethod
    def first_length(self, length: Number, slope: Number, new_slope: Number) -> Number:
        """Return the length to try first, given the last one and the slopes at both starts."""


class _Point(NamedTuple):
    """A point on the search line: its length, the value, the slope."""

    t: Number
    value: Number
    slope: Number


class _State(NamedTuple):
    x: torch.Tensor
    # objective and gradient at `x`, the direction and the slope along it
    value: Number
    gradient: torch.Tensor
    direction: torch.Tensor
    slope: Number
    # next length to try, and how many in a row did not lead to a decrease
    length: Number
    trials: Any
    # the best point of the line so far, and the other end once a minimum lies in between
    low: _Point
    high: _Point
    bracketed: Flag
    # of the directions
    memory: Any
    error: Number
    failure: Any


@dataclasses.dataclass(frozen=True)
class _WolfeDescent(Method[_State]):
    r"""Steps along descent directions that satisfy the strong Wolfe conditions.

    .. math::
        f(x + t d) \le f(x) + 10^{-4}\, t\, g^\top d, \qquad
        |\nabla f(x + t d)^\top d| \le c\, |g^\top d|

    One iteration is one trial along the line, which is taken as a step or narrows the search. The
    error is the gradient's norm.
    """

    value_and_grad: ValueAndGrad
    directions: Directions[Any]
    # below this, relative to the objective, differences decide nothing
    eps: float

    def init_state(self, x: torch.Tensor) -> _State:
        objective, gradient = self.value_and_grad(x)
        value, norm = read(objective, torch.linalg.vector_norm(gradient))
        slope = -norm * norm
        end = _Point(like(value, 0.0), value, slope)
        return _State(
            x=x,
            value=value,
            gradient=gradient,
            direction=-gradient,
            slope=slope,
            length=divide(1.0, maximum(norm, 1.0)),
            trials=like(value, 0),
            low=end,
            high=end,
            bracketed=value != value,
            memory=self.directions.start(gradient.detach(), norm),
            error=norm,
            failure=like(value, 0),
        )

    def update(self, state: _State) -> _State:
        t = state.length
        trial = add_scaled(state.x, t, state.direction)
        objective, gradient = self.value_and_grad(trial)
        value, slope = read(objective, gradient @ state.direction)

        # differences below the rounding of the values decide nothing
        slack = 8 * self.eps * abs(state.value)
        low, high = state.low, state.high
        bound = minimum(state.value + SUFFICIENT_DECREASE * t * state.slope, low.value)
        decreases = (value <= bound + slack) & is_finite(slope)
        flat = abs(slope) <= -self.directions.curvature * state.slope
        accept = decreases & flat
        trials = select(accept & (value <= bound), like(value, 0), state.trials + 1)
        failure = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)

        # the minimum lies between the best point and the end towards which its slope descends
        here = _Point(t, value, slope)
        forwards = select(state.bracketed, sign(high.t - low.t), like(t, 1.0))
        turned = decreases & (slope * forwards >= 0)
        new_high = select(decreases, select(turned, low, high), here)
        new_low = select(decreases, here, low)
        bracketed = state.bracketed | negate(decreases) | turned
        searched = state._replace(
            length=select(bracketed, _interpolate(new_low, new_high, NOISE * slack), 2 * t),
            trials=trials,
            low=new_low,
            high=new_high,
            bracketed=bracketed,
            failure=failure,
        )
        if accept is False:
            return searched
        taken = self._step(state, trial, value, gradient, trials, failure, accept)
        return select(accept, taken, searched)  # type: ignore[no-any-return]

    def _step(
        self,
        state: _State,
        x: torch.Tensor,
        value: Number,
        gradient: torch.Tensor,
        trials: Any,
        failure: Any,
        accept: Flag,
    ) -> _State:
        """Return the state at the start of the next line."""
        move = (state.length * state.direction).detach()
        change = (gradient - state.gradient).detach()
        product, square, norm = read(
            move @ change, change @ change, torch.linalg.vector_norm(gradient)
        )
        useful = accept & (product > torch.finfo(x.dtype).eps * square)
        memory = self.directions.learn(state.memory, useful, move, change, product)
        direction = self.directions.direction(memory, gradient, state.direction)
        (slope,) = read(gradient @ direction)
        # also of a slope that is NaN
        ascends = negate(slope < 0)
        direction = select(ascends, -gradient, direction)
        slope = select(ascends, -norm * norm, slope)
        end = _Point(like(value, 0.0), value, slope)
        return _State(
            x=x,
            value=value,
            gradient=gradient,
            direction=direction,
            slope=slope,
            length=self.directions.first_length(state.length, state.slope, slope),
            trials=trials,
            low=end,
            high=end,
            bracketed=value != value,
            memory=memory,
            error=norm,
            failure=failure,
        )


def _interpolate(a: _Point, b: _Point, noise: Number) -> Number:
    """Return where the cubic through two points has its minimum, kept off the ends.

    Of values that differ by no more than noise only the slopes count.
    """
    width = b.t - a.t
    mean = a.slope + b.slope - 3 * divide(a.value - b.value, a.t - b.t)
    discriminant = maximum(mean * mean - a.slope * b.slope, 0.0)
    spread = sign(width) * root(discriminant)
    cubic = b.t - width * divide(b.slope + spread - mean, b.slope - a.slope + 2 * spread)
    secant = b.t - width * divide(b.slope, b.slope - a.slope)
    t = select(abs(a.value - b.value) <= noise, secant, cubic)
    t = select(is_finite(t), t, a.t + 0.5 * width)
    first, second = a.t + 0.1 * width, a.t + 0.9 * width
    return clamp(t, minimum(first, second), maximum(first, second))
