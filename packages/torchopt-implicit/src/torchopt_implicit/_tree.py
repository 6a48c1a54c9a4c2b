"""Trees as flat vectors: how a tree of tensors is laid out in one real vector."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch

__all__ = ["Layout", "describe_path", "leading_vmap"]


class Layout(NamedTuple):
    """Where each leaf of a tree lies in one vector of real numbers.

    The vector has the widest dtype among the leaves, and at least single precision, in which sums
    over it hold where those in half precision would not; a complex number takes two entries. Both
    ways are differentiable. Leading batch dimensions are kept.
    """

    spec: optree.PyTreeSpec
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    devices: tuple[torch.device, ...]
    #: of the vector: real; and the device of the first leaf
    dtype: torch.dtype
    device: torch.device
    #: of each leaf in the vector
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, tree: Any, name: str, *, namespace: str = "") -> Layout:
        """Return the layout of a tree of floating point tensors, which messages call ``name``.

        Raises:
            TypeError: If a leaf is not a floating point or complex tensor.
        """
        leaves, spec = optree.tree_flatten(tree, namespace=namespace)
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor) or not _is_continuous(leaf):
                kind = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
                raise TypeError(
                    f"`{name}` must be a tree of floating point tensors, got {kind} at "
                    f"{describe_path(spec, i)}; convert it with torch.as_tensor(...)"
                )
        return cls.of_leaves(leaves, spec)

    @classmethod
    def of_leaves(cls, leaves: Sequence[torch.Tensor], spec: optree.PyTreeSpec) -> Layout:
        """Return the layout of leaves known to be floating point tensors."""
        reals = [_at_least_single(leaf.dtype.to_real()) for leaf in leaves]
        return cls(
            spec,
            tuple(leaf.shape for leaf in leaves),
            tuple(leaf.dtype for leaf in leaves),
            tuple(leaf.device for leaf in leaves),
            functools.reduce(torch.promote_types, reals) if reals else torch.get_default_dtype(),
            leaves[0].device if leaves else torch.device("cpu"),
            tuple(leaf.numel() * (2 if leaf.is_complex() else 1) for leaf in leaves),
        )

    @property
    def size(self) -> int:
        """Entries of the vector."""
        return sum(self.sizes)

    @property
    def eps(self) -> float:
        """The precision of the coarsest leaf: of what a function of the tree can tell apart."""
        dtypes = self.dtypes or (self.dtype,)
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    def flatten(self, tree: Any, name: str) -> list[torch.Tensor]:
        """Return the leaves of a tree that must have this layout's structure and shapes.

        Raises:
            ValueError: If the structure or a shape differs; the message names both.
        """
        leaves, spec = optree.tree_flatten(tree, namespace=self.spec.namespace)
        if spec != self.spec:
            try:  # kinds of dictionaries mix
                leaves = self.spec.flatten_up_to(tree)
            except (TypeError, ValueError):
                leaves = []
        matches = len(leaves) == len(self.shapes) and all(
            isinstance(leaf, torch.Tensor) and leaf.shape == shape
            for leaf, shape in zip(leaves, self.shapes, strict=False)
        )
        if matches:
            return leaves
        own = optree.tree_unflatten(self.spec, [list(shape) for shape in self.shapes])
        got = optree.tree_map(
            lambda x: list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__,
            tree,
            namespace=self.spec.namespace,
        )
        raise ValueError(f"`{name}` must have the structure and shapes {own}, got {got}")

    def ravel(self, tree: Any, name: str) -> torch.Tensor:
        """Return the vector of a tree. Raises as :meth:`flatten` does."""
        return self.join(self.flatten(tree, name))

    def join(self, leaves: Sequence[torch.Tensor], batch: int = 0) -> torch.Tensor:
        """Return the vector ``(*batch, size)`` of leaves with ``batch`` leading dimensions."""
        if not leaves:
            return torch.zeros(0, dtype=self.dtype, device=self.device)
        parts = []
        for leaf, size in zip(leaves, self.sizes, strict=True):
            real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            part = real.reshape((*real.shape[:batch], size))
            parts.append(part.to(device=self.device, dtype=self.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Return the leaves of a vector ``(*batch, size)``, each with the batch in front."""
        batch = vector.shape[:-1]
        if len(self.shapes) == 1 and self.dtypes[0] == vector.dtype:  # already that of its leaf
            return [vector.reshape((*batch, *self.shapes[0])).to(self.devices[0])]
        leaves = []
        parts = torch.split(vector, list(self.sizes), dim=-1) if self.sizes else ()
        for part, shape, dtype, device in zip(
            parts, self.shapes, self.dtypes, self.devices, strict=True
        ):
            if dtype.is_complex:
                part = torch.view_as_complex(part.reshape((*batch, *shape, 2)).contiguous())
            leaves.append(part.reshape((*batch, *shape)).to(device=device, dtype=dtype))
        return leaves

    def unravel(self, vector: torch.Tensor) -> Any:
        """Return the tree of a vector ``(size,)``."""
        return optree.tree_unflatten(self.spec, self.split(vector))


def describe_path(spec: optree.PyTreeSpec, index: int) -> str:
    """Return where in a tree a leaf is, as in ``['weights'][0]``."""
    path = "".join(f"[{entry!r}]" for entry in optree.treespec_paths(spec)[index])
    return path or "the root"


def leading_vmap(function: Any, dims: int) -> Any:
    """Return a function of vectors that also takes ``dims`` leading batch dimensions."""
    for _ in range(dims):
        function = torch.func.vmap(function)
    return function


def _is_continuous(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
