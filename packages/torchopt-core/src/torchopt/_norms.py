"""Norms of leaves."""

from __future__ import annotations

import torch

from torchopt._arithmetic import HALF
from torchopt._context import Context
from torchopt._types import Leaves

__all__ = ["leaf_norms", "precise", "trust_ratios"]


def precise(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in a dtype in which its squares neither vanish nor overflow."""
    return x.float() if x.dtype in HALF else x


def leaf_norms(leaves: Leaves, context: Context) -> Leaves:
    """Return the 2-norm of each leaf, whose derivatives at zero are zero."""
    reals = [precise(torch.view_as_real(x) if x.is_complex() else x) for x in leaves]
    if context.inplace:
        return list(torch._foreach_norm(reals))
    sums = [x.square().sum() for x in reals]
    # the differentiable root of zero is a little above it
    pairs = zip(sums, context.fresh.sqrt(sums), strict=True)
    return [torch.where(total == 0, 0.0, root) for total, root in pairs]


def trust_ratios(above: Leaves, below: Leaves, coefficient: float | torch.Tensor) -> Leaves:
    """Return ``coefficient * above / below`` for each leaf, and 1 where one of both is zero."""

    def ratio(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        known = (x > 0) & (y > 0)
        return torch.where(known, coefficient * x / torch.where(known, y, 1.0), 1.0)

    return [ratio(x, y) for x, y in zip(above, below, strict=True)]
