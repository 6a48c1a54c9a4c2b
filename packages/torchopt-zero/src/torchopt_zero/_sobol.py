"""Quasi-random directions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from torchopt_zero._leaf_vector import LeafVector
from torchopt_zero._noise import DenseNoise, squared_norms
from torchopt_zero._seed import counter_seed


class Sobol(DenseNoise):
    r"""Normal noise from a scrambled Sobol sequence.

    .. math::
        z_{ij} = \Phi^{-1}(u_{ij}), \qquad u_1, u_2, \ldots \in (0, 1)^d
        \text{ a Sobol sequence, scrambled anew for each estimate.}

    Each sample by itself is standard normal, up to a resolution of :math:`2^{-30}`, so estimates
    stay unbiased; together they fill the space evenly. For smooth functions of few dimensions the
    error falls with :math:`1 / n` rather than :math:`1 / \sqrt n`, best for powers of two. Pass it
    as the `distribution` of :func:`~torchopt_zero.zero_order`. The leaves have at most 21,201
    entries.

    Raises:
        ValueError: When differentiated, if there are more entries.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import Sobol
        >>> decorate = torchopt.diff.zero_order(Sobol(), "antithetic", num_samples=256)
        >>> x = torch.zeros(3, requires_grad=True)
        >>> slope = torch.tensor([1.0, -2.0, 0.5])
        >>> decorate(lambda x: x @ slope)(x).backward()
        >>> torch.testing.assert_close(x.grad, slope, rtol=0, atol=0.2)

    References:
        A. B. Owen. Scrambled net variance for integrals of smooth functions. Ann. Statist. 25
        (1997). J. Matousek. On the L2-discrepancy for anchored boxes. J. Complexity 14 (1998), for
        the scrambling.
    """

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        if vector.entries > SobolEngine.MAXDIM:
            raise ValueError(
                f"`Sobol` has {SobolEngine.MAXDIM} dimensions, got {vector.entries} entries to "
                f"perturb; use `Orthogonal`"
            )
        if not vector.size:
            return
        # All vectors take their dimensions from one sequence: the points of two would depend on
        # each other, sample by sample, however they are scrambled.
        with torch.device("cpu"):
            key = counter_seed(seed, 0)
            engine: Any = SobolEngine(vector.entries, scramble=True, seed=key)  # type: ignore[no-untyped-call]
            engine.fast_forward(samples.start)
            numbers = engine.draw(len(rows), dtype=torch.float64)
        numbers = numbers[:, vector.offset : vector.offset + vector.size]
        # the middles of intervals, never 0 or 1
        numbers = numbers.add_(0.5 * 2.0**-SobolEngine.MAXBIT).mul_(2).sub_(1)
        rows.copy_(numbers.erfinv_().mul_(math.sqrt(2.0)))

    def squared_norms(self, drawn: list[Tensor]) -> Tensor:
        return squared_norms(drawn)
