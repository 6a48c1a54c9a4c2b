"""The loop all iterative solvers share: one problem or, under `torch.vmap`, many at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status
from torchopt_implicit.solvers._method import MethodState
from torchopt_implicit.solvers._numbers import Flag, Number, is_finite, like, maximum, select

__all__ = ["Search", "advance", "begin", "precise", "search"]

State = TypeVar("State", bound=MethodState)


class Search(NamedTuple, Generic[State]):
    """How far a search is."""

    # of the method
    state: State
    # done so far
    iterations: Any
    # the error to reach
    target: Number

    @property
    def is_running(self) -> Flag:
        """Whether neither the error is reached nor the method has failed."""
        error, target = self.state.error, self.target
        return (error > target) & is_finite(error) & (self.state.failure == Status.CONVERGED)

    @property
    def info(self) -> Info:
        """How the search ended, if it is over here."""
        return Info(self.iterations, self.state.error, self._status())

    def _status(self) -> Any:
        status = select(
            self.state.failure == Status.CONVERGED, int(Status.ITERATION_LIMIT), self.state.failure
        )
        status = select(is_finite(self.state.error), status, int(Status.NOT_FINITE))
        return select(self.state.error <= self.target, int(Status.CONVERGED), status)


def precise(eps: float) -> float:
    """Return a relative tolerance that is as tight as rounding well allows."""
    return float(eps ** (2 / 3))


def begin(state: State, tol: float, *, absolute: bool = False) -> Search[State]:
    r"""Return the search at its start, with the error :math:`\text{tol}\cdot\max(1, e_0)` to reach.

    Args:
        state: Of the method, with the error :math:`e_0`.
        tol: The tolerance.
        absolute: Whether it is the error to reach itself.
    """
    target = like(state.error, tol) if absolute else tol * maximum(state.error, 1.0)
    return Search(state, like(state.error, 0), target)


def advance(update: Callable[[State], State], now: Search[State], running: Flag) -> Search[State]:
    """Return the search after one more iteration of the problems that are ``running``."""
    return Search(
        select(running, update(now.state), now.state), now.iterations + running, now.target
    )


def check_every(device: torch.device) -> int:
    """Return after how many iterations to look at flags, for which a device would have to wait."""
    return 1 if device.type == "cpu" else 4


def search(update: Callable[[State], State], now: Search[State], maxiter: int) -> Search[State]:
    """Advance until no problem runs, or for ``maxiter`` iterations.

    Each problem of a batch stops on its own: its state is kept as it was. The flags are looked at
    after each iteration on the CPU, and after every few on a device, which would have to wait.
    """
    every = check_every(now.state.x.device)
    for i in range(maxiter):
        running = now.is_running
        if i % every == 0 and isinstance(running, torch.Tensor):
            flags = unwrap(running)
            if every == 1 and flags.all():
                running = True  # so that nothing has to be kept
            elif not flags.any():
                break
        if running is False:
            break
        now = advance(update, now, running)
    return now
