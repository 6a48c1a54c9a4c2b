"""One evaluation per sample, and one at the unperturbed arguments."""

from __future__ import annotations

from torch import Tensor

from torchopt_zero._estimator import SampledEstimator
from torchopt_zero._problem import Problem


class Forward(SampledEstimator):
    r"""Differences from the unperturbed value.

    .. math::
        g = \frac{1}{n} \sum_i \frac{f(x + \sigma z_i) - f(x)}{\sigma} z_i.

    The expectation is that of :class:`~torchopt_zero.Naive` for noise of zero mean, without the
    variance that the size of :math:`f` brings. Where :math:`f` draws random numbers, as dropout
    does, :math:`f(x)` is evaluated anew for each sample, with those of the sample.

    References:
        Y. Nesterov, V. Spokoiny. Random gradient-free minimization of convex functions. Found.
        Comput. Math. 17 (2017), eq. 22.
    """

    signs = (1,)

    def uses_value(self, values: Tensor) -> bool:
        return values.shape[1] == 1

    def signs_for(self, problem: Problem) -> tuple[int, ...]:
        evaluator = problem.objective.evaluator
        return (1, 0) if evaluator.draws and evaluator.randomness == "same" else self.signs

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        base = values[:, 1] if values.shape[1] > 1 else value
        return (values[:, 0] - base) / sigma
