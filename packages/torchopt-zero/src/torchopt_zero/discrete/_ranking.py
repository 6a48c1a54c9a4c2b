"""Ranks and sorting."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from torchopt_zero.discrete._solver import Solver

__all__ = ["ranking", "sorting", "sorting_scores"]


def ranking(descending: bool = False) -> Solver:
    r"""Return the solver that gives each entry of a vector its rank, from 1 to ``n``.

    .. math::
        y(x) = \operatorname{arg\,max}_{y \in \operatorname{perm}(1, \dots, n)} \langle y, x \rangle

    Ascending ranks maximize the inner product, descending ones minimize it. Of equal entries the
    first has the lower rank.

    Args:
        descending: Whether rank 1 is that of the largest entry, not of the smallest.

    Returns:
        A :class:`Solver` from ``(*batch, n)`` to ``(*batch, n)``.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import ranking
        >>> ranking()(torch.tensor([0.3, 2.0, 1.0]))
        tensor([1., 3., 2.])
        >>> ranking(descending=True)(torch.tensor([0.3, 2.0, 1.0]))
        tensor([3., 1., 2.])

    Reference:
        Blondel, Teboul, Berthet and Djolonga, Fast differentiable sorting and ranking, 2020, sec.
        3; Rolínek et al., Optimizing rank-based metrics with blackbox differentiation, 2020.
    """
    return Solver(partial(_ranks, descending), event_dim=1, maximize=not descending)


def sorting(descending: bool = False) -> Solver:
    r"""Return the solver that gives the permutation matrix which sorts a vector.

    .. math::
        Y(x) = \operatorname{arg\,max}_{Y \in \mathcal P_n} \langle Y, \rho x^\top \rangle
        \qquad \operatorname{sort}(x) = Y(x)\, x

    where :math:`\rho = (1, \dots, n)`. It has no objective that is linear in ``x`` for a solution
    of the same shape, as :class:`Blackbox` needs: there, write
    ``Blackbox(assignment(maximize=True))(sorting_scores(x))``, which solves the same problem.

    Args:
        descending: Whether the largest entry comes first.

    Returns:
        A :class:`Solver` from ``(*batch, n)`` to ``(*batch, n, n)``.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import sorting
        >>> x = torch.tensor([0.3, 2.0, 1.0])
        >>> sorting()(x) @ x
        tensor([0.3000, 1.0000, 2.0000])
    """
    return Solver(partial(_permutation, descending), event_dim=1, maximize=not descending)


def sorting_scores(x: Tensor, descending: bool = False) -> Tensor:
    r"""Return the scores whose best assignment is the permutation matrix that sorts a vector.

    .. math::
        S_{ij} = \pm \rho_i x_j, \qquad \rho = (1, \dots, n)

    Args:
        x: Of shape ``(*batch, n)``. Differentiable.
        descending: Whether the largest entry comes first.

    Returns:
        A tensor of shape ``(*batch, n, n)``.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import Blackbox, assignment, sorting_scores
        >>> x = torch.tensor([0.3, 2.0, 1.0], requires_grad=True)
        >>> permutation = Blackbox(assignment(maximize=True), lambd=5.0)(sorting_scores(x))
        >>> (permutation.detach() @ x).detach()
        tensor([0.3000, 1.0000, 2.0000])
    """
    if not isinstance(x, Tensor) or x.ndim < 1:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"`x` must be a tensor of at least one dimension, got {got}")
    rho = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return (-rho if descending else rho).unsqueeze(-1) * x.unsqueeze(-2)


def _ranks(descending: bool, x: Tensor) -> Tensor:
    order = x.argsort(dim=-1, descending=descending, stable=True)
    ranks = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    return torch.zeros_like(x).scatter(-1, order, ranks.expand_as(x))


def _permutation(descending: bool, x: Tensor) -> Tensor:
    order = x.argsort(dim=-1, descending=descending, stable=True)
    zeros = torch.zeros(*x.shape, x.shape[-1], dtype=x.dtype, device=x.device)
    return zeros.scatter(-1, order.unsqueeze(-1), 1)
