"""Taking RPC down, also where a call never returns.

torch waits for all calls that run on a worker, and a thread in the middle of a call cannot be
stopped. A call whose caller has given up is not worth waiting for: the process ends without it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

from torch.distributed import rpc

__all__ = ["GRACE", "abandon", "leave", "running"]

#: Seconds that calls get to end by themselves once nobody waits for them any more.
GRACE = 10.0

_lock = threading.Lock()
# when the caller gives up, for each call that runs here
_deadlines: dict[int, float] = {}


@contextlib.contextmanager
def running(timeout: float) -> Iterator[None]:
    """Count a call as running on this worker.

    Args:
        timeout: Seconds that its caller waits; 0 is for ever.
    """
    call = threading.get_ident()
    with _lock:
        outer = _deadlines.get(call)
        _deadlines[call] = time.monotonic() + timeout if timeout > 0 else float("inf")
    try:
        yield
    finally:
        with _lock:
            if outer is None:
                del _deadlines[call]
            else:
                _deadlines[call] = outer


def _is_awaited() -> bool:
    """Return whether a call runs here whose caller may still wait."""
    now = time.monotonic()
    with _lock:
        return any(deadline + GRACE > now for deadline in _deadlines.values())


def leave() -> None:
    """Take RPC down together with the others, after the calls that run here."""
    stop = threading.Thread(target=rpc.shutdown, daemon=True)
    stop.start()
    while stop.is_alive():
        stop.join(0.1 if _deadlines else None)
        if stop.is_alive() and _deadlines and not _is_awaited():
            _exit("a call that its caller has given up still runs on this worker, which ends now")


def abandon(reason: str) -> None:
    """Take RPC down without the others.

    Args:
        reason: What to say if a call that runs here keeps this worker from going down.
    """
    stop = threading.Thread(target=rpc.shutdown, kwargs={"graceful": False}, daemon=True)
    stop.start()
    stop.join(GRACE)
    if stop.is_alive():
        _exit(reason)


def _exit(reason: str) -> None:
    print(reason, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)
