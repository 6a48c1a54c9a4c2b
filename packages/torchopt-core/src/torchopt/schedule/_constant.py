"""A value that never changes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from torchopt.schedule._base import BaseSchedule, check_value

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar, Schedule

__all__ = ["constant_schedule"]


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantSchedule(BaseSchedule):
    value: Scalar

    def __call__(self, step: Numeric) -> Numeric:
        if not isinstance(step, torch.Tensor):
            return self.value
        if isinstance(self.value, torch.Tensor):
            return self.value.expand(step.shape)
        return torch.full_like(step, self.value, dtype=torch.float64)


def constant_schedule(value: Scalar) -> Schedule:
    """Return the schedule that is ``value`` at every step.

    Args:
        value: A number or a 0-dim tensor.

    Example:
        >>> import torchopt
        >>> torchopt.schedule.constant_schedule(0.1)(1000)
        0.1
    """
    return ConstantSchedule(check_value("value", value))
