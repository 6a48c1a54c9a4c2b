"""Task parallelism: tasks per second on several ranks, and what it costs by itself.

Run where `torchopt-dist` and what the demo needs are installed::

    python benchmarks/distributed.py [--quick] [--only digits --only overhead --only scale]

All ranks are processes of one thread on this machine. They are started once; what is compared runs
in turns, on the first so many of them, while the others sleep; a turn begins with a step that is
not measured. Times are wall-clock times.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the ranks

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
import torchopt.distributed as todist
from compare import Spread
from report import AT_LEAST, AT_MOST, Bound, Row, render

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from _digits import Task
from few_shot_digits import INNER_STEPS, QUERIES, SEEN, SHOTS, WAYS, load_classes, make_network

#: Tasks in a meta-batch; MAML's own experiments on characters have 16 and 32.
BATCHES = (8, 16, 32)
#: Seconds that stand for the computation of a task.
SLEEP = 0.01
#: Calls until all of RPC's threads, 16 by default, have met torch's kernels: each is slow once.
WARM_UP = 60
COLUMNS = [f"{count} tasks" for count in BATCHES]
SIZES = {"1k": 1_000, "100k": 100_000, "1M": 1_000_000}


class Team:
    """The ranks of a benchmark, of which the first few may work while the others wait."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.groups = [dist.new_group([*range(count)]) for count in range(1, size + 1)]

    def seconds(self, count: int, step: Callable[[Any], object], number: int) -> float:
        """Return how long the first ``count`` ranks take for a step; 0 on those that wait."""
        dist.barrier()
        result = 0.0
        if dist.get_rank() < count:
            step(self.groups[count - 1])  # as in a training loop: the others had the caches
            start = time.perf_counter()
            for _ in range(number):
                step(self.groups[count - 1])
            result = (time.perf_counter() - start) / number
        dist.barrier()
        return result


Section = Callable[[Team, int], list[str]]


def adapted(net: nn.Module, task: Any) -> Tensor:
    """Return MAML's loss of a task."""
    inner = torchopt.MetaSGD(net, lr=0.3)
    for _ in range(INNER_STEPS):
        inner.step(F.cross_entropy(net(task.support), task.support_labels))
    return F.cross_entropy(net(task.query), task.query_labels)


def draw_tasks(count: int) -> list[Any]:
    """Return a meta-batch of tasks like those of the demo."""
    classes = load_classes(SEEN, symmetries=True)
    generator = torch.Generator().manual_seed(0)
    return [classes.draw(WAYS, SHOTS, QUERIES, generator) for _ in range(count)]


def steps(count: int) -> int:
    """Return how many steps of so many tasks make a turn."""
    return max(1, 24 // count)


def digits(team: Team, rounds: int) -> list[str]:
    """Compare two processes to one, on MAML for the digits of the demo."""
    net = make_network()
    rows = []
    for name, deterministic in (("collectives", False), ("collectives, deterministic", True)):
        spreads = []
        for count in BATCHES:
            tasks = draw_tasks(count)

            def step(group: Any, tasks: Any = tasks, deterministic: bool = deterministic) -> None:
                result = todist.map_tasks(
                    adapted, tasks, net, group=group, deterministic=deterministic
                )
                result.accumulate_grad(net)

            ratios = []
            for k in range(rounds + 1):
                one, two = (team.seconds(size, step, steps(count)) for size in (1, 2))
                if k > 0 and dist.get_rank() == 0:  # the first warms up
                    ratios.append(one / two)
            if ratios:
                spreads.append(Spread.of(ratios))
        rows.append(Row(name, spreads, [Bound(AT_LEAST, 1.8)] * len(BATCHES)))
    title = "MAML on digits: tasks per second of 2 processes / those of 1"
    return [render(title, "door", COLUMNS, rows)] if dist.get_rank() == 0 else []


def overhead(team: Team, rounds: int) -> list[str]:
    """Compare one rank to a loop written by hand; processor time."""
    if dist.get_rank() != 0:
        return []
    net, tasks = make_network(), draw_tasks(BATCHES[0])
    initial = torchopt.extract_state_dict(net)

    def by_hand() -> None:
        for task in tasks:
            (adapted(net, task) / len(tasks)).backward()
            torchopt.recover_state_dict(net, initial)

    def mapped(deterministic: bool) -> None:
        result = todist.map_tasks(
            adapted, tasks, net, group=team.groups[0], deterministic=deterministic
        )
        result.accumulate_grad(net)

    def seconds(function: Callable[[], object]) -> float:
        net.zero_grad()
        start = time.process_time()
        function()
        return time.process_time() - start

    rows = []
    for name, deterministic in (("collectives", False), ("collectives, deterministic", True)):
        ratios = []
        for k in range(5 * rounds + 2):
            sides = [functools.partial(mapped, deterministic), by_hand]
            order = (0, 1) if k % 2 else (1, 0)
            times = {side: seconds(sides[side]) for side in order}
            if k > 1:  # the first two warm up
                ratios.append(times[0] / times[1])
        rows.append(Row(name, [Spread.of(ratios)], [Bound(AT_MOST, 1.03)]))
    title = "MAML on digits, 1 rank: time of the door / time of a loop written by hand"
    return [render(title, "door", COLUMNS[:1], rows)]


class Load(NamedTuple):
    """A meta-step in which sleep stands for computation."""

    tasks: int
    parameters: int
    sleep: float
    deterministic: bool = False

    def step(self) -> Callable[[Any], object]:
        """Return it as a function of the group."""
        params = torch.ones(self.parameters, requires_grad=True)

        def fn(params: Tensor, _: int) -> Tensor:
            time.sleep(self.sleep)
            return params.sum()

        return lambda group: todist.map_tasks(
            fn, range(self.tasks), params, group=group, deterministic=self.deterministic
        )


def median_seconds(team: Team, load: Load, rounds: int) -> list[float]:
    """Return the time of a meta-step on 1, 2, ... ranks; nothing on ranks other than 0."""
    step = load.step()
    times: list[list[float]] = [[] for _ in range(team.size)]
    for k in range(rounds + 1):
        for count in range(1, team.size + 1):
            seconds = team.seconds(count, step, 1)
            if k > 0:
                times[count - 1].append(seconds)
    return [Spread.of(values).median for values in times]


def scale(team: Team, rounds: int) -> list[str]:
    """Measure meta-steps on 1 to 8 ranks with a sleep for each task, and what is not sleep.

    What is not sleep competes for the cores: where there are more ranks than cores, it takes as
    many times longer.
    """
    columns = [f"{count}" for count in range(1, team.size + 1)]
    tasks = 3 * team.size

    def row(name: str, values: Sequence[float]) -> Row:
        return Row(name, [float(value) for value in values], [None] * len(values))

    ideal = [1e3 * SLEEP * -(-tasks // count) for count in range(1, team.size + 1)]
    rows = [row("the sleep alone", ideal)]
    for name, parameters in SIZES.items():
        for deterministic in (False, True):
            load = Load(tasks, parameters, SLEEP, deterministic)
            seconds = median_seconds(team, load, rounds)
            label = f"{name} parameters" + ", deterministic" * deterministic
            rows.append(row(label, [1e3 * value for value in seconds]))
    title = (
        f"Milliseconds of a meta-step of {tasks} tasks, each of which sleeps {1e3 * SLEEP:g} ms, "
        f"by ranks"
    )
    tables = [render(title, "float32", columns, rows)]

    few, small, large = tasks, SIZES["1k"], SIZES["1M"]
    rows = []
    for suffix, deterministic in (("", False), (", deterministic", True)):
        base = median_seconds(team, Load(few, small, 0.0, deterministic), 3 * rounds)
        more = median_seconds(team, Load(9 * few, small, 0.0, deterministic), 3 * rounds)
        wide = median_seconds(team, Load(team.size, large, 0.0, deterministic), rounds)
        thin = median_seconds(team, Load(team.size, small, 0.0, deterministic), rounds)
        each = [
            1e6 * (b - a) / (8 * few / count)
            for count, (a, b) in enumerate(zip(base, more, strict=True), start=1)
        ]
        fixed = [
            1e6 * a - e * few / count
            for count, (a, e) in enumerate(zip(base, each, strict=True), start=1)
        ]
        bytes_ = 4 * (large - small)
        per_byte = [1e9 * (b - a) / bytes_ for a, b in zip(thin, wide, strict=True)]
        rows += [
            row(f"microseconds for a meta-step{suffix}", fixed),
            row(f"microseconds for each task of a rank{suffix}", each),
            row(f"nanoseconds for each byte of gradient{suffix}", per_byte),
        ]
    title = "The same without sleep: what the engine and the sum of the parameters cost, by ranks"
    return [*tables, render(title, "cost", columns, rows)]


@todist.parallelize(todist.dim_partitioner(0), todist.mean_reducer)
def rpc_loss(net: nn.Module, *batch: Tensor) -> Tensor:
    """Return the mean loss of tasks, whose tensors are stacked; runs on the workers."""
    return mean_loss(net, [Task(*tensors, names=[]) for tensors in zip(*batch, strict=True)])


def mean_loss(net: nn.Module, tasks: Sequence[Any]) -> Tensor:
    """Return the mean loss of tasks, in one graph."""
    initial = torchopt.extract_state_dict(net)
    losses = []
    for task in tasks:
        losses.append(adapted(net, task))
        torchopt.recover_state_dict(net, initial)
    return torch.stack(losses).mean()


@todist.auto_init_rpc()
@todist.rank_zero_only
def measure_rpc(rounds: int) -> None:
    """Compare the workers there are to one process without RPC, and print it.

    Two workers are held against the loop that one process would run, a task at a time; one worker
    is held against the very function that it is asked to call.
    """
    alone = todist.get_world_size() == 1
    spreads = []
    for count in BATCHES:
        times = _rpc_seconds(count, alone, rounds)
        spreads.append(Spread.of([a / b if alone else b / a for a, b in times]))
    if alone:
        rows = [Row("RPC", spreads, [Bound(AT_MOST, 1.03)] * len(BATCHES))]
        title = "MAML on digits, 1 worker: time of a call through RPC / time of the function"
    else:
        rows = [Row("RPC", spreads, [Bound(AT_LEAST, 1.6)] * len(BATCHES))]
        title = "MAML on digits: tasks per second of 2 workers / those of a loop in 1 process"
    print(render(title, "door", COLUMNS, rows), flush=True)


def _rpc_seconds(count: int, alone: bool, rounds: int) -> list[tuple[float, float]]:
    """Return pairs of seconds: through RPC, and without."""
    net, tasks = make_network(), draw_tasks(count)
    batch = [torch.stack([task[field] for task in tasks]) for field in range(4)]
    initial = torchopt.extract_state_dict(net)

    def by_hand() -> None:
        for task in tasks:
            (adapted(net, task) / len(tasks)).backward()
            torchopt.recover_state_dict(net, initial)

    def in_one_graph() -> None:
        mean_loss(net, tasks).backward()

    def called() -> None:
        with todist.autograd.context() as context_id:
            todist.autograd.backward(context_id, rpc_loss(net, *batch))

    for _ in range(WARM_UP if count == BATCHES[0] else 2):
        called()
    times = []
    for k in range(rounds + 1):
        seconds = {}
        for step in [in_one_graph if alone else by_hand, called][:: 1 if k % 2 else -1]:
            step()  # as in a training loop: whatever ran before has left caches and cores
            start = time.perf_counter()
            for _ in range(steps(count)):
                step()
            seconds[step] = time.perf_counter() - start
        if k > 0:
            times.append((seconds[called], sum(seconds.values()) - seconds[called]))
    return times


#: By name: the number of ranks it needs, and the section; ``None`` is :func:`measure_rpc`.
SECTIONS: dict[str, tuple[int, Section | None]] = {
    "digits": (2, digits),
    "rpc": (2, None),
    "overhead": (1, overhead),
    "rpc-overhead": (1, None),
    "scale": (8, scale),
}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_rank(rank: int, size: int, store: str, port: int, name: str, rounds: int) -> None:
    """Run a section on one rank; rank 0 prints the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    _, section = SECTIONS[name]
    if section is None:
        os.environ.update(RANK=f"{rank}", WORLD_SIZE=f"{size}")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
        measure_rpc(rounds)
        return
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    tables = section(Team(size), rounds)
    if rank == 0:
        print("\n".join(tables), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="some sections")
    arguments = parser.parse_args()
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; one thread a rank, gloo on loopback; medians (min-max)\n"
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    for name in arguments.only or SECTIONS:
        size, _ = SECTIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            store = str(Path(folder, "store"))
            rounds = 5 if arguments.quick else 20
            mp.spawn(run_rank, args=(size, store, free_port(), name, rounds), nprocs=size)


if __name__ == "__main__":
    main()
