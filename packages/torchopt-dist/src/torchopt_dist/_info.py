"""Who is in the world."""

from __future__ import annotations

import os
from typing import NamedTuple, NoReturn

import torch.distributed
from torch.distributed import rpc

from torchopt_dist._remote_errors import RpcUnavailableError

__all__ = [
    "WorldInfo",
    "default_worker_name_format",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_worker_id",
    "get_world_info",
    "get_world_rank",
    "get_world_size",
    "is_available",
    "launched_world",
    "require_rpc",
    "unavailable",
    "worker_names",
]

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def is_available() -> bool:
    """Return whether this build of torch has RPC."""
    return torch.distributed.is_available() and rpc.is_available()


def require_rpc() -> None:
    """Raise :class:`RpcUnavailableError` if this build of torch has no RPC."""
    if not is_available():
        unavailable()


def unavailable(*_: object, **__: object) -> NoReturn:
    """Raise :class:`RpcUnavailableError`."""
    raise RpcUnavailableError(
        "this build of torch has no RPC (`torch.distributed.rpc.is_available()` is False): "
        "install a build that has it, or use `torchopt.distributed.map_tasks`, which needs "
        "torch's collectives at most"
    )


def default_worker_name_format(
    world_rank: int, world_size: int, local_rank: int, local_world_size: int
) -> str:
    """Return ``"worker"`` and the rank, with as many digits as the size of the world has."""
    return f"worker{world_rank:0{len(str(world_size))}d}"


class WorldInfo(NamedTuple):
    """This process's place in the world."""

    # its rank, from 0, among all processes, and how many these are
    world_rank: int
    world_size: int
    # the same among the processes of this machine
    local_rank: int
    local_world_size: int

    @property
    def rank(self) -> int:
        """The rank in the world."""
        return self.world_rank

    @property
    def worker_name(self) -> str:
        """The name of this worker in RPC; before RPC is up, what it is by default."""
        names = worker_names()
        return names[self.rank] if names else default_worker_name_format(*self)


def launched_world() -> WorldInfo | None:
    """Return what `torchrun` says about this process; ``None`` if nothing launched it.

    Raises:
        RuntimeError: The environment is incomplete or contradicts itself.
    """
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if "WORLD_SIZE" not in found and "RANK" not in found:
        return None
    missing = [name for name in VARIABLES[:2] if name not in found]
    if missing:
        raise RuntimeError(
            f"the environment sets {', '.join(found)} but not {', '.join(missing)}: start the "
            f"program with torchrun, or set both"
        )
    try:
        numbers = {name: int(value) for name, value in found.items()}
    except ValueError:
        raise RuntimeError(f"{', '.join(found)} must be numbers, got {found}") from None
    rank, size = numbers["RANK"], numbers["WORLD_SIZE"]
    info = WorldInfo(
        rank, size, numbers.get("LOCAL_RANK", rank), numbers.get("LOCAL_WORLD_SIZE", size)
    )
    if not (0 <= info.rank < info.world_size and 0 <= info.local_rank < info.local_world_size):
        raise RuntimeError(f"a rank must be less than the size of its world, got {found}")
    return info


def worker_names() -> tuple[str, ...]:
    """Return the names of RPC's workers in the order of ranks; nothing before RPC is up."""
    if not is_available():
        return ()
    from torch._C._distributed_rpc import _get_current_rpc_agent

    try:
        agent = _get_current_rpc_agent()
    except RuntimeError:  # torch's way to say that there is none
        return ()
    infos = sorted(agent.get_worker_infos(), key=lambda info: info.id)
    return tuple(info.name for info in infos)


def get_world_info() -> WorldInfo:
    """Return this process's place in the world.

    The world is the first of these that there is: the workers of RPC; the process group of torch's
    collectives; what `torchrun` has put in the environment; this process alone. Where nothing tells
    about machines, all processes count as being on one.

    Raises:
        RuntimeError: The environment is incomplete or contradicts itself.

    Example:
        >>> import torchopt.distributed as todist
        >>> todist.get_world_info()
        WorldInfo(world_rank=0, world_size=1, local_rank=0, local_world_size=1)
    """
    launched = launched_world()
    names = worker_names()
    if names:
        rank, size = rpc.get_worker_info().id, len(names)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    else:
        return launched or WorldInfo(0, 1, 0, 1)
    if launched is not None and launched.world_size == size:
        return launched._replace(world_rank=rank)
    return WorldInfo(rank, size, rank, size)


def get_world_rank() -> int:
    """Return the rank of this process among all, from 0."""
    return get_world_info().world_rank


def get_rank() -> int:
    """Return the rank of this process among all, from 0."""
    return get_world_info().world_rank


def get_world_size() -> int:
    """Return the number of processes."""
    return get_world_info().world_size


def get_local_rank() -> int:
    """Return the rank of this process among those of its machine, from 0."""
    return get_world_info().local_rank


def get_local_world_size() -> int:
    """Return the number of processes of this machine."""
    return get_world_info().local_world_size


def get_worker_id(id: str | int | None = None) -> int:
    """Return the rank of a worker.

    Args:
        id: Its name or its rank; ``None`` is this process.

    Raises:
        RpcUnavailableError: A name was given, and this build of torch has no RPC.
        RuntimeError: A name was given before RPC is up.
        ValueError: RPC is up, and there is no such worker.
    """
    if id is None:
        return get_rank()
    names = worker_names()
    if isinstance(id, int):
        if names and not 0 <= id < len(names):
            raise ValueError(f"`id` must be a rank from 0 to {len(names) - 1}, got {id}")
        return id
    require_rpc()
    if not names:
        raise RuntimeError(
            f"`id` is the name {id!r}, and names exist only while RPC is up: call this inside the "
            f"function that `auto_init_rpc` decorates"
        )
    if id not in names:
        raise ValueError(f"`id` must be one of the workers {', '.join(names)}, got {id!r}")
    return names.index(id)
