"""The tensors of `params` that are differentiated, and how their gradients lie in one buffer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor, nn


class Leaves:
    """The tensors of a tree, and those of modules in it by name, that require a gradient.

    Their gradients lie one after the other in one buffer: complex ones as pairs of real numbers,
    all of them in the widest real dtype among the leaves, and in float32 at least.

    Args:
        params: A module, a tensor, or a tree of both.

    Raises:
        TypeError: If there is no tensor.
        ValueError: If no tensor requires a gradient, or those that do are on several devices.
    """

    def __init__(self, params: Any) -> None:
        tree = optree.tree_map(
            lambda x: dict(x.named_parameters()) if isinstance(x, nn.Module) else x,
            params,
            none_is_leaf=True,
        )
        self.flat: list[Any]
        self.flat, self.treedef = optree.tree_flatten(tree, none_is_leaf=True)
        if not any(isinstance(leaf, Tensor) for leaf in self.flat):
            raise TypeError(
                f"`params` must be a module, or a tree of modules and tensors, got "
                f"{type(params).__name__} without any; list() what is an iterator"
            )
        self.positions = [
            position
            for position, leaf in enumerate(self.flat)
            if isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        self.tensors: list[Tensor] = [self.flat[position] for position in self.positions]
        if not self.tensors:
            raise ValueError(
                "`params` must have a tensor that requires a gradient; call requires_grad_()"
            )
        devices = {leaf.device for leaf in self.tensors}
        if len(devices) > 1:
            raise ValueError(
                f"`params` must be on one device, got {', '.join(sorted(map(str, devices)))}"
            )
        self.device = self.tensors[0].device
        self.dtype = functools.reduce(
            torch.promote_types, (leaf.dtype.to_real() for leaf in self.tensors), torch.float32
        )
        self.shapes = [
            (*leaf.shape, 2) if leaf.is_complex() else (*leaf.shape,) for leaf in self.tensors
        ]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Return the part of each leaf in a buffer, shaped like it, complex numbers as pairs."""
        parts = torch.split(buffer, self.sizes)
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def tree(self, buffer: Tensor, used: Sequence[bool]) -> Any:
        """Return the gradients of a buffer as a tree: ``None`` where there is none."""
        flat: list[Tensor | None] = [None] * len(self.flat)
        rows = zip(self.positions, self.tensors, self.views(buffer), used, strict=True)
        for position, leaf, view, is_used in rows:
            if is_used:
                real = view.to(leaf.dtype.to_real())
                # a copy: torch.save refuses tensors of two dtypes that share memory
                flat[position] = torch.view_as_complex(real.clone()) if leaf.is_complex() else real
        return optree.tree_unflatten(self.treedef, flat)

    def norm(self) -> Tensor:
        """Return the sum of the norms of the leaves, by which to tell whether they differ."""
        with torch.no_grad():
            norms = torch._foreach_norm(self.tensors)
            return torch.stack([norm.to(self.dtype) for norm in norms]).sum()


def add_to(views: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to their parts of a buffer."""
    pairs = [(view, _real(x)) for view, x in zip(views, gradients, strict=True) if x is not None]
    if pairs:
        parts, terms = zip(*pairs, strict=True)
        torch._foreach_add_(parts, terms)


def _real(gradient: Tensor) -> Tensor:
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
