"""Sharing the samples of one estimate: workers exchange seeds and function values only."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Workers(NamedTuple):
    """One of several workers that evaluate a share of the samples each.

    Every worker calls the same function with the same arguments, and gets the whole estimate, equal
    to the last bit to what a single worker gets. What travels is one seed and one float64 per
    function value; each worker regenerates the noise of all.

    Args:
        rank: Which worker this is, from 0.
        size: How many there are.
        reduce: Takes a CPU tensor (float64 or int64), returns its sum over the workers.

    Example:
        >>> from torchopt_zero import Workers
        >>> alone = Workers(rank=0, size=1, reduce=lambda table: table)
        >>> alone.share(10)
        range(0, 10)
        >>> Workers(1, 3, lambda table: table).share(10)
        range(3, 6)
    """

    rank: int
    size: int
    reduce: Callable[[Tensor], Tensor]

    def share(self, num_samples: int) -> range:
        """Return the samples of this worker."""
        return range(
            self.rank * num_samples // self.size, (self.rank + 1) * num_samples // self.size
        )

    def agree(self, seed: int) -> int:
        """Return the seed of worker 0."""
        return int(self.reduce(torch.tensor(seed if self.rank == 0 else 0)))

    @classmethod
    def from_group(cls, group: ProcessGroup | None = None) -> Workers:
        """Make the ranks of a `torch.distributed` process group share the samples.

        Args:
            group: A group that reduces CPU tensors, as gloo's does; ``None`` for the default group.
        """
        import torch.distributed as dist

        def reduce(table: Tensor) -> Tensor:
            dist.all_reduce(table, group=group)
            return table

        return cls(dist.get_rank(group), dist.get_world_size(group), reduce)
