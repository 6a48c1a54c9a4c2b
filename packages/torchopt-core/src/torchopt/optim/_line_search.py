"""A line search for the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["Point", "strong_wolfe"]


class Point(NamedTuple):
    """A point on the line: step size, value, gradient, and slope along the line."""

    t: Any
    value: Any
    grad: torch.Tensor
    slope: Any


def _cubic_minimum(one: Point, two: Point, low: Any, high: Any) -> Any:
    """Return the minimizer, within bounds, of the cubic through two points and their slopes.

    Nocedal, Wright, "Numerical Optimization", 2nd edition, equation 3.59.
    """
    d1 = one.slope + two.slope - 3 * (one.value - two.value) / (one.t - two.t)
    square = d1**2 - one.slope * two.slope
    if not square >= 0:
        return (low + high) / 2.0
    if not one.t <= two.t:
        one, two = two, one
    d2 = square**0.5
    ratio = (two.slope + d2 - d1) / (two.slope - one.slope + 2 * d2)
    return min(max(two.t - (two.t - one.t) * ratio, low), high)


def strong_wolfe(
    evaluate: Callable[[Any], Point],
    start: Point,
    t: Any,
    length: Any,
    budget: int,
    *,
    c1: float = 1e-4,
    c2: float = 0.9,
    tolerance: float = 1e-9,
) -> tuple[Point, int]:
    r"""Return a point that satisfies the strong Wolfe conditions, and the number of evaluations.

    .. math::
        f(t) \le f(0) + c_1 t f'(0), \qquad |f'(t)| \le c_2 |f'(0)| .

    First the step grows until an interval is known to contain such a point; then the interval
    shrinks around it (Nocedal, Wright, "Numerical Optimization", Algorithms 3.5 and 3.6, with the
    safeguards of Schmidt's minFunc).

    Args:
        evaluate: From a step size to the point there.
        start: The point at zero.
        t: The first step size.
        length: The largest entry of the direction.
        budget: The most evaluations beyond the first.
        c1: :math:`c_1`.
        c2: :math:`c_2`.
        tolerance: The smallest interval, as a change of the parameters.
    """

    def decreases(point: Point) -> Any:
        return point.value <= start.value + c1 * point.t * start.slope

    def is_flat(point: Point) -> Any:
        return abs(point.slope) <= -c2 * start.slope

    previous, now, evaluations = start, evaluate(t), 1
    bracket: list[Point] = []
    is_found = False
    rounds = 0
    while rounds < budget:
        if not decreases(now) or (rounds > 1 and now.value >= previous.value):
            bracket = [previous, now]
            break
        if is_flat(now):
            bracket, is_found = [now], True
            break
        if now.slope >= 0:
            bracket = [previous, now]
            break
        low, high = now.t + 0.01 * (now.t - previous.t), now.t * 10
        t = _cubic_minimum(previous, now, low, high)
        previous, now = now, evaluate(t)
        evaluations += 1
        rounds += 1
    if rounds == budget:
        bracket = [start, now]

    stalled = False
    best, other = _ordered(bracket)
    while not is_found and rounds < budget:
        if abs(bracket[1].t - bracket[0].t) * length < tolerance:
            break
        left, right = (f(bracket[0].t, bracket[1].t) for f in (min, max))
        t = _cubic_minimum(bracket[0], bracket[1], left, right)
        # keep away from the ends, unless the last step did not come near one
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            if stalled or t >= right or t <= left:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                stalled = False
            else:
                stalled = True
        else:
            stalled = False
        now = evaluate(t)
        evaluations += 1
        rounds += 1
        if not decreases(now) or now.value >= bracket[best].value:
            bracket[other] = now
            best, other = _ordered(bracket)
        else:
            if is_flat(now):
                is_found = True
            elif now.slope * (bracket[other].t - bracket[best].t) >= 0:
                bracket[other] = bracket[best]
            bracket[best] = now
    return bracket[best], evaluations


def _ordered(bracket: list[Point]) -> tuple[int, int]:
    """Return the positions of the lower and of the higher point."""
    return (0, len(bracket) - 1) if bracket[0].value <= bracket[-1].value else (1, 0)
