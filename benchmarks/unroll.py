"""What the memory policies of `unroll` store and take: ``python benchmarks/unroll.py``.

Memory is the peak of the bytes of all tensors that torch allocates within forward and backward
pass, as its profiler reports them; time is of processor, in turn with the full graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import torchopt
from torchopt.diff.explicit import (
    Binomial,
    Checkpointed,
    FirstOrder,
    FullGraph,
    Memory,
    MixedMode,
    unroll,
)

__all__ = ["main"]

#: From a policy to a meta-gradient.
Problem = Callable[[Memory], tuple[torch.Tensor, ...]]


class Row(NamedTuple):
    """A policy, and at most how much of the full graph's memory and time it is to take."""

    name: str
    memory: Memory
    share: float | None = None
    times: float | None = None


def conv4(steps: int) -> Problem:
    """Four convolutions, 5-way 1-shot, as in few-shot classification."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 32, 32, 32):
        block = (nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        layers += [*block, nn.MaxPool2d(2)]
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4, 5))
    inputs, targets = torch.randn(5, 3, 32, 32), torch.arange(5)
    params = list(module.parameters())

    def loss(net: nn.Module) -> torch.Tensor:
        return nn.functional.cross_entropy(net(inputs), targets)

    def gradient(memory: Memory) -> tuple[torch.Tensor, ...]:
        adapted = unroll(loss, torchopt.sgd(0.01), module, steps=steps, memory=memory)
        return torch.autograd.grad(loss(adapted.params), params)

    return gradient


def mlp(steps: int) -> Problem:
    """The network of sinusoid regression, with Adam."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    )
    inputs = torch.rand(100, 1) * 10 - 5
    params = list(module.parameters())

    def loss(net: nn.Module) -> torch.Tensor:
        return nn.functional.mse_loss(net(inputs), inputs.sin())

    def gradient(memory: Memory) -> tuple[torch.Tensor, ...]:
        adapted = unroll(loss, torchopt.adam(1e-3), module, steps=steps, memory=memory)
        return torch.autograd.grad(loss(adapted.params), params)

    return gradient


def peak(problem: Problem, memory: Memory) -> int:
    """Return the peak of allocated bytes above those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        problem(memory)
    now = most = 0
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        now += change
        most = max(most, now)
    return most


def seconds(problem: Problem, memory: Memory) -> float:
    """Return the processor time of one meta-gradient."""
    start = time.process_time()
    problem(memory)
    return time.process_time() - start


def report(title: str, problem: Problem, rows: list[Row], repetitions: int) -> None:
    """Print a table of ratios to the full graph."""
    full = FullGraph()
    expected = problem(full)
    bytes_of_full = peak(problem, full)
    print(f"\n{title}: full graph {bytes_of_full / 2**20:.1f} MiB\n")
    print(f"{'policy':32}{'memory':>9}{'target':>9}{'time':>8}{'target':>9}{'error':>11}")
    for row in rows:
        found = problem(row.memory)
        pairs = zip(found, expected, strict=True)
        # of all together: the gradient of a bias before a normalization is zero, but for rounding
        difference = sum(float((x - y).square().sum()) for x, y in pairs) ** 0.5
        error = difference / sum(float(y.square().sum()) for y in expected) ** 0.5
        share = peak(problem, row.memory) / bytes_of_full
        ratios = [seconds(problem, row.memory) / seconds(problem, full) for _ in range(repetitions)]
        times = statistics.median(ratios)
        wanted = ["" if x is None else f"<= {x:.2f}" for x in (row.share, row.times)]
        print(f"{row.name:32}{share:9.3f}{wanted[0]:>9}{times:8.2f}{wanted[1]:>9}{error:11.1e}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conv-steps", type=int, default=64)
    parser.add_argument("--mlp-steps", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        Row("Checkpointed()", Checkpointed(), 0.25, 1.5),
        Row("MixedMode()", MixedMode(), 0.2, 1.5),
        Row("MixedMode(Checkpointed())", MixedMode(Checkpointed())),
        Row("FirstOrder(), not exact", FirstOrder()),
    ]
    number = given.conv_steps
    report(f"Conv-4, {number} steps of SGD", conv4(number), rows, given.repetitions)
    rows = [
        Row("Binomial(30)", Binomial(30), 0.05, 3.5),
        Row("Checkpointed()", Checkpointed()),
        Row("Checkpointed(100, nested)", Checkpointed(100, within=Checkpointed(10))),
    ]
    number = given.mlp_steps
    report(f"MLP, {number} steps of Adam", mlp(number), rows, given.repetitions)


if __name__ == "__main__":
    main()
