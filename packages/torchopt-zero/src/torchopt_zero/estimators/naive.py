"""One evaluation per sample."""

from __future__ import annotations

from torch import Tensor

from torchopt_zero._estimator import SampledEstimator


class Naive(SampledEstimator):
    r"""The score-function estimator of the gradient of the smoothed objective.

    .. math::
        g = \frac{1}{n} \sum_i \frac{f(x + \sigma z_i)}{\sigma} z_i,
        \qquad \mathbb{E}\, g = \nabla_x \mathbb{E}\, f(x + \sigma z)
        \text{ for } z \sim \mathcal{N}(0, I).

    Its variance grows with :math:`f^2`, so a constant added to the objective costs accuracy; see
    :class:`~torchopt_zero.LeaveOneOut`.

    References:
        Y. Nesterov, V. Spokoiny. Random gradient-free minimization of convex functions. Found.
        Comput. Math. 17 (2017), eq. 21.
    """

    signs = (1,)

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        return values[:, 0] / sigma
