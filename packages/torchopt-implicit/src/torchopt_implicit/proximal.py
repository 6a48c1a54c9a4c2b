r"""Proximal operators, differentiable in the point and in the weight.

.. math::
    \operatorname{prox}_g(x) = \arg\min_y \tfrac{1}{2} \|y - x\|^2 + g(y)

That of :math:`t g` is had by multiplying the weights by :math:`t`. That of the indicator of a
convex set is the projection onto it, see :mod:`torchopt_implicit.projections` and
:func:`from_projection`. Each is differentiable, in reverse and forward mode and to any order, where
the operator is: not where an entry, a group or a singular value just becomes zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt_implicit.projections import project_box, project_nonnegative
from torchopt_implicit.projections._leaves import (
    check_nonnegative,
    check_real,
    map_leaves,
    soft_threshold,
)
from torchopt_implicit.projections._semidefinite import positive_part

__all__ = [
    "from_projection",
    "prox_box",
    "prox_elastic_net",
    "prox_group_l1",
    "prox_l1",
    "prox_nonnegative",
    "prox_nonnegative_l1",
    "prox_nuclear",
    "prox_squared_l2",
]

#: the proximal operators of indicators, whatever their weight
prox_box = project_box
prox_nonnegative = project_nonnegative


def prox_l1(x: Any, weight: Any = 1.0) -> Any:
    r"""Return the proximal operator of :math:`w \|y\|_1`, soft thresholding.

    .. math::
        \operatorname{sign}(x) \max(|x| - w, 0)

    Args:
        x: A tensor of any shape, or a tree of tensors. Of complex entries the moduli are shortened.
        weight: :math:`w \ge 0`: a number, a tensor that broadcasts to ``x``, or a tree of these
            like ``x``.

    Returns:
        A tree like ``x``, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``weight`` is negative, or a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_l1
        >>> prox_l1(torch.tensor([-3.0, 0.5, 2.0]))
        tensor([-2.,  0.,  1.])

    References:
        N. Parikh, S. Boyd: Proximal algorithms (2014), section 6.5.2.
    """
    check_nonnegative(weight, "weight")
    return map_leaves(soft_threshold, x, weight=weight)


def prox_nonnegative_l1(x: Any, weight: Any = 1.0) -> Any:
    r"""Return the proximal operator of :math:`w \|y\|_1` among non-negative :math:`y`.

    .. math::
        \max(x - w, 0)

    Args:
        x: A tensor of any shape, or a tree of tensors.
        weight: As for :func:`prox_l1`.

    Returns:
        A tree like ``x``, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of real floating point tensors.
        ValueError: As :func:`prox_l1` does.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_nonnegative_l1
        >>> prox_nonnegative_l1(torch.tensor([-3.0, 0.5, 2.0]))
        tensor([0., 0., 1.])
    """
    check_nonnegative(weight, "weight")
    return map_leaves(lambda leaf, w: torch.relu(check_real(leaf) - w), x, weight=weight)


def prox_squared_l2(x: Any, weight: Any = 1.0) -> Any:
    r"""Return the proximal operator of :math:`\tfrac{w}{2} \|y\|^2`: :math:`x / (1 + w)`.

    Args:
        x: A tensor of any shape, or a tree of tensors.
        weight: As for :func:`prox_l1`.

    Returns:
        A tree like ``x``, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: As :func:`prox_l1` does.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_squared_l2
        >>> prox_squared_l2(torch.tensor([-3.0, 2.0]))
        tensor([-1.5000,  1.0000])
    """
    check_nonnegative(weight, "weight")
    return map_leaves(lambda leaf, w: leaf / (1 + w), x, weight=weight)


def prox_elastic_net(x: Any, l1: Any = 1.0, l2: Any = 1.0) -> Any:
    r"""Return the proximal operator of :math:`w_1 \|y\|_1 + \tfrac{w_2}{2} \|y\|^2`.

    .. math::
        \operatorname{sign}(x) \max(|x| - w_1, 0) / (1 + w_2)

    Args:
        x: A tensor of any shape, or a tree of tensors.
        l1: :math:`w_1`, as the weight of :func:`prox_l1`.
        l2: :math:`w_2`, likewise.

    Returns:
        A tree like ``x``, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If a weight is negative, or a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_elastic_net
        >>> prox_elastic_net(torch.tensor([-3.0, 0.5, 2.0]))
        tensor([-1.0000,  0.0000,  0.5000])

    References:
        N. Parikh, S. Boyd: Proximal algorithms (2014), section 6.5.3.
    """
    check_nonnegative(l1, "l1")
    check_nonnegative(l2, "l2")
    return map_leaves(lambda leaf, a, b: soft_threshold(leaf, a) / (1 + b), x, l1=l1, l2=l2)


def prox_group_l1(x: Any, weight: Any = 1.0, *, dim: int | tuple[int, ...] | None = None) -> Any:
    r"""Return the proximal operator of :math:`\sum_g w_g \|y_g\|_2`, block soft thresholding.

    .. math::
        x_g \max(1 - w_g / \|x_g\|_2, 0)

    A group that is zero stays zero, and has derivative zero.

    Args:
        x: A tensor, or a tree of tensors.
        weight: :math:`w \ge 0`: a number, or a tensor that broadcasts to the groups' norms, which
            keep their dimensions, as in ``(rows, 1)``; or a tree of these like ``x``.
        dim: The dimensions along which entries form one group, so that ``dim=-1`` makes each row
            a group; by default each leaf is one group.

    Returns:
        A tree like ``x``, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: As :func:`prox_l1` does.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_group_l1
        >>> prox_group_l1(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), dim=-1)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    References:
        N. Parikh, S. Boyd: Proximal algorithms (2014), section 6.5.4.
    """
    check_nonnegative(weight, "weight")

    def shorten(leaf: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        along = tuple(range(leaf.ndim)) if dim is None else dim
        # the root has no slope at zero, and scaled squares neither overflow nor vanish
        if not leaf.numel():
            return leaf
        largest = leaf.detach().abs().amax(along, keepdim=True)
        scale = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)
        modulus = (leaf / scale).abs() if leaf.is_complex() else leaf / scale
        squared = modulus.square().sum(along, keepdim=True)
        positive = ~(squared <= 0)
        norm = torch.where(positive, scale * torch.where(positive, squared, 1.0).sqrt(), 0.0)
        longer = ~(norm <= w)
        return torch.where(longer, leaf * (1 - w / torch.where(longer, norm, 1.0)), 0.0)

    return map_leaves(shorten, x, weight=weight)


def prox_nuclear(x: Any, weight: Any = 1.0) -> Any:
    r"""Return the proximal operator of :math:`w \|Y\|_*`, thresholding of singular values.

    .. math::
        U \max(\Sigma - w, 0) V^\top, \qquad X = U \Sigma V^\top

    It is computed from the positive part of

    .. math::
        \begin{pmatrix} -w I & X \\ X^\top & -w I \end{pmatrix}

    whose derivatives, unlike those of singular vectors, are right where singular values repeat or
    are zero. They exist where none equals the weight.

    Args:
        x: Of shape ``(..., m, n)``, or a tree of such tensors.
        weight: :math:`w > 0`, a number or a tensor that broadcasts to ``(...)``, or a tree of these
            like ``x``.

    Returns:
        A tree like ``x``, differentiable in all arguments, at the cost of eigenvalues of size
        ``m + n``.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``x`` is not made of matrices, or ``weight`` is negative or a tree unlike
            ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_nuclear
        >>> prox_nuclear(torch.diag(torch.tensor([3.0, 0.5]))).round(decimals=4)
        tensor([[2., 0.],
                [0., 0.]])

    References:
        J.-F. Cai, E. J. Candès, Z. Shen: A singular value thresholding algorithm for matrix
        completion (2010), theorem 2.1.
    """
    check_nonnegative(weight, "weight")
    return map_leaves(_threshold_singular_values, x, weight=weight)


def from_projection(projection: Callable[..., Any]) -> Callable[..., Any]:
    r"""Return the proximal operator of the indicator of a set, given the projection onto it.

    Args:
        projection: ``projection(x, *args)``.

    Returns:
        ``prox(x, stepsize, *args)``, as :func:`~torchopt_implicit.solvers.proximal_gradient` takes
        it. The step size makes no difference.

    Raises:
        TypeError: If ``projection`` is not callable.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_simplex
        >>> from torchopt_implicit.proximal import from_projection
        >>> from_projection(project_simplex)(torch.tensor([0.5, 1.0, -1.0]), 0.1)
        tensor([0.2500, 0.7500, 0.0000])
    """
    if not callable(projection):
        raise TypeError(
            f"`projection` must be callable as projection(x, *args), got "
            f"{type(projection).__name__}"
        )

    def prox(x: Any, stepsize: Any, *args: Any) -> Any:
        return projection(x, *args)

    return prox


def _threshold_singular_values(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if x.ndim < 2:
        raise ValueError(f"`x` must have the shape (..., m, n), got {tuple(x.shape)}")
    m, n = x.shape[-2:]
    if m * n == 0:
        return x
    minus = -weight[..., None, None]
    upper = (torch.eye(m, dtype=x.dtype, device=x.device) * minus).expand(*x.shape[:-2], m, m)
    lower = (torch.eye(n, dtype=x.dtype, device=x.device) * minus).expand(*x.shape[:-2], n, n)
    whole = torch.cat((torch.cat((upper, x), -1), torch.cat((x.mH, lower), -1)), -2)
    return 2 * positive_part(whole)[..., :m, m:]
