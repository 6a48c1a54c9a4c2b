"""Task parallelism for differentiable optimization, on torch's RPC and collectives.

Two doors lead to torch's own engines. :func:`map_tasks` spreads the tasks of a meta-batch over the
ranks of a :func:`process_group`: every rank differentiates its share, and one collective adds up;
:func:`save_checkpoint` and :func:`load_checkpoint` let training go on with another number of ranks.
Calls on named workers (:func:`auto_init_rpc`, :func:`parallelize`, :mod:`~torchopt_dist.autograd`)
suit workers that do different things; :mod:`rpc` is torch's own, for all else that it does.
"""

from torch.distributed import rpc

from torchopt import module_clone
from torchopt_dist import api, autograd, world
from torchopt_dist._checkpoint import load_checkpoint, save_checkpoint
from torchopt_dist._errors import LostRankError, TaskError, TaskFailure
from torchopt_dist._group import process_group
from torchopt_dist._info import is_available
from torchopt_dist._remote_errors import (
    RemoteError,
    RpcUnavailableError,
    WorkerLostError,
    WorkerTimeoutError,
)
from torchopt_dist._tasks import TaskGradients, map_tasks
from torchopt_dist.api import (
    Call,
    Replicated,
    TensorDimensionPartitioner,
    batch_partitioner,
    dim_partitioner,
    exclusive_batch_partitioner,
    mean_reducer,
    parallelize,
    parallelize_async,
    parallelize_sync,
    remote_async_call,
    remote_sync_call,
    sum_reducer,
)
from torchopt_dist.world import (
    WorldInfo,
    auto_init_rpc,
    barrier,
    default_worker_name_format,
    get_local_rank,
    get_local_world_size,
    get_rank,
    get_worker_id,
    get_world_info,
    get_world_rank,
    get_world_size,
    not_on_rank,
    on_rank,
    rank_non_zero_only,
    rank_zero_only,
)

__all__ = [
    "Call",
    "LostRankError",
    "RemoteError",
    "Replicated",
    "RpcUnavailableError",
    "TaskError",
    "TaskFailure",
    "TaskGradients",
    "TensorDimensionPartitioner",
    "WorkerLostError",
    "WorkerTimeoutError",
    "WorldInfo",
    "api",
    "auto_init_rpc",
    "autograd",
    "barrier",
    "batch_partitioner",
    "default_worker_name_format",
    "dim_partitioner",
    "exclusive_batch_partitioner",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_worker_id",
    "get_world_info",
    "get_world_rank",
    "get_world_size",
    "is_available",
    "load_checkpoint",
    "map_tasks",
    "mean_reducer",
    "module_clone",
    "not_on_rank",
    "on_rank",
    "parallelize",
    "parallelize_async",
    "parallelize_sync",
    "process_group",
    "rank_non_zero_only",
    "rank_zero_only",
    "remote_async_call",
    "remote_sync_call",
    "rpc",
    "save_checkpoint",
    "sum_reducer",
    "world",
]
