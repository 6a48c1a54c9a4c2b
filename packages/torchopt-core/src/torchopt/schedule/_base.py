"""What the schedules share: comparison, checks of arguments, and functions of number or tensor."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch

if TYPE_CHECKING:
    from torchopt.typing import Numeric, Scalar

__all__ = ["BaseSchedule", "bounded", "cast", "check_count", "check_value", "elapsed", "to_power"]


@dataclasses.dataclass(frozen=True, eq=False)
class BaseSchedule(ABC):
    """A function of the step, whose fields are its arguments. Equal if the arguments are."""

    @abstractmethod
    def __call__(self, step: Numeric) -> Numeric:
        """Return the value after ``step`` steps, elementwise for a tensor."""

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        assert isinstance(other, BaseSchedule)
        return self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(type(self))  # equal tensors hash differently


def check_value(name: str, value: Any) -> Scalar:
    """Return ``value`` as a float, or as the 0-dim tensor that it is; raise if it is neither."""
    if isinstance(value, torch.Tensor):
        if value.ndim != 0 or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a number or a 0-dim floating point tensor, "
                f"got a {value.dtype} tensor of shape {tuple(value.shape)}"
            )
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}` must be a number or a 0-dim tensor, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"`{name}` must be finite, got {number}")
    return number


def check_count(name: str, value: SupportsIndex, least: int) -> int:
    """Return ``value`` as an int; raise unless it is a whole number and at least ``least``."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, got {value!r}") from None
    if count < least:
        raise ValueError(f"`{name}` must be at least {least}, got {count}")
    return count


def elapsed(step: Any, begin: int, end: float = math.inf) -> Any:
    """Return the steps made since ``begin``, at most up to ``end``; a tensor in float64.

    An int32 count would lose nothing in float64, but everything past 2**24 in float32.
    """
    if isinstance(step, torch.Tensor):
        return step.to(torch.float64).clamp(begin, end) - begin
    return min(max(step, begin), end) - begin


def to_power(base: Any, exponent: Any) -> Any:
    """Return ``base ** exponent``; infinity, as for tensors, where Python raises OverflowError."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf


def bounded(x: Any, bound: Any, below: Any) -> Any:
    """Return ``x`` kept above ``bound`` where ``below`` holds, and below it elsewhere."""
    if not any(isinstance(value, torch.Tensor) for value in (x, bound, below)):
        return max(x, bound) if below else min(x, bound)
    x, bound = _as_tensor(x), _as_tensor(bound)
    return torch.where(torch.as_tensor(below), torch.maximum(x, bound), torch.minimum(x, bound))


def _as_tensor(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float64)


def cast(result: Numeric, *values: Scalar) -> Numeric:
    """Return ``result`` in the common dtype of the ``values`` that are tensors."""
    dtypes = [value.dtype for value in values if isinstance(value, torch.Tensor)]
    if isinstance(result, torch.Tensor) and dtypes:
        return result.to(functools.reduce(torch.promote_types, dtypes))
    return result
