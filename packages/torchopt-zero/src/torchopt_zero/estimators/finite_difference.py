"""One pair of evaluations per coordinate."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero._estimator import Estimator
from torchopt_zero._problem import Problem


class FiniteDifference(Estimator):
    r"""Central differences along every coordinate.

    .. math::
        g_j = \frac{f(x + \sigma e_j) - f(x - \sigma e_j)}{2 \sigma}.

    Deterministic, and exact to rounding on quadratics; its error is
    :math:`\frac{\sigma^2}{6} \partial_j^3 f` otherwise. It takes two evaluations per parameter, so
    it is for debugging other estimators; the distribution and `num_samples` are not used.

    Example:
        >>> import torch, torchopt
        >>> decorate = torchopt.diff.zero_order(torch.randn, "finite-difference", sigma=0.5)
        >>> x = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> decorate(lambda x: x.square().sum())(x).backward()
        >>> x.grad
        tensor([ 2., -4.])
    """

    def estimate(self, problem: Problem) -> list[Tensor]:
        leaves = problem.leaves
        elements = sum(leaf.numel() for leaf in leaves)
        gradient = []
        for position, leaf in enumerate(leaves):
            slopes = torch.empty(leaf.numel(), dtype=torch.float64)
            others = [*leaves]

            def build(
                one: Tensor, position: int = position, others: list[Tensor] = others
            ) -> list[Tensor]:
                return [*others[:position], one, *others[position + 1 :]]

            for coordinates in problem.chunks(range(leaf.numel()), elements):
                count = len(coordinates)
                values = []
                for sign in (1, -1):
                    moved = leaf.reshape(-1).repeat(count, 1)
                    moved.diagonal(coordinates.start).add_(sign * problem.sigma)
                    batch = [moved.view(count, *leaf.shape)]
                    values.append(
                        problem.objective.values(lambda one: build(one[0]), batch, elements)
                    )
                pairs = torch.stack(values, dim=1)
                problem.check_finite(pairs)
                slopes[coordinates.start : coordinates.stop] = (pairs[:, 0] - pairs[:, 1]) / (
                    2 * problem.sigma
                )
            gradient.append(slopes.to(leaf.device, leaf.dtype).view(leaf.shape))
        return gradient
