"""The loop around every iterative method: it believes true residuals only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from torchopt_implicit._functorch import is_readable, is_transforming
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve._base import make_info, norm

__all__ = ["Cycle", "Outcome", "Stop", "add_scaled", "iterate", "ratio"]

# between two looks at a tensor that lives on an accelerator, which would wait for it
CHECK_EVERY = 10


class Stop(NamedTuple):
    """When to look whether a batch of problems is done."""

    tolerance: torch.Tensor  # on residual norms, as `dot` shapes them
    limit: int  # on iterations

    def is_due(self, iteration: int, active: torch.Tensor) -> bool:
        """Return whether no problem is active any more, as far as it is time to look."""
        if active.device.type != "cpu" and iteration % CHECK_EVERY:
            return False
        if not is_readable(active):
            return False
        return not bool(active.any() if active.ndim else active)


class Outcome(NamedTuple):
    """Where a cycle of iterations ended."""

    x: torch.Tensor  # (*batch, n)
    residual: torch.Tensor  # as the method's recurrence has it, (*batch, n)
    iterations: torch.Tensor  # of this cycle, (*batch, 1)
    broke: torch.Tensor  # whether the method cannot go on, (*batch, 1)
    steps: int  # of the loop


def add_scaled(
    y: torch.Tensor, a: torch.Tensor, x: torch.Tensor, sign: int = 1, *, out: torch.Tensor
) -> torch.Tensor:
    """Return ``y + sign * a * x``, in the memory of ``out`` unless a derivative may need that."""
    if torch.is_grad_enabled() or is_transforming():
        return torch.addcmul(y, a, x, value=sign)
    return torch.addcmul(y, a, x, value=sign, out=out)


def ratio(x: torch.Tensor, y: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Return ``x / y``, and 0 elsewhere, with derivatives that are finite, too."""
    return torch.where(where, x, 0) / torch.where(where, y, 1)


class Cycle(Protocol):
    """A method, run from ``x`` with the true residual there until ``stop`` or a breakdown.

    It may overwrite both.
    """

    def __call__(self, x: torch.Tensor, residual: torch.Tensor, stop: Stop) -> Outcome: ...


def iterate(
    cycle: Cycle,
    true_residual: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor | None,
    b: torch.Tensor,
    *,
    rtol: float,
    atol: float,
    maxiter: int,
    truncate: bool,
) -> tuple[torch.Tensor, Info]:
    """Run cycles until the true residual is within ``max(rtol * ||b||, atol)``, or give up.

    The residual that a recurrence carries drifts from the true one. So what a cycle takes for
    convergence is checked, which costs a matvec; if it does not hold, another cycle starts from the
    true residual, and if that gains less than a factor of two, the solve has stagnated.

    Args:
        cycle: The method.
        true_residual: ``b - A x``.
        x: Where to start, ``(*batch, n)``; ``None`` stands for 0 and saves a matvec.
        b: The right-hand side, ``(*batch, n)``.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        maxiter: Limit on all cycles together.
        truncate: Whether to reach the limit is no failure.
    """
    size = norm(b.detach())
    stop = Stop((rtol * size).clamp(min=atol), maxiter)
    residual = b.clone() if x is None else true_residual(x)
    x = torch.zeros_like(b) if x is None else x.clone()
    length = norm(residual.detach())
    iterations = torch.zeros_like(size, dtype=torch.int64)
    stalled = broke = torch.zeros_like(size, dtype=torch.bool)
    while True:
        active = (length > stop.tolerance) & ~stalled & ~broke & torch.isfinite(length)
        if stop.limit <= 0 or stop.is_due(0, active):
            break
        outcome = cycle(x, residual, stop)
        claimed = norm(outcome.residual.detach())
        broke = broke | (outcome.broke & active)
        claims = (claimed <= stop.tolerance) & active
        new_length, residual = claimed, outcome.residual
        if not is_readable(claims) or bool((claims | broke).any()):
            residual = true_residual(outcome.x)
            new_length = norm(residual.detach())
        stalled = stalled | (active & claims & (new_length > 0.5 * length))
        x, length = outcome.x, new_length
        iterations = iterations + outcome.iterations
        stop = stop._replace(limit=stop.limit - max(outcome.steps, 1))
    limited = Status.TRUNCATED if truncate else Status.ITERATION_LIMIT
    status = torch.full_like(iterations, limited)
    status = torch.where(stalled, Status.STAGNATED, status)
    status = torch.where(broke, Status.BREAKDOWN, status)
    status = torch.where(length <= stop.tolerance, Status.CONVERGED, status)
    finite = torch.isfinite(length) & torch.isfinite(size)
    return x, make_info(iterations, length, torch.where(finite, status, Status.NOT_FINITE))
