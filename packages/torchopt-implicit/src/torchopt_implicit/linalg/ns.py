"""The Neumann series, applied to a tree and as a matrix."""

from __future__ import annotations

from typing import Any

import torch

from torchopt_implicit._functorch import without_autocast
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve.inv import Neumann

__all__ = ["ns", "ns_inv"]


def ns(
    A: Any,
    b: Any,
    maxiter: int | None = None,
    *,
    alpha: float | torch.Tensor | None = None,
    return_info: bool = False,
) -> Any:
    r"""Return an approximation of :math:`A^{-1} b` by the Neumann series.

    .. math:: \alpha \sum_{k=0}^{K} (I - \alpha A)^k\, b

    All terms are summed, whether or not the series converges: this does not warn.

    Args:
        A: A function of trees, a matrix, or a :class:`~torchopt_implicit.linalg.LinearOperator`.
        b: A tree of tensors.
        maxiter: :math:`K`, 10 by default.
        alpha: :math:`\alpha`, 1 by default; the series converges if the spectral radius of
            :math:`I - \alpha A` is below 1.
        return_info: Whether to return what became of it, too.

    Returns:
        The sum, shaped like ``b``; with ``return_info`` also an
        :class:`~torchopt_implicit.Info`.

    Raises:
        TypeError: If ``A`` or ``b`` is of the wrong kind.
        ValueError: If they do not fit, or ``maxiter`` is negative.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> torchopt.linalg.ns(A, torch.tensor([2.0, 2.0]))
        tensor([1., 2.])
    """
    count = 10 if maxiter is None else maxiter
    x, info = Neumann(maxiter=count, alpha=alpha, rtol=0.0, truncate=True).solve(A, b)
    return (x, info) if return_info else x


@without_autocast()
def ns_inv(A: Any, maxiter: int | None = None, *, alpha: float | torch.Tensor | None = None) -> Any:
    r"""Return an approximation of :math:`A^{-1}` by the Neumann series, as a matrix.

    .. math:: \alpha \sum_{k=0}^{K - 1} (I - \alpha A)^k

    Args:
        A: A matrix ``(n, n)``, or a tree of these.
        maxiter: :math:`K`, 10 by default.
        alpha: :math:`\alpha`, 1 by default.

    Returns:
        The sum, shaped like ``A``.

    Raises:
        TypeError: If ``A`` is not made of floating point tensors.
        ValueError: If a leaf is not a square matrix, or ``maxiter`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.linalg.ns_inv(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
        tensor([[ 1.0000, -0.5000],
                [ 0.0000,  1.0000]])
    """
    layout = Layout.of(A, "A")
    count = 10 if maxiter is None else maxiter
    if count < 0:
        raise ValueError(f"`maxiter` must be non-negative, got {maxiter}")
    step: Any = 1.0 if alpha is None else alpha
    inverses = []
    for matrix in layout.flatten(A, "A"):
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"`A` must be a square matrix, got the shape {tuple(matrix.shape)}")
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        term, total = eye, torch.zeros_like(matrix)
        for _ in range(count):
            total = total + term
            term = term - step * (matrix @ term)
        inverses.append(step * total)
    return layout.unravel(layout.join(inverses))
