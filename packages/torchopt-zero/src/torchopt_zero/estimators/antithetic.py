"""Two evaluations per sample, mirrored."""

from __future__ import annotations

from torch import Tensor

from torchopt_zero._estimator import SampledEstimator


class Antithetic(SampledEstimator):
    r"""Central differences along random directions.

    .. math::
        g = \frac{1}{n} \sum_i \frac{f(x + \sigma z_i) - f(x - \sigma z_i)}{2 \sigma} z_i.

    Even parts of the objective cancel: what remains is unbiased for symmetric noise, and on a
    linear function has the variance of :class:`~torchopt_zero.Forward`, whatever :math:`\sigma`.

    References:
        T. Salimans et al. Evolution strategies as a scalable alternative to reinforcement learning
        (2017), section 2.1.
    """

    signs = (1, -1)

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        return (values[:, 0] - values[:, 1]) / (2 * sigma)
