"""What an addition rounds away, in little memory: so that it can be undone to the last bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchopt_zero._leaf_vector import wide

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_OTHER = 3  # the code of an entry that is kept whole


class Lost(NamedTuple):
    """What it takes to subtract noise again."""

    # four codes a byte: by how many units in the last place, -1 to 1, the difference misses
    codes: Tensor
    # the entries that it misses by more, which noise much larger than them makes
    entries: Tensor


def added(flat: Tensor, noise: Tensor, scale: float) -> Tensor:
    """Return ``flat + scale * noise``, rounded once."""
    return torch.add(flat.to(wide(flat.dtype)), noise, alpha=scale).to(flat.dtype)


def perturb(flat: Tensor, noise: Tensor, scale: float) -> Lost:
    """Add scaled noise to a vector in place; return what :func:`restore` needs."""
    moved = added(flat, noise, scale)
    missed = _bits(flat) - _bits(added(moved, noise, -scale)) + 1
    codes = missed.masked_fill((missed < 0) | (missed > 2), _OTHER).to(torch.uint8)
    entries = flat[codes == _OTHER]
    flat.copy_(moved)
    return Lost(_packed(codes), entries)


def restore(flat: Tensor, noise: Tensor, scale: float, lost: Lost) -> None:
    """Undo :func:`perturb` with the same noise and scale, in place."""
    codes = _unpacked(lost.codes, len(flat))
    found = _bits(added(flat, noise, -scale)) + (codes.to(_INTEGERS[flat.itemsize]) - 1)
    flat.copy_(found.view(flat.dtype))
    flat[codes == _OTHER] = lost.entries


def _bits(flat: Tensor) -> Tensor:
    """View floating-point numbers as integers, of which neighbours differ by one."""
    return flat.view(_INTEGERS[flat.itemsize])


def _packed(codes: Tensor) -> Tensor:
    fours = torch.nn.functional.pad(codes, (0, -len(codes) % 4)).view(-1, 4)
    return fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6


def _unpacked(packed: Tensor, count: int) -> Tensor:
    return torch.stack([(packed >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1).view(-1)[:count]
