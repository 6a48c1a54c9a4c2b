"""Measures speed and memory side by side with peers: ``python benchmarks/run.py``.

Every comparison is a ratio from one run. A missed target is printed, not raised: a benchmark on a
busy machine is not a test. See ``README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from cases import OPTIMIZERS, SHAPES, STEPS
from compare import HERE, Budget, Contender, Spread, Worker, compare, environment
from report import AT_LEAST, AT_MOST, Bound, Row, render
from startup import measure

PEER = "TORCHOPT_PEER_PYTHON"
OURS = sys.executable
# optimizers that are also measured through modules, and where time is short
FEW = ("sgd, momentum", "adam")


class Setup(NamedTuple):
    """What the sections share."""

    quick: bool
    #: The Python that has the predecessor; None: there is none.
    peer: str | None

    @property
    def budget(self) -> Budget:
        """How long one comparison may take."""
        return Budget(0.01, 0.5, 3, 15) if self.quick else Budget(0.02, 3.0, 7, 41)

    @property
    def shapes(self) -> list[str]:
        """The shapes to measure."""
        return ["6 small", "12 x 1M"] if self.quick else list(SHAPES)


def progress(total: int, label: str) -> Any:
    """Return a progress bar on stderr, or something silent where there is no tqdm."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return _Silent()
    return tqdm(total=total, desc=label, file=sys.stderr, leave=False)


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def update(self, n: int = 1) -> None:
        """Do nothing."""


@contextmanager
def workers(*pythons: str) -> Iterator[list[Worker]]:
    """Start a worker for each Python and end them all."""
    with ExitStack() as stack:
        started = []
        for python in pythons:
            started.append(Worker(python, OURS))
            stack.callback(started[-1].close)
        yield started


def table(
    setup: Setup,
    title: str,
    task: str,
    pair: tuple[Contender, Contender],
    bounds: Mapping[str, Callable[[str], Bound]],
) -> str:
    """Compare two contenders for some optimizers on every shape.

    Args:
        setup: What to measure, and how long.
        title: What the ratios are.
        task: The task, as in ``cases.py``.
        pair: Whose time is divided by whose.
        bounds: For each optimizer, from the shape to the target; optimizers without an entry are
            shown for information.
    """
    few = setup.quick or task == "meta"
    names = FEW if few and task != "step" else tuple(OPTIMIZERS)
    rows = []
    with progress(len(names) * len(setup.shapes), task) as bar:
        for name in names:
            ratios: list[Spread] = []
            for tensors in setup.shapes:
                ratio = compare(*pair, setup.budget, task=task, optimizer=name, tensors=tensors)
                ratios.append(ratio)
                bar.update()
            targets = [bounds[name](x) if name in bounds else None for x in setup.shapes]
            rows.append(Row(name, ratios, targets))
    return render(title, "optimizer", setup.shapes, rows)


def step(setup: Setup) -> Iterator[str]:
    """Compare the in-place step with torch.optim."""
    with workers(OURS) as (worker,):
        yield table(
            setup,
            "In-place step: time of ours / time of torch.optim with foreach=True",
            "step",
            (Contender(worker, "torchopt"), Contender(worker, "torch")),
            dict.fromkeys(OPTIMIZERS, lambda tensors: Bound(AT_MOST, 1.2)),
        )


def differentiable(setup: Setup) -> Iterator[str]:
    """Compare differentiation through inner steps with the predecessor, and with higher."""
    title = f"Forward and backward through {STEPS} updates"
    if setup.peer is None:
        yield f"{title}\n\nskipped: set {PEER} to a Python that has torchopt==0.7.3\n"
        return
    goals = {"adam": lambda tensors: Bound(AT_LEAST, 1.0 if "1M" in tensors else 1.5)}
    with workers(OURS, setup.peer) as (worker, other):
        ours, predecessor = Contender(worker, "torchopt"), Contender(other, "torchopt")
        theirs = f"time of torchopt {other.versions['torchopt']} / time of ours"
        for task, face in (("functional", "functional"), ("meta", "on modules")):
            yield table(setup, f"{title}, {face}: {theirs}", task, (predecessor, ours), goals)
        if "higher" in other.versions:
            theirs = f"time of higher {other.versions['higher']} / time of ours"
            higher = Contender(other, "higher")
            yield table(setup, f"{title}, on modules: {theirs}", "meta", (higher, ours), {})


def startup(setup: Setup) -> Iterator[str]:
    """Measure `import torchopt` after `import torch`."""
    repeats = 7 if setup.quick else 15
    with progress((1 + repeats) * (1 if setup.peer is None else 2), "import") as bar:
        result = measure(OURS, setup.peer, repeats, bar.update)
    rows = [
        Row("milliseconds", [result.milliseconds], [Bound(AT_MOST, 60.0)]),
        Row("time / time of `import torch`", [result.share], [None]),
        Row("heavy modules that it loads", [len(result.heavy)], [Bound(AT_MOST, 0)]),
    ]
    if result.peer is not None:
        rows.append(Row("time of torchopt 0.7.3 / time of ours", [result.peer], [None]))
    title = "`import torchopt`, after `import torch`, in fresh processes"
    names = f"\nheavy modules: {', '.join(result.heavy)}\n" if result.heavy else ""
    yield render(title, "what", ["measured"], rows) + names


def memory(setup: Setup) -> Iterator[str]:
    """Measure the growth of memory over meta-iterations."""
    number = 400 if setup.quick else 2000
    output = subprocess.run(
        [OURS, str(HERE / "memory.py"), str(number)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(OURS, OURS),
    ).stdout
    before, after = json.loads(output)
    tensors, resident = (b - a for a, b in zip(before, after, strict=True))
    rows = [
        Row("live tensors", [tensors], [Bound(AT_MOST, 0)]),
        Row("resident memory, %", [100 * resident / before[1]], [Bound(AT_MOST, 0.2)]),
    ]
    yield render(
        f"{number:,} meta-iterations, without the cyclic garbage collector: growth",
        "what",
        [f"from iteration {number // 4:,}"],
        rows,
    )


SECTIONS: dict[str, Callable[[Setup], Iterator[str]]] = {
    "step": step,
    "differentiable": differentiable,
    "import": startup,
    "memory": memory,
}


def main() -> None:
    """Run the chosen sections and print their tables."""
    parser = argparse.ArgumentParser(description="Measure speed and memory side by side.")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="a section; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    options = parser.parse_args()
    setup = Setup(options.quick, os.environ.get(PEER))
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    with workers(*filter(None, (OURS, setup.peer))) as started:
        for label, worker in zip(("ours", "peers"), started, strict=False):
            versions = (f"{name} {version}" for name, version in worker.versions.items())
            print(f"{label}: {', '.join(versions)}")
    print("One thread, float32; ratios are medians (min-max) over interleaved pairs.\n")
    for name in options.only or SECTIONS:
        for text in SECTIONS[name](setup):
            print(text, flush=True)


if __name__ == "__main__":
    main()
