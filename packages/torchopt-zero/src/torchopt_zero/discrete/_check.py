"""Checks of arguments that more than one estimator takes."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_generator", "check_integer", "check_logits", "check_positive"]


def check_positive(value: Any, name: str) -> None:
    """Raise unless a value is a positive, finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a positive number, got {type(value).__name__}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {value}")


def check_integer(value: Any, name: str) -> None:
    """Raise unless a value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")


def check_generator(value: Any) -> None:
    """Raise unless a value is a random generator or ``None``."""
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator or None, got {type(value).__name__}; make one "
            f"with `torch.Generator().manual_seed(0)`"
        )


def check_logits(value: Any, dim: int = 1) -> None:
    """Raise unless a value is a floating-point tensor of at least some dimensions."""
    if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"`logits` must be a floating-point tensor, got {got}")
    if value.ndim < dim:
        raise ValueError(
            f"`logits` must have at least {dim} dimension, that of the categories, got shape "
            f"{tuple(value.shape)}"
        )
