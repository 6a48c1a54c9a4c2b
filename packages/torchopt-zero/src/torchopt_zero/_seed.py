"""Counters turned into seeds: what lets noise be regenerated rather than stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def _mix(word: int) -> int:
    """Permute the 32-bit integers (the finalizer of MurmurHash3)."""
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _MASK
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _MASK
    return word ^ (word >> 16)


def counter_seed(seed: int, counter: int) -> int:
    """Return the seed of a generator for one counter value.

    A bijection of the counter for every `seed`: a CPU generator uses 32 bits of what it is seeded
    with, and no two of the first 2^32 counters share them.

    Example:
        >>> from torchopt_zero._seed import counter_seed
        >>> len({counter_seed(7, counter) for counter in range(10_000)})
        10000
    """
    return _mix(_mix((counter ^ seed) & _MASK) ^ ((seed >> 32) & _MASK))


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw the 62-bit seed of one estimate, from torch's default generator if none is given."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


class Layout:
    """Leaves of one dtype and device, seen as one vector.

    Args:
        leaves: All leaves of a function.
        members: Which of them lie in the vector.
    """

    def __init__(self, leaves: Sequence[Tensor], members: list[int]) -> None:
        self.total = len(leaves)
        self.members = members
        first = leaves[members[0]]
        self.dtype = first.dtype
        self.device = first.device
        self.shapes = [leaves[i].shape for i in members]
        self.sizes = [leaves[i].numel() for i in members]
        self.size = sum(self.sizes)

    @classmethod
    def of(cls, leaves: Sequence[Tensor]) -> list[Layout]:
        """Return one layout per dtype and device."""
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for position, leaf in enumerate(leaves):
            groups.setdefault((leaf.dtype, leaf.device), []).append(position)
        return [cls(leaves, members) for members in groups.values()]

    def seed(self, seed: int, sample: int, leaf: int = 0) -> int:
        """Return the seed of the stream that starts at one leaf of this vector, for one sample."""
        return counter_seed(seed, sample * self.total + self.members[leaf])

    def flatten(self, leaves: Sequence[Tensor]) -> Tensor:
        """Copy this vector's leaves out of all of them."""
        return torch.cat([leaves[i].reshape(-1) for i in self.members])

    def split(self, flat: Tensor) -> list[Tensor]:
        """View ``[..., size]`` as one tensor ``[..., *shape]`` per leaf."""
        batch = flat.shape[:-1]
        parts = torch.split(flat, self.sizes, dim=-1)
        return [part.view((*batch, *shape)) for part, shape in zip(parts, self.shapes, strict=True)]
