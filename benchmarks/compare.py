"""Interleaved comparisons: A B A B ..., one ratio for each pair."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Budget", "Contender", "Spread", "Worker", "compare", "compare_above", "environment"]

HERE = Path(__file__).resolve().parent

# glibc keeps memory that was freed, or returns it to the system, by the luck of its layout, and
# then zeroing new pages can take longer than the arithmetic: workers keep it, but for one column
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}

# relative, of median magnitudes in float32
TOLERANCE = 1e-2


class Spread(NamedTuple):
    """The median of some measurements, and their range."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Summarize ``values``."""
        return Spread(statistics.median(values), min(values), max(values))


class Budget(NamedTuple):
    """How long one comparison may take."""

    #: Seconds that one timing should last at least.
    slice: float
    #: Seconds for all pairs together; a comparison makes `least` pairs in any case.
    total: float
    #: Fewest and most pairs.
    least: int
    most: int


def environment(python: str, ours: str) -> dict[str, str]:
    """Return the environment of a child.

    One thread; bytecode cached, as in an installed package; nothing of ours in a peer's path.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS"), "1")
    variables = {**os.environ, **one}
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    if python != ours:
        variables.pop("PYTHONPATH", None)
    return variables


class Worker:
    """A process that builds and times cases under some Python; see ``worker.py``."""

    def __init__(self, python: str, ours: str, keep_memory: bool = True) -> None:
        """Start it, with an allocator that keeps memory or as a user would."""
        self.python = python
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(python, ours) | (KEEP_MEMORY if keep_memory else {}),
        )
        self.versions: dict[str, str] = self.ask(op="versions")

    def ask(self, **request: Any) -> Any:
        """Return the answer to a request.

        Raises:
            RuntimeError: If the worker failed; with its traceback.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{request} failed in the worker:\n{answer['error']}")
        return answer["result"]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Contender(NamedTuple):
    """A library, in the process that has it."""

    worker: Worker
    library: str


class _Built(NamedTuple):
    worker: Worker
    key: str
    fingerprint: list[float]

    def seconds(self, number: int) -> float:
        """Return the time of ``number`` runs."""
        return float(self.worker.ask(op="time", key=self.key, number=number))


@contextmanager
def _built(contenders: tuple[Contender, ...], **case: str) -> Iterator[list[_Built]]:
    try:
        built = []
        for worker, library in contenders:
            request = {**case, "library": library}
            result = worker.ask(op="build", **request)
            built.append(_Built(worker, json.dumps(request), result))
        yield built
    finally:
        for worker, _ in contenders:
            worker.ask(op="drop")


def compare(a: Contender, b: Contender, budget: Budget, agree: bool = True, **case: str) -> Spread:
    """Return the time of ``a`` over the time of ``b``, pair by pair.

    Args:
        a: A contender.
        b: Another.
        budget: How long it may take.
        agree: Whether they compute the same.
        case: What both do.

    Raises:
        RuntimeError: If they do not compute the same.
    """
    with _built((a, b), **case) as (first, second):
        for x, y in zip(first.fingerprint, second.fingerprint, strict=agree):
            if agree and not math.isclose(x, y, rel_tol=TOLERANCE):
                raise RuntimeError(
                    f"{a.library} and {b.library} compute different results for {case}: {x}, {y}"
                )
        slowest = max(min(x.seconds(1) for _ in range(2)) for x in (first, second))
        number = max(1, math.ceil(budget.slice / slowest))
        pairs = int(budget.total / (2 * number * slowest))
        pairs = min(max(pairs, budget.least), budget.most)
        return Spread.of([first.seconds(number) / second.seconds(number) for _ in range(pairs)])


def compare_above(
    a: Contender, b: Contender, floor: Contender, budget: Budget, **case: str
) -> tuple[Spread, Spread]:
    """Return the times of ``a`` and of ``b`` over that of a floor.

    Args:
        a: A contender.
        b: Another.
        floor: What neither can do without, timed beside both, as the task ``"floor"``.
        budget: How long it may take.
        case: What both do.

    Returns:
        Each over its floor, round by round.
    """
    with _built((a, b), **case) as contenders:
        floors = {}
        for worker in dict.fromkeys((a.worker, b.worker)):
            request = {**case, "task": "floor", "library": floor.library}
            result = worker.ask(op="build", **request)
            floors[worker] = _Built(worker, json.dumps(request), result)
        slowest = max(min(x.seconds(1) for _ in range(2)) for x in contenders)
        number = max(1, math.ceil(budget.slice / slowest))
        rounds = int(budget.total / (4 * number * slowest))
        shares: list[list[float]] = [[], []]
        for _ in range(min(max(rounds, budget.least), budget.most)):
            for share, built in zip(shares, contenders, strict=True):
                share.append(built.seconds(number) / floors[built.worker].seconds(number))
        return Spread.of(shares[0]), Spread.of(shares[1])
