"""What callers give as an operator: a function, a matrix, a tree of matrices, or an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._context import Autocast
from torchopt_implicit._operator import LinearOperator, shapes_of
from torchopt_implicit._sparse import of_sparse
from torchopt_implicit._tree import Layout, describe_path, leading_vmap

__all__ = ["as_operator", "by_leaf"]


def as_operator(A: Any, layout: Layout, *, square: bool = True) -> LinearOperator:
    """Return what a caller gave as an operator that returns trees of a layout.

    Args:
        A: What was given.
        layout: That of its results, and of its arguments unless they may differ.
        square: Whether they may not. A function always takes what it returns.

    Raises:
        TypeError: If it is neither an operator, nor a matrix, nor callable.
        ValueError: If a matrix or operator does not fit.
    """
    if isinstance(A, torch.Tensor):
        return _of_matrix(A, layout, square=square)
    if isinstance(A, LinearOperator):
        if A.codomain.shapes != layout.shapes:
            raise ValueError(
                f"`b` must be what `A` returns, with leaves of shapes {shapes_of(A.codomain)}, got "
                f"{shapes_of(layout)}"
            )
        if square and A.domain.shapes != layout.shapes:
            raise ValueError(
                f"`A` must be square, got one from leaves of shapes {shapes_of(A.domain)} to "
                f"{shapes_of(A.codomain)}; solve_lstsq and solve_qr take others"
            )
        return A
    if isinstance(A, (tuple, list, dict)):
        function = by_leaf(A)
    elif callable(A):
        function = Autocast.on(layout.device).bind(A)
    else:
        raise TypeError(
            "`A` must be a callable, a matrix, a tree of matrices or a LinearOperator, got "
            f"{type(A).__name__}"
        )

    def matvec(vector: torch.Tensor) -> torch.Tensor:
        return layout.ravel(function(layout.unravel(vector)), "the result of the matvec")

    def rmatvec(vector: torch.Tensor) -> torch.Tensor:
        (pulled,) = torch.func.vjp(matvec, torch.zeros_like(vector))[1](vector)
        return pulled  # type: ignore[no-any-return]

    return LinearOperator(
        lambda v: leading_vmap(matvec, v.ndim - 1)(v),
        lambda v: leading_vmap(rmatvec, v.ndim - 1)(v),
        layout,
        layout,
    )


def _of_matrix(A: torch.Tensor, layout: Layout, *, square: bool) -> LinearOperator:
    is_complex = len(layout.shapes) == 1 and layout.dtypes[0].is_complex
    size = layout.size // 2 if is_complex else layout.size
    if A.ndim != 2 or A.shape[0] != size or (square and A.shape[1] != size):
        shape = (size, size) if square else f"({size}, any)"
        raise ValueError(
            f"`A` must be a matrix of shape {shape} to act on `b`, got the shape {tuple(A.shape)}"
        )
    if is_complex:
        A = A if A.is_complex() else A.to(layout.dtypes[0])
    elif A.is_complex():
        raise ValueError("`b` must be complex where `A` is; convert it with b.to(A.dtype)")
    if torch.promote_types(A.dtype.to_real(), torch.float32) != layout.dtype:
        raise TypeError(
            f"`A` and `b` must be of one precision, got {A.dtype} and leaves of "
            f"{', '.join(map(str, layout.dtypes))}; convert one of them with .to(dtype)"
        )
    operator = LinearOperator.from_matrix(A) if A.layout is torch.strided else of_sparse(A)
    domain = layout if A.shape[1] == size else operator.domain
    return LinearOperator(operator.matvec, operator.rmatvec, domain, layout, tags=operator.tags)


def by_leaf(matrices: Any) -> Callable[[Any], Any]:
    """Return the function that applies each matrix of a tree to its leaf.

    Raises:
        TypeError: If it is no tree of square matrices.
    """
    leaves, spec = optree.tree_flatten(matrices)
    for i, x in enumerate(leaves):
        if not isinstance(x, torch.Tensor) or x.ndim != 2 or x.shape[0] != x.shape[1]:
            got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            raise TypeError(
                "an operator must be callable or a tree of square matrices, got "
                f"{got} at {describe_path(spec, i)}"
            )
    return lambda x: optree.tree_map(torch.matmul, matrices, x)
