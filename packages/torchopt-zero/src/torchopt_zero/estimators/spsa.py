"""Simultaneous perturbation by random signs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from torchopt_zero._estimator import SampledEstimator
from torchopt_zero._leaf_vector import LeafVector
from torchopt_zero._noise import DenseNoise, Gaussian, Noise, Rademacher
from torchopt_zero._problem import Problem


class SPSA(SampledEstimator):
    r"""Simultaneous perturbation stochastic approximation.

    .. math::
        g_j = \frac{1}{n} \sum_i
        \frac{f(x + \sigma \Delta_i) - f(x - \sigma \Delta_i)}{2 \sigma \Delta_{ij}},
        \qquad \Delta_{ij} = \operatorname{sign} z_{ij}.

    The signs of the distribution's samples are the directions, which for any continuous symmetric
    distribution are fair coins: their inverse moments are finite, as the method needs. Exact in
    expectation on quadratics; two evaluations whatever the dimension.

    Example:
        >>> import torch, torchopt
        >>> normal = torch.distributions.Normal(0, 1)
        >>> square = torchopt.diff.zero_order(normal, "spsa", sigma=0.1)(lambda x: x.square().sum())
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> square(x).backward()
        >>> torch.testing.assert_close(x.grad, torch.tensor([6.0]))

    References:
        J. C. Spall. Multivariate stochastic approximation using a simultaneous perturbation
        gradient approximation. IEEE Trans. Automat. Contr. 37 (1992), eq. 2.2.
    """

    signs = (1, -1)
    learns_sigma = False

    def noise(self, problem: Problem) -> Noise:
        given = problem.noise
        if isinstance(given, Gaussian):
            return Rademacher()
        if not isinstance(given, DenseNoise):
            raise TypeError(
                f"`spsa` needs noise with an entry per parameter, got {type(given).__name__}; pass "
                f"a torch.distributions.Distribution"
            )
        return given if isinstance(given, Rademacher) else _Signs(given)

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        return (values[:, 0] - values[:, 1]) / (2 * sigma)


class _Signs(DenseNoise):
    """The signs of other noise; zero counts as positive."""

    def __init__(self, of: DenseNoise) -> None:
        self.of = of

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        self.of.fill(rows, vector, seed, samples)
        rows.copy_((rows >= 0).to(rows.dtype).mul_(2).sub_(1))

    def check_repeatable(self, leaves: Sequence[Tensor], seed: int) -> None:
        self.of.check_repeatable(leaves, seed)
