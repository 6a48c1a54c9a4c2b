"""Noise that is a function of a seed and a counter, so that it need not be kept.

It is made of operations on tensors, the seed among them, so that it can be drawn under
`torch.func.vmap`, for each member of the batch or the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# The constants of SplitMix64 (Steele, Lea and Flood 2014), as signed integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


class Noise(NamedTuple):
    r"""A density :math:`\mu(z) \propto \exp(-\nu(z))`, independent for each entry."""

    # the inverse of its cumulative distribution function, of uniform numbers in (0, 1)
    icdf: Callable[[Tensor], Tensor]
    potential: Callable[[Tensor], Tensor]
    # the derivative of the potential
    score: Callable[[Tensor], Tensor]


NOISES = {
    "normal": Noise(
        icdf=lambda u: torch.erfinv(2.0 * u - 1.0).mul_(math.sqrt(2.0)),
        potential=lambda z: 0.5 * z.square(),
        score=lambda z: z,
    ),
    "gumbel": Noise(
        icdf=lambda u: -torch.log(-torch.log(u)),
        potential=lambda z: z + torch.exp(-z),
        score=lambda z: 1.0 - torch.exp(-z),
    ),
}


def draw_seed(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return a 0-dim integer tensor; under `torch.func.vmap`, ``randomness`` says how many."""
    source = device if generator is None else generator.device
    seed = torch.randint(-(2**63), 2**63 - 1, (), generator=generator, device=source)
    return seed.to(device)


def uniform(seed: Tensor, first: int, last: int, shape: torch.Size) -> Tensor:
    """Return numbers in (0, 1), of float64, for the samples from ``first`` to before ``last``.

    Args:
        seed: A 0-dim integer tensor.
        first: The number of the first sample.
        last: That of the one after the last.
        shape: The shape of each.

    Returns:
        A tensor of shape ``(last - first, *shape)``. A sample depends on the seed and its number
        only, not on which others are drawn with it.
    """
    samples = torch.arange(first + 1, last + 1, device=seed.device)
    entries = torch.arange(1, shape.numel() + 1, device=seed.device)
    keys = _mix(seed + _INCREMENT * samples)
    bits = _mix(keys.unsqueeze(-1) + _INCREMENT * entries)
    # The middles of 2^52 equal intervals: never 0 or 1, and exact in float64.
    numbers = _shift(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return numbers.reshape(last - first, *shape)


def _mix(x: Tensor) -> Tensor:
    """Apply the finalizer of SplitMix64; int64 products wrap around, as they should."""
    x = _shift(x, 30).bitwise_xor_(x).mul_(_FIRST)
    x = _shift(x, 27).bitwise_xor_(x).mul_(_SECOND)
    return _shift(x, 31).bitwise_xor_(x)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
