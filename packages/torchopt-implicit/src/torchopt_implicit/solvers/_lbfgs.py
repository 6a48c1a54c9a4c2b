"""L-BFGS with a line search for the strong Wolfe conditions."""

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
    Objective,
    Solver,
    by_size,
    check_arguments,
    flat_value_and_grad,
)

__all__ = ["lbfgs"]

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
#: trials in a row without a step that decreases before the search is given up
MAX_TRIALS = 40


class _Point(NamedTuple):
    """A point on the search line, each field 0-dim."""

    t: torch.Tensor
    value: torch.Tensor
    slope: torch.Tensor


class _State(NamedTuple):
    x: torch.Tensor
    # objective and gradient at `x`, the direction and the slope along it
    value: torch.Tensor
    gradient: torch.Tensor
    direction: torch.Tensor
    slope: torch.Tensor
    # next length to try, and how many in a row did not lead to a decrease
    length: torch.Tensor
    trials: torch.Tensor
    # the best point of the line so far, and the other end once a minimum lies in between
    low: torch.Tensor
    high: torch.Tensor
    bracketed: torch.Tensor
    # moves of `x`, changes of the gradient, and one over their product; the newest last
    moves: torch.Tensor
    changes: torch.Tensor
    weights: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def lbfgs(
    objective: Objective,
    *,
    history: int = 10,
    maxiter: int = 500,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes by L-BFGS with strong Wolfe line searches.

    .. math::
        x^\star(\theta) = \arg\min_x f(x, \theta), \qquad
        x_{k+1} = x_k - t_k H_k \nabla_x f(x_k, \theta)

    where :math:`H_k` approximates the inverse Hessian from the last moves. One iteration is one
    evaluation of the objective and its gradient, which either is accepted as a step or narrows
    the search along the line. Derivatives come from :math:`\nabla_x f(x^\star, \theta) = 0`.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``.
        history: How many moves are remembered.
        maxiter: The most evaluations.
        tol: As in :func:`gradient_descent`.
        linear_solve: As in :func:`gradient_descent`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective`` or ``linear_solve`` is not callable.
        ValueError: If a number is out of its range, or the objective is not scalar.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import lbfgs
        >>> def rosenbrock(p, a, b):
        ...     return (a - p["x"]) ** 2 + b * (p["y"] - p["x"] ** 2) ** 2
        >>> a, b = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), torch.tensor(100.0)
        >>> start = {"x": torch.tensor(-1.0).double(), "y": torch.tensor(1.0).double()}
        >>> solution = lbfgs(rosenbrock)(start, a, b)  # x = a, y = a**2
        >>> torch.autograd.grad(solution["y"], a)
        (tensor(3.0000, dtype=torch.float64),)

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), algorithms 3.5, 3.6 and 7.5.
    """
    check_arguments(objective, "objective", maxiter, tol, linear_solve)
    if not isinstance(history, int) or history < 1:
        raise ValueError(f"`history` must be a positive integer, got {history!r}")

    def search(init: Any, *args: Any) -> tuple[Any, Info]:
        layout = Layout.of(init, "init")
        value_and_grad = flat_value_and_grad(objective, layout, args)
        state = _start(value_and_grad, layout.ravel(init, "init"), history)
        step = functools.partial(_step, value_and_grad)
        state, info = iterate(step, state, target=target_of(state, tol), maxiter=maxiter)
        return layout.unravel(state.x), info

    differentiate = functools.partial(
        custom_root,
        torch.func.grad(objective),
        solve=by_size(solves.CG) if linear_solve is None else linear_solve,
    )
    return Solver("lbfgs", search, differentiate, throw=throw)


def _start(
    value_and_grad: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    x: torch.Tensor,
    history: int,
) -> _State:
    value, gradient = value_and_grad(x)
    norm = torch.linalg.vector_norm(gradient)
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    none = x.new_zeros(history, x.numel())
    slope = -norm.square()
    end = torch.stack((torch.zeros_like(value), value, slope))
    return _State(
        x=x,
        value=value,
        gradient=gradient,
        direction=-gradient,
        slope=slope,
        length=1.0 / norm.clamp_min(1.0),
        trials=zero,
        low=end,
        high=end,
        bracketed=torch.zeros((), dtype=torch.bool, device=x.device),
        moves=none,
        changes=none,
        weights=x.new_zeros(history),
        error=norm,
        failure=zero,
    )


def _step(
    value_and_grad: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]], state: _State
) -> _State:
    t = state.length
    move = t * state.direction
    trial = state.x + move
    value, gradient = value_and_grad(trial)
    slope = gradient @ state.direction

    # differences below the rounding of the values decide nothing
    slack = 8 * torch.finfo(value.dtype).eps * state.value.abs()
    low, high = _Point(*state.low), _Point(*state.high)
    bound = torch.minimum(state.value + SUFFICIENT_DECREASE * t * state.slope, low.value)
    decreases = (value <= bound + slack) & torch.isfinite(slope)
    accept = decreases & (slope.abs() <= -CURVATURE * state.slope)

    # the minimum lies between the best point and the end towards which its slope descends
    here = torch.stack((t, value, slope))
    forwards = torch.where(state.bracketed, torch.sign(high.t - low.t), 1.0)
    turned = decreases & (slope * forwards >= 0)
    new_high = torch.where(decreases, torch.where(turned, state.low, state.high), here)
    new_low = torch.where(decreases, here, state.low)
    bracketed = state.bracketed | ~decreases | turned
    between = _interpolate(_Point(*new_low), _Point(*new_high))
    length = torch.where(bracketed, between, 2 * t)

    change = gradient - state.gradient
    product = move @ change
    useful = accept & (product > torch.finfo(value.dtype).eps * (change @ change))
    moves = _push(useful, state.moves, move)
    changes = _push(useful, state.changes, change)
    weights = _push(useful, state.weights, 1 / product)

    x = torch.where(accept, trial, state.x)
    new_value = torch.where(accept, value, state.value)
    new_gradient = torch.where(accept, gradient, state.gradient)
    quasi_newton = -_apply_inverse(new_gradient, moves, changes, weights)
    direction = torch.where(accept, quasi_newton, state.direction)
    new_slope = torch.where(accept, new_gradient @ quasi_newton, state.slope)
    end = torch.stack((torch.zeros_like(new_value), new_value, new_slope))
    trials = torch.where(accept & (value <= bound), 0, state.trials + 1)
    return _State(
        x=x,
        value=new_value,
        gradient=new_gradient,
        direction=direction,
        slope=new_slope,
        length=torch.where(accept, 1.0, length),
        trials=trials,
        low=torch.where(accept, end, new_low),
        high=torch.where(accept, end, new_high),
        bracketed=bracketed & ~accept,
        moves=moves,
        changes=changes,
        weights=weights,
        error=torch.linalg.vector_norm(new_gradient),
        failure=torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), 0),
    )


def _interpolate(a: _Point, b: _Point) -> torch.Tensor:
    """Return where the cubic through two points has its minimum, kept off the ends."""
    width = b.t - a.t
    mean = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
    root = torch.sign(width) * (mean.square() - a.slope * b.slope).clamp_min(0).sqrt()
    t = b.t - width * (b.slope + root - mean) / (b.slope - a.slope + 2 * root)
    t = torch.where(torch.isfinite(t), t, a.t + 0.5 * width)
    first, second = a.t + 0.1 * width, a.t + 0.9 * width
    return t.clamp(torch.minimum(first, second), torch.maximum(first, second))


def _push(wanted: torch.Tensor, rows: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return torch.where(wanted, torch.cat((rows[1:], row.unsqueeze(0))), rows)


def _apply_inverse(
    v: torch.Tensor, moves: torch.Tensor, changes: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Multiply by the approximate inverse Hessian; rows never filled have weight zero."""
    history = moves.shape[0]
    alphas = [weights[0]] * history
    for i in reversed(range(history)):
        alphas[i] = weights[i] * (moves[i] @ v)
        v = v - alphas[i] * changes[i]
    newest = changes[-1] @ changes[-1]
    v = v * torch.where(weights[-1] > 0, 1 / (weights[-1] * newest), 1.0)
    for i in range(history):
        v = v + (alphas[i] - weights[i] * (changes[i] @ v)) * moves[i]
    return v
