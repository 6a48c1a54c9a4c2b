"""A direct iterative solve as an operation with derivatives: in ``b``, and in the operator.

The iterations are not differentiated. The solution is attached to what it depends on, as that of
the linear equation :math:`A x - b = 0`, so that each derivative is another solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from torchopt_implicit._autograd import attach
from torchopt_implicit._capture import capture, has_derivatives, substitute
from torchopt_implicit._context import Surroundings
from torchopt_implicit._functorch import is_forward_mode, is_transforming, is_wrapped, unwrap
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._system import System, Tensors, Trace
from torchopt_implicit._tree import Layout

__all__ = ["Method", "solve_by_iteration"]

HIDDEN = (
    "the operator of a linear solve differentiates, by `torch.autograd.grad` with "
    "`create_graph=True`, what was computed before the solve, so that derivatives in {shapes} are "
    "out of reach; use LinearOperator.jacobian(function, x), or compute what is differentiated "
    "within the matvec, or leave `create_graph` out if the operator is a constant"
)


class Method(Protocol):
    """A way to solve ``A x = b`` that is not differentiated."""

    @property
    def presumes_symmetry(self) -> bool:
        """Whether it takes the operator to be symmetric, and so its own transpose."""
        ...

    @property
    def init(self) -> Any:
        """The tree to start from, if any."""
        ...

    @property
    def throw(self) -> bool:
        """Whether a failure raises."""
        ...

    def posed(
        self, A: LinearOperator, b: torch.Tensor
    ) -> tuple[Method, LinearOperator, torch.Tensor]:
        """Return the method, the operator and the right-hand side of a problem with its ridge."""
        ...

    def preconditioner(self, layout: Layout) -> LinearOperator | None:
        """Return the approximate inverse on vectors of a layout."""
        ...

    def for_derivatives(self, dtype: torch.dtype) -> Method:
        """Return the method for the solves of derivatives."""
        ...

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        """Solve for vectors, as posed."""
        ...

    def iterate(
        self,
        A: LinearOperator,
        M: LinearOperator | None,
        b: torch.Tensor,
        init: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Info]:
        """Solve for vectors ``(*batch, n)``, the ridge in the operator."""
        ...


def solve_by_iteration(
    method: Method, A: LinearOperator, b: torch.Tensor
) -> tuple[torch.Tensor, Info]:
    """Solve for a vector ``b``, with derivatives.

    Args:
        method: How.
        A: The operator.
        b: A vector ``(n,)``.
    """
    original = method
    may_vary = torch.is_grad_enabled() or is_transforming() or is_forward_mode()
    if not may_vary:
        return method.run(A, b)
    init = None if method.init is None else A.domain.ravel(method.init, "init")
    M = method.preconditioner(A.domain)
    method, A, b = method.posed(A, b)
    family = _Family(A.relinearized, M)
    given = (b, *family.tensors) if init is None else (b, init, *family.tensors)
    if not any(has_derivatives(t) for t in given):
        return method.iterate(A, M, b, init)
    problem = _Problem(original, method, family)
    system = System(
        problem.residual, A.domain, (True, *family.differentiable), problem, is_affine=True
    )
    known = [t.detach() for t in family.tensors]
    start = None if init is None else init.detach()
    with torch.no_grad():
        x, *fields = _Iterate.apply(system, b.detach(), start, *known)  # type: ignore[no-untyped-call]
    x = attach(system, x, (b, *family.tensors))
    if family.hidden:
        x = x + _Refuse.apply(x.detach(), *family.hidden)  # type: ignore[no-untyped-call]
    return x, _as_info(fields)


def _both(A: LinearOperator) -> Callable[[torch.Tensor], Any]:
    """Return a function that uses all tensors that the operator does."""
    if not A.has_own_transpose:
        return A.matvec
    return lambda v: A.rmatvec(A.matvec(v))


class _Family:
    """An operator and its preconditioner as functions of the tensors that they close over."""

    def __init__(self, A: LinearOperator, M: LinearOperator | None) -> None:
        self.A = A
        self.M = M
        zeros = torch.zeros(A.domain.size, dtype=A.domain.dtype, device=A.domain.device)
        with torch.enable_grad():
            ours = capture(_both(A), zeros)
            others = None if M is None else capture(_both(M), zeros)
        # a preconditioner that changes changes how a solution is found, not which
        self.surroundings = Surroundings("A", A.domain.device)
        self.surroundings.watch(ours.read)
        further = () if others is None else others.tensors
        self.tensors: Tensors = ours.tensors + tuple(
            t for t in further if all(t is not s for s in ours.tensors)
        )
        count = len(ours.tensors)
        self.differentiable = [
            i < count and (t.is_floating_point() or t.is_complex())
            for i, t in enumerate(self.tensors)
        ]
        self.hidden = tuple(t for t in ours.hidden if t.requires_grad or is_wrapped(t))
        if any(is_wrapped(t) for t in self.hidden):
            raise NotImplementedError(_describe_hidden(self.hidden))
        both = [ours] if others is None else [ours, others]
        self.is_transformed = any(captured.is_transformed for captured in both)
        self.differentiates = any(captured.differentiates for captured in both)

    def apply(self, tensors: Tensors, which: str, v: torch.Tensor) -> torch.Tensor:
        """Apply ``"matvec"`` or ``"rmatvec"`` of A, or of M, with tensors in their places.

        Raises:
            RuntimeError: If data of A was changed in place since the solve.
        """
        self.surroundings.check()
        operator = self.M if which.startswith("M.") else self.A
        function = getattr(operator, which.removeprefix("M."))
        function = substitute(function, self.tensors, tensors, is_transformed=self.is_transformed)
        return function(v)  # type: ignore[no-any-return]

    def known(self, tensors: Tensors) -> Tensors:
        """Return tensors for solving alone: those of the operator itself if the values are."""
        if all(_is_same_memory(s, t) for s, t in zip(tensors, self.tensors, strict=True)):
            return self.tensors
        if not self.differentiates:
            return tensors
        return tuple(
            t.detach().requires_grad_(own.requires_grad)
            for t, own in zip(tensors, self.tensors, strict=True)
        )


def _is_same_memory(s: torch.Tensor, t: torch.Tensor) -> bool:
    return s is t or (
        unwrap(s) is s
        and unwrap(t) is t
        and s.data_ptr() == t.data_ptr()
        and (s.shape, s.stride()) == (t.shape, t.stride())
    )


class _Problem:
    """A linear system, solved by iteration below all transforms."""

    def __init__(self, original: Method, method: Method, family: _Family) -> None:
        self.original = original
        self.method = method
        self.family = family

    def residual(self, x: torch.Tensor, b: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return self.family.apply(tensors, "matvec", x) - b

    def operators(
        self, system: System, tensors: Tensors
    ) -> tuple[LinearOperator, LinearOperator | None]:
        """Return the operator and the preconditioner on the vectors ``(*batch, n)`` of a batch."""
        family = self.family
        if system.parent is None:
            tensors = family.known(tensors)

        def make(which: str) -> Any:
            def apply(v: torch.Tensor) -> torch.Tensor:
                if not family.differentiates:
                    return _apply_batched(family, system, which, v, tensors)
                with torch.enable_grad():
                    return _apply_batched(family, system, which, v, tensors).detach()

            return apply

        def operator(prefix: str, like: LinearOperator) -> LinearOperator:
            return LinearOperator(
                make(prefix + "matvec"),
                make(prefix + "rmatvec"),
                like.domain,
                like.codomain,
                tags=like.tags,
            )

        M = None if family.M is None else operator("M.", family.M)
        return operator("", family.A), M

    def run(self, trace: Trace, transposed: bool, b: torch.Tensor) -> torch.Tensor:
        method = self.method
        A, M = self.operators(trace.system, trace.tensors[1:])
        if transposed and not (method.presumes_symmetry or A.symmetric):
            A, M = A.T, None if M is None else M.T
        u, info = method.for_derivatives(b.dtype).iterate(A, M, b, None)
        name = type(self.original).__name__
        report(info, f"The solve for the derivative of a solution by {name}", throw=method.throw)
        return u


def _apply_batched(
    family: _Family, system: System, which: str, v: torch.Tensor, tensors: Tensors
) -> torch.Tensor:
    if system.parent is None:
        return family.apply(tensors, which, v)
    parent, axis = system.parent, v.ndim - 1 - system.batch_ndim

    def single(v: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return _apply_batched(family, parent, which, v, tensors)

    dims = (axis, *system.in_dims[1:])
    result: torch.Tensor = torch.func.vmap(single, in_dims=dims, out_dims=axis)(v, *tensors)
    return result


class _Iterate(torch.autograd.Function):
    """The iterations, without derivatives: `vmap` runs all problems in one batch."""

    @staticmethod
    def forward(
        system: System, b: torch.Tensor, init: torch.Tensor | None, *tensors: torch.Tensor
    ) -> Tensors:
        problem: Any = system.solver
        A, M = problem.operators(system, tensors)
        x, info = problem.method.iterate(A, M, b, init)
        fields = (torch.as_tensor(field, device=b.device) for field in info)
        return (x, *fields)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[None, ...]:
        return (None,) * 4

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        system: System,
        b: torch.Tensor,
        init: torch.Tensor | None,
        *tensors: torch.Tensor,
    ) -> tuple[Tensors, tuple[int, ...]]:
        _, b_dim, init_dim, *dims = in_dims
        b = b.expand(info.batch_size, *b.shape) if b_dim is None else b.movedim(b_dim, 0)
        if init is not None and init_dim is not None:
            init = init.movedim(init_dim, 0)
        moved = [t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]
        inner = system.batched((0, *(None if d is None else 0 for d in dims)))
        outputs: Tensors = _Iterate.apply(inner, b, init, *moved)  # type: ignore[no-untyped-call]
        return outputs, (0,) * len(outputs)


class _Refuse(torch.autograd.Function):
    """Zero, as a function of tensors in which a derivative is an error rather than 0."""

    @staticmethod
    def forward(x: torch.Tensor, *hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.hidden = inputs[1:]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        raise NotImplementedError(_describe_hidden(ctx.hidden))


def _describe_hidden(hidden: Tensors) -> str:
    return HIDDEN.format(shapes=f"tensors of shapes {[list(t.shape) for t in hidden]}")


def _as_info(fields: list[torch.Tensor]) -> Info:
    iterations, residual_norm, status = fields
    if any(unwrap(field) is not field for field in fields):
        return Info(iterations, residual_norm, status)
    return Info(int(iterations), float(residual_norm), Status(int(status)))
