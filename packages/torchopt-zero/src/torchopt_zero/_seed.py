"""Counters turned into seeds: what lets noise be regenerated rather than stored."""

from __future__ import annotations

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


def draw_seed(generator: torch.Generator | None) -> Tensor:
    """Draw the 62-bit seed of one estimate, from torch's CPU generator if none is given.

    Returns:
        int64 ``[]``, on the CPU; under `torch.func.vmap`, ``randomness`` says whether each member
        of the batch has its own.
    """
    device = "cpu" if generator is None else generator.device
    return torch.randint(2**62, (), generator=generator, device=device).to("cpu")
