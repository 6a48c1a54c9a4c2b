"""Projected gradient steps of spectral length with backtracking."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit._status import Status
from torchopt_implicit.solvers._flat import ValueAndGrad
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import (
    Number,
    add_scaled,
    clamp,
    divide,
    is_finite,
    like,
    maximum,
    read,
    select,
)

__all__ = ["SpectralGradient"]

#: trials in a row without a decrease before the search is given up
MAX_TRIALS = 60
#: values that a new one is compared with, and the share of the linear decrease it has to have
MEMORY, SUFFICIENT_DECREASE = 10, 1e-4


class _State(NamedTuple):
    x: torch.Tensor
    # objective at the last points, the newest last, and its gradient at `x`
    values: tuple[Number, ...]
    gradient: torch.Tensor
    # length of the next step
    length: Number
    # in a row that did not decrease the objective
    trials: Any
    error: Number
    failure: Any


@dataclasses.dataclass(frozen=True)
class SpectralGradient(Method[_State]):
    r"""Steps :math:`x^+ = P(x - t \nabla f(x))`, one trial in each iteration.

    A step is accepted if it decreases the largest of the last ten values sufficiently,
    :math:`f(x^+) \le \max_{j < 10} f(x_{k-j}) + 10^{-4}\, \nabla f(x)^\top (x^+ - x)`. Then the
    next length is that of Barzilai and Borwein; after a rejected step it is where the parabola
    through the trial has its minimum, between a tenth and half of the length.

    The error is :math:`\|x - P(x - \nabla f(x))\|`.
    """

    value_and_grad: ValueAndGrad
    project: Callable[[torch.Tensor], torch.Tensor] | None
    stepsize: float
    # below this, relative to the objective, differences decide nothing
    eps: float

    def init_state(self, x: torch.Tensor) -> _State:
        if self.project is not None:
            x = self.project(x)
        objective, gradient = self.value_and_grad(x)
        value, error = read(objective, self._error(x, gradient))
        zero = like(error, 0)
        length = like(error, self.stepsize)
        return _State(x, (value,) * MEMORY, gradient, length, zero, error, zero)

    def update(self, state: _State) -> _State:
        x, values, gradient, length, *_ = state
        value = values[-1]
        trial = add_scaled(x, -length, gradient)
        if self.project is not None:
            trial = self.project(trial)
        objective, new_gradient = self.value_and_grad(trial)
        move, change = (trial - x).detach(), (new_gradient - gradient).detach()
        new_value, slope, curvature, square, new_error, finite = read(
            objective,
            gradient @ move,
            move @ change,
            move @ move,
            self._error(trial, new_gradient),
            torch.isfinite(new_gradient).all(),
        )
        # differences below the rounding of the values decide nothing
        slack = 8 * self.eps * abs(value)
        bound = functools.reduce(maximum, values) + SUFFICIENT_DECREASE * slope
        accept = (new_value <= bound + slack) & finite

        spectral = select(curvature > 0, divide(square, curvature), 4 * length)
        longer = clamp(spectral, length * 1e-3, length * 1e3)
        parabola = divide(-length * slope, 2 * (new_value - value - slope))
        parabola = select(is_finite(parabola), parabola, like(length, 0.0))
        shorter = clamp(parabola, 0.1 * length, 0.5 * length)

        trials = select((new_value <= bound) & finite, like(value, 0), state.trials + 1)
        failure = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
        kept = state._replace(length=shorter, trials=trials, failure=failure)
        taken = _State(
            trial, (*values[1:], new_value), new_gradient, longer, trials, new_error, failure
        )
        return select(accept, taken, kept)  # type: ignore[no-any-return]

    def _error(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        move = gradient if self.project is None else x - self.project(x - gradient)
        error: torch.Tensor = torch.linalg.vector_norm(move)
        return error
