"""Polynomial transitions, of which the linear one is a case."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from torchopt.schedule._base import (
    BaseSchedule,
    cast,
    check_count,
    check_value,
    elapsed,
    to_power,
)

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar, Schedule

__all__ = ["linear_schedule", "polynomial_schedule"]


@dataclasses.dataclass(frozen=True, eq=False)
class PolynomialSchedule(BaseSchedule):
    init_value: Scalar
    end_value: Scalar
    power: Scalar
    transition_steps: int
    transition_begin: int

    def __call__(self, step: Numeric) -> Numeric:
        steps = self.transition_steps
        done = elapsed(step, self.transition_begin, self.transition_begin + steps)
        remaining = to_power(1 - done / steps, self.power)
        # Written so that both ends are met exactly.
        value = remaining * self.init_value + (1 - remaining) * self.end_value
        return cast(value, self.init_value, self.end_value, self.power)


def polynomial_schedule(
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    r"""Return a polynomial transition from one value to another.

    At step :math:`t`, with :math:`b` = ``transition_begin``, :math:`T` = ``transition_steps`` and
    :math:`p` = ``power``, the value is

    .. math::
        (v_0 - v_T) \, \Bigl(1 - \tfrac{\min(\max(t - b, \, 0), \, T)}{T}\Bigr)^{p} + v_T .

    Args:
        init_value: The value :math:`v_0` up to step ``transition_begin``; may be a 0-dim tensor.
        end_value: The value :math:`v_T` once the transition is over; may be a 0-dim tensor.
        power: The non-negative degree; may be a 0-dim tensor.
        transition_steps: How many steps the transition takes, at least 1.
        transition_begin: The step it starts at.

    Raises:
        TypeError: If a value is not a number, or a count not an int.
        ValueError: If a value is not finite, ``power`` is negative, or a count is too small.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.polynomial_schedule(1.0, 0.0, power=2, transition_steps=4)
        >>> [schedule(step) for step in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """
    power = check_value("power", power)
    if not isinstance(power, torch.Tensor) and power < 0:
        raise ValueError(f"`power` must be non-negative, got {power}")
    return PolynomialSchedule(
        init_value=check_value("init_value", init_value),
        end_value=check_value("end_value", end_value),
        power=power,
        transition_steps=check_count("transition_steps", transition_steps, 1),
        transition_begin=check_count("transition_begin", transition_begin, 0),
    )


def linear_schedule(
    init_value: Scalar,
    end_value: Scalar,
    transition_steps: int,
    transition_begin: int = 0,
) -> Schedule:
    """Return a linear transition: :func:`polynomial_schedule` with ``power=1``.

    Example:
        >>> import torch, torchopt
        >>> schedule = torchopt.schedule.linear_schedule(0.0, 1.0, 4)
        >>> schedule(3)
        0.75
        >>> schedule(torch.arange(5))
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    return polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)
