"""Cosine decay, alone and after a linear warm-up."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch

from torchopt.schedule._base import (
    BaseSchedule,
    cast,
    check_count,
    check_value,
    elapsed,
    to_power,
)
from torchopt.schedule._join import join_schedules
from torchopt.schedule._polynomial import linear_schedule

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar, Schedule

__all__ = ["cosine_decay_schedule", "warmup_cosine_decay_schedule"]


@dataclasses.dataclass(frozen=True, eq=False)
class CosineDecay(BaseSchedule):
    init_value: Scalar
    end_value: Scalar
    decay_steps: int
    exponent: Scalar

    def __call__(self, step: Numeric) -> Numeric:
        angle = elapsed(step, 0, self.decay_steps) * (math.pi / self.decay_steps)
        remaining = to_power((1 + _cos(angle)) / 2, self.exponent)
        value = remaining * self.init_value + (1 - remaining) * self.end_value
        return cast(value, self.init_value, self.end_value, self.exponent)


def _cos(x: Any) -> Any:
    return torch.cos(x) if isinstance(x, torch.Tensor) else math.cos(x)


def _cosine(init_value: Scalar, end_value: Scalar, decay_steps: int, exponent: Scalar) -> Schedule:
    exponent = check_value("exponent", exponent)
    if not isinstance(exponent, torch.Tensor) and exponent <= 0:
        raise ValueError(f"`exponent` must be positive, got {exponent}")
    return CosineDecay(init_value, end_value, decay_steps, exponent)


def cosine_decay_schedule(
    init_value: Scalar, decay_steps: int, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> Schedule:
    r"""Return a decay along half a period of the cosine.

    At step :math:`t`, with :math:`T` = ``decay_steps`` and :math:`p` = ``exponent``, the value is

    .. math::
        v_0 \Bigl[(1 - \alpha) \Bigl(\tfrac{1}{2}
        \bigl(1 + \cos \tfrac{\pi \min(t, \, T)}{T}\bigr)\Bigr)^{p} + \alpha\Bigr] .

    Args:
        init_value: The value :math:`v_0` at step 0; may be a 0-dim tensor.
        decay_steps: How many steps the decay takes, at least 1.
        alpha: What fraction of ``init_value`` remains at the end; may be a 0-dim tensor.
        exponent: The positive power :math:`p`; may be a 0-dim tensor.

    Raises:
        TypeError: If a value is not a number, or a count not an int.
        ValueError: If a value is not finite, ``exponent`` is not positive, or ``decay_steps`` is
            too small.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.cosine_decay_schedule(1.0, decay_steps=4)
        >>> [round(schedule(step), 4) for step in range(6)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]

    Reference:
        Loshchilov and Hutter (2017), "SGDR: Stochastic gradient descent with warm restarts", eq. 5.
    """
    init_value = check_value("init_value", init_value)
    end_value = check_value("alpha", alpha) * init_value
    return _cosine(init_value, end_value, check_count("decay_steps", decay_steps, 1), exponent)


def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: int,
    decay_steps: int,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Schedule:
    """Return a linear warm-up, followed by a cosine decay.

    Args:
        init_value: The value at step 0; may be a 0-dim tensor, as all values here.
        peak_value: The value at step ``warmup_steps``.
        warmup_steps: How many steps the warm-up takes; 0 for none.
        decay_steps: How many steps both take together, more than ``warmup_steps``.
        end_value: The value from step ``decay_steps`` on.
        exponent: The positive power of the decay, as in :func:`cosine_decay_schedule`.

    Raises:
        TypeError: If a value is not a number, or a count not an int.
        ValueError: If a value is not finite, ``exponent`` is not positive, or a count is too small.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.warmup_cosine_decay_schedule(0.0, 1.0, 2, 6)
        >>> [round(schedule(step), 4) for step in range(8)]
        [0.0, 0.5, 1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    """
    warmup_steps = check_count("warmup_steps", warmup_steps, 0)
    decay_steps = check_count("decay_steps", decay_steps, 1)
    if decay_steps <= warmup_steps:
        raise ValueError(
            f"`decay_steps` counts the warm-up in and must be more than `warmup_steps` "
            f"({warmup_steps}), got {decay_steps}"
        )
    init_value = check_value("init_value", init_value)
    peak_value = check_value("peak_value", peak_value)
    end_value = check_value("end_value", end_value)
    decay = _cosine(peak_value, end_value, decay_steps - warmup_steps, exponent)
    if warmup_steps == 0:
        return decay
    return join_schedules(
        [linear_schedule(init_value, peak_value, warmup_steps), decay], [warmup_steps]
    )
