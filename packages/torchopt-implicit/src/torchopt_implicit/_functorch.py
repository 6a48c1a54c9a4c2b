"""What `torch.func` keeps to itself: the one place for its private names, each with its reason.

A transform wraps the tensors of its level. Solvers run below all transforms, on plain tensors:
they look at residuals and stop, which a `bool` of a batched tensor refuses.
"""

from __future__ import annotations

import functools
from typing import Any

import optree
import torch
from torch.autograd import forward_ad

__all__ = [
    "innermost_is_jvp",
    "is_forward_mode",
    "is_readable",
    "is_transforming",
    "jvp_levels",
    "lower",
    "unwrap",
    "unwrap_dead",
]

_functorch = torch._C._functorch


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` is at work, which may need every value later."""
    return _functorch.peek_interpreter_stack() is not None


def innermost_is_jvp() -> bool:
    """Return whether the innermost transform is `torch.func.jvp`."""
    level = _functorch.peek_interpreter_stack()
    return level is not None and level.key() == _functorch.TransformType.Jvp


def jvp_levels() -> int:
    """Return how many transforms at work are `torch.func.jvp`."""
    stack = _functorch.get_interpreter_stack() or []
    return sum(level.key() == _functorch.TransformType.Jvp for level in stack)


def is_forward_mode() -> bool:
    """Return whether a `torch.autograd.forward_ad.dual_level` is open."""
    return forward_ad._current_level >= 0


def unwrap(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor underneath all transforms: all problems of all `vmap`."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def unwrap_dead(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor without the wrappers of transforms that have ended.

    A graph that outlives its transform, as that of `torch.func.vjp` does, saves such wrappers.
    Torch's operations unwrap them, a :class:`torch.autograd.Function` fails an assertion.
    """
    while True:
        inner: torch.Tensor = _functorch.unwrap_if_dead(x)
        if inner is x:
            return x
        x = inner


def is_readable(x: torch.Tensor) -> bool:
    """Return whether Python may branch on the tensor's values: not if `vmap` batches it."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return False
        x = _functorch.get_unwrapped(x)
    return True


def lower(tree: Any, guide: torch.Tensor) -> Any:
    """Return a tree of tensors underneath all transforms that wrap ``guide``.

    There each `vmap` is a dimension in front, of size 1 where a tensor had none.
    """
    while _functorch.is_functorch_wrapped_tensor(guide):
        level = _functorch.maybe_get_level(guide)
        batched = _functorch.is_batchedtensor(guide)
        peel = functools.partial(_peel, level=level, batched=batched)
        guide = peel(guide)
        tree = optree.tree_map(peel, tree)
    return tree


def _peel(x: torch.Tensor, level: int, batched: bool) -> torch.Tensor:
    if not _functorch.is_functorch_wrapped_tensor(x) or _functorch.maybe_get_level(x) != level:
        return x.unsqueeze(0) if batched else x
    dim = _functorch.maybe_get_bdim(x) if batched else None
    x = _functorch.get_unwrapped(x)
    return x if dim is None else x.movedim(dim, 0)
