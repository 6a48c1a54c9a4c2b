"""Waiting for each other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

import torch
from torch.distributed import rpc

from torchopt_dist._info import is_available, require_rpc, worker_names
from torchopt_dist._remote_errors import WorkerLostError, WorkerTimeoutError, label
from torchopt_dist._session import is_timeout, wait_until_done

__all__ = ["barrier"]


class _Gate:
    """Where workers arrive: the first of them keeps it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.arrived: set[int] = set()
        self.open: torch.futures.Future[None] = torch.futures.Future()


_lock = threading.Lock()
# by the ranks that meet and how often they have met before
_gates: dict[tuple[tuple[int, ...], int], _Gate] = {}
_passed: Counter[tuple[int, ...]] = Counter()


def _arrive(ranks: tuple[int, ...], turn: int, rank: int) -> torch.futures.Future[None]:
    with _lock:
        gate = _gates.setdefault((ranks, turn), _Gate(len(ranks)))
        gate.arrived.add(rank)
        complete = len(gate.arrived) == gate.size
        if complete:
            del _gates[ranks, turn]
    if complete:
        gate.open.set_result(None)
    return gate.open


if is_available():
    _arrive = rpc.functions.async_execution(_arrive)  # type: ignore[no-untyped-call]


def _missing(ranks: tuple[int, ...], turn: int) -> list[int]:
    with _lock:
        gate = _gates.get((ranks, turn))
        return [] if gate is None else sorted(set(ranks) - gate.arrived)


def barrier(worker_names: Iterable[str] | None = None) -> None:
    """Wait until all of some workers have come here.

    Args:
        worker_names: The names of the workers, this one among them; ``None`` is all of them.

    Raises:
        RpcUnavailableError: This build of torch has no RPC.
        RuntimeError: RPC is not up.
        ValueError: A name is unknown, or this worker is not among them.
        WorkerTimeoutError: Some did not come within RPC's timeout; the message names them.
        WorkerLostError: The one that all report to, the first, has ended.
    """
    require_rpc()
    known = _known_workers()
    chosen = known if worker_names is None else tuple(worker_names)
    for name in chosen:
        if name not in known:
            raise ValueError(
                f"`worker_names` must be some of {', '.join(known)}, got {name!r} among them"
            )
    ranks = tuple(sorted({known.index(name) for name in chosen}))
    rank = rpc.get_worker_info().id
    if rank not in ranks:
        raise ValueError(f"`worker_names` must include this worker, {known[rank]!r}")
    with _lock:
        turn = _passed[ranks]
        _passed[ranks] += 1
    first = known[ranks[0]]
    try:
        passed = rpc.rpc_async(first, _arrive, args=(ranks, turn, rank))
        wait_until_done(passed)
        passed.wait()
    except RuntimeError as error:
        if not is_timeout(error):
            raise WorkerLostError(
                f"{label(ranks[0], first)} cannot be reached: its process has ended",
                ranks[0],
                first,
            ) from error
        late = rpc.rpc_sync(first, _missing, args=(ranks, turn)) or [ranks[0]]
        names = ", ".join(label(other, known[other]) for other in late)
        raise WorkerTimeoutError(
            f"the barrier was not passed in time: {names} did not come", late[0], known[late[0]]
        ) from error


def _known_workers() -> tuple[str, ...]:
    known = worker_names()
    if not known:
        raise RuntimeError(
            "RPC is not up: call `barrier` inside the function that `auto_init_rpc` decorates"
        )
    return known
