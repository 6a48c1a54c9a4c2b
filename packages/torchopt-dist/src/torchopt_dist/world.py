"""Who is in the world, how it comes up and goes down, and functions for some ranks only."""

from torchopt_dist._barrier import barrier
from torchopt_dist._info import (
    WorldInfo,
    get_local_rank,
    get_local_world_size,
    get_rank,
    get_worker_id,
    get_world_info,
    get_world_rank,
    get_world_size,
)
from torchopt_dist._ranks import not_on_rank, on_rank, rank_non_zero_only, rank_zero_only
from torchopt_dist._session import auto_init_rpc, default_worker_name_format

__all__ = [
    "WorldInfo",
    "auto_init_rpc",
    "barrier",
    "default_worker_name_format",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_worker_id",
    "get_world_info",
    "get_world_rank",
    "get_world_size",
    "not_on_rank",
    "on_rank",
    "rank_non_zero_only",
    "rank_zero_only",
]
