"""Calling a function on other workers, each with a share of the arguments."""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.distributed import rpc
from torch.futures import Future

from torchopt_dist._info import get_worker_id, require_rpc, worker_names
from torchopt_dist._partition import Call, Partitioner, batch_partitioner, whole
from torchopt_dist._reduce import Results, mean_reducer
from torchopt_dist._remote_errors import RemoteError, WorkerLostError, WorkerTimeoutError, label
from torchopt_dist._session import failure_of, is_timeout, wait_until_done
from torchopt_dist._shutdown import running
from torchopt_dist._wire import Parcel, pack, unpack

__all__ = [
    "parallelize",
    "parallelize_async",
    "parallelize_sync",
    "remote_async_call",
    "remote_sync_call",
]

P = ParamSpec("P")
T = TypeVar("T")
Reducer = Callable[[Iterable[Any]], Any]

#: torch's mark for a timeout that was not stated.
UNSET: float = rpc.constants.UNSET_RPC_TIMEOUT if rpc.is_available() else -1.0


class _Undecorated(NamedTuple):
    """A function that its module knows by the name of its parallel version."""

    module: str
    qualname: str

    @classmethod
    def of(cls, func: Callable[..., Any]) -> _Undecorated:
        """Return how other workers find a function.

        Raises:
            TypeError: They cannot.
        """
        found = cls(func.__module__, func.__qualname__)
        try:
            known = found.find() is func.__wrapped__  # type: ignore[attr-defined]
        except (AttributeError, ImportError):
            known = False
        if not known:
            raise TypeError(
                f"a parallelized function must be at the top level of a module that every worker "
                f"has, under its own name, for that is how workers find it; got "
                f"{found.module}.{found.qualname}"
            )
        return found

    def find(self) -> Callable[..., Any]:
        found: Any = sys.modules.get(self.module) or importlib.import_module(self.module)
        for part in self.qualname.split("."):
            found = getattr(found, part)
        while not hasattr(found, "__parallelized__"):  # decorated further, and not by `wraps`
            found = found.__wrapped__
        return found.__parallelized__.__wrapped__  # type: ignore[no-any-return]


class _Failure(NamedTuple):
    """What became of a call that raised."""

    rank: int
    worker: str
    traceback: str
    # the exception, if it can be pickled
    error: bytes | None


def _execute(parcel: Parcel, timeout: float) -> Parcel:
    """Run a call here, for another worker that waits as long as ``timeout`` says."""
    with running(_default_timeout() if timeout == UNSET else timeout):
        return _executed(parcel)


def _default_timeout() -> float:
    from torch._C._distributed_rpc import get_rpc_timeout

    return get_rpc_timeout()


def _executed(parcel: Parcel) -> Parcel:
    try:
        func, args, kwargs, grad_enabled = unpack(parcel)
        if isinstance(func, _Undecorated):
            func = func.find()
        with torch.set_grad_enabled(grad_enabled):
            return pack(func(*args, **kwargs))
    except BaseException as error:  # a call that exits ends the call, and not its worker
        here = rpc.get_worker_info()
        text = "".join(traceback.format_exception(error))
        return pack(_Failure(here.id, here.name, text, _pickled(error)))


def _pickled(error: BaseException) -> bytes | None:
    if not isinstance(error, Exception):  # would end the caller
        return None
    try:
        pickled = pickle.dumps(error)
        return pickled if type(pickle.loads(pickled)) is type(error) else None
    except Exception:  # what an exception's own pickling raises may be anything
        return None


def _opened(rank: int, answer: Future[Parcel]) -> Any:
    """Return the result of a call; raise what it raised, or why there is none."""
    name = worker_names()[rank]
    try:
        result = unpack(answer.value())
    except RuntimeError as error:
        raise _unanswered(rank, name, error) from _reason(rank, name, error)
    if not isinstance(result, _Failure):
        return result
    remote = RemoteError(result.traceback, result.rank, result.worker)
    if result.error is None:
        raise remote
    raise pickle.loads(result.error) from remote


def _unanswered(rank: int, name: str, error: RuntimeError) -> RuntimeError:
    if is_timeout(error):
        return WorkerTimeoutError(
            f"{label(rank, name)} did not answer in time: it hangs, or needs a longer `timeout`",
            rank,
            name,
        )
    return WorkerLostError(
        f"{label(rank, name)} cannot be reached: its process has ended", rank, name
    )


def _reason(rank: int, name: str, error: RuntimeError) -> RuntimeError:
    failure = failure_of(rank)
    return error if failure is None else RemoteError(failure, rank, name)


class _Answer(Future[Any]):
    """A future that an interrupt need not wait for."""

    def wait(self) -> Any:
        wait_until_done(self)
        return super().wait()


class _Gathering:
    """Collects the answers to several calls, and ends with the first that is an error."""

    def __init__(self, ranks: list[int], sizes: list[int], reducer: Reducer | None) -> None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        self.future = _Answer(devices=[torch.device("cuda", i) for i in range(count)])
        self._ranks = ranks
        self._sizes = sizes
        self._reducer = reducer
        self._grad_enabled = torch.is_grad_enabled()
        self._results: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._over = False

    def receive(self, place: int, answer: Future[Parcel]) -> None:
        """Take the answer to one call; this runs in a thread of RPC's."""
        try:
            result = _opened(self._ranks[place], answer)
            with self._lock:
                self._results[place] = result
                if self._over or len(self._results) < len(self._ranks):
                    return
                self._over = True
            value = self._reduced()
        except Exception as error:
            with self._lock:
                late, self._over = self._over and len(self._results) < len(self._ranks), True
            if not late:
                self.future.set_exception(error)
        else:
            self.future.set_result(value)

    def _reduced(self) -> Any:
        in_order = (self._results[place] for place in range(len(self._ranks)))
        results = Results(in_order, self._sizes)
        if self._reducer is None:
            return list(results)
        with torch.set_grad_enabled(self._grad_enabled):
            return self._reducer(results)


def remote_async_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET,
) -> Future[Any]:
    """Call a function on other workers and return the future of its results.

    Arguments and results are any values that pickle. Within a
    :class:`~torchopt.distributed.autograd.context`, gradients flow through the tensors in them,
    those of modules and parameters included: a worker then finds plain tensors in the module's
    parameters, connected to the caller's. Remote references (`rpc.RRef`) travel as references, to
    what stays where it is.

    Args:
        func: The function, at the top level of a module that every worker has.
        args: Its positional arguments, before they are split.
        kwargs: Its keyword arguments, likewise.
        partitioner: The rank or the name of one worker, or a function which splits the arguments;
            ``None`` is :func:`batch_partitioner`.
        reducer: Makes one value of the list of results; ``None`` leaves the list.
        timeout: Seconds until the call fails; 0 is for ever, and ``None``, like leaving it out, is
            RPC's own (60 s unless ``rpc_backend_options`` say otherwise).

    Returns:
        A :class:`torch.futures.Future`. Its ``wait`` returns the reduced value or the list of
        results in the order of calls; or it raises, as soon as one call has failed: the exception
        of the worker with a :class:`RemoteError` as its cause, :class:`WorkerTimeoutError` or
        :class:`WorkerLostError`.

    Raises:
        RpcUnavailableError: This build of torch has no RPC.
        RuntimeError: RPC is not up.
        TypeError: ``func`` or an argument does not pickle.
        ValueError: ``timeout`` is negative, or the arguments cannot be split.
    """
    require_rpc()
    if not callable(func):
        raise TypeError(f"`func` must be callable, got {func!r}")
    if timeout is None:
        timeout = UNSET
    if timeout != UNSET and not timeout >= 0:
        raise ValueError(f"`timeout` must be a number of seconds, 0 or more, got {timeout!r}")
    names = worker_names()
    if not names:
        raise RuntimeError(
            "RPC is not up: call this inside the function that `auto_init_rpc` decorates"
        )
    if partitioner is None:
        partitioner = batch_partitioner
    args, kwargs = args or (), kwargs or {}
    if isinstance(partitioner, (int, str)):
        calls = [Call(partitioner, args, kwargs)]
    else:
        calls = [Call(*call) for call in partitioner(*args, **kwargs)]
        if not calls:
            raise ValueError("`partitioner` made no call of the arguments")
    calls = [call._replace(args=whole(call.args), kwargs=whole(call.kwargs)) for call in calls]
    sent = _Undecorated.of(func) if _is_parallel(func) else func
    grad_enabled = torch.is_grad_enabled()
    # all before the first is sent: what does not pickle must have no effect
    ranks = [get_worker_id(call.worker) for call in calls]
    parcels = [pack((sent, call.args or (), call.kwargs or {}, grad_enabled)) for call in calls]
    gathering = _Gathering(ranks, [call.size for call in calls], reducer)
    for place, (rank, parcel) in enumerate(zip(ranks, parcels, strict=True)):
        answer = rpc.rpc_async(names[rank], _execute, args=(parcel, timeout), timeout=timeout)
        answer.add_done_callback(functools.partial(gathering.receive, place))
    return gathering.future


def remote_sync_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET,
) -> Any:
    """Call a function on other workers and return its results: `remote_async_call`, and wait.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.auto_init_rpc()
        ... def main():
        ...     batch = (torch.arange(4.0),)
        ...     return todist.remote_sync_call(torch.mean, args=batch, reducer=todist.mean_reducer)
        >>> main()
        tensor(1.5000)
    """
    return remote_async_call(
        func, args=args, kwargs=kwargs, partitioner=partitioner, reducer=reducer, timeout=timeout
    ).wait()


def parallelize(
    partitioner: Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    """Return a decorator: calls of the function are spread over the workers.

    Args:
        partitioner: As for :func:`remote_async_call`.
        reducer: Likewise. If neither is given, the results are averaged by :func:`mean_reducer`.
        timeout: Likewise.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.parallelize(reducer=todist.sum_reducer)
        ... def square_sum(x):
        ...     return x.square().sum()
    """
    return _parallelize(remote_sync_call, partitioner, reducer, timeout)


#: Another name of :func:`parallelize`.
parallelize_sync = parallelize


def parallelize_async(
    partitioner: Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float | None = UNSET,
) -> Callable[[Callable[P, Any]], Callable[P, Future[Any]]]:
    """Return a decorator as :func:`parallelize`, for a function that then returns a future."""
    return _parallelize(remote_async_call, partitioner, reducer, timeout)


def _parallelize(
    remote: Callable[..., Any],
    partitioner: Partitioner | None,
    reducer: Reducer | None,
    timeout: float | None,
) -> Callable[[Callable[P, Any]], Callable[P, Any]]:
    if partitioner is None:
        reducer = reducer or mean_reducer

    def decorate(func: Callable[P, Any]) -> Callable[P, Any]:
        @functools.wraps(func)
        def parallel(*args: P.args, **kwargs: P.kwargs) -> Any:
            return remote(
                parallel,
                args=args,
                kwargs=kwargs,
                partitioner=partitioner,
                reducer=reducer,
                timeout=timeout,
            )

        # itself, so that decorators on top, which copy attributes, are told from it
        parallel.__parallelized__ = parallel  # type: ignore[attr-defined]
        return parallel

    return decorate


def _is_parallel(func: Callable[..., Any]) -> bool:
    return getattr(func, "__parallelized__", None) is func
