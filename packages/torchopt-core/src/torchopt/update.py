"""Applying updates to parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import optree
import torch

from torchopt._arithmetic import spread
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
    inplace = inplace and not is_transforming()
    work = Workspace.over(leaves, spec, inplace)
    additions = work.updates
    if not additions:
        return params
    all_params = work.flatten(params, "params")
    targets = work.select(all_params)
    work.check_shapes(targets, "params")
    if inplace:
        with torch.no_grad():
            work.reuse.add(targets, additions)
        return params
    if targets[0].is_cpu:  # saves nothing for the backward pass, unlike the sum of a whole list
        pairs = zip(targets, cast("list[torch.Tensor]", spread(additions, targets)), strict=True)
        new = [torch.add(p, u) for p, u in pairs]
    else:
        new = work.reuse.add(targets, additions)
    return work.unflatten(work.merge(new, all_params, like=all_params))
