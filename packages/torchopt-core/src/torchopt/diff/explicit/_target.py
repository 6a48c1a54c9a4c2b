"""What an inner loop adapts: a tree of tensors, or the parameters of a module."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import nn

from torchopt._module_clone import module_clone
from torchopt._submodules import submodules
from torchopt._types import Leaves

__all__ = ["Target", "target_of"]

Loss = Callable[..., torch.Tensor]


class Target(abc.ABC):
    """Adapted leaves and buffers: taken from what the user gave, put into what the loss gets."""

    #: The tensors to adapt, as they are given.
    leaves: Leaves
    #: The tensors that the loss may write to, as they are given.
    buffers: Leaves

    @abc.abstractmethod
    def tree(self, leaves: Sequence[Any]) -> Any:
        """Return the leaves, or what belongs to them, as the optimizer sees them."""

    @abc.abstractmethod
    def leaves_of(self, tree: Any) -> Leaves:
        """Return the leaves of a tree as the optimizer returns it."""

    @abc.abstractmethod
    def call(
        self, loss: Loss, leaves: Leaves, buffers: Leaves, arguments: Sequence[Any]
    ) -> tuple[torch.Tensor, Leaves]:
        """Return the loss and the buffers after it; nothing that is given is written to."""

    @abc.abstractmethod
    def result(self, leaves: Leaves, buffers: Leaves) -> Any:
        """Return what the user gave, with other tensors."""


def target_of(params: Any) -> Target:
    """Return how to adapt ``params``.

    Raises:
        ValueError: If there is nothing to adapt.
    """
    target = _Module(params) if isinstance(params, nn.Module) else _Tree(params)
    if not target.leaves:
        what = (
            "the module has no parameter that requires grad"
            if isinstance(params, nn.Module)
            else "no leaf of the tree is a floating point or complex tensor"
        )
        raise ValueError(f"`params` has nothing to optimize: {what}")
    return target


class _Tree(Target):
    def __init__(self, params: Any) -> None:
        every, self._spec = optree.tree_flatten(params, none_is_leaf=True)
        self._places = [
            i
            for i, x in enumerate(every)
            if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())
        ]
        self.leaves = [every[i] for i in self._places]
        self.buffers = []
        adapted = set(self._places)
        self._others = [None if i in adapted else x for i, x in enumerate(every)]

    def _merged(self, leaves: Sequence[Any], others: Sequence[Any]) -> Any:
        every = list(others)
        for i, x in zip(self._places, leaves, strict=True):
            every[i] = x
        return optree.tree_unflatten(self._spec, every)

    def tree(self, leaves: Sequence[Any]) -> Any:
        return self._merged(leaves, [None] * len(self._others))

    def leaves_of(self, tree: Any) -> Leaves:
        every = optree.tree_leaves(tree, none_is_leaf=True)
        return [every[i] for i in self._places]

    def call(
        self, loss: Loss, leaves: Leaves, buffers: Leaves, arguments: Sequence[Any]
    ) -> tuple[torch.Tensor, Leaves]:
        return loss(self._merged(leaves, self._others), *arguments), buffers

    def result(self, leaves: Leaves, buffers: Leaves) -> Any:
        return self._merged(leaves, self._others)


class _Module(Target):
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        params: dict[int, tuple[str, torch.Tensor]] = {}
        for name, p in module.named_parameters():
            if p.requires_grad:
                params[id(p)] = name, p
        self._names = [name for name, _ in params.values()]
        self.leaves = [p for _, p in params.values()]
        buffers = {id(b): b for b in module.buffers()}
        self.buffers = list(buffers.values())
        self._places = _places(module, [*params, *buffers])
        self._recurrent = _recurrent(module)

    def tree(self, leaves: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._names, leaves, strict=True))

    def leaves_of(self, tree: Any) -> Leaves:
        return [tree[name] for name in self._names]

    def call(
        self, loss: Loss, leaves: Leaves, buffers: Leaves, arguments: Sequence[Any]
    ) -> tuple[torch.Tensor, Leaves]:
        own = [b.clone() for b in buffers]
        kept = [[entries[name] for entries, name in places] for places in self._places]
        _put(self._places, [*leaves, *own], self._recurrent)
        try:
            value = loss(self._module, *arguments)
            after = [entries[name] for (entries, name), *_ in self._places[len(leaves) :]]
        finally:
            for places, tensors in zip(self._places, kept, strict=True):
                for (entries, name), x in zip(places, tensors, strict=True):
                    entries[name] = x
            _flatten(self._recurrent)
        return value, after

    def result(self, leaves: Leaves, buffers: Leaves) -> nn.Module:
        clone = module_clone(self._module, by="reference")
        found = [entries[name] for (entries, name), *_ in self._places]
        places = _places(clone, [id(x) for x in found])
        _put(places, [*leaves, *[b.clone() for b in buffers]], _recurrent(clone))
        return clone


#: Where a tensor is in a module: in these dicts under these names.
_Places = list[list[tuple[dict[str, Any], str]]]


def _places(module: nn.Module, ids: Sequence[int]) -> _Places:
    """Return, for each of some tensors, given by their ids, all its places in the module."""
    found: dict[int, list[tuple[dict[str, Any], str]]] = {key: [] for key in ids}
    for submodule in submodules(module):
        for entries in (submodule._parameters, submodule._buffers):
            for name, x in entries.items():
                if id(x) in found:
                    found[id(x)].append((entries, name))
    return list(found.values())


def _put(places: _Places, tensors: Sequence[torch.Tensor], recurrent: Sequence[nn.RNNBase]) -> None:
    for where, x in zip(places, tensors, strict=True):
        for entries, name in where:
            entries[name] = x
    _flatten(recurrent)


def _recurrent(module: nn.Module) -> list[nn.RNNBase]:
    return [x for x in submodules(module) if isinstance(x, nn.RNNBase)]


def _flatten(recurrent: Sequence[nn.RNNBase]) -> None:
    """Let recurrent layers see the parameters they have now, of which they keep a list."""
    for layer in recurrent:
        names = layer._flat_weights_names
        layer._flat_weights = [getattr(layer, name, None) for name in names]
