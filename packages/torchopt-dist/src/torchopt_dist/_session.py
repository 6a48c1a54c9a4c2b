"""RPC up, the main function, RPC down; and what the others learn if a worker fails."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

import torch.distributed as dist
from torch.distributed import rpc
from torch.distributed.elastic.multiprocessing.errors import record
from torch.futures import Future

from torchopt_dist._group import restart
from torchopt_dist._info import (
    WorldInfo,
    default_worker_name_format,
    is_available,
    launched_world,
    require_rpc,
    worker_names,
)
from torchopt_dist._interface import environment_defaults, own_interface
from torchopt_dist._remote_errors import RemoteError, WorkerLostError, label
from torchopt_dist._shutdown import GRACE, abandon, leave

if TYPE_CHECKING:
    from torch._C._distributed_rpc import RpcBackendOptions

__all__ = ["auto_init_rpc", "default_worker_name_format", "failure_of"]

P = ParamSpec("P")
T = TypeVar("T")

#: As torch's env://, for ranks that `torchrun` may start again, see :func:`_meet`.
_SCHEME = "torchopt-env"

#: Seconds between two looks at the others, by a worker that has finished.
PATIENCE = 0.5


def _meet(url: str, **options: Any) -> Iterator[tuple[Any, int, int]]:
    """Meet as by env://, but apart from what ranks that have ended left in `torchrun`'s store."""
    address = url.replace(f"{_SCHEME}:", "env:", 1)
    for store, rank, size in dist.rendezvous(address, **options):  # type: ignore[attr-defined]
        yield dist.PrefixStore(f"torchopt/{restart()}", store), rank, size  # type: ignore[attr-defined]


if is_available():
    dist.register_rendezvous_handler(_SCHEME, _meet)  # type: ignore[attr-defined, no-untyped-call]


class Outcome(NamedTuple):
    """How the main function of a worker ended."""

    rank: int
    # the traceback, if it raised
    failure: str | None


class _Board:
    """What this worker knows of the others: rank 0 is told of everyone, the others of failures."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.outcomes: dict[int, Outcome] = {}

    def clear(self) -> None:
        with self.changed:
            self.outcomes.clear()

    def post(self, outcome: Outcome) -> None:
        with self.changed:
            self.outcomes.setdefault(outcome.rank, outcome)
            self.changed.notify_all()

    def failure(self) -> Outcome | None:
        with self.changed:
            failed = [outcome for outcome in self.outcomes.values() if outcome.failure is not None]
        return failed[0] if failed else None


_board = _Board()


def _post(outcome: Outcome) -> None:
    _board.post(outcome)


def _posted() -> tuple[Outcome, ...]:
    with _board.changed:
        return tuple(_board.outcomes.values())


def failure_of(rank: int) -> str | None:
    """Return the traceback that the main function of a worker ended with, if it said so."""
    with _board.changed:
        outcome = _board.outcomes.get(rank)
    return None if outcome is None else outcome.failure


def auto_init_rpc(
    worker_init_fn: Callable[[], None] | None = None,
    worker_name_format: Callable[[int, int, int, int], str] = default_worker_name_format,
    *,
    backend: rpc.BackendType | None = None,
    rpc_backend_options: RpcBackendOptions | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for the main function: it runs with RPC up between all workers.

    Every worker runs the program, and the main function, from beginning to end. One that has
    finished goes on answering calls until all have. The world is what `torchrun` says; without
    `torchrun` it is this process alone, where calls go through the same code.

    If the main function raises, the others are told and end as well, with an error that names the
    worker; so they do if a worker's process dies. Nothing is left running.

    .. warning::
        RPC runs what its peers send, by design: it is for networks whose every member is trusted.
        Workers on one machine listen on the loopback interface only, those on several on the one
        that leads to ``MASTER_ADDR``, the address that the launcher was given, unless the variable
        ``TP_SOCKET_IFNAME`` names another or ``rpc_backend_options`` are given.

    Args:
        worker_init_fn: Called once RPC is up, before the main function, to set seeds, for example.
        worker_name_format: Returns the name of a worker from ``(world_rank, world_size,
            local_rank, local_world_size)``; ``"worker0"``, ``"worker1"``, ... by default.
        backend: As for :func:`torch.distributed.rpc.init_rpc`.
        rpc_backend_options: Likewise; its ``rpc_timeout`` (60 s by default) is the timeout of
            calls that state none.

    Raises:
        RpcUnavailableError: This build of torch has no RPC.
        RuntimeError: When called: RPC is up already, or the environment contradicts itself.
        WorkerLostError: When called: another worker failed or died.

    Example:
        >>> import torchopt.distributed as todist
        >>> @todist.auto_init_rpc()
        ... def main():
        ...     return todist.remote_sync_call(len, args=("four",), partitioner=0)
        >>> main()
        [4]
    """
    require_rpc()
    if not callable(worker_name_format):
        raise TypeError(f"`worker_name_format` must be callable, got {worker_name_format!r}")
    if worker_init_fn is not None and not callable(worker_init_fn):
        raise TypeError(f"`worker_init_fn` must be callable or None, got {worker_init_fn!r}")

    def decorate(func: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(func)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            require_rpc()
            if worker_names():
                raise RuntimeError(
                    "RPC is up already: a program has one function decorated with "
                    "`auto_init_rpc`, and does not call `torch.distributed.rpc.init_rpc` itself"
                )
            world = launched_world() or WorldInfo(0, 1, 0, 1)
            name = worker_name_format(*world)
            with _running(world, name, backend, rpc_backend_options):
                if worker_init_fn is not None:
                    worker_init_fn()
                return func(*args, **kwargs)

        # `record` writes what is raised where torchrun looks for it
        return cast(Callable[P, T], record(wrapped))

    return decorate


@contextlib.contextmanager
def _running(
    world: WorldInfo,
    name: str,
    backend: rpc.BackendType | None,
    options: RpcBackendOptions | None,
) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        if options is None:
            # not "shm": its threads spin while they wait, and take the cores from the work
            options = rpc.TensorPipeRpcBackendOptions(_transports=["ibv", "uv"])
            interface = own_interface(world.local_world_size == world.world_size)
        else:
            interface = None
        if options.init_method == "env://":
            # one meets oneself without a port
            alone = f"file://{folder}/rendezvous"
            options.init_method = alone if world.world_size == 1 else f"{_SCHEME}://"
        _board.clear()
        wire = os.environ.get("TP_SOCKET_IFNAME", interface)
        with (
            # RPC's workers meet through gloo
            environment_defaults(TP_SOCKET_IFNAME=interface, GLOO_SOCKET_IFNAME=wire),
            warnings.catch_warnings(),
        ):
            # torch's own wiring of its backends is not the user's concern
            warnings.filterwarnings("ignore", "You are using a Backend", UserWarning)
            rpc.init_rpc(  # type: ignore[no-untyped-call]
                name,
                backend=backend,
                rank=world.rank,
                world_size=world.world_size,
                rpc_backend_options=options,
            )
        try:
            yield
            _finish(world)
        except BaseException as error:
            if not isinstance(error, SystemExit) or error.code:
                _fail(world, error)
                raise
            _finish(world)
            leave()
            raise
        leave()


def _finish(world: WorldInfo) -> None:
    """Wait until all workers have finished; raise if one of them fails or dies instead."""
    names = worker_names()
    outcome = Outcome(world.rank, None)
    if world.rank == 0:
        _board.post(outcome)
        _wait_for_all(names)
    else:
        _wait_for_zero(names, outcome)


def _wait_for_all(names: tuple[str, ...]) -> None:
    while True:
        with _board.changed:
            _board.changed.wait_for(lambda: len(_board.outcomes) == len(names), PATIENCE)
            missing = set(range(len(names))) - _board.outcomes.keys()
        _raise_failure(names)
        if not missing:
            return
        for rank in missing:
            try:
                rpc.rpc_sync(names[rank], _posted, timeout=GRACE)
            except RuntimeError as error:
                if not is_timeout(error):  # one that is busy may be slow to answer
                    raise _lost(rank, names) from error


def _wait_for_zero(names: tuple[str, ...], outcome: Outcome) -> None:
    told = False
    while True:
        _raise_failure(names)
        try:
            if not told:
                rpc.rpc_sync(names[0], _post, args=(outcome,), timeout=GRACE)
                told = True
            known = rpc.rpc_sync(names[0], _posted, timeout=GRACE)
        except RuntimeError as error:
            if is_timeout(error):
                continue
            _raise_failure(names)
            raise _lost(0, names) from error
        for other in known:
            if other.failure is not None:
                _board.post(other)
        _raise_failure(names)
        if len(known) == len(names):
            return
        with _board.changed:
            _board.changed.wait(PATIENCE)


def _raise_failure(names: tuple[str, ...]) -> None:
    failed = _board.failure()
    if failed is not None and failed.failure is not None:
        worker = names[failed.rank]
        raise WorkerLostError(
            f"{label(failed.rank, worker)} failed, so this one ends", failed.rank, worker
        ) from RemoteError(failed.failure, failed.rank, worker)


def _lost(rank: int, names: tuple[str, ...]) -> WorkerLostError:
    return WorkerLostError(
        f"{label(rank, names[rank])} cannot be reached: its process has ended", rank, names[rank]
    )


def is_timeout(error: BaseException) -> bool:
    """Return whether torch's error is about time: its only mark is the message."""
    return "RPC ran for more than set timeout" in str(error)


def wait_until_done(future: Future[Any]) -> None:
    """Wait for a future such that signals are handled: torch's own wait does not look for them."""
    over = threading.Event()
    future.add_done_callback(lambda _: over.set())
    over.wait()


def _fail(world: WorldInfo, error: BaseException) -> None:
    """Tell the others, and take RPC down without them."""
    text = "".join(traceback.format_exception(error))
    outcome = Outcome(world.rank, text)
    _board.post(outcome)
    names = worker_names()
    told = []
    for rank, name in enumerate(names):
        if rank != world.rank:
            with contextlib.suppress(RuntimeError):
                told.append(rpc.rpc_async(name, _post, args=(outcome,), timeout=GRACE / 2))
    for future in told:
        with contextlib.suppress(RuntimeError):  # it may be the one that died
            future.wait()
    abandon(text)
