"""How an implicit derivative runs a linear solver: with what is kept, and what is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._system import Trace
from torchopt_implicit.linear_solve import Factorization, LinearSolver

__all__ = ["ImplicitSolver"]

REMEDY = (
    "The derivative is inexact. Raise `maxiter`, loosen `rtol`, add a `ridge`, choose another "
    "solver for `solve`, or say `truncate=True` if so few iterations are meant"
)
NOT_FINITE = (
    "The right-hand side was not finite to begin with: look at the derivative of what was computed "
    "from the solution"
)


class ImplicitSolver:
    """The linear solver of one implicit function.

    Args:
        solve: A :class:`~torchopt_implicit.linear_solve.LinearSolver`, or any function
            ``(matvec, b) -> x`` of trees like the solution; a single tensor is a tuple of one.
        name: What is differentiated, for messages.
    """

    def __init__(self, solve: Callable[[Any, Any], Any], name: str) -> None:
        self.solve = solve
        self.name = name
        self.has_warned = False

    @torch.no_grad()
    def run(self, trace: Trace, transposed: bool, b: torch.Tensor) -> torch.Tensor:
        """Solve with the derivative of the residual in the solution, for vectors ``b``."""
        if not isinstance(self.solve, LinearSolver):
            return self._call(trace, transposed, b)
        system, A = trace.system, trace.operator
        operator = A.T if transposed else A
        kept: Kept | None = system.factors
        sources = trace.tensors if system.is_affine else (trace.point, *trace.tensors)
        if kept is None or not kept.fits(sources):
            # of the transpose, whose matvecs are the cheaper ones here
            factors = self.solve.T.factorize(A.T, trace.point.shape[:-1])
            kept = None if factors is None else Kept(factors, sources)
            system.factors = kept
        if kept is None:
            method = self.solve.T if transposed else self.solve
            u, info = method.run(operator, b)
        else:
            factors = kept.factors if transposed else kept.factors.T
            u, info = factors.solve(operator, b)
        self._report(info, b)
        return u

    def _call(self, trace: Trace, transposed: bool, b: torch.Tensor) -> torch.Tensor:
        """Call a function that knows of one problem only, for each of a batch."""
        system = trace.system
        if system.parent is not None:
            axis = b.ndim - system.batch_ndim - 1
            rows = []
            for i, point in enumerate(trace.point):
                tensors = tuple(
                    t if dim is None else t[i]
                    for t, dim in zip(trace.tensors, system.in_dims, strict=True)
                )
                single = system.parent.trace(point, tensors)
                rows.append(self._call(single, transposed, b.select(axis, i)))
            return torch.stack(rows, axis) if rows else torch.zeros_like(b)
        A = trace.operator.T if transposed else trace.operator
        layout = system.layout
        if layout.spec.is_leaf():  # as these functions have always been called
            one: Any = (0,)
            layout = layout._replace(spec=optree.tree_structure(one))
            A = LinearOperator(A.matvec, A.rmatvec, layout, layout)
        solutions = []
        for row in b.flatten(0, -2) if b.ndim > 1 else b.unsqueeze(0):
            solution = self.solve(A, layout.unravel(row))
            if isinstance(solution, torch.Tensor) and system.layout.spec.is_leaf():
                solution = (solution,)
            solutions.append(layout.ravel(solution, "the result of `solve`"))
        u = torch.stack(solutions).reshape(b.shape) if solutions else torch.zeros_like(b)
        if not bool(torch.isfinite(u).all()):
            self._report(Info(0, float("nan"), Status.NOT_FINITE), b)
        return u

    def _report(self, info: Info, b: torch.Tensor) -> None:
        throw = isinstance(self.solve, LinearSolver) and self.solve.throw
        if not info.worst.is_failure or (self.has_warned and not throw):
            return
        self.has_warned = True
        is_given = info.worst is Status.NOT_FINITE and not bool(torch.isfinite(b).all())
        report(
            info,
            f"The linear solve for the derivative of {self.name}",
            throw=throw,
            remedy=NOT_FINITE if is_given else REMEDY,
        )


class Kept:
    """Factors of ``A``, and what it was computed from.

    Holding on to those tensors keeps their memory from being reused, so that an address tells.
    """

    def __init__(self, factors: Factorization, sources: tuple[torch.Tensor, ...]) -> None:
        self.factors = factors
        self.sources = sources
        self.versions = [t._version for t in self.sources]

    def fits(self, given: tuple[torch.Tensor, ...]) -> bool:
        """Return whether the factors were computed from these tensors, unchanged since."""
        return len(given) == len(self.sources) and all(
            s._version == version and _is_same_memory(s, t)
            for s, t, version in zip(self.sources, given, self.versions, strict=True)
        )


def _is_same_memory(s: torch.Tensor, t: torch.Tensor) -> bool:
    return s is t or (
        s.data_ptr() == t.data_ptr() and s.shape == t.shape and s.stride() == t.stride()
    )
