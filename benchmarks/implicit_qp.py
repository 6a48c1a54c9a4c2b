"""Batched quadratic programs beside qpth: forward, backward, and accuracy.

Run where the packages to compare with are installed (``pip install qpth``); one that is
missing is left out, and said so::

    python benchmarks/implicit_qp.py --batch 128 --size 100 --inequalities 100

All work on the same problems, in float64 on the CPU, in one process and in turns; times are the
processor's. A row's ratio is the median, over the rounds, of its time over that of `qp`: above 1,
`qp` is faster. The last columns say how far the constraints are violated, and how far gradients are
from central finite differences of `qp` solutions along random directions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch

from compare import KEEP_MEMORY
from torchopt_implicit.solvers import qp

Forward = Callable[..., torch.Tensor]


class Timing(NamedTuple):
    forward: float
    backward: float


def make_problems(batch: int, size: int, inequalities: int) -> dict[str, torch.Tensor]:
    """Return strictly convex problems that are feasible, about half of their constraints active."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    root = normal(batch, size, size)
    inside = normal(batch, size)
    G = normal(batch, inequalities, size)
    slack = torch.rand(batch, inequalities, generator=generator, dtype=torch.float64)
    return {
        "Q": root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64),
        "q": normal(batch, size),
        "G": G,
        "h": (G @ inside.unsqueeze(-1)).squeeze(-1) + slack,
    }


def with_qp(Q: torch.Tensor, q: torch.Tensor, G: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return qp(Q, q, G, h).z


def with_qpth() -> Forward:
    function = import_module("qpth.qp").QPFunction(verbose=-1)
    none = torch.empty(0, dtype=torch.float64)
    return lambda Q, q, G, h: function(Q, q, G, h, none, none)


def available() -> dict[str, Forward]:
    """Return the solvers that are installed."""
    makers: dict[str, Callable[[], Forward]] = {
        "qp": lambda: with_qp,
        "qpth": with_qpth,
    }
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def measure(
    solve: Forward, problems: dict[str, torch.Tensor], weights: torch.Tensor
) -> tuple[Timing, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the times of one forward and backward pass, the solutions and the gradients."""
    leaves = {name: x.clone().requires_grad_() for name, x in problems.items()}
    begin = time.process_time()
    z = solve(**leaves)
    middle = time.process_time()
    (z * weights).sum().backward()
    end = time.process_time()
    gradients = {name: x.grad for name, x in leaves.items() if x.grad is not None}
    return Timing(middle - begin, end - middle), z.detach(), gradients


def gradient_error(
    gradients: dict[str, torch.Tensor], problems: dict[str, torch.Tensor], weights: torch.Tensor
) -> float:
    """Return the largest relative error along one random direction for each kind of data.

    The derivative exists in one problem at a time; those in which a step changes which constraints
    are active are few, so the error is the median over the batch.
    """
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    step = 1e-7
    for name, x in problems.items():
        direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        if name == "Q":
            direction = direction + direction.mT
        ends = [
            (with_qp(**{**problems, name: x + sign * step * direction}) * weights).sum(-1)
            for sign in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * step)
        analytic = (gradients[name] * direction).flatten(1).sum(-1)
        error = (analytic - numeric).abs() / numeric.abs().clamp_min(1e-3)
        worst = max(worst, float(error.median()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--inequalities", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="(qpth|scipy).*")

    problems = make_problems(arguments.batch, arguments.size, arguments.inequalities)
    weights = torch.randn(
        problems["q"].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    solvers = available()
    times: dict[str, list[Timing]] = {name: [] for name in solvers}
    results = {}
    for round_ in range(arguments.repeats + 1):
        for name, solve in solvers.items():
            timing, z, gradients = measure(solve, problems, weights)
            if round_ > 0:  # the first warms up
                times[name].append(timing)
            results[name] = z, gradients

    own = times["qp"]
    print(
        f"{arguments.batch} problems, {arguments.size} variables, {arguments.inequalities} "
        f"inequalities, float64, {arguments.threads} thread(s), torch {torch.__version__}"
    )
    print(
        f"{'':12} {'forward':>9} {'backward':>9} {'both':>9} {'ratio':>6} {'violated':>9} gradients"
    )
    for name, rows in times.items():
        forward = statistics.median(row.forward for row in rows)
        backward = statistics.median(row.backward for row in rows)
        both = statistics.median(sum(row) for row in rows)
        ratio = statistics.median(sum(a) / sum(b) for a, b in zip(rows, own, strict=True))
        z, gradients = results[name]
        violation = ((problems["G"] @ z.unsqueeze(-1)).squeeze(-1) - problems["h"]).amax()
        error = gradient_error(gradients, problems, weights)
        print(
            f"{name:12} {1e3 * forward:7.1f}ms {1e3 * backward:7.1f}ms {1e3 * both:7.1f}ms "
            f"{ratio:6.2f} {max(0.0, float(violation)):9.1e} {error:9.1e}"
        )


if __name__ == "__main__":
    if KEEP_MEMORY.items() <= os.environ.items():
        main()
    else:  # the allocator reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
