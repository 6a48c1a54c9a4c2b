"""Random directions at right angles."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero._leaf_vector import LeafVector
from torchopt_zero._noise import DenseNoise, squared_norms


class Orthogonal(DenseNoise):
    r"""Normal noise whose samples are orthogonal to each other, in groups as large as can be.

    .. math::
        z_i = \|g_i\|\, q_i, \qquad g_i \sim \mathcal{N}(0, I), \qquad
        (q_1, \dots, q_k) = \text{the orthonormalized } (g_1, \dots, g_k),
        \qquad k \le d.

    Each sample by itself is standard normal, so estimates stay unbiased; samples of a group do not
    repeat each other, which lowers the variance, to little where a group is a whole basis. Pass it
    as the `distribution` of :func:`~torchopt_zero.zero_order`. The leaves of one dtype and device
    are one vector of :math:`d` entries. Orthonormalizing a group takes :math:`O(d k^2)`.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import Orthogonal
        >>> decorate = torchopt.diff.zero_order(Orthogonal(), "antithetic", num_samples=100)
        >>> x = torch.zeros(3, requires_grad=True)
        >>> decorate(lambda x: x @ torch.tensor([1.0, -2.0, 0.5]))(x).backward()
        >>> x.grad.sign()
        tensor([ 1., -1.,  1.])

    References:
        K. Choromanski et al. Structured evolution with compact architectures for scalable policy
        optimization. ICML (2018), section 3.1.
    """

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        rows.normal_(generator=vector.generator(seed, samples.start))
        count, size = rows.shape
        whole = count - count % size if size else 0
        if whole:
            _orthogonalize(rows[:whole].view(-1, size, size))
        if whole < count and size:
            _orthogonalize(rows[whole:])

    def squared_norms(self, drawn: list[Tensor]) -> Tensor:
        return squared_norms(drawn)


def _orthogonalize(rows: Tensor) -> None:
    """Turn the rows of matrices, at most as many as columns; the first stays where it is.

    The norms of normal rows are independent of where they are turned to: these depend on the
    orthogonal factor alone, those on the triangular one (Bartlett's decomposition).
    """
    norms = rows.norm(dim=-1, keepdim=True)
    basis, triangle = torch.linalg.qr(rows.mT)
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-1)
    rows.copy_(basis.mT * signs * norms)
