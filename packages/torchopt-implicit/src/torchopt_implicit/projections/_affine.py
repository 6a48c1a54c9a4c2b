"""Sets that linear equations and inequalities describe."""

from __future__ import annotations

from typing import Any

import optree
import torch

from torchopt_implicit.projections._leaves import (
    check_last,
    check_real,
    flatten,
    leaves_of,
    widen,
)

__all__ = ["project_affine", "project_halfspace", "project_hyperplane", "project_polyhedron"]


def project_hyperplane(x: Any, normal: Any, offset: float | torch.Tensor = 0.0) -> Any:
    r"""Project, taken as one vector, onto the hyperplane :math:`\{y : a^\top y = b\}`.

    .. math::
        P(x) = x - \frac{a^\top x - b}{\|a\|^2}\, a

    Args:
        x: A tensor of any shape, or a tree of tensors, taken as one vector. Of complex entries,
            real and imaginary parts are coordinates: :math:`a^\top x` is the real part of the
            inner product.
        normal: :math:`a \ne 0`: broadcasts to ``x``, or a tree like it.
        offset: :math:`b`, a number or 0-dim tensor.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``normal`` is a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_hyperplane
        >>> project_hyperplane(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([0., 2.])
    """
    return _along_normal(x, normal, offset, lambda excess: excess)


def project_halfspace(x: Any, normal: Any, offset: float | torch.Tensor = 0.0) -> Any:
    r"""Project, taken as one vector, onto the halfspace :math:`\{y : a^\top y \le b\}`.

    .. math::
        P(x) = x - \frac{\max(a^\top x - b, 0)}{\|a\|^2}\, a

    Args:
        x: As for :func:`project_hyperplane`.
        normal: As for :func:`project_hyperplane`.
        offset: As for :func:`project_hyperplane`.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If ``x`` is not made of floating point tensors.
        ValueError: If ``normal`` is a tree unlike ``x``.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_halfspace
        >>> project_halfspace(torch.tensor([-1.0, 1.5]), torch.tensor([1.0, 1.0]), 2.0)
        tensor([-1.0000,  1.5000])
    """
    return _along_normal(x, normal, offset, torch.relu)


def project_affine(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    r"""Project onto the affine set :math:`\{y : A y = b\}`.

    .. math::
        P(x) = x - A^+ (A x - b)

    Rows of ``A`` may depend on each other, as long as their number that do not stays the same
    nearby. Where no ``y`` satisfies all equations, those count that satisfy them best.

    Args:
        x: Of shape ``(..., n)``.
        A: Of shape ``(..., p, n)``.
        b: Of shape ``(..., p)``. The leading dimensions of all broadcast.

    Returns:
        The projection, differentiable in all arguments. It costs a singular value decomposition.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_affine
        >>> project_affine(torch.tensor([1.0, 3.0, 5.0]), torch.eye(2, 3), torch.zeros(2))
        tensor([0., 0., 5.])
    """
    check_last(x, least=0)
    if A.ndim < 2 or b.ndim < 1 or A.shape[-2:] != (b.shape[-1], x.shape[-1]):
        raise ValueError(
            f"`A` and `b` must have the shapes (..., p, {x.shape[-1]}) and (..., p), since `x` "
            f"ends in {x.shape[-1]}, got {tuple(A.shape)} and {tuple(b.shape)}"
        )
    point, matrix, right = widen(x), widen(A), widen(b)
    residual = _times(matrix, point) - right
    moved: torch.Tensor = point - _times(torch.linalg.pinv(matrix), residual)
    return moved.to(x.dtype)


def project_polyhedron(
    x: torch.Tensor,
    G: torch.Tensor,
    h: torch.Tensor,
    A: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    *,
    throw: bool = False,
) -> torch.Tensor:
    r"""Project onto the polyhedron :math:`\{y : G y \le h, A y = b\}`.

    It is a quadratic program, which :func:`~torchopt_implicit.solvers.qp` solves and
    differentiates.

    Args:
        x: Of shape ``(..., n)``.
        G: Of shape ``(..., m, n)``.
        h: Of shape ``(..., m)``.
        A: Of shape ``(..., p, n)``; no equations by default.
        b: Of shape ``(..., p)``; given if and only if ``A`` is. The leading dimensions of all
            arguments broadcast.
        throw: Whether an empty polyhedron raises rather than warns.

    Returns:
        The projection, differentiable in all arguments.

    Raises:
        TypeError: If an argument is not a real tensor, or dtypes differ.
        ValueError: If shapes do not fit.
        FailedSolveError: If ``throw`` and a problem was not solved.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_polyhedron
        >>> G, h = torch.tensor([[1.0, 1.0], [-1.0, 0.0]]).double(), torch.tensor([1.0, 0]).double()
        >>> project_polyhedron(torch.tensor([2.0, 2.0]).double(), G, h)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    from torchopt_implicit.solvers import qp  # which offers projections itself

    point = widen(check_last(check_real(x), least=0))
    rest = [None if data is None else widen(data) for data in (G, h, A, b)]
    eye = torch.eye(x.shape[-1], dtype=point.dtype, device=x.device)
    return qp(eye, -point, *rest, throw=throw).z.to(x.dtype)


def _along_normal(x: Any, normal: Any, offset: Any, excess_of: Any) -> Any:
    given, spec = flatten(x)
    leaves = [widen(leaf) for leaf in given]
    if not leaves:
        return x
    normals = [
        n.expand(leaf.shape)
        for n, leaf in zip(leaves_of(normal, leaves, spec, "normal"), leaves, strict=True)
    ]
    first = leaves[0].real
    product = sum(_inner(n, leaf).to(first) for n, leaf in zip(normals, leaves, strict=True))
    squared = sum(_inner(n, n).to(first) for n in normals)
    length = excess_of(product - offset) / squared
    return optree.tree_unflatten(
        spec,
        [
            (leaf - length.to(leaf.real) * n).to(own.dtype)
            for own, leaf, n in zip(given, leaves, normals, strict=True)
        ],
    )


def _inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    product = x.conj() * y if x.is_complex() or y.is_complex() else x * y
    return (product.real if product.is_complex() else product).sum()


def _times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return torch.matmul(matrix, vector.unsqueeze(-1)).squeeze(-1)
