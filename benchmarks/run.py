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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from cases import COMPILED, OPTIMIZERS, STEPS
from compare import (
    HERE,
    Budget,
    Contender,
    Spread,
    Worker,
    compare,
    compare_above,
    environment,
)
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
        few, more = ["6 small", "12 x 1M"], ["6 small", "18 small", "200 small", "12 x 1M"]
        return few if self.quick else more


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
def workers(*pythons: str, keep_memory: bool = True) -> Iterator[list[Worker]]:
    """Start a worker for each Python and end them all."""
    with ExitStack() as stack:
        started = []
        for python in pythons:
            started.append(Worker(python, OURS, keep_memory))
            stack.callback(started[-1].close)
        yield started


# the largest tensors once more, in processes whose allocator has its defaults
DEFAULTS = "12 x 1M, default"


def compare_shapes(
    setup: Setup, shapes: Sequence[str], pair: tuple[Contender, Contender], **case: str
) -> list[Spread | float]:
    """Compare two contenders for each shape; `DEFAULTS` in processes of its own."""
    found: list[Spread | float] = []
    for shape in shapes:
        if shape != DEFAULTS:
            found.append(compare(*pair, setup.budget, **case, tensors=shape))
            continue
        pythons = [contender.worker.python for contender in pair]
        with workers(*dict.fromkeys(pythons), keep_memory=False) as started:
            plain = dict(zip(dict.fromkeys(pythons), started, strict=True))
            a, b = (x._replace(worker=plain[x.worker.python]) for x in pair)
            found.append(compare(a, b, setup.budget, **case, tensors="12 x 1M"))
    return found


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
    shapes = [*setup.shapes, DEFAULTS]
    with progress(len(names), task) as bar:
        for name in names:
            ratios = compare_shapes(setup, shapes, pair, task=task, optimizer=name)
            bar.update()
            targets = [bounds[name](x) if name in bounds else None for x in shapes]
            rows.append(Row(name, ratios, targets))
    return render(title, "optimizer", shapes, rows)


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


NETWORKS = ["MLP 1-40-40-1", "MLP 784-64-64-10", "Conv-4", "200 of 32x32", "12 x 1M"]
OURS_COMPILED = f"torchopt{COMPILED}"


def accelerated(setup: Setup) -> Iterator[str]:
    """Compare the compiled steps with torch's fused ones, with the core's, and with the peer's."""
    with workers(OURS) as (worker,):
        ours, core = Contender(worker, OURS_COMPILED), Contender(worker, "torchopt")
        yield _accelerated_in_place(setup, worker)
        shapes = [*NETWORKS, DEFAULTS]
        case = {"task": "functional", "optimizer": "adam"}
        rows = [Row("adam", compare_shapes(setup, shapes, (core, ours), **case), [None] * 6)]
        title = f"Forward and backward through {STEPS} updates: time of the core's arithmetic / "
        yield render(f"{title}time of the compiled step", "optimizer", shapes, rows)
        yield _traffic(setup, worker)
    if setup.peer is None:
        yield f"Compiled steps of the peer\n\nskipped: set {PEER} to a Python that has it\n"
        return
    with workers(OURS, setup.peer) as (worker, other):
        ours, theirs = Contender(worker, OURS_COMPILED), Contender(other, OURS_COMPILED)
        yield _accelerated_against(setup, ours, theirs)
        saved = [x.worker.ask(op="saved", **_adam(x, "Conv-4")) for x in (ours, theirs)]
        bounds = [Bound(AT_MOST, 3.0), None]
        rows = [Row("tensors", saved, bounds)]
        title = "Saved for the backward pass of a step of Adam, for each parameter"
        yield render(title, "what", ["ours", "the peer's"], rows)


def _adam(contender: Contender, tensors: str) -> dict[str, str]:
    return {"library": contender.library, "optimizer": "adam", "tensors": tensors}


def _accelerated_in_place(setup: Setup, worker: Worker) -> str:
    ours, fused = Contender(worker, OURS_COMPILED), Contender(worker, "torch fused")
    shapes = ["MLP 1-40-40-1", "6 small", "200 small", "12 x 1M", DEFAULTS]
    rows = []
    for name in ("sgd, momentum", "adam", "adamw", "adagrad"):
        case = {"task": "step", "optimizer": name}
        ratios = compare_shapes(setup, shapes, (ours, fused), **case)
        targets = [Bound(AT_MOST, 1.1 if "1M" in x else 1.3) for x in shapes]
        rows.append(Row(name, ratios, targets if name == "adam" else [None] * len(shapes)))
    title = "In-place step: time of ours, compiled / time of torch.optim with fused=True"
    return render(title, "optimizer", shapes, rows)


def _accelerated_against(setup: Setup, ours: Contender, theirs: Contender) -> str:
    """Compare five steps alone, and whole tasks above what the network costs, with the peer's."""
    goals = [3.0, 2.0, 2.0, 3.0, 2.0]  # overhead bounds the first and the fourth, memory the last
    rows = []
    for task, face in (("functional", "functional"), ("meta", "on modules")):
        case = {"task": task, "optimizer": "adam"}
        ratios: list[Spread | float] = [
            compare(theirs, ours, setup.budget, **case, tensors=x) for x in NETWORKS
        ]
        targets: list[Bound | None] = [Bound(AT_LEAST, goal) for goal in goals]
        rows.append(Row(f"five steps alone, {face}", ratios, targets))
    networks = ["MLP 1-40-40-1", "Conv-4"]
    floor = Contender(ours.worker, "torch")
    above = [
        compare_above(
            theirs, ours, floor, setup.budget, task="episode", optimizer="adam", tensors=x
        )
        for x in networks
    ]
    title = "Adam, compiled: time of the peer's compiled step / time of ours"
    text = render(title, "what", NETWORKS, rows)
    # a share below the floor is noise
    excess = [(x.median - 1) / max(peer.median - 1, 1e-3) for peer, x in above]
    rows = [
        Row("the peer's", [x for x, _ in above], [None] * 2),
        Row("ours", [x for _, x in above], [None] * 2),
        Row("(ours - 1) / (the peer's - 1)", excess, [Bound(AT_MOST, 0.33)] * 2),
    ]
    title = "A task of MAML (five steps of Adam, outer gradient): time / time with bare descent"
    return f"{text}\n{render(title, 'what', networks, rows)}"


def _traffic(setup: Setup, worker: Worker) -> str:
    """Compare the kernels' use of memory with a copy, in bytes that must move."""
    copy = Contender(worker, "copy")
    case = {"task": "traffic", "optimizer": "adam", "tensors": "12 x 1M"}
    rows = []
    for operation, moved in (("forward", 28), ("backward", 36)):
        ratio = compare(copy, Contender(worker, operation), setup.budget, agree=False, **case)
        share = Spread(*(x * moved / 8 for x in ratio))
        rows.append(Row(f"{operation}, {moved} bytes a parameter", [share], [Bound(AT_LEAST, 0.7)]))
    title = "Bandwidth of the kernel of Adam / bandwidth of a copy of the same tensors"
    return render(title, "kernel", ["12 x 1M"], rows)


SECTIONS: dict[str, Callable[[Setup], Iterator[str]]] = {
    "step": step,
    "differentiable": differentiable,
    "accelerated": accelerated,
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
