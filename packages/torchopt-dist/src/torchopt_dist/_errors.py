"""What can go wrong on another rank."""

from __future__ import annotations

from collections.abc import Sequence
from traceback import format_exception
from typing import NamedTuple


class TaskFailure(NamedTuple):
    """One task that raised."""

    # the rank that evaluated it, in the world
    rank: int
    # its index in the meta-batch
    task: int
    # the traceback on that rank, as text
    traceback: str

    @classmethod
    def of(cls, rank: int, task: int, error: Exception) -> TaskFailure:
        """Return what there is to tell of an exception."""
        return cls(rank, task, "".join(format_exception(error)))


class TaskError(RuntimeError):
    """A task raised; every rank of the meta-step raises this, with the traceback of the task.

    The ranks are in step: who catches this may go on with the next meta-batch.

    Attributes:
        failures: One :class:`TaskFailure` for each rank on which a task raised, lowest first.
        rank: The rank of the first of them.
        task: The index of its task in the meta-batch.
    """

    def __init__(self, failures: Sequence[TaskFailure]) -> None:
        super().__init__(failures)  # what pickle calls it with
        self.failures = tuple(failures)
        self.rank = self.failures[0].rank
        self.task = self.failures[0].task

    def __str__(self) -> str:
        return "\n\n".join(
            f"task {failure.task} raised on rank {failure.rank}:\n\n{failure.traceback.rstrip()}"
            for failure in self.failures
        )


class LostRankError(RuntimeError):
    """Ranks that died, hang, or are later than the timeout, so that a meta-step cannot end.

    The process group is of no use afterwards: end the process, and resume from a checkpoint.

    Attributes:
        ranks: The ranks that gave no answer; empty where what is lost is the launcher's store.
    """

    def __init__(self, ranks: Sequence[int], message: str) -> None:
        super().__init__(ranks, message)
        self.ranks = tuple(ranks)
        self.message = message

    def __str__(self) -> str:
        return self.message
