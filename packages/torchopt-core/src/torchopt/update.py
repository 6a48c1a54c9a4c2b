"""Applying updates to parameters."""

from __future__ import annotations

from typing import Any

import optree
import torch

from torchopt._context import Context, is_transforming
from torchopt._structure import flatten_like, unflatten_like
from torchopt._types import Params, Updates
from torchopt._updates import FactoredUpdates

__all__ = ["apply_updates"]


def apply_updates(params: Params, updates: Updates, *, inplace: bool = True) -> Params:
    """Add updates to parameters.

    Args:
        params: A tree of tensors.
        updates: A tree of the same structure and shapes, where kinds of sequences and of dicts may
            differ; ``None`` leaves the parameter as it is.
        inplace: Whether to overwrite the parameters, outside of any graph. Otherwise the sum is a
            new tree, differentiable in both; so it is under ``torch.func`` transforms, too.

    Returns:
        The updated parameters, in a tree like theirs: the same tensors if ``inplace``.

    Raises:
        ValueError: If structures or shapes differ; nothing is changed then.

    Example:
        >>> import torch, torchopt
        >>> torchopt.apply_updates({"w": torch.ones(2)}, {"w": torch.tensor([0.5, -0.5])})
        {'w': tensor([1.5000, 0.5000])}
    """
    leaves, spec = optree.tree_flatten(updates, none_is_leaf=True)
    if not inplace and not is_transforming():
        others, other_spec = optree.tree_flatten(params, none_is_leaf=True)
        if other_spec == spec and all(map(_are_plain, others, leaves)):
            # one by one: the sum of whole lists would keep them for its backward pass
            return optree.tree_unflatten(spec, list(map(torch.add, others, leaves)))

    active = [i for i, x in enumerate(leaves) if x is not None]
    every = flatten_like(spec, params, "params")
    if not active:
        return params
    for i in active:
        found = getattr(every[i], "shape", None)
        if found != leaves[i].shape:
            what = "is None" if found is None else f"has shape {tuple(found)}"
            raise ValueError(
                f"leaf {i} of `params` {what}, "
                f"but that of the updates has shape {tuple(leaves[i].shape)}"
            )
    context = Context(spec, active).computing(inplace)
    additions = FactoredUpdates([leaves[i] for i in active])
    with torch.set_grad_enabled(torch.is_grad_enabled() and not context.inplace):
        new = additions.add_to([every[i] for i in active], context)
    if context.inplace:
        return params
    for i, x in zip(active, new, strict=True):
        every[i] = x
    return unflatten_like(spec, every, params)


def _are_plain(param: Any, update: Any) -> bool:
    """Return whether a parameter and its update are alike and on the CPU."""
    return (
        isinstance(param, torch.Tensor)
        and isinstance(update, torch.Tensor)
        and param.shape == update.shape
        and param.dtype == update.dtype
        and param.is_cpu
    )
