"""The few numbers a step decides by: floats where Python may read them, else 0-dim tensors.

A line search compares and divides some scalars for each vector operation. As tensors each of these
costs a dispatch; as floats, next to nothing, and what a comparison rules out is not computed at
all. Under `torch.vmap`, and on a device which reading would make wait, the same formula runs on
tensors. These functions take both.

What is read is a constant to autograd: where a solver's steps are differentiated, lengths and
weights of a step are not.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch

from torchopt_implicit._functorch import is_readable, is_transforming

__all__ = [
    "Flag",
    "Number",
    "add_scaled",
    "clamp",
    "coefficient",
    "divide",
    "is_finite",
    "like",
    "maximum",
    "minimum",
    "negate",
    "read",
    "root",
    "select",
    "sign",
]

#: a float, or a 0-dim tensor that a `vmap` may batch
Number: TypeAlias = Any
#: a bool, or such a tensor of bools
Flag: TypeAlias = Any


def is_host(device: torch.device) -> bool:
    """Return whether reading a value makes nobody wait."""
    return device.type == "cpu"


def read(*tensors: torch.Tensor) -> tuple[Number, ...]:
    """Return 0-dim tensors as floats if all can be read, else detached."""
    if all(is_readable(x) and is_host(x.device) for x in tensors):
        return tuple(x.item() for x in tensors)
    return tuple(x.detach() for x in tensors)


def like(number: Number, value: float) -> Number:
    """Return a value as a number of the kind of another one, tensors with the batch of that."""
    if not isinstance(number, torch.Tensor):
        return value
    dtype = torch.int64 if isinstance(value, int) else number.dtype
    return torch.full_like(number, value, dtype=dtype)


def coefficient(product: torch.Tensor, weight: Number = 1.0) -> Number:
    """Return ``weight * product`` for use with :func:`add_scaled`, a float only if none records.

    Unlike :func:`read` it keeps the derivative: for formulas that are linear in a gradient.
    """
    if not is_transforming() and not product.requires_grad and is_host(product.device):
        return weight * product.item()
    return weight * product


def add_scaled(x: torch.Tensor, a: Number, y: torch.Tensor) -> torch.Tensor:
    """Return ``x + a * y``, in one pass over memory for a float."""
    return x + a * y if isinstance(a, torch.Tensor) else torch.add(x, y, alpha=a)


def select(flag: Flag, new: Any, old: Any) -> Any:
    """Return ``new`` where the flag holds and ``old`` elsewhere, of numbers or trees of tensors.

    Trees are tuples, named ones among them, of the same structure.
    """
    if not isinstance(flag, torch.Tensor):
        return new if flag else old
    if isinstance(new, tuple):
        parts = [select(flag, n, o) for n, o in zip(new, old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    if new is old:
        return new
    ndim = new.ndim if isinstance(new, torch.Tensor) else 0
    return torch.where(flag.reshape(flag.shape + (1,) * (ndim - flag.ndim)), new, old)


def negate(flag: Flag) -> Flag:
    """Return the contrary."""
    return ~flag if isinstance(flag, torch.Tensor) else not flag


def is_finite(x: Number) -> Flag:
    """Return whether a number is neither NaN nor infinite."""
    return torch.isfinite(x) if isinstance(x, torch.Tensor) else math.isfinite(x)


def divide(x: Number, y: Number) -> Number:
    """Return the quotient; of floats, too, infinite or NaN where the divisor is zero."""
    if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor) or y != 0:
        return x / y
    return math.nan if x == 0 or x != x else math.copysign(math.inf, x) * math.copysign(1.0, y)


def root(x: Number) -> Number:
    """Return the square root, of a negative number NaN."""
    if isinstance(x, torch.Tensor):
        return x.sqrt()
    return math.sqrt(x) if x >= 0 else math.nan


def sign(x: Number) -> Number:
    """Return -1, 0 or 1, of NaN 0."""
    return torch.sign(x) if isinstance(x, torch.Tensor) else float((x > 0) - (x < 0))


def minimum(x: Number, y: Number) -> Number:
    """Return the smaller of two; NaN if one is."""
    if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor):
        return torch.minimum(*_tensors(x, y))
    return x if x <= y or x != x else y


def maximum(x: Number, y: Number) -> Number:
    """Return the larger of two; NaN if one is."""
    if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor):
        return torch.maximum(*_tensors(x, y))
    return x if x >= y or x != x else y


def _tensors(x: Number, y: Number) -> tuple[torch.Tensor, torch.Tensor]:
    like = x if isinstance(x, torch.Tensor) else y
    one, other = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (x, y))
    return one, other


def clamp(x: Number, low: Number, high: Number) -> Number:
    """Return the nearest number between two; of NaN, NaN."""
    return minimum(maximum(x, low), high)
