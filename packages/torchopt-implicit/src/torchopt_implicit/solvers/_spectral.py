"""Projected gradient steps of spectral length with backtracking."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from torchopt_implicit._status import Info, Status
from torchopt_implicit.solvers._loop import iterate, target_of

__all__ = ["descend"]

#: trials in a row without a decrease before the search is given up
MAX_TRIALS = 60
#: values that a new one is compared with, and the share of the linear decrease it has to have
MEMORY, SUFFICIENT_DECREASE = 10, 1e-4


class _State(NamedTuple):
    x: torch.Tensor
    # objective at the last points, the newest last, and its gradient at `x`
    values: torch.Tensor
    gradient: torch.Tensor
    # length of the next step
    length: torch.Tensor
    # in a row that did not decrease the objective
    trials: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def descend(
    value_and_grad: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    project: Callable[[torch.Tensor], torch.Tensor] | None,
    x: torch.Tensor,
    *,
    stepsize: float,
    tol: float | None,
    maxiter: int,
) -> tuple[torch.Tensor, Info]:
    r"""Minimize by steps :math:`x^+ = P(x - t \nabla f(x))`, one trial in each iteration.

    A step is accepted if it decreases the largest of the last ten values sufficiently,
    :math:`f(x^+) \le \max_{j < 10} f(x_{k-j}) + 10^{-4}\, \nabla f(x)^\top (x^+ - x)`. Then the
    next length is that of Barzilai and Borwein; after a rejected step it is where the parabola
    through the trial has its minimum, between a tenth and half of the length.

    The error is :math:`\|x - P(x - \nabla f(x))\|`.
    """
    eps = torch.finfo(x.dtype).eps

    def error_of(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        move = gradient if project is None else x - project(x - gradient)
        error: torch.Tensor = torch.linalg.vector_norm(move)
        return error

    def step(state: _State) -> _State:
        x, values, gradient, length, *_ = state
        value = values[-1]
        trial = x - length * gradient
        if project is not None:
            trial = project(trial)
        new_value, new_gradient = value_and_grad(trial)
        move = trial - x
        slope = gradient @ move
        # differences below the rounding of the values decide nothing
        slack = 8 * eps * value.abs()
        bound = values.amax() + SUFFICIENT_DECREASE * slope
        finite = torch.isfinite(new_gradient).all()
        accept = (new_value <= bound + slack) & finite

        curvature = move @ (new_gradient - gradient)
        spectral = torch.where(curvature > 0, (move @ move) / curvature, 4 * length)
        longer = spectral.clamp(length * 1e-3, length * 1e3)
        parabola = -length * slope / (2 * (new_value - value - slope))
        parabola = torch.where(torch.isfinite(parabola), parabola, 0.0)
        shorter = parabola.clamp(0.1 * length, 0.5 * length)

        trials = torch.where((new_value <= bound) & finite, 0, state.trials + 1)
        x = torch.where(accept, trial, x)
        gradient = torch.where(accept, new_gradient, gradient)
        return _State(
            x=x,
            values=torch.where(accept, torch.cat((values[1:], new_value.reshape(1))), values),
            gradient=gradient,
            length=torch.where(accept, longer, shorter),
            trials=trials,
            error=error_of(x, gradient),
            failure=torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), 0),
        )

    if project is not None:
        x = project(x)
    value, gradient = value_and_grad(x)
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    state = _State(
        x=x,
        values=value.expand(MEMORY),
        gradient=gradient,
        length=torch.full_like(value, stepsize),
        trials=zero,
        error=error_of(x, gradient),
        failure=zero,
    )
    state, info = iterate(step, state, target=target_of(state, tol), maxiter=maxiter)
    return state.x, info
