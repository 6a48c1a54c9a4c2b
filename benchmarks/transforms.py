"""Optimizer steps inside of `torch.func` transforms: with the compiled step, and without it.

MAML's sinusoids: each task adapts a small network by five functional steps, and the gradient of its
loss afterwards is taken in the initial parameters. The two sides run in turn, A B A B ..., in this
one process and with the default allocator; each pair gives one ratio.

    python benchmarks/transforms.py [--widths 40 ...] [--tasks 25] [--pairs 15]
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.func import grad, jvp, vmap

import torchopt

INNER_STEPS = 5
SHOTS = 10

Params = dict[str, torch.Tensor]
Task = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Problem(NamedTuple):
    """What is meta-learned, and on which tasks."""

    params: Params
    #: Inputs and targets to adapt to, and those to judge by; the first dimension counts tasks.
    tasks: Task
    optimizer: str
    accelerated: bool | None

    def each(self) -> list[Task]:
        """Return the tasks one by one."""
        return list(zip(*(x.unbind() for x in self.tasks), strict=True))


def make_params(width: int) -> Params:
    """Return a network 1 - width - width - 1."""
    sizes = [1, width, width, 1]
    params = {}
    for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        params[f"w{k}"] = torch.randn(fan_in, fan_out) / math.sqrt(fan_in)
        params[f"b{k}"] = torch.zeros(fan_out)
    return params


def make_tasks(count: int) -> Task:
    """Return points of sinusoids of random amplitudes and phases."""
    amplitude, phase = torch.rand(count, 1, 1) * 4.9 + 0.1, torch.rand(count, 1, 1) * math.pi
    support, query = (torch.rand(count, SHOTS, 1) * 10 - 5 for _ in range(2))
    return support, amplitude * (support + phase).sin(), query, amplitude * (query + phase).sin()


def loss(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The squared error of the network."""
    for k in range(2):
        x = torch.relu(x @ params[f"w{k}"] + params[f"b{k}"])
    return (x @ params["w2"] + params["b2"] - y).square().mean()


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": lambda **kwargs: torchopt.adam(1e-2, **kwargs),
    "sgd": lambda **kwargs: torchopt.sgd(1e-2, **kwargs),
    "momentum": lambda **kwargs: torchopt.sgd(1e-2, momentum=0.9, **kwargs),
    "rmsprop": lambda **kwargs: torchopt.rmsprop(1e-2, **kwargs),
}


def adapted_loss(problem: Problem) -> Callable[..., torch.Tensor]:
    """Return the loss after adaptation, as a function of the initial parameters and a task."""
    optimizer = OPTIMIZERS[problem.optimizer](use_accelerated_op=problem.accelerated)

    def run(params: Params, *task: torch.Tensor) -> torch.Tensor:
        x, y, query_x, query_y = task
        state = optimizer.init(params)
        for _ in range(INNER_STEPS):
            found = grad(loss)(params, x, y)
            updates, state = optimizer.update(found, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return loss(params, query_x, query_y)

    return run


def loop_of_grad(problem: Problem) -> Any:
    """One gradient after the other."""
    slope = grad(adapted_loss(problem))
    return lambda: [slope(problem.params, *task) for task in problem.each()]


def grad_of_loop(problem: Problem) -> Any:
    """The gradient of a sum over a Python loop."""
    run = adapted_loss(problem)
    return lambda: grad(lambda p: sum(run(p, *task) for task in problem.each()))(problem.params)


def vmap_of_grad(problem: Problem) -> Any:
    """The gradients of all tasks at once."""
    slopes = vmap(grad(adapted_loss(problem)), in_dims=(None, 0, 0, 0, 0))
    return lambda: slopes(problem.params, *problem.tasks)


def grad_of_vmap(problem: Problem) -> Any:
    """The gradient of the mean over all tasks at once."""
    losses = vmap(adapted_loss(problem), in_dims=(None, 0, 0, 0, 0))
    return lambda: grad(lambda params: losses(params, *problem.tasks).mean())(problem.params)


def backward_of_vmap(problem: Problem) -> Any:
    """The same by `torch.autograd`, which is not a transform."""
    losses = vmap(adapted_loss(problem), in_dims=(None, 0, 0, 0, 0))
    leaves = {name: p.clone().requires_grad_() for name, p in problem.params.items()}

    def run() -> Any:
        found = torch.autograd.grad(losses(leaves, *problem.tasks).mean(), list(leaves.values()))
        return list(found)

    return run


def loop(problem: Problem) -> Any:
    """Adaptation alone, a task after the other."""
    run = adapted_loss(problem)
    return lambda: [run(problem.params, *task) for task in problem.each()]


def vmap_alone(problem: Problem) -> Any:
    """Adaptation alone, all tasks at once."""
    losses = vmap(adapted_loss(problem), in_dims=(None, 0, 0, 0, 0))
    return lambda: losses(problem.params, *problem.tasks)


def loop_of_jvp(problem: Problem) -> Any:
    """Directional derivatives, a task after the other."""
    run = adapted_loss(problem)
    primals, tangents = (problem.params,), ({k: p.cos() for k, p in problem.params.items()},)
    return lambda: [jvp(lambda p: run(p, *task), primals, tangents) for task in problem.each()]  # noqa: B023


def vmap_of_jvp(problem: Problem) -> Any:
    """Directional derivatives, all tasks at once."""
    run = adapted_loss(problem)
    primals, tangents = (problem.params,), ({k: p.cos() for k, p in problem.params.items()},)
    slopes = vmap(lambda *task: jvp(lambda p: run(p, *task), primals, tangents))
    return lambda: slopes(*problem.tasks)


WAYS: dict[str, Callable[[Problem], Any]] = {
    "loop of grad": loop_of_grad,
    "grad of loop": grad_of_loop,
    "vmap of grad": vmap_of_grad,
    "grad of vmap": grad_of_vmap,
    "backward of vmap": backward_of_vmap,
    "loop": loop,
    "vmap": vmap_alone,
    "loop of jvp": loop_of_jvp,
    "vmap of jvp": vmap_of_jvp,
}


def seconds(run: Callable[[], Any]) -> float:
    """Return the processor time of a run."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def compared(way: str, problem: Problem, pairs: int) -> tuple[float, float, list[float]]:
    """Return the milliseconds of both sides, and the ratio of each pair."""
    sides = [WAYS[way](problem._replace(accelerated=x)) for x in (None, False)]
    results = [torch.utils._pytree.tree_leaves(side()) for side in sides]
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()) + 1e-6)
    times = [[seconds(side) for side in sides] for _ in range(pairs + 1)][1:]
    ours, theirs = (statistics.median(x) * 1e3 for x in zip(*times, strict=True))
    return ours, theirs, [a / b for a, b in times]


def main() -> None:
    """Print a table: the time with the compiled step over the time without it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[40])
    parser.add_argument("--tasks", type=int, default=25)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--optimizers", nargs="*", default=["adam"], choices=list(OPTIMIZERS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.tasks} tasks, {INNER_STEPS} steps each; accelerated over composite\n")
    print(f"{'optimizer':10}{'way':18}{'elements':>10}  {'ratio (range)':22}{'ms':>9}{'ms':>9}")
    for optimizer in arguments.optimizers:
        for width in arguments.widths:
            torch.manual_seed(0)
            params = make_params(width)
            problem = Problem(params, make_tasks(arguments.tasks), optimizer, None)
            elements = sum(p.numel() for p in params.values())
            for way in arguments.ways:
                ours, theirs, ratios = compared(way, problem, arguments.pairs)
                spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                print(
                    f"{optimizer:10}{way:18}{elements:>10}  {spread:22}{ours:9.1f}{theirs:9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
