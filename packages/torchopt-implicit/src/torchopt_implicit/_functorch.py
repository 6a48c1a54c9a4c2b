"""What `torch.func` keeps to itself: the one place for its private names, each with its reason.

A transform wraps the tensors of its level. Solvers run below all transforms, on plain tensors:
they look at residuals and stop, which a `bool` of a batched tensor refuses.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch.autograd import forward_ad

__all__ = [
    "age_of",
    "depth",
    "innermost_is_jvp",
    "is_differentiating",
    "is_forward_mode",
    "is_readable",
    "is_transforming",
    "is_wrapped",
    "jvp_levels",
    "layers",
    "level_of",
    "lower",
    "outside_transforms",
    "rebatched",
    "rewrap",
    "unbatched",
    "unwrap",
    "unwrap_above",
    "unwrap_dead",
    "without_autocast",
]

_functorch = torch._C._functorch


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` is at work, which may need every value later."""
    return _functorch.peek_interpreter_stack() is not None


def innermost_is_jvp() -> bool:
    """Return whether the innermost transform is `torch.func.jvp`."""
    level = _functorch.peek_interpreter_stack()
    return level is not None and level.key() == _functorch.TransformType.Jvp


def is_differentiating() -> bool:
    """Return whether a transform at work takes derivatives, as `vmap` does not."""
    kinds = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)
    return any(level.key() in kinds for level in _functorch.get_interpreter_stack() or ())


def jvp_levels() -> int:
    """Return how many transforms at work are `torch.func.jvp`."""
    stack = _functorch.get_interpreter_stack() or []
    return sum(level.key() == _functorch.TransformType.Jvp for level in stack)


def is_forward_mode() -> bool:
    """Return whether a `torch.autograd.forward_ad.dual_level` is open."""
    return forward_ad._current_level >= 0


def age_of(x: torch.Tensor) -> int:
    """Return the number of the operation that made a tensor with a graph, -1 of one without."""
    node = x.grad_fn
    return -1 if node is None else node._sequence_nr()


def unwrap(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor underneath all transforms: all problems of all `vmap`."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def layers(x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Return the tensor and what is in each of its wrappers, which have graphs of their own."""
    yield x
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
        yield x


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


def unbatched(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return a tensor with the batch of `is_grads_batched` in front, and the level of that batch.

    The level is 0 where there is none. `torch.autograd.grad` batches by an older `vmap`, which
    knows no custom rules.
    """
    if not _functorch.is_legacy_batchedtensor(x):
        return x, 0
    # threads of accelerators do not know how deep it is; then there is one
    level = max(torch._C._vmapmode_increment_nesting() - 1, 1)
    torch._C._vmapmode_decrement_nesting()
    return torch._remove_batch_dim(x, level, 1, 0), level


def rebatched(x: torch.Tensor, level: int) -> torch.Tensor:
    """Return the tensor with its first dimension as the batch of a level."""
    batched: torch.Tensor = torch._add_batch_dim(x, 0, level)
    return batched


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


@contextlib.contextmanager
def outside_transforms() -> Iterator[None]:
    """Have constants computed as if no transform were at work, batches of gradients included.

    `vmap` refuses random numbers of a seed of their own, `torch.func.grad` all sparse tensors.
    """
    levels = torch._C._vmapmode_increment_nesting()
    for _ in range(levels):
        torch._C._vmapmode_decrement_nesting()
    try:
        with torch._C._DisableFuncTorch():
            yield
    finally:
        for _ in range(levels - 1):
            torch._C._vmapmode_increment_nesting()


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Have everything computed in its own precision, on every kind of device.

    `torch.autocast` switches one kind off, and which one a backward does not know beforehand.
    """
    with torch._C._DisableAutocast():
        yield


def depth() -> int:
    """Return the level of the innermost transform at work, 0 outside of all."""
    level = _functorch.peek_interpreter_stack()
    return 0 if level is None else int(level.level())


def level_of(x: torch.Tensor) -> int:
    """Return the level of the transform that wraps the tensor, 0 or less if none does."""
    return int(_functorch.maybe_get_level(x))


def is_wrapped(x: torch.Tensor, *, above: int = 0) -> bool:
    """Return whether a transform wraps the tensor whose level is higher than ``above``."""
    return _functorch.is_functorch_wrapped_tensor(x) and _functorch.maybe_get_level(x) > above


def unwrap_above(x: torch.Tensor, level: int) -> torch.Tensor:
    """Return the tensor underneath the transforms whose level is higher than ``level``."""
    while is_wrapped(x, above=level):
        x = _functorch.get_unwrapped(x)
    return x


def rewrap(x: torch.Tensor, replace: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return a tensor wrapped as ``x`` is, around what replaces the tensor in that wrapper."""
    inner = _functorch.get_unwrapped(x)
    new = replace(inner)
    if new is inner:
        return x
    level = _functorch.maybe_get_level(x)
    if _functorch.is_batchedtensor(x):
        wrapped: torch.Tensor = _functorch._add_batch_dim(new, _functorch.maybe_get_bdim(x), level)
        return wrapped
    wrapped = _functorch._wrap_for_grad(new, level)
    return wrapped.requires_grad_() if x.requires_grad else wrapped
