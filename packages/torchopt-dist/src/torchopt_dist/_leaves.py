"""The tensors of `params` that are differentiated, and how their gradients lie in one buffer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor, nn

from torchopt_dist._sharded import is_sharded, local, wrapped


class Leaves:
    """The tensors of a tree, and those of modules in it by name, that require a gradient.

    Their gradients lie one after the other in one buffer: complex ones as pairs of real numbers,
    all of them in the widest real dtype among the leaves, and in float32 at least. Of tensors that
    are sharded, that is this rank's part.

    Args:
        params: A module, a tensor, or a tree of both.
        differentiate: Whether there has to be a gradient; without, there are none.

    Raises:
        TypeError: If there is no tensor.
        ValueError: If no tensor requires a gradient, those that do are on several devices, or a
            transformation of torch.func follows one of them.
    """

    def __init__(self, params: Any, differentiate: bool = True) -> None:
        tree = optree.tree_map(
            lambda x: dict(x.named_parameters()) if isinstance(x, nn.Module) else x,
            params,
            none_is_leaf=True,
        )
        self.modules: list[nn.Module] = [
            leaf
            for leaf in optree.tree_leaves(params, none_is_leaf=True)
            if isinstance(leaf, nn.Module)
        ]
        self.flat: list[Any]
        self.flat, self.treedef = optree.tree_flatten(tree, none_is_leaf=True)
        #: Every tensor there is, buffers of modules last.
        self.all: list[Tensor] = [leaf for leaf in self.flat if isinstance(leaf, Tensor)]
        self.all += [buffer for module in self.modules for buffer in module.buffers()]
        if not self.all and (differentiate or not self.modules):
            raise TypeError(
                f"`params` must be a module, or a tree of modules and tensors, got "
                f"{type(params).__name__} without any; list() what is an iterator"
            )
        if any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in self.all):
            raise ValueError(
                "`params` must not be followed by a transformation of torch.func, which would get "
                "no derivative: results are detached; call map_tasks outside of it, and use its "
                "`grads`"
            )
        self.positions = [
            position
            for position, leaf in enumerate(self.flat)
            if differentiate and isinstance(leaf, Tensor) and leaf.requires_grad
        ]
        self.tensors: list[Tensor] = [self.flat[position] for position in self.positions]
        if differentiate and not self.tensors:
            raise ValueError(
                "`params` must have a tensor that requires a gradient; call requires_grad_(), or "
                "pass differentiate=False to evaluate the tasks only"
            )
        devices = {leaf.device for leaf in self.tensors}
        if len(devices) > 1:
            raise ValueError(
                f"`params` must be on one device, got {', '.join(sorted(map(str, devices)))}"
            )
        numbers = self.tensors or [x for x in self.all if x.is_floating_point() or x.is_complex()]
        self.device = numbers[0].device if numbers else torch.device("cpu")
        self.dtype = functools.reduce(
            torch.promote_types, (leaf.dtype.to_real() for leaf in numbers), torch.float32
        )
        self.shapes = [
            (*part.shape, 2) if part.is_complex() else (*part.shape,)
            for part in map(local, self.tensors)
        ]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.size = sum(self.sizes)

    def structure(self) -> str:
        """Return what the tree and its tensors look like, as text."""
        kinds = [
            (*x.shape, x.dtype, x.requires_grad) if isinstance(x, Tensor) else type(x).__qualname__
            for x in (*self.flat, *self.all)
        ]
        return f"{self.treedef} {kinds}"

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
                part = torch.view_as_complex(real.clone()) if leaf.is_complex() else real
                flat[position] = wrapped(part, leaf)
        return optree.tree_unflatten(self.treedef, flat)


def add_to(views: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Add gradients to their parts of a buffer."""
    pairs = [(view, _real(x)) for view, x in zip(views, gradients, strict=True) if x is not None]
    if pairs:
        parts, terms = zip(*pairs, strict=True)
        torch._foreach_add_(parts, terms)


def _real(gradient: Tensor) -> Tensor:
    dense = local(gradient) if is_sharded(gradient) else gradient
    dense = dense.to_dense() if dense.layout is not torch.strided else dense
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
