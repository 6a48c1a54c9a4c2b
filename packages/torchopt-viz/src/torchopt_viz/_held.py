"""Tensors that are kept by nodes which do not show them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from torchopt_viz._memory import Kept

__all__ = ["HeldTensors"]


class _Held:
    """A saved tensor: it lives as long as the node that saved it keeps it."""

    __slots__ = ("__weakref__", "tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        # detached, because a node that keeps its own output would never be freed
        self.tensor = tensor.detach()
        self.version = tensor._version

    def is_intact(self) -> bool:
        return self.tensor._version == self.version


class HeldTensors:
    """What nodes save that are made while :meth:`watching`, by their sequence numbers."""

    def __init__(self) -> None:
        self._held: dict[int, list[weakref.ref[_Held]]] = {}

    @contextmanager
    def watching(self, next_number: Callable[[], int]) -> Iterator[None]:
        """Take note of what is saved; ``next_number`` gives the number of the node made next."""

        def pack(tensor: Tensor) -> _Held:
            held = _Held(tensor)
            self._held.setdefault(next_number() - 1, []).append(weakref.ref(held))
            return held

        start = next_number()
        with torch.autograd.graph.saved_tensors_hooks(pack, _unpack):
            yield
        for number in range(start, next_number()):
            self._held.setdefault(number, [])

    def knows(self, number: int) -> bool:
        """Return whether a node was watched when it saved."""
        return number in self._held

    def of(self, number: int) -> Kept:
        """Return what a node keeps now."""
        alive = [held for ref in self._held.get(number, ()) if (held := ref()) is not None]
        names = [f"saved[{i}]" for i in range(len(alive))]
        return Kept(
            tensors=tuple((name, held.tensor) for name, held in zip(names, alive, strict=True)),
            attrs=(),
            overwritten=() if all(held.is_intact() for held in alive) else ("saved",),
        )


def _unpack(held: _Held) -> Tensor:
    if not held.is_intact():
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: a tensor of shape {tuple(held.tensor.shape)} is at version "
            f"{held.tensor._version}; expected version {held.version} instead"
        )
    return held.tensor
