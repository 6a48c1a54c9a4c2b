"""Why the result of a function does not require grad although its arguments do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt_viz._graph import Cause

__all__ = ["TO_PYTHON", "Found", "find_cause", "tensors_in"]

# their results depend on the shape of a tensor only, or are not meant for computing
_NOT_OF_THE_VALUES = {
    *("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like"),
    *("zeros_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor"),
    *("new_zeros", "grad", "_base", "backward", "is_same_size", "set_", "resize_"),
}
# their results are numbers
TO_PYTHON = {"item", "tolist", "__float__", "__complex__", "__int__"}
_WRITING = {"__setitem__", *(f"__i{x}__" for x in ("add", "sub", "mul", "truediv", "pow", "mod"))}


class Found(NamedTuple):
    """A cut."""

    cause: Cause
    operation: str
    # which of the tensors that require grad
    sources: Sequence[int]


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Return the tensors among some arguments, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (x for x in value if isinstance(x, Tensor))


def find_cause(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], sources: Sequence[Tensor], result: Any
) -> Found | None:
    """Return why a gradient stops at a call, if it does.

    Args:
        func: What was called.
        args: Its arguments.
        kwargs: Its keyword arguments.
        sources: The tensors among all arguments that required grad before the call.
        result: What it returned.
    """
    name: str = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        owner = getattr(func.__self__, "__name__", "")
        name = owner if name == "__get__" or owner != "grad" else ""
    every = range(len(sources))
    if func is torch.autograd.grad:
        stops = not kwargs.get("create_graph")
        outputs = set(map(id, tensors_in(args[:1])))
        mine = [i for i in every if id(sources[i]) in outputs]
        return Found("no_grad", "grad", mine) if stops else None
    if name in _NOT_OF_THE_VALUES:
        return None
    if name in ("requires_grad_", "requires_grad", "detach_"):
        return Found("detached", name, every) if not sources[0].requires_grad else None
    if name in TO_PYTHON:
        return Found("integer" if name == "__int__" else "detached", name, every)
    is_writing = name in _WRITING or (name.endswith("_") and not name.endswith("__"))
    if (is_writing or "out" in kwargs) and not torch.is_grad_enabled():
        target = kwargs.get("out", args[0] if args else None)
        written = set(map(id, tensors_in([target])))
        # a leaf starts anew with what is written; anything else keeps a history that is wrong
        read = [i for i in every if id(sources[i]) not in written or not sources[i].is_leaf]
        return Found("in-place", name, read) if read else None
    results = list(tensors_in([result]))
    if not results or any(x.requires_grad for x in results):
        return None
    if name in ("detach", "data"):
        return Found("detached", name, every)
    if not torch.is_grad_enabled():
        return Found("no_grad", name, every)
    if not any(x.is_floating_point() or x.is_complex() for x in results):
        return Found("integer", name, every)
    return Found("detached", name, every)
