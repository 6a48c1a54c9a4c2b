"""Linear operators on trees: a matvec, its transpose, and what is known of their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import torch

from torchopt_implicit._context import Autocast
from torchopt_implicit._functorch import is_forward_mode
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout, leading_vmap

__all__ = ["FlatMap", "LinearOperator", "shapes_of"]

#: maps vectors ``(*batch, n)`` to vectors ``(*batch, m)``
FlatMap = Callable[[torch.Tensor], torch.Tensor]


class LinearOperator:
    r"""A linear map :math:`A` between trees of tensors, with its transpose and structure.

    Operators compose and add: ``A @ B``, ``A + B``, ``A - B``, ``2 * A``, ``-A``, ``A.T``, and
    ``A @ x`` or ``A(x)`` applies one to a tree. What is known of the structure follows along: the
    sum of symmetric operators is symmetric, :math:`B^\top B` is not recognised, declare it.
    Inside, trees are vectors, flattened once for a whole solve. Complex trees are seen as real
    ones, so that the transpose is the conjugate transpose. Functions are evaluated with the
    autocast under which their operator was made.

    Build one with :meth:`from_function`, :meth:`from_matrix`, :meth:`jacobian`, :meth:`identity` or
    :meth:`diagonal`.

    Args:
        matvec: Maps vectors ``(*batch, n)`` to ``(*batch, m)``.
        rmatvec: The same for :math:`A^\top`.
        domain: The layout of what the operator is applied to.
        codomain: The layout of what comes out.
        tags: What is known of the structure. Solvers choose by it.
        relinearized: Where the matvec goes through a graph of its own: returns an operator equal to
            this one that computes everything anew, and so may be differentiated in what it uses.
        has_own_transpose: Whether ``rmatvec`` may use other tensors than ``matvec`` does.

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
        tags: Tag = Tag.NONE,
        relinearized: Callable[[], LinearOperator] | None = None,
        has_own_transpose: bool = False,
    ) -> None:
        self.matvec = matvec
        self.rmatvec = rmatvec
        self.domain = domain
        self.codomain = codomain
        self.tags = Tag.of(tags)
        self.has_own_transpose = has_own_transpose
        self._relinearized = relinearized

    @property
    def symmetric(self) -> bool:
        """Whether :math:`A = A^\top` is known."""
        return Tag.SYMMETRIC in self.tags

    @property
    def positive_definite(self) -> bool:
        """Whether :math:`x^\top A x > 0` for all :math:`x \neq 0` is known, and symmetry."""
        return Tag.POSITIVE_DEFINITE in self.tags

    @property
    def relinearized(self) -> LinearOperator:
        """An equal operator whose matvec is a function of all tensors that it uses."""
        return self if self._relinearized is None else self._relinearized()

    @classmethod
    def from_function(
        cls,
        function: Callable[[Any], Any],
        like: Any,
        *,
        transpose: Callable[[Any], Any] | None = None,
        symmetric: bool = False,
        positive_definite: bool = False,
        tags: Tag = Tag.NONE,
    ) -> LinearOperator:
        """Return the operator of a linear function of trees.

        Args:
            function: Applies the operator to one tree.
            like: A tree like those it is applied to.
            transpose: Applies the transpose; by default it is found by differentiation.
            symmetric: Whether it is its own transpose.
            positive_definite: Whether it is moreover positive definite.
            tags: What else is known of it.

        Example:
            >>> import torch
            >>> from torchopt_implicit.linalg import LinearOperator
            >>> A = LinearOperator.from_function(lambda x: x.flip(0).cumsum(0), torch.zeros(3))
            >>> A.T @ torch.tensor([1.0, 0.0, 0.0])
            tensor([0., 0., 1.])
        """
        domain = Layout.of(like, "like")
        codomain = domain
        bind = Autocast.on(domain.device).bind
        function, transpose = bind(function), transpose and bind(transpose)
        tags = Tag.of(tags, symmetric=symmetric, positive_definite=positive_definite)
        if Tag.SYMMETRIC not in tags:
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

        forth = _batched(matvec)
        back = forth if Tag.SYMMETRIC in tags else _batched(rmatvec)
        own = transpose is not None
        return cls(forth, back, domain, codomain, tags=tags, has_own_transpose=own)

    @classmethod
    def from_matrix(
        cls,
        matrix: torch.Tensor,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
        tags: Tag = Tag.NONE,
    ) -> LinearOperator:
        """Return the operator of a matrix ``(m, n)``, on vectors ``(n,)``.

        Args:
            matrix: Dense; for a sparse one, :func:`~torchopt_implicit.linalg.csr_operator`.
            symmetric: Whether it is its own transpose.
            positive_definite: Whether it is moreover positive definite.
            tags: What else is known of it.

        Raises:
            ValueError: If ``matrix`` is not a matrix.
        """
        if matrix.ndim != 2:
            raise ValueError(
                f"`matrix` must have two dimensions, got the shape {tuple(matrix.shape)}; "
                "use torch.func.vmap for a batch of matrices"
            )
        rows, columns = matrix.shape
        tags = Tag.of(tags, symmetric=symmetric, positive_definite=positive_definite)
        domain = Layout.of(matrix.new_empty(columns), "matrix")
        codomain = Layout.of(matrix.new_empty(rows), "matrix")
        if matrix.is_complex():
            return cls.from_function(
                lambda x: matrix @ x,
                matrix.new_empty(columns),
                transpose=lambda y: matrix.mH @ y,
                tags=tags,
            )
        dtype = domain.dtype  # in which half precision is computed
        return cls(
            lambda x: x @ matrix.to(dtype).mT,
            lambda y: y @ matrix.to(dtype),
            domain,
            codomain,
            tags=tags,
        )

    @classmethod
    def jacobian(
        cls,
        function: Callable[[Any], Any],
        x: Any,
        *,
        symmetric: bool = False,
        positive_definite: bool = False,
        tags: Tag = Tag.NONE,
    ) -> LinearOperator:
        r"""Return :math:`\partial f(x)`, the Jacobian of a function of trees at ``x``.

        The Hessian of a scalar function is ``jacobian(torch.func.grad(f), x, symmetric=True)``.

        Args:
            function: Differentiable.
            x: Where.
            symmetric: Whether the Jacobian is symmetric, which saves forward derivatives.
            positive_definite: Whether it is moreover positive definite.
            tags: What else is known of it.
        """
        domain = Layout.of(x, "x")
        point = domain.ravel(x, "x")
        function = Autocast.on(domain.device).bind(function)
        codomain = Layout.of(function(x), "the result of `function`")

        def flat(vector: torch.Tensor) -> torch.Tensor:
            return codomain.ravel(function(domain.unravel(vector)), "the result of `function`")

        pullback = torch.func.vjp(flat, point)[1]
        zeros = torch.zeros(codomain.size, dtype=codomain.dtype, device=codomain.device)
        tags = Tag.of(tags, symmetric=symmetric, positive_definite=positive_definite)

        rmatvec = _batched(lambda v: pullback(v)[0])

        def push(vector: torch.Tensor) -> torch.Tensor:
            transposed = torch.func.vjp(lambda v: pullback(v)[0], zeros)[1]
            (pushed,) = transposed(vector)
            return pushed  # type: ignore[no-any-return]

        # seen by torch, the point is what stands for it where the solve below a transform runs
        def anew(v: torch.Tensor) -> torch.Tensor:
            return torch.func.vjp(flat, point.view_as(point))[1](v)[0]  # type: ignore[no-any-return]

        def push_anew(v: torch.Tensor) -> torch.Tensor:
            if is_forward_mode():  # in which torch.func.jvp cannot be nested
                (pushed,) = torch.func.vjp(anew, torch.zeros_like(zeros))[1](v)
                return pushed  # type: ignore[no-any-return]
            return torch.func.jvp(flat, (point.view_as(point),), (v,))[1]  # type: ignore[no-any-return]

        def relinearized() -> LinearOperator:
            back = _batched(anew)
            forth = back if Tag.SYMMETRIC in tags else _batched(push_anew)
            return cls(forth, back, domain, codomain, tags=tags)

        return cls(
            rmatvec if Tag.SYMMETRIC in tags else _batched(push),
            rmatvec,
            domain,
            codomain,
            tags=tags,
            relinearized=relinearized,
        )

    @classmethod
    def identity(cls, like: Any) -> LinearOperator:
        """Return the operator that returns what it is given, trees like ``like``."""
        layout = Layout.of(like, "like")
        tags = Tag.DIAGONAL | Tag.POSITIVE_DEFINITE
        return cls(lambda v: v, lambda v: v, layout, layout, tags=tags)

    @classmethod
    def diagonal(cls, diagonal: Any, *, positive_definite: bool = False) -> LinearOperator:
        """Return the operator that multiplies by a real tree, entry by entry.

        Raises:
            TypeError: If a leaf is not a real floating point tensor.
        """
        layout = Layout.of(diagonal, "diagonal")
        unreal = [dtype for dtype in layout.dtypes if dtype.is_complex]
        if unreal:
            raise TypeError(
                f"`diagonal` must be real, got {unreal[0]}: write it as LinearOperator."
                "from_function(lambda x: d * x, d, transpose=lambda y: d.conj() * y)"
            )
        vector = layout.ravel(diagonal, "diagonal")

        def matvec(v: torch.Tensor) -> torch.Tensor:
            return vector * v

        tags = Tag.of(Tag.DIAGONAL, positive_definite=positive_definite)
        return cls(matvec, matvec, layout, layout, tags=tags)

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
            tags=self.tags.transposed,
            **_inherited(lambda A: A.T, self),
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
                f"{shapes_of(other.codomain)} and {shapes_of(self.domain)}"
            )
        return LinearOperator(
            lambda v: self.matvec(other.matvec(v)),
            lambda v: other.rmatvec(self.rmatvec(v)),
            other.domain,
            self.codomain,
            tags=self.tags.composed(other.tags),
            **_inherited(lambda A, B: A @ B, self, other),
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
            tags=self.tags & other.tags,
            **_inherited(lambda A, B: A + B, self, other),
        )

    def __mul__(self, scalar: float | torch.Tensor) -> LinearOperator:
        if isinstance(scalar, complex) or (
            isinstance(scalar, torch.Tensor) and scalar.is_complex()
        ):
            raise TypeError(
                f"an operator is multiplied by a real scalar, got {scalar}: it is one of real "
                "vectors inside; use LinearOperator.from_function(lambda x: c * A(x), like)"
            )
        if isinstance(scalar, torch.Tensor) and scalar.ndim:
            raise ValueError(
                "an operator is multiplied by a scalar, got a tensor of shape "
                f"{list(scalar.shape)}; LinearOperator.diagonal(d) @ A multiplies rows"
            )
        is_positive = isinstance(scalar, (int, float)) and bool(scalar > 0)
        keeps = Tag.SYMMETRIC | Tag.DIAGONAL
        return LinearOperator(
            lambda v: scalar * self.matvec(v),
            lambda v: scalar * self.rmatvec(v),
            self.domain,
            self.codomain,
            tags=self.tags if is_positive else self.tags & keeps,
            **_inherited(lambda A: scalar * A, self),
        )

    __rmul__ = __mul__

    def __neg__(self) -> LinearOperator:
        return -1 * self

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-other)

    def shifted(self, ridge: float | torch.Tensor) -> LinearOperator:
        r"""Return :math:`A + \rho I` for :math:`\rho \ge 0`, which has the structure of ``A``."""
        return LinearOperator(
            lambda v: self.matvec(v) + ridge * v,
            lambda v: self.rmatvec(v) + ridge * v,
            self.domain,
            self.codomain,
            tags=self.tags,
            **_inherited(lambda A: A.shifted(ridge), self),
        )

    def in_dtype(self, dtype: torch.dtype) -> LinearOperator:
        """Return the operator on vectors of another dtype; inside it computes in its own."""
        inner, outer = self.domain.dtype, self.codomain.dtype
        return LinearOperator(
            lambda v: self.matvec(v.to(inner)).to(dtype),
            lambda v: self.rmatvec(v.to(outer)).to(dtype),
            self.domain,
            self.codomain,
            tags=self.tags,
            **_inherited(lambda A: A.in_dtype(dtype), self),
        )

    def __repr__(self) -> str:
        structure = "" if self.tags is Tag.NONE else f", {self.tags!s}"
        spaces = f"{shapes_of(self.domain)} -> {shapes_of(self.codomain)}"
        return f"LinearOperator({spaces}{structure})"


class _Inherited(TypedDict):
    relinearized: Callable[[], LinearOperator] | None
    has_own_transpose: bool


def _inherited(combine: Callable[..., LinearOperator], *operators: LinearOperator) -> _Inherited:
    """Return what a combination of operators has from them."""
    lazy = None
    if any(A._relinearized is not None for A in operators):

        def lazy() -> LinearOperator:
            return combine(*(A.relinearized for A in operators))

    return {
        "relinearized": lazy,
        "has_own_transpose": any(A.has_own_transpose for A in operators),
    }


def _batched(single: FlatMap) -> FlatMap:
    """Return the function of one vector as one of vectors ``(*batch, n)``."""
    return lambda vector: leading_vmap(single, vector.ndim - 1)(vector)


def shapes_of(layout: Layout) -> str:
    """Return the shapes of a layout's leaves, for messages."""
    return str([list(shape) for shape in layout.shapes])
