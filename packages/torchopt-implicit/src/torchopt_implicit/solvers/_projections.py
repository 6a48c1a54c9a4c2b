"""Euclidean projections onto convex sets, differentiable in the point and in the set."""

from __future__ import annotations

import torch

__all__ = ["project_ball", "project_box", "project_simplex"]


def project_box(
    x: torch.Tensor, lower: float | torch.Tensor, upper: float | torch.Tensor
) -> torch.Tensor:
    r"""Project onto the box :math:`\{y : l \le y \le u\}`.

    .. math::
        P(x) = \min(\max(x, l), u)

    Args:
        x: Of any shape.
        lower: Lower bounds that broadcast to ``x``; ``-inf`` for none.
        upper: Upper bounds, not below ``lower``; ``inf`` for none.

    Returns:
        The projection, differentiable in all arguments.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import project_box
        >>> project_box(torch.tensor([-2.0, 0.5, 2.0]), -1.0, 1.0)
        tensor([-1.0000,  0.5000,  1.0000])
    """
    low = torch.as_tensor(lower, dtype=x.dtype, device=x.device)
    high = torch.as_tensor(upper, dtype=x.dtype, device=x.device)
    return torch.minimum(torch.maximum(x, low), high)


def project_simplex(x: torch.Tensor, total: float | torch.Tensor = 1.0) -> torch.Tensor:
    r"""Project each row onto the simplex :math:`\{y \ge 0 : \sum_i y_i = c\}`.

    .. math::
        P(x) = \max(x - \tau, 0), \qquad \tau \text{ such that } \textstyle\sum_i P(x)_i = c

    Args:
        x: Of shape ``(..., n)``; the last dimension is projected.
        total: The sum :math:`c > 0`, broadcasting to ``(...)``.

    Returns:
        The projection, differentiable in both arguments.

    Raises:
        ValueError: If ``x`` is a 0-dim tensor or has no entries in its last dimension.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import project_simplex
        >>> project_simplex(torch.tensor([0.5, 1.0, -1.0]))
        tensor([0.2500, 0.7500, 0.0000])

    References:
        J. Duchi et al.: Efficient projections onto the l1-ball for learning in high dimensions
        (2008), figure 1.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(
            f"`x` must have the shape (..., n) with n at least 1, got {tuple(x.shape)}"
        )
    total = torch.as_tensor(total, dtype=x.dtype, device=x.device)
    ordered = x.sort(dim=-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (ordered.cumsum(-1) - total.unsqueeze(-1)) / count
    support = (ordered > thresholds).sum(-1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(-1, support - 1)
    return torch.relu(x - threshold)


def project_ball(
    x: torch.Tensor,
    radius: float | torch.Tensor = 1.0,
    center: float | torch.Tensor = 0.0,
) -> torch.Tensor:
    r"""Project the tensor, taken as one vector, onto the ball :math:`\{y : \|y - c\| \le r\}`.

    .. math::
        P(x) = c + (x - c) \min(1, r / \|x - c\|)

    Args:
        x: Of any shape.
        radius: A positive number or 0-dim tensor.
        center: Broadcasts to ``x``.

    Returns:
        The projection, differentiable in all arguments.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import project_ball
        >>> project_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    offset = x - center
    # true of NaN, which is to be seen in the result
    outside = ~(offset.square().sum() <= torch.as_tensor(radius).square())
    # the norm of a point inside is not needed, and has no derivative at the center
    norm = torch.where(outside, offset, torch.ones_like(offset)).square().sum().sqrt()
    return torch.where(outside, center + offset * (radius / norm), x)
