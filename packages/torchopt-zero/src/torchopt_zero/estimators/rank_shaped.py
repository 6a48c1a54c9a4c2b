"""Antithetic sampling that sees the order of the function values only."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero._estimator import SampledEstimator


class RankShaped(SampledEstimator):
    r"""Antithetic estimates with centered ranks in the place of function values.

    .. math::
        g = \frac{1}{n} \sum_i \frac{u_i^+ - u_i^-}{2 \sigma} z_i,

    where :math:`u \in [-\frac12, \frac12]` is the rank of a value among all :math:`2n`; ties share
    their mean rank. Invariant under monotone transformations of the objective, so outliers have no
    leverage; for the same reason it is a direction, not an estimate of the gradient.

    References:
        D. Wierstra et al. Natural evolution strategies. JMLR 15 (2014), section 3.1. T. Salimans et
        al. Evolution strategies as a scalable alternative to reinforcement learning (2017).
    """

    signs = (1, -1)
    joint = True
    learns_sigma = False

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        ranks = centered_ranks(values.flatten()).view_as(values)
        return (ranks[:, 0] - ranks[:, 1]) / (2 * sigma)


def centered_ranks(values: Tensor) -> Tensor:
    """Return ranks scaled to [-1/2, 1/2], equal values sharing their mean rank; NaN ranks last.

    Example:
        >>> import torch
        >>> from torchopt_zero.estimators.rank_shaped import centered_ranks
        >>> centered_ranks(torch.tensor([3.0, -1.0, 3.0]))
        tensor([ 0.2500, -0.5000,  0.2500])
    """
    if len(values) < 2:
        return torch.zeros_like(values)
    _, index, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    mean = last - (counts - 1) / 2
    ranks: Tensor = mean[index] / (len(values) - 1) - 0.5
    return ranks.to(values.dtype)
