"""Schedules one after the other."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from torchopt.schedule._base import BaseSchedule, check_count

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Schedule

__all__ = ["join_schedules"]


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedSchedule(BaseSchedule):
    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __call__(self, step: Numeric) -> Numeric:
        begins = (0, *self.boundaries)
        if not isinstance(step, torch.Tensor):
            i = bisect.bisect_right(self.boundaries, step)
            return self.schedules[i](step - begins[i])
        ends = (*self.boundaries, None)
        # Each is evaluated everywhere, so keep it within its own steps: an infinity that is not
        # selected would still turn gradients into NaN.
        values = [
            _as_tensor(schedule(step.clamp(begin, end) - begin), step)
            for schedule, begin, end in zip(self.schedules, begins, ends, strict=True)
        ]
        value = values[0]
        for begin, later in zip(self.boundaries, values[1:], strict=True):
            value = torch.where(step < begin, value, later)
        return value


def _as_tensor(value: Any, step: torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    return torch.full_like(step, value, dtype=torch.float64)


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Return the schedule that follows several, one after the other.

    Args:
        schedules: The schedules, at least one. Each counts its steps from its own beginning.
        boundaries: The steps at which the second, third... begin, in increasing order: one fewer
            than the schedules.

    Raises:
        TypeError: If a schedule is not callable or a boundary not an int.
        ValueError: If the numbers do not match, or the boundaries do not increase.

    Example:
        >>> from torchopt.schedule import constant_schedule, join_schedules, linear_schedule
        >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 2), constant_schedule(0.5)], [3])
        >>> [schedule(step) for step in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.5]
    """
    schedules = tuple(schedules)
    boundaries = tuple(check_count("boundaries", boundary, 0) for boundary in boundaries)
    for schedule in schedules:
        if not callable(schedule):
            raise TypeError(f"`schedules` must be functions of the step, got {schedule!r}")
    if len(schedules) != len(boundaries) + 1:
        raise ValueError(
            f"`boundaries` must be one fewer than `schedules`, "
            f"got {len(boundaries)} for {len(schedules)} schedules"
        )
    if any(a >= b for a, b in itertools.pairwise((-1, *boundaries))):
        raise ValueError(f"`boundaries` must increase, got {boundaries}")
    return JoinedSchedule(schedules, boundaries)
