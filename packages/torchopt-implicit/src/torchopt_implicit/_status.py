"""What became of a solve: a status that carries its own sentence, and the numbers behind it."""

from __future__ import annotations

import enum
import warnings
from typing import NamedTuple

import torch

__all__ = ["FailedSolveError", "FailedSolveWarning", "Info", "Status", "report"]


class Status(enum.IntEnum):
    """How a solve ended. A batch of solves has a tensor of these, as integers.

    Example:
        >>> from torchopt_implicit import Status
        >>> Status.BREAKDOWN.message
        'the method broke down: the operator is singular, or not of the kind the method needs'
    """

    CONVERGED = 0
    TRUNCATED = 1
    ITERATION_LIMIT = 2
    STAGNATED = 3
    BREAKDOWN = 4
    NOT_FINITE = 5
    INFEASIBLE = 6
    UNBOUNDED = 7

    @property
    def message(self) -> str:
        """The status as a sentence without its full stop."""
        return _MESSAGES[self]

    @property
    def is_failure(self) -> bool:
        """Whether the solve ended otherwise than it was asked to."""
        return self > Status.TRUNCATED


_MESSAGES = {
    Status.CONVERGED: "the residual is within the tolerance",
    Status.TRUNCATED: (
        "`maxiter` iterations were done, as was asked, and the residual is not within the tolerance"
    ),
    Status.ITERATION_LIMIT: "the residual is not within the tolerance after `maxiter` iterations",
    Status.STAGNATED: "the residual no longer decreases, and is not within the tolerance",
    Status.BREAKDOWN: (
        "the method broke down: the operator is singular, or not of the kind the method needs"
    ),
    Status.NOT_FINITE: "a NaN or an infinity appeared",
    Status.INFEASIBLE: "no point satisfies all constraints",
    Status.UNBOUNDED: "the objective decreases without bound within the constraints",
}


class FailedSolveError(RuntimeError):
    """A solve failed and the caller asked for an error. ``info`` says how it ended."""

    def __init__(self, message: str, info: Info) -> None:
        super().__init__(message)
        self.info = info


class FailedSolveWarning(RuntimeWarning):
    """A solve failed, and its result is used all the same."""


class Info(NamedTuple):
    """What is known about a solve. For a batch of solves each field is a tensor of its shape.

    Example:
        >>> from torchopt_implicit import Info, Status
        >>> info = Info(3, 1e-9, Status.CONVERGED)
        >>> info.worst.name, info.all_converged
        ('CONVERGED', True)
    """

    #: iterations done, or 0 for a direct method
    iterations: int | torch.Tensor
    #: the 2-norm of the residual of the solution that is returned
    residual_norm: float | torch.Tensor
    #: a :class:`Status`, or an integer tensor of these
    status: Status | torch.Tensor

    @property
    def worst(self) -> Status:
        """The gravest status of the batch: that of the highest code."""
        if not isinstance(self.status, torch.Tensor):
            return self.status
        return Status(int(self.status.max())) if self.status.numel() else Status.CONVERGED

    @property
    def all_converged(self) -> bool:
        """Whether every solve of the batch converged. One that was truncated did not."""
        return self.worst is Status.CONVERGED

    def describe(self) -> str:
        """Return a sentence on the worst solve, with how many failed where there are many.

        Where none failed, it says how many were truncated.
        """
        norm, count = self.residual_norm, self.iterations
        which = ""
        if isinstance(self.status, torch.Tensor) and self.status.numel() > 0:
            codes = self.status.reshape(-1)
            i = int(codes.argmax())
            norm = torch.as_tensor(norm).expand(self.status.shape).reshape(-1)[i]
            count = torch.as_tensor(count).expand(self.status.shape).reshape(-1)[i]
            if codes.numel() > 1:
                alike = codes >= min(self.worst, Status.ITERATION_LIMIT)
                which = f" in {int(alike.sum())} of {codes.numel()} problems"
        return (
            f"{self.worst.name}{which}: {self.worst.message} "
            f"(residual norm {float(norm):.3g} after {int(count)} iterations)"
        )


def report(info: Info, what: str, *, throw: bool, remedy: str = "") -> None:
    """Warn about a solve that failed, or raise.

    Args:
        info: How it ended; nothing happens where none failed.
        what: The name of the solve, for the message.
        throw: Whether to raise rather than to warn.
        remedy: What to do about it, as a sentence.

    Raises:
        FailedSolveError: If ``throw`` and the solve failed.
    """
    if not info.worst.is_failure:
        return
    message = f"{what} failed, {info.describe()}. {remedy}".rstrip()
    if throw:
        raise FailedSolveError(message, info)
    warnings.warn(message, FailedSolveWarning, stacklevel=3)
