"""Tasks on a mesh of tasks x model, of two by two ranks, held against one process; prints JSON."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from torchopt_dist import TaskError, map_tasks, process_group

COUNT = 5  # so that shares are uneven


def network() -> nn.Sequential:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1))
    return net.double()


def sharded(net: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    fully_shard(net[0], mesh=mesh["model"])
    return fully_shard(net, mesh=mesh["model"])


def replicated(net: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    return DistributedDataParallel(net, process_group=mesh.get_group("model"))


def plain(net: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    return net


FORMS: dict[str, Callable[[nn.Sequential, DeviceMesh], nn.Module]] = {
    "sharded": sharded,
    "replicated": replicated,
    "plain": plain,
}


def draw() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    xs = torch.rand(COUNT, 8, 2, generator=generator, dtype=torch.float64)
    return [(x, (k + 1) * x.prod(1, keepdim=True)) for k, x in enumerate(xs)]


def loss_of_part(part: slice) -> Callable[[Any, Any], tuple[Tensor, dict[str, Any]]]:
    def loss(params: Any, task: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        net, scale = params
        x, y = (tensor[part] for tensor in task)
        found = scale * F.mse_loss(net(x), y)
        return found, {"mean": y.mean()}

    return loss


def train(net: nn.Module, part: slice, **options: Any) -> list[Any]:
    """Return losses, metrics and parameters after a few meta-steps."""
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    params = (net, scale)
    outer = torch.optim.Adam([*net.parameters(), scale], lr=0.05)
    found: list[Any] = []
    for _ in range(3):
        outer.zero_grad()
        result = map_tasks(loss_of_part(part), draw(), params, metrics=("mean",), **options)
        result.accumulate_grad(params)
        outer.step()
        found += [result.loss, result.losses, result.metrics["mean"]]
    with torch.no_grad():
        judged = map_tasks(
            loss_of_part(part), draw(), params, metrics=("mean",), differentiate=False, **options
        )
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in (*net.parameters(), scale)]
    return [x.tolist() for x in (*found, judged.losses, *whole)]


def failures(net: nn.Module, mesh: DeviceMesh) -> list[Any]:
    def fn(net: nn.Module, index: int) -> Tensor:
        if index == COUNT - 1:
            raise ArithmeticError
        return net(torch.ones(2, 2, dtype=torch.float64)).sum()

    try:
        map_tasks(fn, range(COUNT), net, group=mesh)
    except TaskError as error:
        return [error.task, [failure.rank for failure in error.failures]]
    return []


def first_order(net: nn.Module, mesh: DeviceMesh) -> list[list[float]]:
    """Return losses and gradients after inner steps of torch's optimizer, on whole tasks."""

    def fn(net: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
        inner = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            inner.zero_grad()
            F.mse_loss(net(task[0]), task[1]).backward()
            inner.step()
        inner.zero_grad()
        return F.mse_loss(net(task[0]), task[1])

    result = map_tasks(fn, draw(), net, group=mesh)
    grads = [g.full_tensor() if isinstance(g, DTensor) else g for g in result.grads.values()]
    return [x.tolist() for x in (result.losses, *grads)]


def next_to_a_computed_tensor(net: nn.Module, mesh: DeviceMesh) -> str:
    computed = torch.ones((), dtype=torch.float64, requires_grad=True) * 2
    try:
        map_tasks(loss_of_part(slice(None)), draw(), (net, computed), metrics=("mean",), group=mesh)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    warnings.simplefilter("ignore")
    reference = train(network(), slice(None)) if "WORLD_SIZE" not in os.environ else []
    found: dict[str, Any] = {"reference": reference}
    with process_group(timeout=30.0):
        if dist.is_initialized():
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("tasks", "model"))
            part = slice(mesh.get_local_rank("model"), None, 2)
            for name, form in FORMS.items():
                for deterministic in (False, True):
                    net = form(network(), mesh)
                    found[f"{name} {deterministic}"] = train(
                        net, part, group=mesh, deterministic=deterministic
                    )
                found[f"{name} fails"] = failures(form(network(), mesh), mesh)
            found["first order"] = first_order(sharded(network(), mesh), mesh)
            found["expected"] = first_order(network(), mesh)
            found["computed"] = next_to_a_computed_tensor(sharded(network(), mesh), mesh)
            everywhere = fully_shard(network(), mesh=init_device_mesh("cpu", (4,)))
            try:
                map_tasks(loss_of_part(part), draw(), everywhere)
            except ValueError as error:
                found["refused"] = str(error)
        found["rank"] = dist.get_rank() if dist.is_initialized() else 0
    os.write(sys.stdout.fileno(), f"{json.dumps(found)}\n".encode())


if __name__ == "__main__":
    main()
