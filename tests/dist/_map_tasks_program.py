"""Computes each case on however many ranks there are; rank r saves what it got as r.pt."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_dist import TaskGradients, map_tasks, process_group

Case = Callable[..., TaskGradients]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def regressions(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Return tasks: sines of random phase."""
    generator = torch.Generator().manual_seed(1)
    tasks = []
    for _ in range(count):
        x = torch.rand(12, 1, generator=generator, dtype=dtype) * 6 - 3
        tasks.append((x, torch.sin(x + torch.rand(1, generator=generator, dtype=dtype))))
    return tasks


def network(dtype: torch.dtype = torch.float64, *extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(1, 17), *extra, nn.Tanh(), nn.Linear(17, 1)).to(dtype)


def plain_loss(net: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(net(task[0]), task[1])


def adapted(optimizer: Callable[[nn.Module], torchopt.MetaOptimizer]) -> Callable[..., Tensor]:
    """Return MAML's loss of a task: three inner steps on half of it, judged on the rest."""

    def loss(net: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
        x, y = task
        inner = optimizer(net)
        for _ in range(3):
            inner.step(F.mse_loss(net(x[:6]), y[:6]))
        return F.mse_loss(net(x[6:]), y[6:])

    return loss


def register_counts(count: int, dtype: torch.dtype) -> None:
    def with_tasks(**options: Any) -> TaskGradients:
        return map_tasks(plain_loss, regressions(count, dtype), network(dtype), **options)

    with_tasks.__name__ = f"{count} tasks in {str(dtype).removeprefix('torch.')}"
    case(with_tasks)


for number in (1, 2, 3, 5, 7, 8, 13):
    register_counts(number, torch.float64)
register_counts(13, torch.float32)


@case
def weights(**options: Any) -> TaskGradients:
    return map_tasks(
        plain_loss, regressions(5), network(), weights=[1.0, 0.0, 2.5, 1e-3, 7.0], **options
    )


@case
def sums(**options: Any) -> TaskGradients:
    return map_tasks(plain_loss, regressions(6), network(), reduction="sum", **options)


@case
def metrics(**options: Any) -> TaskGradients:
    def fn(net: nn.Module, task: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        error = (net(task[0]) - task[1]).detach().abs()
        return plain_loss(net, task), {"worst": error.max(), "close": int((error < 0.5).sum())}

    return map_tasks(fn, regressions(5), network(), metrics=("worst", "close"), **options)


@case
def meta_sgd(**options: Any) -> TaskGradients:
    def optimizer(net: nn.Module) -> torchopt.MetaOptimizer:
        return torchopt.MetaSGD(net, lr=0.1, momentum=0.9)

    return map_tasks(adapted(optimizer), regressions(6), network(), **options)


@case
def meta_adam(**options: Any) -> TaskGradients:
    def optimizer(net: nn.Module) -> torchopt.MetaOptimizer:
        return torchopt.MetaAdam(net, lr=0.05)

    return map_tasks(adapted(optimizer), regressions(6), network(), **options)


@case
def batch_norm(**options: Any) -> TaskGradients:
    def optimizer(net: nn.Module) -> torchopt.MetaOptimizer:
        return torchopt.MetaSGD(net, lr=0.1)

    net = network(torch.float64, nn.BatchNorm1d(17))
    result = map_tasks(adapted(optimizer), regressions(6), net, **options)
    assert not net[1].running_mean.any()  # as it was before the tasks
    return result


@case
def functional_optimizer(**options: Any) -> TaskGradients:
    net = network()
    optim = torchopt.sgd(0.1, momentum=0.9)

    def fn(params: dict[str, Tensor], task: tuple[Tensor, Tensor]) -> Tensor:
        x, y = task
        state = optim.init(params)
        for _ in range(3):
            loss = F.mse_loss(torch.func.functional_call(net, params, x[:6]), y[:6])
            grads = torch.autograd.grad(loss, [*params.values()], create_graph=True)
            updates, state = optim.update(
                dict(zip(params, grads, strict=True)), state, inplace=False
            )
            params = torchopt.apply_updates(params, updates, inplace=False)
        return F.mse_loss(torch.func.functional_call(net, params, x[6:]), y[6:])

    return map_tasks(fn, regressions(6), dict(net.named_parameters()), **options)


@case
def implicit_gradient(**options: Any) -> TaskGradients:
    def optimality(w: Tensor, log_l2: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return x.mT @ (x @ w - y) + log_l2.exp() * w

    @torchopt.diff.implicit.custom_root(optimality, argnums=1)
    def ridge(w: Tensor, log_l2: Tensor, x: Tensor, y: Tensor) -> Tensor:
        system = x.mT @ x + log_l2.exp() * torch.eye(4, dtype=x.dtype)
        return torch.linalg.solve(system, x.mT @ y)

    def fn(log_l2: Tensor, task: tuple[Tensor, Tensor]) -> Tensor:
        x = torch.cat([task[0] ** k for k in range(4)], 1)
        w = ridge(torch.zeros(4, 1, dtype=x.dtype), log_l2, x[:6], task[1][:6])
        return F.mse_loss(x[6:] @ w, task[1][6:])

    start = torch.zeros((), dtype=torch.float64, requires_grad=True)
    return map_tasks(fn, regressions(6), start, **options)


@case
def zero_order_gradient(**options: Any) -> TaskGradients:
    normal = torch.distributions.Normal(0.0, 1.0)
    net = network()

    @torchopt.diff.zero_order(normal, "antithetic", num_samples=6, sigma=0.1)
    def error(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (torch.func.functional_call(net, params, x) - y).abs().gt(0.3).to(x.dtype).mean()

    def fn(params: dict[str, Tensor], task: tuple[Tensor, Tensor]) -> Tensor:
        return error(params, *task)

    params = dict(net.named_parameters())
    return map_tasks(fn, regressions(6), params, seed=5, **options)


@case
def dropout(**options: Any) -> TaskGradients:
    net = network(torch.float64, nn.Dropout(0.5))
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 77)
    before = torch.random.get_rng_state()
    result = map_tasks(plain_loss, regressions(6), net, seed=3, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    return result


@case
def trees(**options: Any) -> TaskGradients:
    """Every kind of leaf; `third` is used by the task of index 3 alone, `unused` by none."""
    torch.manual_seed(4)
    params: dict[str, Any] = {
        "double": torch.rand(3, 2, dtype=torch.float64) + 1e-12,
        "single": (torch.rand(2),),
        "half": torch.rand(3, dtype=torch.bfloat16),
        "complex": torch.rand(2, 2, dtype=torch.complex128),
        "transposed": torch.rand(4, 3).T,
        "scalar": torch.rand(()),
        "empty": torch.empty(0, 3),
        "third": torch.rand(2),
        "unused": torch.rand(5),
    }
    for leaf in torchopt.pytree.tree_leaves(params):
        leaf.requires_grad_()
    params |= {"constant": torch.ones(2), "steps": torch.tensor(3), "none": None}

    def fn(p: dict[str, Any], index: int) -> Tensor:
        total = (p["double"] * (index + 0.1)).square().sum() + p["single"][0].double().sum() / 3
        total = total + (p["half"] * index).float().sum() + p["complex"].abs().square().sum()
        total = total + (p["transposed"] @ torch.rand(4, 2)).sum() * p["scalar"]
        total = total + p["empty"].sum() + p["constant"].sum() * p["steps"]
        return total + (p["third"].prod() if index == 3 else 0.0)

    return map_tasks(fn, range(5), params, seed=0, **options)


@case
def modules_in_a_tree(**options: Any) -> TaskGradients:
    params = {"net": network(), "log_lr": torch.tensor(-2.0, dtype=torch.float64)}
    params["log_lr"].requires_grad_()

    def fn(p: dict[str, Any], task: tuple[Tensor, Tensor]) -> Tensor:
        def optimizer(net: nn.Module) -> torchopt.MetaOptimizer:
            return torchopt.MetaSGD(net, lr=p["log_lr"].exp())

        return adapted(optimizer)(p["net"], task)

    return map_tasks(fn, regressions(6), params, **options)


@case
def trees_beside_the_loss(**options: Any) -> TaskGradients:
    """Of another shape for each task, and a view of what the task changes afterwards."""

    def fn(net: nn.Module, task: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any], Any]:
        count = int(task[0].abs().sum()) % 5
        aux = {"predictions": net(task[0])[:count], "weight": [net[0].weight, None, count]}
        loss = plain_loss(net, task)
        net[0].weight.data.zero_()
        return loss, {"count": count}, aux

    tasks = regressions(7)
    result = map_tasks(fn, tasks, network(), metrics=("count",), has_aux=True, **options)
    assert [tree["weight"][1:] for tree in result.aux] == [
        [None, int(x)] for x in result.metrics["count"]
    ]
    return result._replace(
        aux=[{"predictions": t["predictions"], "weight": t["weight"][0]} for t in result.aux]
    )


@case
def evaluation(**options: Any) -> TaskGradients:
    """An inner loop, and parameters that require no gradient."""
    net = network().requires_grad_(False)

    def fn(net: nn.Module, task: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        net.requires_grad_()
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        with torch.enable_grad():
            plain_loss(net, task).backward()
        inner.step()
        with torch.no_grad():
            return plain_loss(net, task), net(task[0])

    with torch.no_grad():
        return map_tasks(fn, regressions(5), net, differentiate=False, has_aux=True, **options)


@case
def other_generators(**options: Any) -> TaskGradients:
    """Python's and NumPy's global generators."""
    random.seed(dist.get_rank() if dist.is_initialized() else 77)
    np.random.seed(random.randrange(100))  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    def fn(w: Tensor, index: int) -> Tensor:
        return w.sum() * random.random() * np.random.rand()  # noqa: NPY002

    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    result = map_tasks(fn, range(5), weight, seed=1, **options)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    return result


@case
def bars(**options: Any) -> TaskGradients:
    """One on the first rank, which ends."""
    shown = []

    def progress(share: Iterable[int]) -> Iterator[int]:
        shown.append("begin")
        yield from share
        shown.append("end")

    result = map_tasks(plain_loss, regressions(5), network(), progress=progress, **options)
    first = not dist.is_initialized() or dist.get_rank() == 0
    assert shown == (["begin", "end"] if first else []), shown
    return result


@case
def subgroup(**options: Any) -> TaskGradients:
    """Ranks 1 and above, where there are, share the tasks of a group of their own."""
    group = None
    if dist.is_initialized() and dist.get_world_size() > 1:
        groups = [dist.new_group([0]), dist.new_group([*range(1, dist.get_world_size())])]
        group = groups[min(dist.get_rank(), 1)]
    return map_tasks(plain_loss, regressions(5), network(), group=group, **options)


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
    with process_group(timeout=30.0):
        found = {
            (name, deterministic): function(deterministic=deterministic)._asdict()
            for name, function in CASES.items()
            for deterministic in (False, True)
        }
        rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(found, Path(sys.argv[1], f"{rank}.pt"))


if __name__ == "__main__":
    main()
