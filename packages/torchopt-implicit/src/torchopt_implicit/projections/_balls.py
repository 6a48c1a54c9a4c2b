"""Balls of the norms of order one, two and infinity."""

from __future__ import annotations

from typing import Any

import optree
import torch

from torchopt_implicit.projections._box import project_box
from torchopt_implicit.projections._leaves import (
    check_nonnegative,
    flatten,
    leaves_of,
    norm_of,
    soft_threshold,
    widen,
)
from torchopt_implicit.projections._simplex import simplex_threshold

__all__ = ["project_l1_ball", "project_l2_ball", "project_linf_ball"]


def project_l1_ball(x: Any, radius: float | torch.Tensor = 1.0, center: Any = 0.0) -> Any:
    r"""Project, taken as one vector, onto the ball :math:`\{y : \|y - c\|_1 \le r\}`.

    .. math::
        P(x) = c + \operatorname{sign}(x - c) \max(|x - c| - \tau, 0)

    with the least :math:`\tau \ge 0` that leads into the ball.

    Args:
        x: A tensor of any shape, or a tree of tensors, taken as one vector. Of complex entries the
            moduli count.
        radius: A non-negative number or 0-dim tensor.
        center: Broadcasts to ``x``, or a tree like it.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``radius`` is negative, or ``center`` is a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_l1_ball
        >>> project_l1_ball(torch.tensor([-1.5, 1.0, 0.2]))
        tensor([-0.7500,  0.2500,  0.0000])

    References:
        J. Duchi et al.: Efficient projections onto the l1-ball for learning in high dimensions
        (2008), section 4.
    """
    given, spec, leaves, centers = _prepare(x, radius, center)
    offsets = [leaf - c for leaf, c in zip(leaves, centers, strict=True)]
    parts = [offset.abs().reshape(-1) for offset in offsets]
    moduli = torch.cat([part.to(parts[0]) for part in parts]) if parts else torch.zeros(0)
    if not moduli.numel():
        return x
    limit = torch.as_tensor(radius, dtype=moduli.dtype, device=moduli.device)
    outside = ~(moduli.sum() <= limit)
    threshold = simplex_threshold(moduli, limit).squeeze(-1)
    return optree.tree_unflatten(
        spec,
        [
            torch.where(
                outside.to(leaf.device), c + soft_threshold(offset, threshold.to(c)), leaf
            ).to(own.dtype)
            for own, leaf, c, offset in zip(given, leaves, centers, offsets, strict=True)
        ],
    )


def project_l2_ball(x: Any, radius: float | torch.Tensor = 1.0, center: Any = 0.0) -> Any:
    r"""Project, taken as one vector, onto the ball :math:`\{y : \|y - c\|_2 \le r\}`.

    .. math::
        P(x) = c + (x - c) \min(1, r / \|x - c\|_2)

    Args:
        x: A tensor of any shape, or a tree of tensors, taken as one vector.
        radius: A non-negative number or 0-dim tensor.
        center: Broadcasts to ``x``, or a tree like it.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``radius`` is negative, or ``center`` is a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_l2_ball
        >>> project_l2_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    given, spec, leaves, centers = _prepare(x, radius, center)
    offsets = [leaf - c for leaf, c in zip(leaves, centers, strict=True)]
    norm = norm_of(offsets)
    limit = torch.as_tensor(radius, dtype=norm.dtype, device=norm.device)
    # true of NaN, which is to be seen in the result
    outside = ~(norm <= limit)
    shrink = torch.where(outside, limit / torch.where(outside, norm, 1.0), 1.0)
    return optree.tree_unflatten(
        spec,
        [
            torch.where(outside.to(leaf.device), c + offset * shrink.to(leaf.device), leaf).to(
                own.dtype
            )
            for own, leaf, c, offset in zip(given, leaves, centers, offsets, strict=True)
        ],
    )


def project_linf_ball(x: Any, radius: float | torch.Tensor = 1.0, center: Any = 0.0) -> Any:
    r"""Project onto the ball :math:`\{y : \max_i |y_i - c_i| \le r\}`, a box.

    Args:
        x: A tensor of any shape, or a tree of tensors, taken as one vector. Of complex entries the
            moduli count.
        radius: A non-negative number or 0-dim tensor.
        center: Broadcasts to ``x``, or a tree like it.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``radius`` is negative, or ``center`` is a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_linf_ball
        >>> project_linf_ball(torch.tensor([3.0, 0.5]))
        tensor([1.0000, 0.5000])
    """
    given, spec, leaves, centers = _prepare(x, radius, center)
    results = []
    for own, leaf, c in zip(given, leaves, centers, strict=True):
        offset = leaf - c
        limit = torch.as_tensor(radius, dtype=leaf.dtype.to_real(), device=leaf.device)
        if leaf.is_complex():
            outside = ~(offset.abs() <= limit)
            length = torch.where(outside, offset, 1.0).abs()
            clipped = torch.where(outside, c + offset * (limit / length), leaf)
        else:
            clipped = project_box(leaf, c - limit, c + limit)
        results.append(clipped.to(own.dtype))
    return optree.tree_unflatten(spec, results)


def _prepare(
    x: Any, radius: Any, center: Any
) -> tuple[list[torch.Tensor], optree.PyTreeSpec, list[torch.Tensor], list[torch.Tensor]]:
    """Return the leaves as given, the structure, and leaves and centers to compute with."""
    check_nonnegative(radius, "radius")
    given, spec = flatten(x)
    leaves = [widen(leaf) for leaf in given]
    return given, spec, leaves, leaves_of(center, leaves, spec, "center")
