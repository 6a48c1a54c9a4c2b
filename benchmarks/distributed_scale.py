"""Task parallelism on many ranks, simulated: what a meta-step costs, and would cost on 512.

Run where `torchopt-dist` is installed::

    python benchmarks/distributed_scale.py [--quick]

All ranks are processes of one thread on this machine, forked from one that has imported torch, and
meet over loopback. A task sleeps, so that many ranks fit on a few cores. What a
rank costs is its processor time, kernel included, which does not depend on how many ranks share a
core. It is fitted by a line in the number of ranks.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
import torchopt.distributed as todist
from report import Row, render

RANKS = (1, 2, 4, 8, 16, 32, 64)
#: The number of ranks that is extrapolated to.
FAR = 512
TASKS = 2
#: Seconds that stand for the computation of a task.
SLEEP = 0.05
SIZES = {"1k": 1_000, "100k": 100_000}
#: Of the network that is assumed: seconds from rank to rank, and bytes a second.
LATENCY, BANDWIDTH = 30e-6, 1.25e9
#: Messages that have to follow each other, for each rank beyond the first: gloo's gathers pass once
#: around a ring and its all-reduce twice, its exchange of all with all takes the others in turn.
HOPS = 3


class Cost(NamedTuple):
    """A meta-step on so many ranks."""

    # seconds of processor time, of one rank
    processor: float
    # seconds from begin to end, less the sleep
    beyond_sleep: float


def run_rank(
    rank: int, size: int, folder: str, parameters: int, deterministic: bool, rounds: int
) -> None:
    """Measure on one rank; rank 0 writes the median over steps and the mean over ranks."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size
    )
    params = torch.ones(parameters, requires_grad=True)

    def fn(params: Tensor, _: int) -> Tensor:
        time.sleep(SLEEP)
        return params.sum()

    times = []
    for _ in range(rounds + 2):
        dist.barrier()
        before = time.perf_counter(), time.process_time()
        todist.map_tasks(fn, range(TASKS * size), params, deterministic=deterministic)
        times.append((time.process_time() - before[1], time.perf_counter() - before[0]))
    own = torch.tensor([statistics.median(column) for column in zip(*times[2:], strict=True)])
    dist.all_reduce(own)
    if rank == 0:
        processor, wall = (own / size).tolist()
        Path(folder, "found").write_text(f"{processor} {wall - TASKS * SLEEP}")
    dist.barrier()
    dist.destroy_process_group()


def measure(size: int, parameters: int, deterministic: bool, rounds: int) -> Cost:
    """Return the cost of a meta-step on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, folder, parameters, deterministic, rounds)
        mp.start_processes(run_rank, args=arguments, nprocs=size, start_method="fork")
        processor, beyond = map(float, Path(folder, "found").read_text().split())
    return Cost(processor, beyond)


def run_overlap(rank: int, folder: str, width: int, rounds: int) -> None:
    """Measure on one of two ranks what a meta-step takes, and its all-reduce by itself."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width // 8), nn.ReLU())
    net.append(nn.Linear(width // 8, 5))
    x, labels = torch.randn(25, 64), torch.arange(25) % 5

    def adapted(net: nn.Module, _: int) -> Tensor:
        inner = torchopt.MetaSGD(net, lr=0.1)
        for _ in range(5):
            inner.step(F.cross_entropy(net(x), labels))
        return F.cross_entropy(net(x), labels)

    count = sum(parameter.numel() for parameter in net.parameters())
    buffer = torch.ones(count)
    times = []
    for _ in range(rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(buffer)
        middle = time.perf_counter()
        todist.map_tasks(adapted, range(8), net)
        times.append((middle - start, time.perf_counter() - middle))
    if rank == 0:
        share, whole = (statistics.median(column) for column in zip(*times[2:], strict=True))
        Path(folder, "found").write_text(f"{count} {share} {whole}")
    dist.barrier()
    dist.destroy_process_group()


def overlap(rounds: int) -> str:
    """Return what a meta-step could gain at most if its all-reduce were free."""
    columns, reduce, step = [], [], []
    for width in (128, 512, 2048):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, width, rounds)
            mp.start_processes(run_overlap, args=arguments, nprocs=2, start_method="fork")
            count, *found = Path(folder, "found").read_text().split()
        columns.append(f"{int(count) // 1000}k parameters")
        reduce.append(1e3 * float(found[0]))
        step.append(1e3 * float(found[1]))
    shares = [100 * a / b for a, b in zip(reduce, step, strict=True)]
    blank = [None] * len(columns)
    rows = [
        Row("all-reduce, ms", reduce, blank),
        Row("meta-step of 8 tasks, ms", step, blank),
        Row("share, %", shares, blank),
    ]
    return render("MAML on 2 ranks: what overlap could hide at most", "float32", columns, rows)


def fit(costs: Sequence[Cost]) -> tuple[float, float]:
    """Return what a rank costs by itself, and for each other rank, by least squares.

    Errors count relative to the cost, so that few ranks matter as much as many.
    """
    pairs = [(size, cost.processor) for size, cost in zip(RANKS, costs, strict=True) if size > 1]
    sizes, seconds = np.array(pairs).T
    system = np.stack([1 / seconds, (sizes - 1) / seconds], 1)
    fixed, each = np.linalg.lstsq(system, np.ones(len(pairs)), rcond=None)[0]
    return float(fixed), float(each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    rounds = 5 if parser.parse_args().quick else 20
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; gloo on loopback, {TASKS} tasks a rank of {1e3 * SLEEP:g} ms\n"
    )
    processor, beyond, far = [], [], []
    for name, parameters in SIZES.items():
        for deterministic in (False, True):
            label = f"{name} parameters" + ", deterministic" * deterministic
            costs = [measure(size, parameters, deterministic, rounds) for size in RANKS]
            fixed, each = fit(costs)
            own = fixed + (FAR - 1) * each
            hops = HOPS * (FAR - 1) * LATENCY
            sent = 2 * 4 * parameters / BANDWIDTH
            blank = [None] * len(RANKS)
            processor.append(Row(label, [1e3 * cost.processor for cost in costs], blank))
            beyond.append(Row(label, [1e3 * cost.beyond_sleep for cost in costs], blank))
            row = [1e3 * fixed, 1e6 * each, 1e3 * own, 1e3 * hops, 1e3 * sent]
            far.append(Row(label, [*row, 1e3 * (own + hops + sent)], [None] * 6))
    columns = [f"{size}" for size in RANKS]
    print(
        render(
            "Milliseconds of processor time of a rank in a meta-step", "ranks", columns, processor
        )
    )
    print(
        render(
            "Milliseconds of a meta-step beyond its sleep, on these cores", "ranks", columns, beyond
        )
    )
    columns = ["fixed, ms", "per rank, us", "processor, ms", "hops, ms", "bytes, ms", "in all, ms"]
    print(render(f"{FAR} ranks, a core each, by the fit", "float32", columns, far))
    print(overlap(rounds))


if __name__ == "__main__":
    main()
