"""Calls on other workers: how to make them, split their arguments, and reduce their results."""

from torchopt_dist._call import (
    parallelize,
    parallelize_async,
    parallelize_sync,
    remote_async_call,
    remote_sync_call,
)
from torchopt_dist._partition import (
    Call,
    Replicated,
    TensorDimensionPartitioner,
    batch_partitioner,
    dim_partitioner,
    exclusive_batch_partitioner,
)
from torchopt_dist._reduce import mean_reducer, sum_reducer

__all__ = [
    "Call",
    "Replicated",
    "TensorDimensionPartitioner",
    "batch_partitioner",
    "dim_partitioner",
    "exclusive_batch_partitioner",
    "mean_reducer",
    "parallelize",
    "parallelize_async",
    "parallelize_sync",
    "remote_async_call",
    "remote_sync_call",
    "sum_reducer",
]
