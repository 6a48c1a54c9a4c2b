"""What iterative methods share: their options, and the loop that believes true residuals only."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import torch

from torchopt_implicit._conversion import as_operator
from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    has_ridge,
    make_info,
    norm,
    power_of_two,
    working_dtype,
)
from torchopt_implicit.linear_solve._primitive import solve_by_iteration

__all__ = ["Krylov", "Outcome", "Stop", "ratio"]

# between two looks at a tensor that lives on an accelerator, which would wait for it
CHECK_EVERY = 10


class Stop(NamedTuple):
    """When to look whether a batch of problems is done."""

    tolerance: torch.Tensor  # on residual norms, as `dot` shapes them
    limit: int  # on iterations
    size: torch.Tensor  # of the right-hand sides
    attempt: int = 0  # how many cycles broke down before

    def is_due(self, iteration: int, active: torch.Tensor) -> bool:
        """Return whether no problem is active any more, as far as it is time to look."""
        if active.device.type != "cpu" and iteration % CHECK_EVERY:
            return False
        return not bool(active.any() if active.ndim else active)


class Outcome(NamedTuple):
    """Where a cycle of iterations ended."""

    x: torch.Tensor  # (*batch, n)
    residual: torch.Tensor  # as the method's recurrence has it, (*batch, n)
    iterations: torch.Tensor  # of this cycle, (*batch, 1)
    broke: torch.Tensor  # whether the method cannot go on, (*batch, 1)
    steps: int  # of the loop


def ratio(x: torch.Tensor, y: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return ``x / y``, and 0 elsewhere."""
    return torch.where(where, x / y, 0)


class _Transposed(NamedTuple):
    original: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Krylov(LinearSolver):
    """An iterative method: a :meth:`cycle` of iterations, run until the true residual is small.

    A subclass is that cycle. It gets plain tensors, without derivatives, and need not be
    differentiable: a direct call has the derivatives of a linear solve, each of them another solve
    with the operator or its transpose, to the same relative tolerance.
    """

    #: whether it takes the operator to be symmetric, and so its own transpose
    presumes_symmetry: ClassVar[bool] = False
    #: breakdowns of a recurrence after which a new cycle is worth a try
    retries: ClassVar[int] = 0

    ridge: float | torch.Tensor | None = None
    init: Any = None
    maxiter: int | None = None
    rtol: float = 1e-5
    atol: float = 0.0
    M: Any = None
    truncate: bool = False

    def __post_init__(self) -> None:
        check_options(
            ridge=self.ridge,
            maxiter=self.maxiter,
            rtol=self.rtol,
            atol=self.atol,
            truncate=self.truncate,
        )

    @abc.abstractmethod
    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        """Iterate from ``x`` until ``stop``, or a breakdown.

        Args:
            A: The operator, the ridge in it.
            M: The preconditioner.
            x: Where to start, ``(*batch, n)``; may be overwritten.
            residual: The true one there, ``(*batch, n)``; may be overwritten.
            stop: When to end. Problems that are done before others stay as they are.
        """

    def posed(
        self, A: LinearOperator, b: torch.Tensor
    ) -> tuple[Krylov, LinearOperator, torch.Tensor]:
        """Return the method, the operator and the right-hand side of a problem with its ridge."""
        if not has_ridge(self.ridge):
            return self, A, b
        return dataclasses.replace(self, ridge=None), A.shifted(self.ridge), b

    @property
    def T(self) -> Krylov:
        if self.M is None:
            return self
        is_transposed = isinstance(self.M, _Transposed)
        return dataclasses.replace(
            self, M=self.M.original if is_transposed else _Transposed(self.M)
        )

    def preconditioner(self, layout: Any) -> LinearOperator | None:
        """Return the approximate inverse on vectors of a layout."""
        if isinstance(self.M, _Transposed):
            return as_operator(self.M.original, layout).T
        return None if self.M is None else as_operator(self.M, layout)

    def start(self, b: torch.Tensor, M: FlatMap | None) -> torch.Tensor | None:
        """Return where to start if nothing else is said; ``None`` stands for 0."""
        return None

    def limit(self, n: int) -> int:
        """Return the iteration limit for ``n`` unknowns: ten for each, and never none."""
        return max(10 * n, 10) if self.maxiter is None else self.maxiter

    def for_derivatives(self, dtype: torch.dtype) -> Krylov:
        """Return the method for right-hand sides whose size has to do with no absolute tolerance.

        They are solved for to the relative one, or where that is 0, to the precision of the dtype.
        """
        if self.atol == 0 or self.truncate:
            return dataclasses.replace(self, init=None, atol=0.0)
        rtol = self.rtol or torch.finfo(dtype).eps ** 0.75
        return dataclasses.replace(self, init=None, atol=0.0, rtol=rtol)

    def solve_vector(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        return solve_by_iteration(self, A, b)

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        method, A, b = self.posed(A, b)
        init = None if self.init is None else A.domain.ravel(self.init, "init")
        return method.iterate(A, self.preconditioner(A.domain), b, init)

    @torch.no_grad()
    def iterate(
        self,
        A: LinearOperator,
        M: LinearOperator | None,
        b: torch.Tensor,
        init: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Info]:
        """Run cycles until the true residual is within ``max(rtol * ||b||, atol)``, or give up.

        The residual that a recurrence carries drifts from the true one. So what a cycle takes for
        convergence is checked, which costs a matvec; if it does not hold, another cycle starts from
        the true residual, and if that gains less than a factor of two, the solve has stagnated.

        Args:
            A: The operator, the ridge in it.
            M: The preconditioner.
            b: The right-hand side, ``(*batch, n)``, without derivatives.
            init: Where to start, ``(*batch, n)``; ``None`` stands for 0 and saves a matvec.
        """
        dtype = b.dtype
        if working_dtype(dtype) is not dtype:
            A, M = A.in_dtype(working_dtype(dtype)), M and M.in_dtype(working_dtype(dtype))
            b, init = b.to(working_dtype(dtype)), None if init is None else init.to(b.dtype)
        apply_M = None if M is None else M.matvec
        scale = power_of_two(b)  # by which squares neither vanish nor overflow
        b = b / scale
        x = self.start(b, apply_M) if init is None else init.expand_as(b) / scale
        size = norm(b)
        atol = self.atol / scale if b.ndim > 1 else (self.atol / scale).squeeze(-1)
        tolerance = torch.maximum(self.rtol * size, atol.to(size.dtype))
        stop = Stop(tolerance, self.limit(A.domain.size), size)
        residual = b.clone() if x is None else b - A.matvec(x)
        x = torch.zeros_like(b) if x is None else x.clone()
        length = norm(residual)
        iterations = torch.zeros_like(size, dtype=torch.int64)
        failures = torch.zeros_like(iterations)
        stalled = torch.zeros_like(size, dtype=torch.bool)
        while True:
            broke = failures > self.retries
            active = (length > stop.tolerance) & ~stalled & ~broke & torch.isfinite(length)
            if stop.limit <= 0 or stop.is_due(0, active):
                break
            outcome = self.cycle(A, apply_M, x, residual, stop)
            residual, new_length = outcome.residual, norm(outcome.residual)
            failures = failures + (outcome.broke & active)
            claims = (new_length <= stop.tolerance) & active
            if bool((claims | outcome.broke).any()):
                residual = b - A.matvec(outcome.x)
                new_length = norm(residual)
            stalled = stalled | (active & claims & (new_length > 0.5 * length))
            x, length = outcome.x, new_length
            iterations = iterations + outcome.iterations
            stop = stop._replace(
                limit=stop.limit - max(outcome.steps, 1), attempt=int(failures.max())
            )
        limited = Status.TRUNCATED if self.truncate else Status.ITERATION_LIMIT
        status = torch.full_like(iterations, limited)
        status = torch.where(stalled, Status.STAGNATED, status)
        status = torch.where(broke, Status.BREAKDOWN, status)
        status = torch.where(length <= stop.tolerance, Status.CONVERGED, status)
        finite = torch.isfinite(length) & torch.isfinite(size)
        status = torch.where(finite, status, Status.NOT_FINITE)
        norms = length * (scale if b.ndim > 1 else scale.squeeze(-1))
        return (x * scale).to(dtype), make_info(iterations, norms, status)
