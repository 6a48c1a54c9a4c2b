"""Speed and memory of `torchopt-zero`, against its predecessor and against inference.

Run it under a Python that has `torchopt-zero`; with ``TORCHOPT_PEER_PYTHON`` set to a Python that
has `torchopt==0.7.3`, that is measured, too::

    TORCHOPT_PEER_PYTHON=path/to/python python benchmarks/zero.py [--rounds N]

Every number is a ratio of two measurements from one run, alternating A B A B; times are processor
time of one thread, memory is the peak of resident memory over what the imports take (Linux).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAMPLES = 500
LAYERS = {  # of 10k parameters each, by the number of hidden layers
    "3 hidden": [64, 64, 64, 32, 1],
    "2 hidden": [64, 96, 48, 1],
    "1 hidden": [64, 150, 1],
}
BATCHES = (1, 32, 128)
FEW = ((10, 10_000), (100, 10_000), (1000, 1000), (10_000, 500))  # dimensions, samples


def make_mlp(sizes: list[int]) -> list[Tensor]:
    torch.manual_seed(0)
    params = []
    for inputs, outputs in itertools.pairwise(sizes):
        params += [torch.randn(outputs, inputs) / inputs**0.5, torch.zeros(outputs)]
    return [param.requires_grad_() for param in params]


def mlp(params: list[Tensor], x: Tensor) -> Tensor:
    for i in range(0, len(params), 2):
        x = F.linear(x, params[i], params[i + 1])
        x = F.relu(x) if i + 2 < len(params) else x
    return x


def antithetic_step(layers: str, batch: int) -> Callable[[], None]:
    """One estimate, in the words that both libraries understand."""
    import torchopt

    params = make_mlp(LAYERS[layers])
    x = torch.randn(batch, 64)
    normal = torch.distributions.Normal(0.0, 1.0)

    @torchopt.diff.zero_order(normal, "antithetic", (0,), SAMPLES, 0.1)
    def loss(params: list[Tensor]) -> Tensor:
        return mlp(params, x).square().mean()

    def step() -> None:
        for param in params:
            param.grad = None
        loss(params).backward()

    return step


def serve() -> None:
    """Time what is asked for, by JSON lines."""
    torch.set_num_threads(1)
    step: Callable[[], None] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request:
            step = antithetic_step(*request)
            step(), step()
        assert step is not None
        start = time.process_time()
        step()
        print(json.dumps(time.process_time() - start), flush=True)


class Side:
    """A process that times steps under some Python."""

    def __init__(self, python: str) -> None:
        # glibc keeps the memory that is freed, on both sides, as in the other benchmarks
        keep = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
        environment = {**os.environ, **keep, "OMP_NUM_THREADS": "1"}
        if python != sys.executable:  # both libraries have the same import name
            environment.pop("PYTHONPATH", None)
        self.process = subprocess.Popen(
            [python, "-W", "ignore", __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def time(self, request: list[object] | None = None) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return float(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def row(name: str, ratios: list[float], target: str, met: bool) -> None:
    middle = statistics.median(ratios)
    spread = f"[{min(ratios):.3g}, {max(ratios):.3g}]" if len(ratios) > 1 else ""
    print(f"{name:<62} {middle:6.3g}  {spread:<16} {target:<12} {'yes' if met else 'NO'}")


def speed(rounds: int) -> None:
    peer = os.environ.get("TORCHOPT_PEER_PYTHON")
    if not peer:
        print("TORCHOPT_PEER_PYTHON is not set: the predecessor is not measured")
        return
    ours, theirs = Side(sys.executable), Side(peer)
    for layers in LAYERS:
        for batch in BATCHES:
            request: list[object] = [layers, batch]
            ours.time(request), theirs.time(request)
            ratios = [1 / (ours.time() / theirs.time()) for _ in range(rounds)]
            name = f"times as fast, {SAMPLES} antithetic, MLP 10k, {layers}, batch {batch}"
            row(name, ratios, ">= 3", statistics.median(ratios) >= 3)
    ours.close(), theirs.close()


def pair_by_hand(size: int, samples: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return our estimate, and five lines that make one and do no more than that."""
    import torchopt

    x, slope = torch.randn(size, requires_grad=True), torch.randn(size)
    normal = torch.distributions.Normal(0.0, 1.0)

    @torchopt.diff.zero_order(normal, "antithetic", num_samples=samples, sigma=0.1)
    def decorated(x: Tensor) -> Tensor:
        return (x * slope).sum().tanh()

    batched = torch.func.vmap(decorated.__wrapped__)  # type: ignore[attr-defined]

    @torch.no_grad()
    def hand() -> Tensor:
        noise = torch.randn(samples, size)
        values = batched(x + 0.1 * noise) - batched(x - 0.1 * noise)
        return (values / (2 * 0.1 * samples)) @ noise

    return lambda: decorated(x).backward(), hand


def by_hand(rounds: int) -> None:
    """Estimates in few and in many dimensions."""
    torch.set_num_threads(1)
    for size, samples in FEW:
        times = max(1, 10**7 // (samples * size) // 4)

        def seconds(run: Callable[[], object], times: int = times) -> float:
            start = time.process_time()
            for _ in range(times):
                run()
            return time.process_time() - start

        ours, hand = pair_by_hand(size, samples)
        seconds(ours), seconds(hand)
        ratios = [seconds(ours) / seconds(hand) for _ in range(rounds)]
        name = f"time / by hand, {samples} antithetic, {size} dimensions"
        row(name, ratios, "<= 1.5", statistics.median(ratios) <= 1.5)


def status(name: str) -> int:
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


def peak(run: Callable[[], object], base: int) -> int:
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return status("VmHWM") - base


def memory_of(case: str, argument: str) -> None:
    """Print the peak, in KiB, of something; in a process of its own."""
    torch.set_num_threads(1)
    import torchopt  # noqa: F401
    from torchopt_zero import MeZO, zero_order

    torch.vmap(torch.sin)(torch.ones(2))  # what this imports is not counted
    base = status("VmRSS")
    if case == "chunk":
        params = make_mlp([64, 96, 48, 1])
        x = torch.randn(1024, 64)
        loss = zero_order(
            torch.distributions.Normal(0.0, 1.0),
            "antithetic",
            num_samples=400,
            sigma=0.1,
            chunk_size=int(argument),
        )(lambda params: mlp(params, x).square().mean())
        print(peak(lambda: loss(params).backward(), base))
        return
    net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(1024, 1024), nn.ReLU())])
    x = torch.randn(4096, 1024)
    optimizer = MeZO(net.parameters())

    @torch.no_grad()
    def inference() -> Tensor:
        return net(x).square().mean()

    runs: dict[str, Callable[[], object]] = {
        "inference": inference,
        "mezo": lambda: optimizer.step(lambda: net(x).square().mean()),
        "backward": lambda: net(x).square().mean().backward(),
    }
    print(peak(runs[argument], base))


def memory() -> None:
    # Freed memory goes back to the system, so that its peak is that of what is in use.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }

    def measure(case: str, argument: object) -> int:
        result = subprocess.run(
            [sys.executable, __file__, "--memory", case, str(argument)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
        return int(result.stdout)

    inference = measure("net", "inference")
    step = measure("net", "mezo") / inference
    row("memory of a MeZO step / of a no_grad forward pass", [step], "<= 1.05", step <= 1.05)
    backward = measure("net", "backward") / inference
    row("memory of a backward pass / of a no_grad forward pass", [backward], "", backward > 1)
    whole = measure("chunk", 100)  # a tile of noise
    for chunk_size in (50, 20, 5):
        ratio = measure("chunk", chunk_size) / whole
        # activations, and the few MB of a tile of noise
        target = 1.2 * chunk_size / 100 + 0.15
        name = f"memory of 400 samples, batch 1024, chunk_size {chunk_size} / 100"
        row(name, [ratio], f"<= {target:.2g}", ratio <= target)


def population(rounds: int) -> None:
    """EGGROLL against inference of the same network on as many inputs, in batches of 8192."""
    from torchopt_zero import LowRank, zero_order

    torch.set_num_threads(1)
    members = 4096
    params = make_mlp([256, 768, 768, 256])
    for batch in (1, 4, 16):
        inputs = torch.randn(members * batch, 256)

        @torch.no_grad()
        def inference(inputs: Tensor = inputs) -> None:
            for part in inputs.split(8192):
                mlp(params, part).square().mean(1)

        shared = inputs[:batch]
        decorate = zero_order(LowRank(1), "naive", num_samples=members, sigma=0.01, chunk_size=256)
        decorated = decorate(lambda params, x=shared: mlp(params, x).square().mean())

        def seconds(run: Callable[[], object]) -> float:
            start = time.process_time()
            run()
            return time.process_time() - start

        evaluating, whole = [], []
        for _ in range(rounds):
            reference = seconds(inference)
            loss = decorated(params)
            with EvaluationTime() as spent:
                total = seconds(loss.backward)
            evaluating.append(reference / spent[0])
            whole.append(reference / total)
        name = f"population {members}, 1M parameters, batch {batch}: throughput"
        row(f"{name}, evaluation", evaluating, "> 0.5", statistics.median(evaluating) > 0.5)
        row(f"{name}, whole gradient", whole, "> 0.5", statistics.median(whole) > 0.5)


class EvaluationTime:
    """Measure the part of an estimate that evaluates the function."""

    def __enter__(self) -> list[float]:
        from torchopt_zero._problem import Problem

        spent = [0.0]
        self.original = Problem.evaluate

        def evaluate(*args: object) -> Tensor:
            start = time.process_time()
            values = self.original(*args)  # type: ignore[arg-type]
            spent[0] += time.process_time() - start
            return values

        Problem.evaluate = evaluate  # type: ignore[method-assign,assignment]
        return spent

    def __exit__(self, *_: object) -> None:
        from torchopt_zero._problem import Problem

        Problem.evaluate = self.original  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="pairs of measurements per row")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
    elif arguments.memory:
        memory_of(*arguments.memory)
    else:
        print(f"{'what':<62} {'ratio':>6}  {'range':<16} {'target':<12} met")
        speed(arguments.rounds)
        by_hand(arguments.rounds)
        population(min(arguments.rounds, 5))
        if sys.platform == "linux":
            memory()


if __name__ == "__main__":
    main()
