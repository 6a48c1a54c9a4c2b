"""The box and the non-negative orthant."""

from __future__ import annotations

from typing import Any

import torch

from torchopt_implicit.projections._leaves import check_real, map_leaves

__all__ = ["project_box", "project_nonnegative"]


def project_box(x: Any, lower: Any, upper: Any) -> Any:
    r"""Project onto the box :math:`\{y : l \le y \le u\}`.

    .. math::
        P(x) = \min(\max(x, l), u)

    Args:
        x: A tensor of any shape, or a tree of tensors.
        lower: Lower bounds that broadcast to ``x``, or a tree of them like ``x``; ``-inf`` for
            none.
        upper: Upper bounds likewise, not below ``lower``; ``inf`` for none.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of real floating point tensors.
        ValueError: If a tree of bounds is not like ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_box
        >>> project_box(torch.tensor([-2.0, 0.5, 2.0]), -1.0, 1.0)
        tensor([-1.0000,  0.5000,  1.0000])
    """
    return map_leaves(_clip, x, lower=lower, upper=upper)


def project_nonnegative(x: Any) -> Any:
    r"""Project onto the non-negative orthant, :math:`P(x) = \max(x, 0)`.

    Args:
        x: A tensor of any shape, or a tree of tensors.

    Returns:
        The projection.

    Raises:
        TypeError: If ``x`` is not made of real floating point tensors.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_nonnegative
        >>> project_nonnegative({"w": torch.tensor([-2.0, 0.5])})
        {'w': tensor([0.0000, 0.5000])}
    """
    return map_leaves(lambda leaf: torch.relu(check_real(leaf)), x)


def _clip(x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.maximum(check_real(x), lower), upper)
