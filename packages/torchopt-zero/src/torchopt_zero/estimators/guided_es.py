"""Search in a subspace that past gradients span, and a little outside of it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import optree
import torch
from torch import Tensor

from torchopt_zero._estimator import SampledEstimator
from torchopt_zero._leaf_vector import LeafVector
from torchopt_zero._leaves import like_leaves
from torchopt_zero._noise import DenseNoise, Noise
from torchopt_zero._problem import Problem


class GuidedES(SampledEstimator):
    r"""Guided evolution strategies.

    .. math::
        g = \frac{\beta}{n} \sum_i \frac{f(x + \sigma z_i) - f(x - \sigma z_i)}{2 \sigma} z_i,
        \qquad z_i \sim \mathcal{N}\left(0, \frac{\alpha}{d} I + \frac{1 - \alpha}{k} U U^\top
        \right),

    where the :math:`k` columns of :math:`U` are an orthonormal basis of the last gradients, and
    :math:`d` is the number of parameters. On a linear function :math:`\mathbb{E}\, g = \beta \Sigma
    \nabla f`: a descent direction, shortened to where the subspace and the dimension say. Before
    the first gradient :math:`\Sigma = I / d`.

    The estimator keeps the gradients, so use one object per function. The distribution is not used.

    Args:
        k: How many past gradients span the subspace. Default: 1.
        alpha: What share of the variance lies outside the subspace, in [0, 1]. Default: 0.5.
        beta: The scale of the estimate. Default: 1.0.
        remember: Whether its own estimates are observed, too; ``False`` where :meth:`observe` is
            called with surrogate gradients. Default: ``True``.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import GuidedES
        >>> guided = GuidedES(alpha=0.0, remember=False)
        >>> guided.observe([torch.tensor([0.0, 2.0])])
        >>> loss = torchopt.diff.zero_order(torch.randn, guided, sigma=0.1)(lambda x: x.sum())
        >>> x = torch.zeros(2, requires_grad=True)
        >>> loss(x).backward()
        >>> x.grad[0] == 0 and x.grad[1] > 0  # nothing outside the subspace
        tensor(True)

    References:
        N. Maheswaranathan et al. Guided evolutionary strategies: augmenting random search with
        surrogate gradients. ICML (2019), eq. 1 and section 3.
    """

    signs = (1, -1)
    learns_sigma = False

    def __init__(
        self, k: int = 1, alpha: float = 0.5, beta: float = 1.0, remember: bool = True
    ) -> None:
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` must lie in [0, 1], got {alpha}")
        if not beta > 0:
            raise ValueError(f"`beta` must be positive, got {beta}")
        self.alpha = alpha
        self.beta = beta
        self.remember = remember
        self._gradients: deque[list[Tensor]] = deque(maxlen=k)

    def observe(self, gradient: Any) -> None:
        """Take a gradient, e.g. of a surrogate objective, into the subspace.

        Args:
            gradient: A tree of tensors shaped like the differentiated arguments.
        """
        self._gradients.append([leaf.detach().clone() for leaf in optree.tree_leaves(gradient)])

    def noise(self, problem: Problem) -> Noise:
        vectors = LeafVector.of(problem.leaves)
        if len(vectors) > 1:
            raise TypeError(
                "`GuidedES` needs all differentiated tensors to share one dtype and device, got "
                + ", ".join(f"{vector.dtype} on {vector.device}" for vector in vectors)
            )
        past = [
            vectors[0].flatten(like_leaves(gradient, problem.leaves, "gradient"))
            for gradient in self._gradients
        ]
        return _Subspace(_basis(past), self.alpha)

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        return (values[:, 0] - values[:, 1]) * (self.beta / (2 * sigma))

    def estimate(self, problem: Problem) -> list[Tensor]:
        gradient = super().estimate(problem)
        if self.remember:
            self.observe(gradient)
        return gradient


class _Subspace(DenseNoise):
    """Normal noise with more variance in the span of some columns."""

    def __init__(self, basis: Tensor | None, alpha: float) -> None:
        self.basis = basis
        self.alpha = alpha if basis is not None else 1.0

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        generator = vector.generator(seed, samples.start)
        rows.normal_(generator=generator).mul_(math.sqrt(self.alpha / max(1, vector.size)))
        if self.basis is not None:
            k = self.basis.shape[1]
            inside = rows.new_empty(len(rows), k).normal_(generator=generator)
            rows.addmm_(inside, self.basis.T, alpha=math.sqrt((1 - self.alpha) / k))


def _basis(past: list[Tensor]) -> Tensor | None:
    """Return an orthonormal basis of the span, or ``None`` if it is empty."""
    finite = [vector for vector in past if vector.isfinite().all() and vector.any()]
    if not finite:
        return None
    columns = torch.stack([vector / vector.norm() for vector in finite], dim=1)
    left, singular, _ = torch.linalg.svd(columns, full_matrices=False)
    rank = int((singular > singular[0] * 1e-4).sum())
    basis: Tensor = left[:, :rank].contiguous()
    return basis
