"""What can go wrong between workers, as exceptions that name the worker."""

from __future__ import annotations

from typing import Any

__all__ = ["RemoteError", "RpcUnavailableError", "WorkerLostError", "WorkerTimeoutError", "label"]


def label(rank: int, worker: str) -> str:
    """Return how messages name a worker."""
    return f"worker {worker!r} (rank {rank})"


class RpcUnavailableError(RuntimeError):
    """This build of torch has no RPC."""


class _WorkerError(RuntimeError):
    """An error that belongs to one worker."""

    def __init__(self, message: str, rank: int, worker: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.worker = worker

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.rank, self.worker)


class RemoteError(_WorkerError):
    """A function raised on a worker.

    The caller gets the worker's own exception, with this one as its ``__cause__``. An exception
    that cannot be pickled stays where it is, and the caller gets this one alone.

    Attributes:
        rank: The rank of the worker.
        worker: Its name.
        traceback: The traceback there, as text.
    """

    def __init__(self, traceback: str, rank: int, worker: str) -> None:
        super().__init__(traceback, rank, worker)
        self.traceback = traceback

    def __str__(self) -> str:
        return f"on {label(self.rank, self.worker)}:\n\n{self.traceback}"


class WorkerLostError(_WorkerError, ConnectionError):
    """A worker's process has ended, or cannot be reached any more.

    Attributes:
        rank: The rank of the worker.
        worker: Its name.
    """


class WorkerTimeoutError(_WorkerError, TimeoutError):
    """A worker did not answer in time.

    Attributes:
        rank: The rank of the worker.
        worker: Its name.
    """
