"""Gradient graphs: how long it takes to collect and draw large ones, and how large a page is.

Run where `torchopt-viz` is installed::

    python benchmarks/graphs.py

Processor times of one thread. Drawing to SVG, which needs the program `dot`, is wall-clock time.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from torch import Tensor, nn

import torchopt
from compare import Spread
from report import AT_MOST, Bound, Row, render

ROUNDS = 5
Unrolled = tuple[Tensor, list[Any], torchopt.visual.Recording]


def conv4() -> nn.Module:
    """Return the network of the few-shot literature: four blocks of 32 channels, 28 x 28 pixels."""
    layers: list[nn.Module] = []
    for channels in (1, 32, 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 5))


def deep() -> nn.Module:
    """Return a network of many small layers, for a graph of 100,000 nodes."""
    return nn.Sequential(*(m for _ in range(112) for m in (nn.Linear(4, 4), nn.Tanh())))


def unroll(net: nn.Module, x: Tensor, steps: int) -> Unrolled:
    """Return the outer loss of MAML, the named states of each step, and what was recorded."""

    def state(step: int) -> Any:
        prefix = f"step{step}."
        return torchopt.extract_state_dict(net, enable_visual=True, visual_prefix=prefix)

    with torchopt.visual.record(net) as recording:
        inner = torchopt.MetaSGD(net, lr=0.01)
        states = [state(0)]
        for step in range(steps):
            inner.step(net(x).square().mean())
            states.append(state(step + 1))
        loss = net(x).square().mean()
    return loss, states, recording


def seconds(function: Callable[[], object], clock: Callable[[], float]) -> Spread:
    """Return how long a function takes."""
    times = []
    for _ in range(ROUNDS):
        start = clock()
        function()
        times.append(clock() - start)
    return Spread.of(times)


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores; medians (min-max) of {ROUNDS}\n"
    )
    cases = {
        "Conv-4, 10 steps": (conv4(), torch.randn(5, 1, 28, 28), 10),
        "112 layers, 64 steps": (deep(), torch.randn(2, 4), 64),
    }
    sizes, rows, svgs = [], [], []
    for name, (net, x, steps) in cases.items():
        loss, states, recording = unroll(net, x, steps)

        def collect(loss: Any = loss, states: Any = states, seen: Any = recording) -> Any:
            return torchopt.visual.gradient_graph(loss, states, recording=seen)

        graph = collect()
        with tempfile.TemporaryDirectory() as folder:
            page = torchopt.visual.save_html(graph, path=Path(folder, "graph.html"))
            sizes.append(Row(name, [len(graph.nodes), page.stat().st_size / 2**20], [None] * 2))

            def draw(loss: Any = loss, states: Any = states) -> Any:
                return torchopt.visual.make_dot(loss, states, group_by="step", fold=True)

            def save(graph: Any = graph, page: Path = page) -> Any:
                return torchopt.visual.save_html(graph, path=page)

            limit = Bound(AT_MOST, 5.0) if steps == 10 else None
            parts = [seconds(part, time.process_time) for part in (collect, draw, save)]
            rows.append(Row(name, parts, [limit] * 3))
            if limit is not None and shutil.which("dot"):
                svg = seconds(lambda draw=draw: draw().pipe(format="svg"), time.perf_counter)
                svgs.append(Row(name, [svg], [limit]))
    print(render("Size", "graph", ["nodes", "page, MiB"], sizes))
    print(render("Seconds of processor time", "graph", ["collect", "make_dot", "page"], rows))
    if svgs:
        print(render("Seconds", "graph", ["make_dot and SVG"], svgs))


if __name__ == "__main__":
    main()
