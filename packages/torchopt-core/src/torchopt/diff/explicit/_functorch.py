"""What `torch.func` keeps to itself: the private names this package needs, each with its reason."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

__all__ = [
    "cut",
    "forward_mode",
    "graph_time",
    "is_active",
    "is_batched_here",
    "is_wrapped",
    "jvp_levels",
    "legacy_batch",
    "level",
    "unwrap_dead",
]

_functorch = torch._C._functorch


def level() -> int:
    """Return the level of the innermost transform, 0 without one."""
    found: int = _functorch.maybe_current_level() or 0
    return found


def is_wrapped(x: torch.Tensor, above: int = 0) -> bool:
    """Return whether a transform of a level higher than ``above`` has wrapped the tensor."""
    return bool(_functorch.is_functorch_wrapped_tensor(x)) and (
        _functorch.maybe_get_level(x) > above
    )


def is_active(x: torch.Tensor) -> bool:
    """Return whether derivatives in the tensor may be asked for, or a transform has wrapped it."""
    if x.requires_grad or is_wrapped(x):
        return True
    if forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def is_batched_here(x: torch.Tensor) -> bool:
    """Return whether the innermost transform is a `vmap` that batches the tensor.

    What it does not batch has no dimension of it, and can leave it as it is.
    """
    return bool(_functorch.is_batchedtensor(x)) and _functorch.maybe_get_level(x) == level()


def jvp_levels() -> int:
    """Return how many transforms at work are `torch.func.jvp`."""
    stack = _functorch.get_interpreter_stack() or []
    return sum(one.key() == _functorch.TransformType.Jvp for one in stack)


def cut(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its graph, but with its tangent, which `detach` drops, too."""
    if forward_ad._current_level < 0:
        return x.detach()
    primal, tangent = forward_ad.unpack_dual(x)  # type: ignore[no-untyped-call]
    if tangent is None:
        return x.detach()
    dual: torch.Tensor
    dual = forward_ad.make_dual(primal.detach(), tangent.detach())  # type: ignore[no-untyped-call]
    return dual


class LegacyBatch(NamedTuple):
    """What `is_grads_batched` of :func:`torch.autograd.grad` batches, which is no `torch.vmap`."""

    level: int
    size: int

    def unwrapped(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the tensors with the batch as their first dimension."""
        return [torch._remove_batch_dim(x, self.level, self.size, 0) for x in tensors]

    def wrapped(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return tensors of which the first dimension is the batch."""
        return [torch._add_batch_dim(x, 0, self.level) for x in tensors]


def legacy_batch(tensors: Sequence[torch.Tensor]) -> LegacyBatch | None:
    """Return the batch of some cotangents, if :func:`torch.autograd.grad` has made one."""
    for x in tensors:
        if _functorch.is_legacy_batchedtensor(x):
            level = torch._C._vmapmode_increment_nesting() - 1
            torch._C._vmapmode_decrement_nesting()
            return LegacyBatch(level, torch._remove_batch_dim(x, level, 1, 0).shape[0])
    return None


def forward_mode() -> contextlib.AbstractContextManager[Any]:
    """Switch forward mode on, which is off within a :class:`torch.autograd.Function`."""
    found: contextlib.AbstractContextManager[Any]
    found = forward_ad._set_fwd_grad_enabled(True)
    return found


def unwrap_dead(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor without the wrappers of transforms that have ended.

    A graph that outlives its transform, as that of `torch.func.vjp` does, saves such wrappers.
    """
    while True:
        inner: torch.Tensor = _functorch.unwrap_if_dead(x)
        if inner is x:
            return x
        x = inner


def graph_time() -> int:
    """Return a number that nodes of the graph made from now on in this thread do not fall below."""
    return int(torch._C._autograd._get_sequence_nr())
