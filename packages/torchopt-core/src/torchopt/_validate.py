"""Checks of hyperparameters. Tensors, which may be learned, are checked for their form only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import optree
import torch

from torchopt._types import Scalar

__all__ = [
    "check_betas",
    "check_flag",
    "check_learning_rate",
    "check_mask",
    "check_non_negative",
    "check_positive",
    "check_rate",
    "check_unit_interval",
    "is_scalar_tensor",
    "is_schedule",
]


def _is_checked_tensor(name: str, value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"`{name}` must be a number or a 0-dim tensor, got {type(value).__name__}"
            )
        return False
    if value.ndim != 0 or not value.is_floating_point():
        raise ValueError(
            f"`{name}` must be a number or a 0-dim floating point tensor, "
            f"got a {value.dtype} tensor of shape {tuple(value.shape)}"
        )
    return True


def check_non_negative(name: str, value: Scalar) -> None:
    """Raise unless ``0 <= value < inf``."""
    if not _is_checked_tensor(name, value) and not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be non-negative and finite, got {value}")


def check_positive(name: str, value: Scalar) -> None:
    """Raise unless ``0 < value < inf``."""
    if not _is_checked_tensor(name, value) and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"`{name}` must be positive and finite, got {value}")


def check_unit_interval(name: str, value: Scalar) -> None:
    """Raise unless ``0 <= value < 1``."""
    if not _is_checked_tensor(name, value) and not 0 <= value < 1:
        raise ValueError(f"`{name}` must be in [0, 1), got {value}")


def check_betas(betas: tuple[Scalar, Scalar]) -> None:
    """Raise unless ``betas`` is a pair of numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"`betas` must be a pair of numbers in [0, 1), got {betas!r}")
    for i, beta in enumerate(betas):
        check_unit_interval(f"betas[{i}]", beta)


def check_flag(name: str, value: Any) -> None:
    """Raise unless ``value`` is true or false, in whatever type says so."""
    if isinstance(value, str) or value not in (True, False):
        raise TypeError(f"`{name}` must be a bool, got {value!r}")


def check_mask(mask: Any) -> None:
    """Raise unless ``mask`` is a function, or a tree of bools; whether it fits shows later."""
    if isinstance(mask, (dict, list, tuple)):
        for part in mask.values() if isinstance(mask, dict) else mask:
            check_mask(part)
    elif not (mask is None or isinstance(mask, bool) or callable(mask)):
        raise TypeError(
            "`mask` must be a tree of bools, or a function from the parameters to one, "
            f"got {mask!r}"
        )


def is_scalar_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    """Return whether ``value`` is a 0-dim tensor."""
    return isinstance(value, torch.Tensor) and value.ndim == 0


def is_schedule(value: Any) -> TypeGuard[Callable[[Any], Any]]:
    """Return whether ``value`` is a function of the step, rather than a number or a tree."""
    return not isinstance(value, (int, float, torch.Tensor, dict, list, tuple)) and callable(value)


def check_learning_rate(lr: Any) -> None:
    """Raise unless ``lr`` is a non-negative number, a tensor, a schedule, or a tree of tensors."""
    if isinstance(lr, (int, float)):
        check_non_negative("lr", lr)
        return
    if is_schedule(lr):
        return
    leaves: list[Any] = optree.tree_leaves(lr)
    if not leaves or not all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in leaves):
        raise TypeError(
            "`lr` must be a number, a 0-dim tensor, a schedule, or a tree of floating point "
            f"tensors shaped like the parameters, got {lr!r}"
        )


def check_rate(name: str, value: Any) -> Scalar:
    """Return what a schedule returned; raise unless it is a number or a 0-dim tensor."""
    if isinstance(value, (int, float)) or is_scalar_tensor(value):
        return value
    if hasattr(value, "__array__") and getattr(value, "ndim", None) == 0:  # numpy's
        return float(value)
    found = type(value).__name__
    if isinstance(value, torch.Tensor):
        found = f"a tensor of shape {tuple(value.shape)}"
    raise ValueError(f"{name} must return a number or a 0-dim tensor, got {found}")
