"""Sparse matrices as operators, from the rows that they are stored by."""

from __future__ import annotations

import torch

from torchopt_implicit._functorch import is_wrapped, outside_transforms
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout

__all__ = ["csr_operator", "of_sparse"]


def csr_operator(
    crow_indices: torch.Tensor,
    col_indices: torch.Tensor,
    values: torch.Tensor,
    shape: tuple[int, int],
    *,
    tags: Tag = Tag.NONE,
) -> LinearOperator:
    r"""Return the operator of a real sparse matrix in compressed rows, on vectors ``(n,)``.

    .. math:: (A x)_i = \sum_{k = r_i}^{r_{i+1} - 1} a_k \, x_{c_k}

    A product costs as much as there are values, and is differentiable in them, which those of
    torch's sparse tensors are not under all transforms.

    Args:
        crow_indices: :math:`r`, integers ``(m + 1,)``.
        col_indices: :math:`c`, integers ``(nnz,)``.
        values: :math:`a`, ``(nnz,)``. May require gradients.
        shape: Rows ``m`` and columns ``n``.
        tags: What is known of its structure.

    Raises:
        TypeError: If ``values`` are not real floating point numbers.
        ValueError: If the sizes do not fit.

    Example:
        >>> import torch
        >>> from torchopt_implicit.linalg import csr_operator
        >>> A = csr_operator(
        ...     torch.tensor([0, 1, 3]),
        ...     torch.tensor([1, 0, 1]),
        ...     torch.tensor([2.0, 1.0, 3.0]),
        ...     (2, 2),
        ... )
        >>> A @ torch.tensor([1.0, 1.0]), A.T @ torch.tensor([1.0, 1.0])
        (tensor([2., 4.]), tensor([1., 5.]))
    """
    rows, columns = shape
    if not values.is_floating_point():
        raise TypeError(f"`values` must be real floating point numbers, got {values.dtype}")
    if crow_indices.shape != (rows + 1,) or col_indices.shape != values.shape or values.ndim != 1:
        raise ValueError(
            f"a matrix of shape {tuple(shape)} in compressed rows needs `crow_indices` of shape "
            f"{(rows + 1,)} and as many `col_indices` as `values`, got the shapes "
            f"{tuple(crow_indices.shape)}, {tuple(col_indices.shape)} and {tuple(values.shape)}"
        )
    of_row = torch.repeat_interleave(crow_indices.diff(), output_size=len(values))

    def product(v: torch.Tensor, read: torch.Tensor, write: torch.Tensor, n: int) -> torch.Tensor:
        result = v.new_zeros(*v.shape[:-1], n)
        return result.index_add(-1, write, values * v.index_select(-1, read))

    return LinearOperator(
        lambda v: product(v, col_indices, of_row, rows),
        lambda v: product(v, of_row, col_indices, columns),
        Layout.of(values.new_empty(columns), "values"),
        Layout.of(values.new_empty(rows), "values"),
        tags=tags,
    )


def of_sparse(matrix: torch.Tensor) -> LinearOperator:
    """Return the operator of a sparse tensor of torch.

    Raises:
        TypeError: If its layout is neither that of compressed rows nor that of coordinates.
        NotImplementedError: If it requires gradients, which do not reach its values.
    """
    if matrix.requires_grad or is_wrapped(matrix):
        raise NotImplementedError(
            "a sparse `A` that requires gradients has none in a linear solve: give its values, "
            "with linalg.csr_operator(crow_indices, col_indices, values, shape)"
        )
    shape = (matrix.shape[0], matrix.shape[1])
    with outside_transforms():
        return csr_operator(*_rows(matrix), shape)


def _rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if matrix.layout is torch.sparse_coo:
        matrix = matrix.coalesce()
        rows, columns = matrix.indices()
        counts = torch.bincount(rows, minlength=matrix.shape[0])
        crow_indices = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return crow_indices, columns, matrix.values()
    if matrix.layout is not torch.sparse_csr:
        raise TypeError(f"a sparse `A` must be in compressed rows (CSR), got {matrix.layout}")
    return matrix.crow_indices(), matrix.col_indices(), matrix.values()
