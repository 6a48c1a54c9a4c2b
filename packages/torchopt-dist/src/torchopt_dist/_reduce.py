"""How the results of many workers become one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optree
import torch

__all__ = ["Results", "mean_reducer", "sum_reducer"]


class Results(list[Any]):
    """The results of the calls in order, and how many samples each stands for."""

    def __init__(self, results: Iterable[Any], sizes: Iterable[int]) -> None:
        super().__init__(results)
        self.sizes = list(sizes)


def mean_reducer(results: Iterable[Any]) -> Any:
    r"""Return the mean of results, in which every sample weighs the same.

    .. math:: \bar r = \sum_i n_i r_i / \sum_i n_i

    where :math:`n_i` is the number of samples that the partitioner gave to call :math:`i`, so a
    mean loss over uneven shares is the mean over the batch. Results that do not come from a
    partitioned call weigh the same.

    Args:
        results: Tensors of one shape, or trees of such. Those of whole numbers and bools become of
            the default dtype; float16 and bfloat16 are summed in float32.

    Raises:
        ValueError: There is no result, or shapes differ.

    Example:
        >>> import torch
        >>> from torchopt.distributed import mean_reducer
        >>> mean_reducer([torch.tensor(1.0), torch.tensor(2.0)])
        tensor(1.5000)
    """
    values = _checked(results)
    sizes = results.sizes if isinstance(results, Results) else [1] * len(values)
    total = sum(sizes)

    def mean(*leaves: torch.Tensor) -> torch.Tensor:
        stacked = _stacked(leaves)
        dtype = stacked.dtype
        if not (dtype.is_floating_point or dtype.is_complex):  # a fraction of bools, as torch.mean
            dtype = torch.get_default_dtype()
        if len(set(sizes)) == 1:
            return stacked.to(dtype).mean(dim=0)
        # neither sizes nor sums of them are numbers of a half precision
        wide = torch.promote_types(dtype, torch.float32)
        weights = torch.tensor(sizes, dtype=torch.float64, device=stacked.device) / total
        weights = weights.to(wide.to_real()).view(-1, *[1] * (stacked.dim() - 1))
        return (weights * stacked.to(wide)).sum(dim=0).to(dtype)

    return optree.tree_map(mean, *values)


def sum_reducer(results: Iterable[Any]) -> Any:
    """Return the sum of results.

    Args:
        results: Tensors of one shape, or trees of such.

    Raises:
        ValueError: There is no result, or shapes differ.

    Example:
        >>> import torch
        >>> from torchopt.distributed import sum_reducer
        >>> sum_reducer([torch.tensor(1.0), torch.tensor(2.0)])
        tensor(3.)
    """
    return optree.tree_map(lambda *leaves: _stacked(leaves).sum(dim=0), *_checked(results))


def _checked(results: Iterable[Any]) -> list[Any]:
    values = list(results)
    if not values:
        raise ValueError("`results` must not be empty: there is nothing to reduce")
    return values


def _stacked(leaves: tuple[torch.Tensor, ...]) -> torch.Tensor:
    tensors = [torch.as_tensor(leaf) for leaf in leaves]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        raise ValueError(
            f"`results` must have one shape, to be reduced elementwise, got {sorted(shapes)}: "
            f"reduce over the samples in the function itself, or use another reducer"
        )
    return torch.stack(tensors)
