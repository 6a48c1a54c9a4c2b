"""An equation between vectors, and the graph of its residual."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._tree import Layout, leading_vmap

__all__ = ["Compiler", "Linearization", "Recorded", "Solver", "System", "Tensors", "Trace"]

Tensors = tuple[torch.Tensor, ...]


class Linearization(Protocol):
    """Products with the derivatives of a residual at a point, for plain tensors."""

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`A v`, for vectors ``(*extra, *batch, n)``."""
        ...

    def rmatvec(self, v: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`A^\top v`, likewise."""
        ...

    def pullback(self, u: torch.Tensor) -> Tensors:
        r"""Return :math:`\partial_t F(x, t)^\top u`, for the varying tensors. Called last."""
        ...


class Compiler(Protocol):
    """Linearizes systems otherwise than by the graph that autograd records."""

    def linearize(self, system: System, x: torch.Tensor, tensors: Tensors) -> Linearization:
        """Return the products with derivatives at ``(x, tensors)``, for plain tensors."""
        ...


class Solver(Protocol):
    """Solves linear systems for plain tensors, below all transforms."""

    def run(self, trace: Trace, transposed: bool, b: torch.Tensor) -> torch.Tensor:
        """Return the solution for vectors ``b`` with ``A``, or its transpose."""
        ...


class System:
    """An equation ``function(x, *tensors) = 0``, between vectors ``(*batch, n)``.

    Args:
        function: Maps a vector ``x`` and the tensors to the residual vector, both of one layout.
        layout: That of ``x``.
        differentiable: Which of the tensors the solution is differentiated in.
        solver: What solves linear systems with ``A``, without derivatives.
        parent: The system that this one is a batch of.
        in_dims: Which of the parent's tensors got a batch dimension in front: 0, others ``None``.
        is_affine: Whether the function is affine in ``x``, its derivative the same everywhere.
        compiler: What linearizes it, if not autograd by itself.
    """

    def __init__(
        self,
        function: Callable[..., torch.Tensor],
        layout: Layout,
        differentiable: Sequence[bool],
        solver: Solver,
        parent: System | None = None,
        in_dims: tuple[int | None, ...] = (),
        is_affine: bool = False,
        compiler: Compiler | None = None,
    ) -> None:
        self.function = function
        self.layout = layout
        self.differentiable = tuple(differentiable)
        self.solver = solver
        self.parent = parent
        self.in_dims = in_dims
        self.is_affine = is_affine
        self.compiler = compiler
        self.batch_ndim: int = 0 if parent is None else parent.batch_ndim + 1
        # for the solver to keep
        self.factors: Any = None
        self._batched: dict[tuple[int | None, ...], System] = {}
        self._kept: tuple[Recorded, Tensors] | None = None

    def batched(self, in_dims: tuple[int | None, ...]) -> System:
        """Return the system with one more batch dimension in front; dimensions are of tensors."""
        if in_dims not in self._batched:
            # of a copy that does not know its batches, since a cycle would keep their memory
            self._batched[in_dims] = System(
                torch.func.vmap(self.function, in_dims=(0, *in_dims)),
                self.layout,
                self.differentiable,
                self.solver,
                self._alone(),
                in_dims,
                self.is_affine,
                self.compiler,
            )
        return self._batched[in_dims]

    def _alone(self) -> System:
        return System(
            self.function,
            self.layout,
            self.differentiable,
            self.solver,
            self.parent,
            self.in_dims,
            self.is_affine,
            self.compiler,
        )

    def varying(self, tensors: Tensors) -> Tensors:
        """Return the tensors that are differentiated in."""
        return tuple(t for t, d in zip(tensors, self.differentiable, strict=True) if d)

    def replace(self, tensors: Tensors, varying: Tensors) -> Tensors:
        """Return the tensors with others in the place of the varying ones."""
        new = iter(varying)
        return tuple(
            next(new) if d else t for t, d in zip(tensors, self.differentiable, strict=True)
        )

    def spread(self, gradients: Tensors) -> list[torch.Tensor | None]:
        """Return gradients for all tensors, ``None`` for those not differentiated in."""
        new = iter(gradients)
        return [next(new) if d else None for d in self.differentiable]

    def pullback(self, x: torch.Tensor, tensors: Tensors, u: torch.Tensor) -> Tensors:
        r"""Return :math:`\partial_t F(x, t)^\top u`, for the varying tensors."""

        # in x, too, so that the function may use torch.autograd.grad
        def residual(x: torch.Tensor, *varying: torch.Tensor) -> torch.Tensor:
            return self.function(x, *self.replace(tensors, varying))

        pulled: Tensors = torch.func.vjp(residual, x, *self.varying(tensors))[1](u)
        return pulled[1:]

    def bilinear_gradient(
        self, left: torch.Tensor, right: torch.Tensor, x: torch.Tensor, tensors: Tensors
    ) -> Tensors:
        r"""Return the gradient of :math:`\ell^\top A(x, t)\, r` in ``x`` and the varying."""

        def left_times_A(x: torch.Tensor, *varying: torch.Tensor) -> torch.Tensor:
            whole = self.replace(tensors, varying)
            transposed = torch.func.vjp(lambda x: self.function(x, *whole), x)[1]
            extra = left.ndim - x.ndim
            result: torch.Tensor = leading_vmap(lambda v: transposed(v)[0], extra)(left)
            return result

        pulled: Tensors = torch.func.vjp(left_times_A, x, *self.varying(tensors))[1](right)
        return pulled

    def keep(self, record: Recorded, tensors: Tensors) -> None:
        """Have the first backward use a graph that is there already."""
        self._kept = record, tensors

    def take(self, x: torch.Tensor, tensors: Tensors) -> Trace:
        """Return the trace for a backward that uses it up: the graph that is kept, if any."""
        kept, self._kept = self._kept, None
        if kept is None or self.factors is not None:  # which go with the point of their own
            return self.trace(x, tensors)
        record, tensors = kept
        return Trace(self, record.point, tensors, record)

    def trace(self, x: torch.Tensor, tensors: Tensors) -> Trace:
        """Return the products with derivatives at ``(x, tensors)``.

        Below all transforms, tensors are plain and the graph is autograd's own.
        """
        if self.compiler is not None:
            return Trace(self, x, tensors, self.compiler.linearize(self, x, tensors))
        record, leaves = self.record(x, tensors)
        return Trace(self, record.point, leaves, record)

    def record(self, x: torch.Tensor, tensors: Tensors) -> tuple[Recorded, Tensors]:
        """Return the graph of the residual, and the tensors that are its leaves."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            leaves = tuple(
                t.detach().requires_grad_(d)
                for t, d in zip(tensors, self.differentiable, strict=True)
            )
            return Recorded(self.function(point, *leaves), point, self.varying(leaves)), leaves


class Trace:
    """A system at a point: many products with the derivatives of its residual.

    Args:
        system: The system.
        point: The point, ``(*batch, n)``.
        tensors: The tensors of the system.
        linearization: What computes products.
    """

    def __init__(
        self,
        system: System,
        point: torch.Tensor,
        tensors: Tensors,
        linearization: Linearization,
    ) -> None:
        self.system = system
        self.point = point
        self.tensors = tensors
        self.linearization = linearization

    @property
    def operator(self) -> LinearOperator:
        """The derivative ``A`` in ``x``, on vectors."""
        layout = self.system.layout
        matvec, rmatvec = self.linearization.matvec, self.linearization.rmatvec
        return LinearOperator(matvec, rmatvec, layout, layout)

    def pullback(self, u: torch.Tensor) -> Tensors:
        r"""Return :math:`\partial_t F(x, t)^\top u`, for the varying tensors; the last use."""
        return self.linearization.pullback(u)


class Recorded:
    """Products by the graph that autograd recorded of a residual."""

    def __init__(self, residual: torch.Tensor, point: torch.Tensor, varying: Tensors) -> None:
        self.residual = residual
        self.point = point
        self.varying = varying
        self._pulled: torch.Tensor | None = None
        self._probe = torch.empty(0)

    def rmatvec(self, v: torch.Tensor) -> torch.Tensor:
        return _apply_graph(self.residual, self.point, v)

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        # the derivative of u -> A.T u, pulled back
        if self._pulled is None:
            with torch.enable_grad():
                self._probe = torch.zeros_like(self.residual, requires_grad=True)
                self._pulled = _apply_graph(self.residual, self.point, self._probe, twice=True)
        return _apply_graph(self._pulled, self._probe, v)

    def pullback(self, u: torch.Tensor) -> Tensors:
        if not self.residual.requires_grad:
            return tuple(torch.zeros_like(t) for t in self.varying)
        return torch.autograd.grad(self.residual, self.varying, u, materialize_grads=True)


def _apply_graph(
    output: torch.Tensor, source: torch.Tensor, v: torch.Tensor, *, twice: bool = False
) -> torch.Tensor:
    """Pull vectors ``(*extra, *batch, n)`` back through a graph ``(*batch, n)``, which is kept."""
    if not output.requires_grad:
        return torch.zeros_like(v)

    def pull(v: torch.Tensor) -> torch.Tensor:
        (pulled,) = torch.autograd.grad(
            output, source, v, retain_graph=True, create_graph=twice, materialize_grads=True
        )
        return pulled

    result: torch.Tensor = leading_vmap(pull, v.ndim - output.ndim)(v)
    return result
