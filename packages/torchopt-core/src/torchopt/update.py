"""Applying updates to parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optree
import torch

from torchopt._workspace import Workspace, is_transforming

if TYPE_CHECKING:
    from torchopt.typing import Params, Updates

__all__ = ["apply_updates"]


def apply_updates(params: Params, updates: Updates, *, inplace: bool = True) -> Params:
    """Add updates to parameters.

    Args:
        params: A tree of tensors.
        updates: A tree of the same structure and shapes; ``None`` leaves the parameter as it is.
        inplace: Whether to overwrite the parameters, outside of any graph. Otherwise the sum is a
            new tree, differentiable in both; so it is under ``torch.func`` transforms, too.

    Returns:
        The updated parameters: the same tensors if ``inplace``.

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

    work = Workspace.over(leaves, spec, inplace and not is_transforming())
    additions = work.updates
    if not additions:
        return params
    all_params = work.flatten(params, "params")
    targets = work.select(all_params)
    work.check_shapes(targets, "params")
    with torch.set_grad_enabled(torch.is_grad_enabled() and not work.inplace):
        new = work.reuse.add(targets, additions)
    if work.inplace:
        return params
    return work.unflatten(work.merge(new, all_params, like=all_params))


def _are_plain(param: Any, update: Any) -> bool:
    """Return whether a parameter and its update are alike and on the CPU."""
    return (
        isinstance(param, torch.Tensor)
        and isinstance(update, torch.Tensor)
        and param.shape == update.shape
        and param.dtype == update.dtype
        and param.is_cpu
    )
