"""Exponential decay, or growth."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from torchopt.schedule._base import (
    BaseSchedule,
    bounded,
    cast,
    check_count,
    check_value,
    elapsed,
    to_power,
)

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar, Schedule

__all__ = ["exponential_decay"]


@dataclasses.dataclass(frozen=True, eq=False)
class ExponentialDecay(BaseSchedule):
    init_value: Scalar
    decay_rate: Scalar
    transition_begin: int
    transition_steps: int
    staircase: bool
    end_value: Scalar | None

    def __call__(self, step: Numeric) -> Numeric:
        exponent = elapsed(step, self.transition_begin) / self.transition_steps
        if self.staircase:
            is_tensor = isinstance(exponent, torch.Tensor)
            exponent = torch.floor(exponent) if is_tensor else math.floor(exponent)
        value = self.init_value * to_power(self.decay_rate, exponent)
        if self.end_value is None:
            return cast(value, self.init_value, self.decay_rate)
        value = bounded(value, self.end_value, self.decay_rate < 1)
        return cast(value, self.init_value, self.decay_rate, self.end_value)


def exponential_decay(
    init_value: Scalar,
    decay_rate: Scalar,
    transition_begin: int = 0,
    transition_steps: int = 1,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    r"""Return an exponential decay, or growth.

    At step :math:`t`, with :math:`b` = ``transition_begin`` and :math:`T` = ``transition_steps``,
    the value is

    .. math::
        v_0 \, r^{\max(t - b, \, 0) / T} .

    Args:
        init_value: The value :math:`v_0` up to step ``transition_begin``; may be a 0-dim tensor.
        decay_rate: The positive factor :math:`r` of ``transition_steps`` steps; may be a 0-dim
            tensor.
        transition_begin: The step the decay starts at.
        transition_steps: How many steps one factor takes, at least 1.
        staircase: Whether to round the exponent down, so that the value is piecewise constant.
        end_value: A bound that the value does not pass: a lower one if ``decay_rate < 1``, else an
            upper one. May be a 0-dim tensor; ``None`` for no bound.

    Raises:
        TypeError: If a value is not a number, or a count not an int.
        ValueError: If a value is not finite, ``decay_rate`` is not positive, or a count is too
            small.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.exponential_decay(1.0, 0.5, transition_begin=1)
        >>> [schedule(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.25, 0.125]
    """
    decay_rate = check_value("decay_rate", decay_rate)
    if not isinstance(decay_rate, torch.Tensor) and decay_rate <= 0:
        raise ValueError(
            f"`decay_rate` must be positive, got {decay_rate}; "
            "for a constant use `constant_schedule`"
        )
    return ExponentialDecay(
        init_value=check_value("init_value", init_value),
        decay_rate=decay_rate,
        transition_begin=check_count("transition_begin", transition_begin, 0),
        transition_steps=check_count("transition_steps", transition_steps, 1),
        staircase=staircase,
        end_value=None if end_value is None else check_value("end_value", end_value),
    )
