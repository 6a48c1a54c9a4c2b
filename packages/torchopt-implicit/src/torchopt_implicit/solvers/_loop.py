"""The loop all iterative solvers share: one problem or, under `torch.vmap`, many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status

__all__ = ["State", "freeze", "iterate", "precise", "target_of"]


class State(Protocol):
    """What a method knows after a step: a NamedTuple of tensors that has these fields."""

    @property
    def x(self) -> torch.Tensor:
        """The iterate, one flat vector."""

    @property
    def error(self) -> torch.Tensor:
        """The norm at ``x`` that the stopping test looks at."""

    @property
    def failure(self) -> torch.Tensor:
        """A :class:`Status` that ends the iteration, or ``CONVERGED`` while it may go on."""


_State = TypeVar("_State", bound=State)


def precise(dtype: torch.dtype) -> float:
    """Return a relative tolerance that is as tight as rounding well allows."""
    return float(torch.finfo(dtype).eps ** (2 / 3))


def target_of(state: State, tol: float | None) -> torch.Tensor:
    r"""Return the error to reach, :math:`\text{tol}\cdot\max(1, \text{error}_0)`.

    The default of ``tol`` is 3.7e-11 in float64 and 2.4e-5 in float32.
    """
    tol = precise(state.x.dtype) if tol is None else tol
    return tol * state.error.clamp_min(1.0)


def freeze(running: torch.Tensor, new: Any, old: Any) -> Any:
    """Return ``new`` where the problem still runs and ``old`` elsewhere, field by field."""
    return type(old)(
        *(
            torch.where(running.reshape(running.shape + (1,) * (n.ndim - running.ndim)), n, o)
            for n, o in zip(new, old, strict=True)
        )
    )


def _status_of(
    error: torch.Tensor, failure: torch.Tensor, target: torch.Tensor | float
) -> torch.Tensor:
    """Return the codes of :class:`Status` for iterations that ended like this."""
    status = torch.where(failure == Status.CONVERGED, int(Status.ITERATION_LIMIT), failure)
    status = torch.where(torch.isfinite(error), status, int(Status.NOT_FINITE))
    return torch.where(error <= target, int(Status.CONVERGED), status)


def check_every(device: torch.device) -> int:
    """Return after how many iterations to look at flags, for which a device would have to wait."""
    return 1 if device.type == "cpu" else 4


def iterate(
    step: Callable[[_State], _State],
    state: _State,
    *,
    target: torch.Tensor | float,
    maxiter: int,
) -> tuple[_State, Info]:
    r"""Repeat ``step`` until the error is at most ``target``.

    Each problem of a batch stops on its own: its state is kept as it was. The flags are looked at
    after each iteration on the CPU, and after every few on a device, which would have to wait.

    Args:
        step: One iteration, a pure function without control flow that depends on values.
        state: The state to start from.
        target: The error to reach.
        maxiter: The most iterations.

    Returns:
        The last state, and an :class:`Info` of tensors.
    """
    every = check_every(state.x.device)

    def is_running(state: _State) -> torch.Tensor:
        unfinished = (state.error > target) & (state.error < torch.inf)
        return unfinished & (state.failure == Status.CONVERGED)

    running = is_running(state)
    iterations = torch.zeros_like(running, dtype=torch.int64)
    for i in range(maxiter):
        if i % every == 0:
            flags = unwrap(running)
            if not flags.any():
                break
            everyone = every == 1 and bool(flags.all())
        new = step(state)
        state = new if everyone else freeze(running, new, state)
        iterations = iterations + running
        running = is_running(state)
    return state, Info(iterations, state.error, _status_of(state.error, state.failure, target))
