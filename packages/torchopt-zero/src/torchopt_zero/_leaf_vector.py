"""Leaves laid out one after the other, as the entries of one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchopt_zero._seed import counter_seed


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which noise for a dtype is drawn, and estimates are summed up."""
    return torch.promote_types(dtype, torch.float32)


class LeafVector:
    """Leaves of one dtype and device, seen as one vector.

    Args:
        leaves: All leaves of a function.
        members: Which of them lie in the vector.
        offset: How many entries the vectors before it have.
    """

    def __init__(self, leaves: Sequence[Tensor], members: list[int], offset: int) -> None:
        self.total = len(leaves)
        self.members = members
        self.offset = offset
        self.entries = sum(leaf.numel() for leaf in leaves)
        first = leaves[members[0]]
        self.dtype = first.dtype
        self.device = first.device
        self.shapes = [leaves[i].shape for i in members]
        self.sizes = [leaves[i].numel() for i in members]
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, leaves: Sequence[Tensor]) -> list[LeafVector]:
        """Return one vector per dtype and device."""
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for position, leaf in enumerate(leaves):
            groups.setdefault((leaf.dtype, leaf.device), []).append(position)
        vectors: list[LeafVector] = []
        for members in groups.values():
            offset = vectors[-1].offset + vectors[-1].size if vectors else 0
            vectors.append(cls(leaves, members, offset))
        return vectors

    def generator(self, seed: int, tile: int) -> torch.Generator:
        """Return a generator for the noise of one tile, which is named by its first sample."""
        key = counter_seed(seed, tile * self.total + self.members[0])
        return torch.Generator(self.device).manual_seed(key)

    def flatten(self, leaves: Sequence[Tensor]) -> Tensor:
        """Copy this vector's leaves out of all of them."""
        return torch.cat([leaves[i].reshape(-1) for i in self.members])

    def split(self, flat: Tensor) -> list[Tensor]:
        """View ``[..., size]`` as one tensor ``[..., *shape]`` per leaf."""
        batch = flat.shape[:-1]
        parts = torch.split(flat, self.sizes, dim=-1)
        return [part.view((*batch, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
