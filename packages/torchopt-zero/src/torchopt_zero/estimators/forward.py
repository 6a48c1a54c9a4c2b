"""One evaluation per sample, and one at the unperturbed arguments."""

from __future__ import annotations

from torch import Tensor

from torchopt_zero._estimator import SampledEstimator


class Forward(SampledEstimator):
    r"""Differences from the unperturbed value.

    .. math::
        g = \frac{1}{n} \sum_i \frac{f(x + \sigma z_i) - f(x)}{\sigma} z_i.

    The expectation is that of :class:`~torchopt_zero.Naive` for noise of zero mean, without the
    variance that the size of :math:`f` brings.

    References:
        Y. Nesterov, V. Spokoiny. Random gradient-free minimization of convex functions. Found.
        Comput. Math. 17 (2017), eq. 22.
    """

    signs = (1,)

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        return (values[:, 0] - value) / sigma
