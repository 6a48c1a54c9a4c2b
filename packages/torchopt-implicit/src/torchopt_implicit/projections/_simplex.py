"""The simplex, in the Euclidean distance and in the divergence of Kullback and Leibler."""

from __future__ import annotations

from typing import Any

import torch

from torchopt_implicit.projections._leaves import (
    check_last,
    check_nonnegative,
    check_real,
    map_leaves,
)

__all__ = ["project_simplex", "project_simplex_kl", "simplex_threshold"]


def project_simplex(x: Any, total: float | torch.Tensor = 1.0) -> Any:
    r"""Project each row onto the simplex :math:`\{y \ge 0 : \sum_i y_i = c\}`.

    .. math::
        P(x) = \max(x - \tau, 0), \qquad \tau \text{ such that } \textstyle\sum_i P(x)_i = c

    Args:
        x: Of shape ``(..., n)``, or a tree of such tensors; the last dimension is projected.
        total: The sum :math:`c > 0`, broadcasting to ``(...)``.

    Returns:
        The projection, differentiable in both arguments.

    Raises:
        TypeError: If ``x`` is not made of real floating point tensors.
        ValueError: If ``x`` is a 0-dim tensor or has no entries in its last dimension, or
            ``total`` is negative.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_simplex
        >>> project_simplex(torch.tensor([0.5, 1.0, -1.0]))
        tensor([0.2500, 0.7500, 0.0000])

    References:
        J. Duchi et al.: Efficient projections onto the l1-ball for learning in high dimensions
        (2008), figure 1.
    """
    check_nonnegative(total, "total")
    return map_leaves(_project, x, total=total)


def project_simplex_kl(x: Any, total: float | torch.Tensor = 1.0) -> Any:
    r"""Project :math:`e^x` onto the simplex in the divergence of Kullback and Leibler.

    .. math::
        P(x) = \arg\min_{y \ge 0,\, \sum_i y_i = c} \sum_i y_i \log y_i - y_i - x_i y_i
             = c\, \mathrm{softmax}(x)

    It is the step of :func:`~torchopt_implicit.solvers.mirror_descent` on the simplex.

    Args:
        x: Of shape ``(..., n)``, or a tree of such tensors; the last dimension is projected.
        total: The sum :math:`c > 0`, broadcasting to ``(...)``.

    Returns:
        The projection, positive, and differentiable everywhere in both arguments.

    Raises:
        TypeError: If ``x`` is not made of real floating point tensors.
        ValueError: As :func:`project_simplex` does.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_simplex_kl
        >>> project_simplex_kl(torch.tensor([1.0, 3.0]).log())
        tensor([0.2500, 0.7500])

    References:
        A. Beck, M. Teboulle: Mirror descent and nonlinear projected subgradient methods for convex
        optimization (2003), section 5.
    """
    check_nonnegative(total, "total")
    return map_leaves(
        lambda leaf, c: c.unsqueeze(-1) * check_last(check_real(leaf)).softmax(-1), x, total=total
    )


def _project(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    shifted = check_last(check_real(x))
    # sums of differences from the largest entry round less
    shifted = shifted - shifted.detach().amax(-1, keepdim=True)
    return torch.relu(shifted - simplex_threshold(shifted, total))


def simplex_threshold(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`\tau`, of shape ``(..., 1)``, with :math:`\sum_i \max(x_i - \tau, 0) = c`."""
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (ordered.cumsum(-1) - total.unsqueeze(-1)) / count
    support = (ordered > thresholds).sum(-1, keepdim=True).clamp_min(1)
    return thresholds.gather(-1, support - 1)
