"""One pair of evaluations per coordinate."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero._estimator import Estimator
from torchopt_zero._leaf_vector import wide
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
        return [self._slopes(problem, position) for position in range(len(problem.leaves))]

    def _slopes(self, problem: Problem, position: int) -> Tensor:
        leaves, leaf = problem.leaves, problem.leaves[position]
        entries = leaf.reshape(-1)
        slopes = torch.empty(leaf.numel(), dtype=torch.float64, device="cpu")

        def build(one: list[Tensor]) -> list[Tensor]:
            return [*leaves[:position], *one, *leaves[position + 1 :]]

        for tile in problem.tiles(leaf.numel(), leaf.numel()):
            for coordinates in problem.pieces(tile, 2):
                count = len(coordinates)
                here = entries[coordinates.start : coordinates.stop]
                ends = [(here.double() + sign * problem.sigma).to(leaf) for sign in (1, -1)]
                steps = (ends[0].double() - ends[1].double()).cpu()
                if not steps.all():
                    raise ValueError(
                        f"`sigma`, {problem.sigma}, is too small to move an entry of a tensor of "
                        f"{leaf.dtype}; use a larger one, or a wider dtype"
                    )
                moved = entries.repeat(2 * count, 1)
                for run, end in zip(torch.split(moved, count), ends, strict=True):
                    run.diagonal(coordinates.start).copy_(end)
                values = problem.values(
                    build, [moved.view(2 * count, *leaf.shape)], 2, coordinates.start
                )
                pairs = values.view(2, -1).T
                problem.check_finite(pairs)
                slopes[coordinates.start : coordinates.stop] = (pairs[:, 0] - pairs[:, 1]) / steps
        if problem.on_non_finite == "ignore" and not slopes.isfinite().all():
            raise FloatingPointError(
                "the objective is not finite at a difference, which 'finite-difference' cannot "
                "leave out: every coordinate has but one"
            )
        return slopes.to(leaf.device, wide(leaf.dtype)).view(leaf.shape)
