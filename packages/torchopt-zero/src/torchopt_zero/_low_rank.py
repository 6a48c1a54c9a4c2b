"""Low-rank perturbations of matrices, which a population shares one matrix product for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt_zero._noise import Noise
from torchopt_zero._perturbed_matrix import PerturbedMatrix
from torchopt_zero._scratch import Scratch
from torchopt_zero._seed import counter_seed


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

    tile = 256

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
        drawn = []
        for position, leaf in enumerate(leaves):
            left, right = self._sizes(leaf)
            rows = scratch.take(("noise", position), len(samples), left + right, leaf)
            generator = torch.Generator(leaf.device)
            for row, sample in zip(rows.unbind(), samples, strict=True):
                generator.manual_seed(counter_seed(seed, sample * len(leaves) + position))
                row.normal_(generator=generator)
            if leaf.ndim == 2:
                drawn.append(
                    _Factors(
                        rows[:, :left].view(-1, leaf.shape[0], self.rank),
                        rows[:, left:].view(-1, leaf.shape[1], self.rank),
                    )
                )
            else:
                drawn.append(_Factors(rows.view(len(samples), *leaf.shape), None))
        return drawn

    def perturb(
        self, leaves: Sequence[Tensor], drawn: list[_Factors], scale: float, scratch: Scratch
    ) -> list[Any]:
        batched: list[Any] = []
        for leaf, (left, right) in zip(leaves, drawn, strict=True):
            if right is None:
                batched.append(torch.add(leaf, left, alpha=scale))
            else:
                batched.append((left * (scale / math.sqrt(self.rank)), right))
        return batched

    def assemble(self, leaves: Sequence[Tensor], perturbed: list[Any]) -> list[Tensor]:
        return [
            PerturbedMatrix.make(leaf, *item) if isinstance(item, tuple) else item
            for leaf, item in zip(leaves, perturbed, strict=True)
        ]

    def accumulate(
        self, totals: list[Tensor], drawn: list[_Factors], weights: Sequence[float]
    ) -> None:
        for total, (left, right) in zip(totals, drawn, strict=True):
            column = torch.tensor(weights, dtype=total.dtype, device=total.device)
            if right is None:
                total.add_((column @ left.reshape(len(column), -1)).view_as(total))
            else:
                weighted = left * (column / math.sqrt(self.rank))[:, None, None]
                total.addmm_(
                    weighted.transpose(0, 1).flatten(1), right.transpose(0, 1).flatten(1).mT
                )
