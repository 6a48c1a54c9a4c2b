"""Modules that are spread over ranks themselves: DDP's replicas and FSDP2's shards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchopt_dist._group import Ranks, naming_lost_ranks

__all__ = [
    "average_over_partners",
    "check_spread",
    "is_sharded",
    "local",
    "reduced_by_hooks",
    "reshard",
    "wrapped",
]

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel


def is_sharded(tensor: object) -> bool:
    """Return whether this rank has a part of a tensor only."""
    return dist.is_available() and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, detached."""
    if not is_sharded(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.detach().to_local()  # type: ignore[attr-defined, no-any-return]


def wrapped(part: Tensor, like: Tensor) -> Tensor:
    """Return the tensor that a part belongs to, laid out like another one."""
    if not is_sharded(like):
        return part
    return DTensor.from_local(
        part,
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def reshard(module: nn.Module) -> None:
    """Let go of the whole parameters that FSDP2 has gathered for a forward pass."""
    if dist.is_available():
        for submodule in module.modules():
            if isinstance(submodule, FSDPModule):
                submodule.reshard()


def reduced_by_hooks(modules: Iterable[nn.Module]) -> set[int]:
    """Return the ids of parameters whose gradients a backward pass reduces over ranks."""
    found: set[int] = set()
    if dist.is_available():
        for module in modules:
            for submodule in module.modules():
                if isinstance(submodule, DistributedDataParallel):
                    found.update(map(id, submodule.parameters()))
            found.update(id(p) for p in module.parameters() if is_sharded(p))
    return found


def average_over_partners(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Average tensors of one dtype in place over the ranks that evaluate the same tasks."""
    if not tensors:
        return
    buffer = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with naming_lost_ranks(ranks._replace(names=ranks.partner_names)):
        dist.all_reduce(buffer, group=ranks.partners)
    buffer /= len(ranks.partner_names)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, torch.split(buffer, sizes), strict=True):
        tensor.copy_(part.view(tensor.shape))


def _spread(modules: Iterable[nn.Module]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if not (dist.is_available() and dist.is_initialized()):
        return
    for module in modules:
        for submodule in module.modules():
            if isinstance(submodule, (DistributedDataParallel, FullyShardedDataParallel)):
                ranks = dist.get_process_group_ranks(submodule.process_group)
                yield type(submodule).__name__, tuple(ranks)
        for parameter in module.parameters():
            if isinstance(parameter, DTensor):
                yield "DTensor", tuple(parameter.device_mesh.mesh.flatten().tolist())


def check_spread(modules: Iterable[nn.Module], ranks: Ranks) -> None:
    """Raise if a module is spread over ranks that evaluate other tasks.

    Raises:
        ValueError: Its collectives would meet those of another task, or wait for ever.
    """
    for kind, names in _spread(modules):
        shared = set(names) & set(ranks.names) - {ranks.name}
        if shared:
            raise ValueError(
                f"`params` has a module that {kind} spreads over ranks {sorted(names)}, of which "
                f"{sorted(shared)} evaluate other tasks; pass the plain module, whose gradients "
                f"map_tasks averages, or give the module a dimension of a mesh of its own: "
                f"group=mesh with mesh = init_device_mesh(device, (tasks, model))"
            )
        if kind == "FullyShardedDataParallel":
            raise ValueError(
                "`params` has a module in FullyShardedDataParallel, which hides its parameters; "
                "use torch.distributed.fsdp.fully_shard"
            )
