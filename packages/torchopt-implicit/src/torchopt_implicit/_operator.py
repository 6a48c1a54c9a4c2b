"""Linear operators on trees: a matvec, its transpose, and what is known of their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._tree import Layout, describe_path, leading_vmap

__all__ = ["LinearOperator", "as_operator", "by_leaf"]

#: maps vectors ``(*batch, n)`` to vectors ``(*batch, m)``
FlatMap = Callable[[torch.Tensor], torch.Tensor]


class LinearOperator:
    r"""A linear map :math:`A` between trees of tensors, with its transpose and structure.

    Operators compose and add: ``A @ B``, ``A + B``, ``A - B``, ``2 * A``, ``-A``, ``A.T``, and
    ``A @ x`` or ``A(x)`` applies one to a tree. What is known of the structure follows along: the
    sum of symmetric operators is symmetric, :math:`B^\top B` is not recognised, declare it.
    Inside, trees are vectors, flattened once for a whole solve. Complex trees are seen as real
    ones, so that the transpose is the conjugate transpose.

    Build one with :meth:`from_function`, :meth:`from_matrix`, :meth:`jacobian`, :meth:`identity` or
    :meth:`diagonal`.

    Args:
        matvec: Maps vectors ``(*batch, n)`` to ``(*batch, m)``.
        rmatvec: The same for :math:`A^\top`.
        domain: The layout of what the operator is applied to.
        codomain: The layout of what comes out.
        symmetric: Whether :math:`A = A^\top`.
        positive_definite: Whether moreover :math:`x^\top A x > 0` for all :math:`x \neq 0`.

    Example:
        >>> import torch
        >>> from torchopt_implicit.linalg import LinearOperator
        >>> A = LinearOperator.from_matrix(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> I = LinearOperator.identity(torch.zeros(2))
        >>> (A.T @ A + I) @ torch.tensor([1.0, 1.0])
        tensor([1., 5.])
    """

    def __init__(
        self,
        matvec: FlatMap,
        rmatvec: FlatMap,
        domain: Layout,
        codomain: Layout,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> None:
        self.matvec = matvec
        self.rmatvec = rmatvec
        self.domain = domain
        self.codomain = codomain
        self.symmetric = symmetric or positive_definite
        self.positive_definite = positive_definite

    @classmethod
    def from_function(
        cls,
        function: Callable[[Any], Any],
        like: Any,
        *,
        transpose: Callable[[Any], Any] | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> LinearOperator:
        """Return the operator of a linear function of trees.

        Args:
            function: Applies the operator to one tree.
            like: A tree like those it is applied to.
            transpose: Applies the transpose; by default it is found by differentiation.
            symmetric: Whether it is its own transpose.
            positive_definite: Whether it is moreover positive definite.

        Example:
            >>> import torch
            >>> from torchopt_implicit.linalg import LinearOperator
            >>> A = LinearOperator.from_function(lambda x: x.flip(0).cumsum(0), torch.zeros(3))
            >>> A.T @ torch.tensor([1.0, 0.0, 0.0])
            tensor([0., 0., 1.])
        """
        domain = Layout.of(like, "like")
        codomain = domain
        if not (symmetric or positive_definite):
            codomain = Layout.of(function(like), "the result of `function`")

        def matvec(vector: torch.Tensor) -> torch.Tensor:
            return codomain.ravel(function(domain.unravel(vector)), "the result of `function`")

        def rmatvec(vector: torch.Tensor) -> torch.Tensor:
            if transpose is not None:
                return domain.ravel(transpose(codomain.unravel(vector)), "result of `transpose`")
            zeros = torch.zeros(domain.size, dtype=domain.dtype, device=domain.device)
            pullback = torch.func.vjp(matvec, zeros)[1]
            (pulled,) = pullback(vector)
            return pulled  # type: ignore[no-any-return]

        def batched(single: FlatMap) -> FlatMap:
            return lambda vector: leading_vmap(single, vector.ndim - 1)(vector)

        forth = batched(matvec)
        back = forth if symmetric or positive_definite else batched(rmatvec)
        return cls(
            forth,
            back,
            domain,
            codomain,
            symmetric=symmetric,
            positive_definite=positive_definite,
        )

    @classmethod
    def from_matrix(
        cls, matrix: torch.Tensor, *, symmetric: bool = False, positive_definite: bool = False
    ) -> LinearOperator:
        """Return the operator of a matrix ``(m, n)``, on vectors ``(n,)``.

        Raises:
            ValueError: If ``matrix`` is not a matrix.
        """
        if matrix.ndim != 2:
            raise ValueError(
                f"`matrix` must have two dimensions, got the shape {tuple(matrix.shape)}; "
                "use torch.func.vmap for a batch of matrices"
            )
        rows, columns = matrix.shape
        conjugate = matrix.mH
        domain = Layout.of(matrix.new_empty(columns), "matrix")
        codomain = Layout.of(matrix.new_empty(rows), "matrix")
        if matrix.is_complex():
            return cls.from_function(
                lambda x: matrix @ x,
                matrix.new_empty(columns),
                transpose=lambda y: conjugate @ y,
                symmetric=symmetric,
                positive_definite=positive_definite,
            )
        return cls(
            lambda x: x @ conjugate,
            lambda y: y @ matrix,
            domain,
            codomain,
            symmetric=symmetric,
            positive_definite=positive_definite,
        )

    @classmethod
    def jacobian(
        cls,
        function: Callable[[Any], Any],
        x: Any,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
    ) -> LinearOperator:
        r"""Return :math:`\partial f(x)`, the Jacobian of a function of trees at ``x``.

        The Hessian of a scalar function is ``jacobian(torch.func.grad(f), x, symmetric=True)``.

        Args:
            function: Differentiable.
            x: Where.
            symmetric: Whether the Jacobian is symmetric, which saves forward derivatives.
            positive_definite: Whether it is moreover positive definite.
        """
        domain = Layout.of(x, "x")
        point = domain.ravel(x, "x")
        codomain = Layout.of(function(x), "the result of `function`")

        def flat(vector: torch.Tensor) -> torch.Tensor:
            return codomain.ravel(function(domain.unravel(vector)), "the result of `function`")

        pullback = torch.func.vjp(flat, point)[1]
        zeros = torch.zeros(codomain.size, dtype=codomain.dtype, device=codomain.device)
        symmetric = symmetric or positive_definite

        def rmatvec(vector: torch.Tensor) -> torch.Tensor:
            return leading_vmap(lambda v: pullback(v)[0], vector.ndim - 1)(vector)  # type: ignore[no-any-return]

        def push(vector: torch.Tensor) -> torch.Tensor:
            transposed = torch.func.vjp(lambda v: pullback(v)[0], zeros)[1]
            (pushed,) = transposed(vector)
            return pushed  # type: ignore[no-any-return]

        def matvec(vector: torch.Tensor) -> torch.Tensor:
            return leading_vmap(push, vector.ndim - 1)(vector)  # type: ignore[no-any-return]

        return cls(
            rmatvec if symmetric else matvec,
            rmatvec,
            domain,
            codomain,
            symmetric=symmetric,
            positive_definite=positive_definite,
        )

    @classmethod
    def identity(cls, like: Any) -> LinearOperator:
        """Return the operator that returns what it is given, trees like ``like``."""
        layout = Layout.of(like, "like")
        return cls(lambda v: v, lambda v: v, layout, layout, positive_definite=True)

    @classmethod
    def diagonal(cls, diagonal: Any, *, positive_definite: bool = False) -> LinearOperator:
        """Return the operator that multiplies by a real tree, entry by entry."""
        layout = Layout.of(diagonal, "diagonal")
        vector = layout.ravel(diagonal, "diagonal")

        def matvec(v: torch.Tensor) -> torch.Tensor:
            return vector * v

        return cls(
            matvec, matvec, layout, layout, symmetric=True, positive_definite=positive_definite
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, of the vectors inside."""
        return self.codomain.size, self.domain.size

    @property
    def T(self) -> LinearOperator:
        """The transpose; of the transpose, the operator itself."""
        return LinearOperator(
            self.rmatvec,
            self.matvec,
            self.codomain,
            self.domain,
            symmetric=self.symmetric,
            positive_definite=self.positive_definite,
        )

    def __call__(self, tree: Any) -> Any:
        return self.codomain.unravel(self.matvec(self.domain.ravel(tree, "the argument")))

    def as_matrix(self) -> torch.Tensor:
        """Return the matrix ``(m, n)`` on vectors, by one batched matvec."""
        eye = torch.eye(self.domain.size, dtype=self.domain.dtype, device=self.domain.device)
        return self.matvec(eye).mT

    def __matmul__(self, other: Any) -> Any:
        if not isinstance(other, LinearOperator):
            return self(other)
        if self.domain.shapes != other.codomain.shapes:
            raise ValueError(
                f"`A @ B` needs what B returns to be what A takes, got leaves of shapes "
                f"{_shapes(other.codomain)} and {_shapes(self.domain)}"
            )
        return LinearOperator(
            lambda v: self.matvec(other.matvec(v)),
            lambda v: other.rmatvec(self.rmatvec(v)),
            other.domain,
            self.codomain,
        )

    def __add__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        if (self.domain.shapes, self.codomain.shapes) != (
            other.domain.shapes,
            other.codomain.shapes,
        ):
            raise ValueError(
                f"`A + B` needs operators between the same spaces, got {self!r} and {other!r}"
            )
        return LinearOperator(
            lambda v: self.matvec(v) + other.matvec(v),
            lambda v: self.rmatvec(v) + other.rmatvec(v),
            self.domain,
            self.codomain,
            symmetric=self.symmetric and other.symmetric,
            positive_definite=self.positive_definite and other.positive_definite,
        )

    def __mul__(self, scalar: float | torch.Tensor) -> LinearOperator:
        is_number = isinstance(scalar, (int, float))
        return LinearOperator(
            lambda v: scalar * self.matvec(v),
            lambda v: scalar * self.rmatvec(v),
            self.domain,
            self.codomain,
            symmetric=self.symmetric,
            positive_definite=self.positive_definite and is_number and bool(scalar > 0),
        )

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return -1 * self

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-other)

    def __repr__(self) -> str:
        kind = "positive definite" if self.positive_definite else "symmetric"
        structure = f", {kind}" if self.symmetric else ""
        return f"LinearOperator({_shapes(self.domain)} -> {_shapes(self.codomain)}{structure})"


def as_operator(A: Any, layout: Layout) -> LinearOperator:
    """Return what a caller gave as a square operator on trees of a layout.

    Raises:
        TypeError: If it is neither an operator, nor a matrix, nor callable.
        ValueError: If a matrix or operator does not fit.
    """
    if isinstance(A, torch.Tensor):
        if A.shape != (layout.size, layout.size):
            raise ValueError(
                f"`A` must be a matrix of shape {(layout.size, layout.size)} to act on `b`, got "
                f"the shape {tuple(A.shape)}"
            )
        A = LinearOperator.from_matrix(A)
        return LinearOperator(A.matvec, A.rmatvec, layout, layout)
    if isinstance(A, LinearOperator):
        if A.codomain.shapes != layout.shapes:
            raise ValueError(
                f"`b` must be what `A` returns, with leaves of shapes {_shapes(A.codomain)}, got "
                f"{_shapes(layout)}"
            )
        return A
    if isinstance(A, (tuple, list, dict)):
        A = by_leaf(A)
    if not callable(A):
        raise TypeError(
            "`A` must be a callable, a matrix, a tree of matrices or a LinearOperator, got "
            f"{type(A).__name__}"
        )
    zeros = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)
    function = A

    def matvec(vector: torch.Tensor) -> torch.Tensor:
        return layout.ravel(function(layout.unravel(vector)), "the result of the matvec")

    def rmatvec(vector: torch.Tensor) -> torch.Tensor:
        (pulled,) = torch.func.vjp(matvec, zeros)[1](vector)
        return pulled  # type: ignore[no-any-return]

    return LinearOperator(
        lambda v: leading_vmap(matvec, v.ndim - 1)(v),
        lambda v: leading_vmap(rmatvec, v.ndim - 1)(v),
        layout,
        layout,
    )


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


def _shapes(layout: Layout) -> str:
    return str([list(shape) for shape in layout.shapes])
