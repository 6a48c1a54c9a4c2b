"""How the arguments of a call are shared out over workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import optree
import torch

from torchopt_dist._info import get_worker_id, get_world_size

__all__ = [
    "Call",
    "PartitionFunction",
    "Partitioner",
    "Replicated",
    "TensorDimensionPartitioner",
    "batch_partitioner",
    "dim_partitioner",
    "exclusive_batch_partitioner",
    "whole",
]


class Call(NamedTuple):
    """The share of one worker."""

    # its rank or its name
    worker: int | str
    # None is no arguments
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any] | None
    # how many samples it holds: what a mean weighs its result by
    size: int = 1


#: Shares out ``(*args, **kwargs)``: a :class:`Call`, or its first three fields, for each worker.
PartitionFunction: TypeAlias = Callable[..., Sequence["Call | tuple[Any, ...]"]]
#: One worker by its rank or name, or a function for any number of them.
Partitioner: TypeAlias = "int | str | PartitionFunction"


class Replicated:
    """Marks an argument that is not split: every worker gets the whole, and finds it unmarked.

    Args:
        value: A tensor, or a tree of tensors. Gradients of all workers add up in it.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.parallelize(reducer=todist.sum_reducer)
        ... def weighted(x, w):
        ...     return (x * w).sum()
        >>> x, w = torch.ones(8, 3), todist.Replicated(torch.ones(3))  # weighted(x, w)
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value!r})"


Arguments = TypeVar("Arguments", bound="tuple[Any, ...] | dict[str, Any] | None")


def whole(arguments: Arguments) -> Arguments:
    """Return arguments with what is marked as replicated in place of the marks."""
    tree: Any = arguments
    found: Any = optree.tree_map(
        lambda x: x.value if isinstance(x, Replicated) else x, tree, none_is_leaf=True
    )
    return arguments if arguments is None else found


class TensorDimensionPartitioner:
    """Split every tensor in the arguments along one dimension; everything else goes to all.

    Tensors may be anywhere in trees of arguments (modules are not trees, and go to every worker);
    those in :class:`Replicated` go to every worker as they are.
    A batch of ``n`` samples goes to ``m = min(n, number of workers)`` workers in order, samples
    ``i * n // m`` to ``(i + 1) * n // m`` to the ``i``-th: sizes differ by one at most. Arguments
    without tensors make one call, on the first of the workers.

    Args:
        dim: The dimension. All tensors must have the same size there.
        exclusive: Whether every sample is a call of its own, dealt out to the workers in turn.
        keepdim: Whether the dimension is kept, with size 1, when a sample is a call of its own.
            ``False`` needs ``exclusive``.
        workers: The ranks or names of the workers; ``None`` is all of them.

    Raises:
        TypeError: ``dim`` is not a number.
        ValueError: ``keepdim`` is ``False`` without ``exclusive``, or ``workers`` is empty. When
            called: sizes that differ, or no sample at all.

    Example:
        >>> import torch
        >>> from torchopt.distributed import TensorDimensionPartitioner
        >>> split = TensorDimensionPartitioner(0, keepdim=True, workers=[0, 1])
        >>> for rank, args, kwargs, size in split(torch.arange(3), scale=2.0):
        ...     print(rank, args, kwargs, size)
        0 (tensor([0]),) {'scale': 2.0} 1
        1 (tensor([1, 2]),) {'scale': 2.0} 2
    """

    def __init__(
        self,
        dim: int,
        *,
        exclusive: bool = False,
        keepdim: bool = False,
        workers: Sequence[int | str] | None = None,
    ) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise TypeError(f"`dim` must be an int, got {dim!r}")
        if not exclusive and not keepdim:
            raise ValueError(
                "`keepdim=False` needs `exclusive=True`: only single samples can lose a dimension"
            )
        if isinstance(workers, str) or (workers is not None and not workers):
            raise ValueError(
                f"`workers` must be a sequence of ranks or names, not empty, or None for all, "
                f"got {workers!r}"
            )
        self.dim = dim
        self.exclusive = exclusive
        self.keepdim = keepdim
        self.workers = None if workers is None else tuple(workers)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.dim}, exclusive={self.exclusive}, "
            f"keepdim={self.keepdim}, workers={self.workers})"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> list[Call]:
        """Return the calls that the arguments are split into."""
        workers = self.workers if self.workers is not None else range(get_world_size())
        ranks = [get_worker_id(worker) for worker in workers]
        tree: Any = (args, kwargs)
        leaves, treespec = optree.tree_flatten(tree, none_is_leaf=True)
        size = self._size([leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        if size is None:
            return [Call(ranks[0], args, kwargs)]
        parts = size if self.exclusive else min(size, len(ranks))
        calls = []
        for part in range(parts):
            start, stop = part * size // parts, (part + 1) * size // parts
            share = [
                self._share(leaf, start, stop) if isinstance(leaf, torch.Tensor) else leaf
                for leaf in leaves
            ]
            own: Any = optree.tree_unflatten(treespec, share)
            calls.append(Call(ranks[part % len(ranks)], own[0], own[1], stop - start))
        return calls

    def _size(self, tensors: list[torch.Tensor]) -> int | None:
        sizes = set()
        for tensor in tensors:
            if not -tensor.dim() <= self.dim < tensor.dim():
                raise ValueError(
                    f"every tensor must have a dimension {self.dim} to split along, got one of "
                    f"shape {tuple(tensor.shape)}"
                )
            sizes.add(tensor.shape[self.dim])
        if not sizes:
            return None
        if len(sizes) > 1:
            raise ValueError(
                f"Batch size mismatch on dim={self.dim}: tensors must have the same size there, "
                f"got sizes {sorted(sizes)}"
            )
        (size,) = sizes
        if size == 0:
            raise ValueError(f"there is nothing to split: the batch is empty on dim={self.dim}")
        return size

    def _share(self, tensor: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if not self.keepdim:
            return tensor.select(self.dim, start)
        return tensor.narrow(self.dim, start, stop - start)


def dim_partitioner(
    dim: int = 0,
    *,
    exclusive: bool = False,
    keepdim: bool = True,
    workers: Sequence[int | str] | None = None,
) -> PartitionFunction:
    """Return a :class:`TensorDimensionPartitioner`, which tells what the arguments mean."""
    return TensorDimensionPartitioner(dim, exclusive=exclusive, keepdim=keepdim, workers=workers)


#: Splits the batch, which is the first dimension, over all workers.
batch_partitioner: PartitionFunction = dim_partitioner(0)
#: Makes a call of every sample of the batch, which keeps a first dimension of size 1.
exclusive_batch_partitioner: PartitionFunction = dim_partitioner(0, exclusive=True)
