"""Constants between boundaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchopt.schedule._base import BaseSchedule, cast, check_count, check_value

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar, Schedule

__all__ = ["piecewise_constant_schedule"]


@dataclasses.dataclass(frozen=True, eq=False)
class PiecewiseConstantSchedule(BaseSchedule):
    init_value: Scalar
    # pairs, in the order of the boundaries
    boundaries_and_scales: tuple[tuple[int, Scalar], ...]

    def __call__(self, step: Numeric) -> Numeric:
        value: Any = self.init_value
        scales = [scale for _, scale in self.boundaries_and_scales]
        if not isinstance(step, torch.Tensor):
            for boundary, scale in self.boundaries_and_scales:
                value = value * scale if step >= boundary else value
            return cast(value, self.init_value, *scales)
        value = torch.ones_like(step, dtype=torch.float64) * self.init_value
        for boundary, scale in self.boundaries_and_scales:
            value = torch.where(step >= boundary, value * scale, value)
        return cast(value, self.init_value, *scales)


def piecewise_constant_schedule(
    init_value: Scalar, boundaries_and_scales: Mapping[int, Scalar] | None = None
) -> Schedule:
    """Return a constant that is scaled on reaching each of some steps.

    Args:
        init_value: The value before the first boundary; may be a 0-dim tensor.
        boundaries_and_scales: Maps each boundary, a step, to the non-negative factor (which may be
            a 0-dim tensor) by which the value is scaled from that step on.

    Raises:
        TypeError: If a value is not a number, or a boundary not an int.
        ValueError: If a value is not finite, or a boundary or a factor is negative.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.piecewise_constant_schedule(1.0, {2: 0.1, 4: 0.5})
        >>> [schedule(step) for step in range(6)]
        [1.0, 1.0, 0.1, 0.1, 0.05, 0.05]
    """
    pairs = []
    for boundary, scale in (boundaries_and_scales or {}).items():
        name = f"boundaries_and_scales[{boundary!r}]"
        scale = check_value(name, scale)
        if not isinstance(scale, torch.Tensor) and scale < 0:
            raise ValueError(f"`{name}` must be non-negative, got {scale}")
        pairs.append((check_count("a key of boundaries_and_scales", boundary, 0), scale))
    return PiecewiseConstantSchedule(
        init_value=check_value("init_value", init_value),
        boundaries_and_scales=tuple(sorted(pairs, key=lambda pair: pair[0])),
    )
