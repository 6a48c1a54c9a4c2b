"""Matrices, dense or sparse, as differentiable values at fixed places."""

from __future__ import annotations

import dataclasses

import torch

__all__ = ["Matrix", "as_matrix"]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A matrix by its values: all of them, or those at the given rows and columns.

    Products are made of operations that differentiate to any order, in both modes, which those of
    torch's sparse tensors do not.
    """

    values: torch.Tensor
    shape: tuple[int, int]
    #: of the values, or None for a dense matrix, whose values are ``(m, n)``
    places: tuple[torch.Tensor, torch.Tensor] | None

    @property
    def T(self) -> Matrix:
        """The transpose."""
        shape = self.shape[1], self.shape[0]
        if self.places is None:
            return Matrix(self.values.mT, shape, None)
        return Matrix(self.values, shape, (self.places[1], self.places[0]))

    def with_values(self, values: torch.Tensor) -> Matrix:
        """Return the matrix with other values at the same places."""
        return dataclasses.replace(self, values=values)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product with a vector."""
        if self.places is None:
            return self.values @ x
        rows, columns = self.places
        zeros = torch.zeros(self.shape[0], dtype=self.values.dtype, device=self.values.device)
        return zeros.index_add(0, rows, self.values * x[columns])

    def symmetric(self) -> Matrix:
        """Return the symmetric part."""
        if self.places is None:
            return self.with_values(0.5 * (self.values + self.values.mT))
        rows, columns = self.places
        places = torch.cat((rows, columns)), torch.cat((columns, rows))
        return Matrix(torch.cat((self.values, self.values)) * 0.5, self.shape, places)

    def scaled(self, left: torch.Tensor, right: torch.Tensor) -> Matrix:
        """Return the matrix with rows and columns multiplied."""
        if self.places is None:
            return self.with_values(left.unsqueeze(-1) * self.values * right)
        rows, columns = self.places
        return self.with_values(left[rows] * self.values * right[columns])

    def row_norms(self) -> torch.Tensor:
        """Return the largest modulus in each row."""
        moduli = self.values.abs()
        if self.places is None:
            zero = moduli.new_zeros(self.shape[0], 1)
            return torch.cat((moduli, zero), -1).amax(-1)
        zeros = moduli.new_zeros(self.shape[0])
        return zeros.scatter_reduce(0, self.places[0], moduli, "amax")

    def row_sums_of_squares(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of squares in each row."""
        squares = dataclasses.replace(self, values=self.values.square())
        return squares.times(weights)

    def diagonal(self) -> torch.Tensor:
        """Return the diagonal of a square matrix."""
        if self.places is None:
            return self.values.diagonal()
        rows, columns = self.places
        zeros = self.values.new_zeros(self.shape[0])
        return zeros.index_add(0, rows, torch.where(rows == columns, self.values, 0.0))

    def for_products(self) -> torch.Tensor:
        """Return the matrix as torch multiplies it fastest, without derivatives."""
        if self.places is None:
            return self.values
        indices = torch.stack(self.places)
        return torch.sparse_coo_tensor(
            indices, self.values, self.shape, check_invariants=False
        ).coalesce()


def as_matrix(x: torch.Tensor) -> Matrix:
    """Return a dense tensor, or a sparse one in COO or CSR, as a matrix with differentiable values.

    Raises:
        TypeError: If it is sparse in another layout.
    """
    rows, columns = x.shape
    if x.layout == torch.strided:
        return Matrix(x, (rows, columns), None)
    if x.layout == torch.sparse_coo:
        entries = x if x.is_coalesced() else x.coalesce()
        i, j = entries.indices()
        return Matrix(entries.values(), (rows, columns), (i, j))
    if x.layout == torch.sparse_csr:
        counts = x.crow_indices().diff()
        i = torch.repeat_interleave(torch.arange(rows, device=counts.device), counts)
        return Matrix(x.values(), (rows, columns), (i, x.col_indices()))
    raise TypeError(
        f"a sparse matrix must be in COO or CSR, got {x.layout}; convert it with to_sparse_csr()"
    )
