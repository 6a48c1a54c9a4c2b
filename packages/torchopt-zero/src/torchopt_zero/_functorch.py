"""What torch has no public name for: what a tensor is under the transforms of `torch.func`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch._C import _functorch  # the wrappers of `torch.func`, which nothing public tells apart


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor belongs to a transform that is running, or has ended."""
    return bool(_functorch.is_functorch_wrapped_tensor(tensor))


def level(tensor: Tensor) -> int:
    """Return the nesting depth of the transform that a tensor belongs to, -1 without one."""
    return int(_functorch.maybe_get_level(tensor))


def current_level() -> int:
    """Return the nesting depth of the innermost transform that is running, 0 without one."""
    return int(_functorch.get_dynamic_layer_stack_depth())


def is_batching() -> bool:
    """Return whether `torch.func.vmap` is one of the transforms that are running."""
    stack = _functorch.get_interpreter_stack() or []
    return any(one.key() == _functorch.TransformType.Vmap for one in stack)


def layers(tensor: Tensor) -> list[Tensor]:
    """Return a tensor and what its wrappers hold, from the outside in."""
    found = [tensor]
    while is_wrapped(found[-1]):
        found.append(_functorch.get_unwrapped(found[-1]))
    return found


def is_differentiated(tensor: Tensor) -> bool:
    """Return whether anything around may ask for a derivative with respect to a tensor."""
    if not is_wrapped(tensor):
        if tensor.requires_grad and torch.is_grad_enabled():
            return True
        return has_tangent(tensor)
    return any(
        _functorch.is_gradtrackingtensor(layer) or layer.requires_grad for layer in layers(tensor)
    )


def has_tangent(tensor: Tensor) -> bool:
    """Return whether a tensor is dual in the current level of forward-mode differentiation."""
    dual = torch.autograd.forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return dual.tangent is not None


def loses_derivatives(tensor: Tensor) -> bool:
    """Return whether derivatives are asked for that a tensor does not get as a constant.

    A parameter of a module that is used as it is does not count: it requires a gradient by default.
    """
    if is_wrapped(tensor):
        return has_tangent(tensor) or any(layer.requires_grad for layer in layers(tensor))
    return has_tangent(tensor) or (
        tensor.requires_grad and not isinstance(tensor, torch.nn.Parameter)
    )


def may_lose_derivatives() -> Callable[[Tensor], bool] | None:
    """Return a quick test that any tensor of :func:`loses_derivatives` passes, `None` without."""
    if torch.autograd.forward_ad._current_level >= 0:
        return None
    return _requires_grad


_requires_grad = operator.attrgetter("requires_grad")


def over_batched_gradients(function: Callable[[Tensor], Tensor], cotangent: Tensor) -> Tensor:
    """Apply a function to a cotangent, under `torch.func.vmap` for each batch that it is part of.

    What ``is_grads_batched`` batches is older than `torch.func`: few operations, and no
    `torch.autograd.Function`, have a rule for it.
    """
    if not _functorch.is_legacy_batchedtensor(cotangent):
        return function(cotangent)
    nesting = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    for level in range(nesting, 0, -1):
        # with as many rows as asked for, none, where it is not of this level
        rows: Tensor = torch._remove_batch_dim(cotangent, level, 0, 0)
        if len(rows):
            mapped = torch.func.vmap(function, randomness="same")
            return torch._add_batch_dim(over_batched_gradients(mapped, rows), 0, level)
    raise RuntimeError("`is_grads_batched` needs at least one cotangent, got a batch of none")


def outside_of_batched_gradients() -> AbstractContextManager[object]:
    """Allow random numbers in a backward pass with ``is_grads_batched``.

    It marks a thread by a key that refuses random operations on any tensor, batched or not.
    """
    key = torch._C._parse_dispatch_key("VmapMode")
    if key is None:
        return nullcontext()
    guard: AbstractContextManager[object] = torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(key)
    )
    return guard
