"""Calls that ranks must not make together: each rank prints what came of it, by name.

Every case is a function of the rank that returns what it found, or raises; the ranks go on with a
sound meta-step after each, to show that they are in step.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchopt_dist import TaskError, map_tasks, process_group

CASES: dict[str, Callable[[int], Any]] = {}


def case(function: Callable[[int], Any]) -> Callable[[int], Any]:
    CASES[function.__name__] = function
    return function


def weight(*shape: int, **options: Any) -> Tensor:
    return torch.ones(shape, requires_grad=True, **options)


def total(params: Any, task: Any) -> Tensor:
    tensors = params.parameters() if isinstance(params, nn.Module) else [params]
    return sum(x.sum().double() for x in tensors) * 1.0


@case
def counts_differ(rank: int) -> Any:
    return map_tasks(total, range(4 + rank), weight(3)).loss.item()


@case
def one_rank_has_no_tasks(rank: int) -> Any:
    return map_tasks(total, range(4 * (1 - rank)), weight(3)).loss.item()


@case
def one_rank_has_no_weights(rank: int) -> Any:
    return map_tasks(total, range(4), weight(3), weights=5 if rank else None).loss.item()


@case
def tasks_differ(rank: int) -> Any:
    return map_tasks(total, torch.full((4, 2), 1.0 + rank), weight(3)).loss.item()


@case
def tasks_in_trees_differ(rank: int) -> Any:
    tasks = [{"x": (torch.zeros(2), [k + rank * (k == 3)])} for k in range(4)]
    return map_tasks(total, tasks, weight(3)).loss.item()


@case
def orthogonal_matrices_differ(rank: int) -> Any:
    torch.manual_seed(rank)
    net = nn.Linear(16, 16, bias=False)
    nn.init.orthogonal_(net.weight)  # of equal norms
    return map_tasks(total, range(4), net).loss.item()


@case
def signs_differ(rank: int) -> Any:
    w = (torch.arange(8, dtype=torch.float64) * (1 - 2 * rank)).requires_grad_()
    return map_tasks(total, range(4), w).loss.item()


@case
def places_differ(rank: int) -> Any:
    w = torch.arange(8.0).roll(rank).requires_grad_()
    return map_tasks(total, range(4), w).loss.item()


@case
def one_bit_of_bfloat16_differs(rank: int) -> Any:
    w = torch.full((1000,), 256.0, dtype=torch.bfloat16)
    w[7] += 2 * rank
    return map_tasks(total, range(4), w.requires_grad_()).loss.item()


@case
def one_of_many_numbers_differs(rank: int) -> Any:
    w = torch.ones(3, 100_001)
    w[2, 70_000] += 1e-7 * rank
    return map_tasks(total, range(4), w.requires_grad_()).loss.item()


@case
def buffers_differ(rank: int) -> Any:
    net = nn.BatchNorm1d(3)
    net.running_mean += rank
    return map_tasks(total, range(4), net).loss.item()


@case
def shapes_differ(rank: int) -> Any:
    return map_tasks(total, range(4), weight(6) if rank else weight(2, 3)).loss.item()


@case
def options_differ(rank: int) -> Any:
    return map_tasks(total, range(4), weight(3), deterministic=bool(rank)).loss.item()


@case
def weights_differ(rank: int) -> Any:
    return map_tasks(total, range(2), weight(3), weights=[1.0, 1.0 + rank]).loss.item()


def nested(params: Tensor, index: int) -> Tensor:
    inner = map_tasks(lambda w, k: (w * k).sum(), range(index + 1), params, reduction="sum")
    return params.sum() * inner.loss


@case
def within_a_task(rank: int) -> Any:
    """Tasks make different numbers of inner tasks, on ranks with different numbers of tasks."""
    return map_tasks(nested, range(5), weight(2)).losses.tolist()


@case
def within_a_task_over_busy_ranks(rank: int) -> Any:
    def fn(params: Tensor, index: int) -> Tensor:
        return map_tasks(total, range(4), params, group=dist.group.WORLD).loss * params.sum()

    try:
        map_tasks(fn, range(2), weight(3))
    except TaskError as error:
        return [failure.traceback.splitlines()[-1] for failure in error.failures]


@case
def from_another_thread(rank: int) -> Any:
    found: list[str] = []

    def call(params: Tensor) -> None:
        try:
            map_tasks(total, range(2), params.detach().requires_grad_())
        except RuntimeError as error:
            found.append(str(error))

    def fn(params: Tensor, index: int) -> Tensor:
        thread = threading.Thread(target=call, args=(params,))
        thread.start()
        thread.join()
        return params.sum()

    map_tasks(fn, range(2), weight(3))
    return found


@case
def a_failed_prefix_has_more_subtrees(rank: int) -> Any:
    def fn(params: Tensor, index: int) -> Tensor:
        if index == 15:
            raise ArithmeticError
        return params.sum()

    try:
        map_tasks(fn, range(16), weight(1000), deterministic=True)
    except TaskError as error:
        return [error.rank, error.task]


@case
def replicas_over_busy_ranks(rank: int) -> Any:
    net = nn.parallel.DistributedDataParallel(nn.BatchNorm1d(3))
    return map_tasks(total, range(3), net).loss.item()


def main() -> None:
    with process_group(timeout=20.0):
        rank = dist.get_rank()
        for name, function in CASES.items():
            try:
                found = function(rank)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            sound = map_tasks(lambda w, k: (w * k).sum(), range(5), weight(2)).grads.tolist()
            line = json.dumps({"case": name, "rank": rank, "found": found, "sound": sound})
            os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    main()
