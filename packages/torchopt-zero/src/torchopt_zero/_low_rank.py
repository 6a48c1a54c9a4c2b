"""Low-rank perturbations of matrices, which a population shares one matrix product for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt_zero._leaf_vector import LeafVector, wide
from torchopt_zero._noise import Noise
from torchopt_zero._perturbed_matrix import PerturbedMatrix
from torchopt_zero._scratch import Scratch


class _Factors(NamedTuple):
    """Noise of some samples for one leaf."""

    left: Tensor  # [samples, rows, rank]; the noise itself for leaves that are not matrices
    right: Tensor | None  # [samples, columns, rank]


class LowRank(Noise):
    r"""Noise of low rank for matrices, dense for other leaves.

    .. math::
        Z_i = \frac{1}{\sqrt r} A_i B_i^\top, \qquad
        A_i \in \mathbb{R}^{m \times r},\ B_i \in \mathbb{R}^{n \times r}
        \text{ with entries from } \mathcal{N}(0, 1).

    Pass it as the `distribution` of :func:`~torchopt_zero.zero_order`. The entries of :math:`Z_i`
    are uncorrelated with unit variance, so estimates have the expectation that dense noise gives on
    quadratics. A layer :math:`x (W + \sigma Z_i)^\top` is evaluated as :math:`x W^\top +
    \frac{\sigma}{\sqrt r} (x B_i) A_i^\top`: the products with :math:`W` of a whole population are
    one, and no perturbed matrix is ever built where the function uses
    `torch.nn.functional.linear`, `@` or `torch.matmul`; anything else gets the sum.

    Args:
        rank: :math:`r`. Default: 1.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import LowRank
        >>> layer = torch.nn.Linear(3, 2)
        >>> x = torch.ones(5, 3)
        >>> def loss(weight, bias):
        ...     return torch.nn.functional.linear(x, weight, bias).square().mean()
        >>> decorate = torchopt.diff.zero_order(
        ...     LowRank(), "antithetic", argnums=(0, 1), num_samples=64, sigma=0.01
        ... )
        >>> decorate(loss)(layer.weight, layer.bias).backward()
        >>> layer.weight.grad.shape
        torch.Size([2, 3])

    References:
        B. Sarkar et al. Evolution strategies at the hyperscale (EGGROLL, 2025).
    """

    def __init__(self, rank: int = 1) -> None:
        if rank < 1:
            raise ValueError(f"`rank` must be at least 1, got {rank}")
        self.rank = rank

    def elements(self, leaves: Sequence[Tensor]) -> int:
        return sum(sum(self._sizes(leaf)) for leaf in leaves)

    def _sizes(self, leaf: Tensor) -> tuple[int, int]:
        if leaf.ndim != 2:
            return leaf.numel(), 0
        return leaf.shape[0] * self.rank, leaf.shape[1] * self.rank

    def draw(
        self, leaves: Sequence[Tensor], seed: int, samples: range, scratch: Scratch
    ) -> list[_Factors]:
        drawn: dict[int, _Factors] = {}
        count = len(samples)
        for vector in LeafVector.of(leaves):
            sizes = [sum(self._sizes(leaves[i])) for i in vector.members]
            rows = scratch.take(
                ("noise", vector.members[0]), count, sum(sizes), wide(vector.dtype), vector.device
            )
            rows.normal_(generator=vector.generator(seed, samples.start))
            for i, part in zip(vector.members, torch.split(rows, sizes, dim=1), strict=True):
                leaf = leaves[i]
                if leaf.ndim == 2:
                    left, right = torch.split(part, [*self._sizes(leaf)], dim=1)
                    drawn[i] = _Factors(
                        left.view(count, leaf.shape[0], self.rank),
                        right.view(count, leaf.shape[1], self.rank),
                    )
                else:
                    drawn[i] = _Factors(part.view(count, *leaf.shape), None)
        return [drawn[i] for i in range(len(leaves))]

    def perturb(
        self,
        leaves: Sequence[Tensor],
        drawn: list[_Factors],
        scales: Sequence[float],
        scratch: Scratch,
    ) -> list[Any]:
        batched: list[Any] = []
        for leaf, (left, right) in zip(leaves, drawn, strict=True):
            if right is None:
                moved = torch.cat([torch.add(leaf, left, alpha=scale) for scale in scales])
                batched.append(moved.to(leaf.dtype))
            else:
                moved = torch.cat([left * (scale / math.sqrt(self.rank)) for scale in scales])
                both = right.repeat(len(scales), 1, 1)
                batched.append((moved.to(leaf.dtype), both.to(leaf.dtype)))
        return batched

    def assemble(self, leaves: Sequence[Tensor], perturbed: list[Any]) -> list[Tensor]:
        return [
            PerturbedMatrix.make(leaf, *item) if isinstance(item, tuple) else item
            for leaf, item in zip(leaves, perturbed, strict=True)
        ]

    def accumulate(self, totals: list[Tensor], drawn: list[_Factors], weights: Tensor) -> None:
        for total, (left, right) in zip(totals, drawn, strict=True):
            column = weights.to(left.device, left.dtype)
            if right is None:
                total.add_((column @ left.reshape(len(column), -1)).view_as(total))
            else:
                weighted = left * (column / math.sqrt(self.rank))[:, None, None]
                total.addmm_(
                    weighted.transpose(0, 1).flatten(1), right.transpose(0, 1).flatten(1).mT
                )
