"""Whether composition is free: steps of composites beside those of their parts.

12 leaves, 1.6 million float32 parameters, the default allocator, ratios of interleaved runs. Also
the in-place steps of optimizers that have a reference implementation elsewhere.

    python benchmarks/composition.py            # with torchopt-accel, if it is installed
    python benchmarks/composition.py --threads 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import torchopt

Step = Callable[[], Any]
SHAPES = [(400, 400), (400,)] * 3 + [(350, 800), (800,)] + [(200, 2000), (2000,), (448, 1000), (8,)]


def fresh(shapes: Any = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def of(make: Callable[[Any], torch.optim.Optimizer], shapes: Any = SHAPES) -> Step:
    return make(fresh(shapes)).step


def composed(impl: torchopt.GradientTransformation) -> Step:
    return of(lambda params: torchopt.Optimizer(params, impl))


def clipped_adamw() -> Step:
    params = fresh()
    optimizer = torchopt.AdamW(params)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1e9)
        optimizer.step()

    return step


def two_optimizers() -> Step:
    params = fresh()
    first = torchopt.Adam([p for p in params if p.ndim > 1])
    second = torchopt.AdamW([p for p in params if p.ndim == 1])

    def step() -> None:
        first.step()
        second.step()

    return step


def partitioned() -> Step:
    parts = {"matrix": torchopt.adam(), "vector": torchopt.adamw()}
    labels: Any = lambda params: ["matrix" if p.ndim > 1 else "vector" for p in params]  # noqa: E731
    return composed(torchopt.partition(parts, labels))


def masked_decay() -> Step:
    groups: Any = lambda params: [  # noqa: E731
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]
    return of(lambda params: torchopt.AdamW(groups(params)))


def with_closure(make: Callable[[Any], torch.optim.Optimizer]) -> Step:
    """A step of an optimizer that evaluates a regression, from the same start each time."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(256, n, generator=generator) for n in (100, 10))
    start = [torch.randn(s, generator=generator) / 10 for s in ((100, 300), (300, 10))]

    def step() -> None:
        params = [p.clone().requires_grad_() for p in start]
        optimizer = make(params)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = ((x @ params[0]).tanh() @ params[1] - y).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)

    return step


def lion_as_published(params: list[torch.Tensor]) -> Step:
    """Lion parameter by parameter, operation by operation, as published implementations do it."""
    averages = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step() -> None:
        for p, average in zip(params, averages, strict=True):
            assert p.grad is not None
            direction = average.mul(0.9).add_(p.grad, alpha=0.1).sign_()
            p.add_(direction, alpha=-1e-4)
            average.mul_(0.99).add_(p.grad, alpha=0.01)

    return step


def lion_in_lists(params: list[torch.Tensor]) -> Step:
    """The fewest operations of torch on lists of tensors that Lion can be written in."""
    averages = [torch.zeros_like(p) for p in params]
    grads: Any = [p.grad for p in params]

    @torch.no_grad()
    def step() -> None:
        directions = torch._foreach_lerp(averages, grads, 0.1)
        torch._foreach_sign_(directions)
        torch._foreach_add_(params, directions, alpha=-1e-4)
        torch._foreach_lerp_(averages, grads, 0.01)

    return step


MATRICES = [(256, 256), (256, 512), (512, 256)] * 2
ROWS: dict[str, tuple[Callable[[], Step], Callable[[], Step], float]] = {
    "chain(clip_grad_norm, adamw) / clip_grad_norm_ and AdamW": (
        lambda: composed(torchopt.chain(torchopt.clip_grad_norm(1e9), torchopt.adamw())),
        clipped_adamw,
        1.05,
    ),
    "adamw(lr=schedule) / AdamW": (
        lambda: of(lambda p: torchopt.AdamW(p, torchopt.schedule.linear_schedule(1e-3, 0, 10**6))),
        lambda: of(torchopt.AdamW),
        1.05,
    ),
    "adamw(mask=...) / AdamW with two groups": (
        lambda: of(lambda p: torchopt.AdamW(p, mask=[x.ndim > 1 for x in p])),
        masked_decay,
        1.05,
    ),
    "adamw(mask=...) / AdamW": (
        lambda: of(lambda p: torchopt.AdamW(p, mask=[x.ndim > 1 for x in p])),
        lambda: of(torchopt.AdamW),
        1.05,
    ),
    "masked(adamw, all) / AdamW": (
        lambda: composed(torchopt.masked(torchopt.adamw(), True)),
        lambda: of(torchopt.AdamW),
        1.05,
    ),
    "partition(adam, adamw) / Adam and AdamW": (partitioned, two_optimizers, 1.05),
    "lion / as published": (
        lambda: of(torchopt.Lion),
        lambda: lion_as_published(fresh()),
        1.1,
    ),
    "lion / four operations on lists": (
        lambda: of(torchopt.Lion),
        lambda: lion_in_lists(fresh()),
        1.1,
    ),
    "muon / torch's": (
        lambda: of(torchopt.Muon, MATRICES),
        lambda: of(torch.optim.Muon, MATRICES),
        1.1,
    ),
    "adafactor / torch's": (
        lambda: of(torchopt.Adafactor),
        lambda: of(torch.optim.Adafactor),
        1.1,
    ),
    "lbfgs / torch's": (
        lambda: with_closure(torchopt.LBFGS),
        lambda: with_closure(torch.optim.LBFGS),
        1.1,
    ),
    "lbfgs, strong Wolfe / torch's": (
        lambda: with_closure(lambda p: torchopt.LBFGS(p, line_search_fn="strong_wolfe")),
        lambda: with_closure(lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe")),
        1.1,
    ),
    "adamw / torch's fused": (
        lambda: of(torchopt.AdamW),
        lambda: of(lambda p: torch.optim.AdamW(p, fused=True)),
        1.1,
    ),
    "adamw / torch's foreach": (
        lambda: of(torchopt.AdamW),
        lambda: of(lambda p: torch.optim.AdamW(p, foreach=True)),
        1.2,
    ),
}


def turn(step: Step, times: int) -> float:
    """Return the time of a step; with one thread that of the processor, which is ours alone."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begin = clock()
    for _ in range(times):
        step()
    return (clock() - begin) / times


def compare(make: Callable[[], Step], make_other: Callable[[], Step], pairs: int) -> float:
    """Return the median ratio of the times of two steps, which take turns."""
    step, other = make(), make_other()
    times = max(1, int(0.01 / min(turn(step, 5), turn(other, 5))))
    ratios = []
    for k in range(pairs):
        # each of the two first every other time
        order = (step, other) if k % 2 else (other, step)
        found = [turn(one, times) for one in order]
        ratios.append(found[0] / found[1] if k % 2 else found[1] / found[0])
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--instances", type=int, default=7)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    accel = torchopt.accelerated_op_available("cpu")
    print(f"torch {torch.__version__}, accel {accel}, {arguments.threads} thread(s)")
    for name, (make, make_other, target) in ROWS.items():
        if arguments.only not in name:
            continue
        # where in memory the tensors lie matters, so there are several of both
        ratios = [compare(make, make_other, arguments.pairs) for _ in range(arguments.instances)]
        quartiles = statistics.quantiles(ratios, n=4)
        met = "yes" if quartiles[1] <= target else "NO"
        print(f"{name:58} {quartiles[1]:5.2f} ({quartiles[0]:.2f}-{quartiles[2]:.2f})", end="")
        print(f"  <= {target}  {met}", flush=True)


if __name__ == "__main__":
    main()
