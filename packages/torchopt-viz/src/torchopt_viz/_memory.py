"""What a node of autograd's graph keeps for its backward pass."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt_viz._graph import Saved
from torchopt_viz._private import levels

__all__ = ["Kept", "Storages", "is_opaque", "read_kept", "sizes"]

_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout)


class Kept(NamedTuple):
    """What a node keeps."""

    tensors: tuple[tuple[str, Tensor], ...]
    # the rest, as text
    attrs: tuple[tuple[str, str], ...]
    # the names of tensors that were overwritten since, so that the backward pass will fail
    overwritten: tuple[str, ...] = ()


class Storages:
    """The storages seen so far, in order, so that each is counted once."""

    def __init__(self) -> None:
        # by address; the storage itself, because an address is only taken while it lives
        self._seen: dict[int, tuple[int, Any]] = {}
        self._leaves: set[int] = set()

    def add_leaf(self, tensor: Tensor) -> None:
        """Take note that a tensor is there without the graph."""
        self._leaves.update(storage._cdata for storage in _storages(tensor))

    def count(self, name: str, tensor: Tensor) -> Saved:
        """Return the record of a saved tensor."""
        nbytes = 0
        index, leaf = -1, False
        for storage in _storages(tensor):
            address = storage._cdata
            if address not in self._seen:
                self._seen[address] = (len(self._seen), storage)
                nbytes += storage.nbytes()
            if index < 0:
                index, leaf = self._seen[address][0], address in self._leaves
        dtype = str(tensor.dtype).removeprefix("torch.")
        return Saved(name, sizes(tensor.shape), dtype, nbytes, index, leaf)


def sizes(shape: Iterable[Any]) -> tuple[int, ...]:
    """Return a shape as numbers: -1 where it is ragged."""
    return tuple(size if isinstance(size, int) else -1 for size in shape)


def _storages(tensor: Tensor) -> Iterator[Any]:
    *_, tensor = levels(tensor)
    if tensor.layout == torch.strided:
        yield tensor.untyped_storage()
    elif tensor.layout == torch.jagged:
        yield tensor.values().untyped_storage()
        yield tensor.offsets().untyped_storage()  # type: ignore[attr-defined]
    elif tensor.layout == torch.sparse_coo:
        yield tensor._indices().untyped_storage()
        yield tensor._values().untyped_storage()
    else:
        by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
        yield (tensor.crow_indices() if by_row else tensor.ccol_indices()).untyped_storage()
        yield (tensor.col_indices() if by_row else tensor.row_indices()).untyped_storage()
        yield tensor.values().untyped_storage()


def read_kept(node: Any) -> Kept:
    """Return what ``node`` keeps; nothing of tensors that a backward pass has freed.

    Tensors that hooks of :class:`torch.autograd.graph.saved_tensors_hooks` have packed are not
    unpacked, which could compute them again: they count as the tensor they were packed into.
    """
    tensors: list[tuple[str, Tensor]] = []
    attrs: list[tuple[str, str]] = []
    overwritten: list[str] = []
    kind: Any = type(node)
    for name, attribute, raw in _slots(kind):
        if raw is None:
            attrs.append((name, str(getattr(node, attribute))))
            continue
        slots = _unless_freed(node, raw)
        several = isinstance(slots, tuple)
        kept = [
            (f"{name}[{i}]" if several else name, slot)
            for i, slot in enumerate(slots if several else (slots,))
            if slot is not None and isinstance(slot.data, Tensor)
        ]
        tensors += [(label, slot.data) for label, slot in kept]
        is_packed = any(slot.unpack_hook is not None for _, slot in kept)
        if kept and not is_packed and not _is_intact(node, attribute):
            overwritten.append(name)
    if hasattr(node, "_forward_cls"):
        attrs += [(key, str(x)) for key, x in vars(node).items() if isinstance(x, _PLAIN)]
    return Kept(tuple(tensors), tuple(attrs), tuple(overwritten))


@functools.lru_cache(maxsize=4096)
def _slots(kind: Hashable) -> tuple[tuple[str, str, str | None], ...]:
    """Return the name, the attribute and the attribute of raw tensors for all that is kept."""
    if hasattr(kind, "_raw_saved_tensors"):
        return (("saved", "saved_tensors", "_raw_saved_tensors"),)
    known = dir(kind)
    names = [attribute.removeprefix("_saved_") for attribute in known if attribute[:7] == "_saved_"]
    raws = {name: f"_raw_saved_{name}" for name in names}
    return tuple((x, f"_saved_{x}", raws[x] if raws[x] in known else None) for x in names)


def _unless_freed(node: Any, raw: str) -> Any:
    try:
        return getattr(node, raw)
    except RuntimeError as error:
        if "already been freed" in str(error):
            return None
        raise


def is_opaque(node: Any) -> bool:
    """Return whether torch does not show what a node keeps."""
    return type(node).__name__ == "CppFunction"


def _is_intact(node: Any, attribute: str) -> bool:
    try:
        getattr(node, attribute)
    except RuntimeError as error:
        if "modified by an inplace operation" in str(error):
            return False
        raise
    return True
