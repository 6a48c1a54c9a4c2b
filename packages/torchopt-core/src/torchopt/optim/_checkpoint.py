"""The state of a stateful optimizer as plain data, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import optree
import torch

if TYPE_CHECKING:
    from torchopt.optim._group import Group

__all__ = ["check_owner", "loaded_options", "loaded_states", "plain_options"]

_PLAIN = (int, float, str, bool, torch.Tensor, type(None))
# kept as the optimizer has them
_OWN = {"params", "param_names"}


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that are plain data: no schedules, no functions."""
    return {
        name: value
        for name, value in options.items()
        if all(isinstance(x, _PLAIN) for x in optree.tree_leaves(value, none_is_leaf=True))
    }


def check_owner(name: str, state_dict: dict[str, Any], groups: Sequence[Group]) -> None:
    """Raise unless a state dict was made by the transformation ``name`` for such groups."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("a state dict has the entries `state` and `param_groups`")
    owner = state_dict.get("transformation", name)
    if owner != name:
        raise ValueError(f"the state dict belongs to another optimizer: {owner}, this is {name}")
    sizes = [group.size for group in groups]
    theirs = [len(options["params"]) for options in state_dict["param_groups"]]
    if sizes != theirs:
        raise ValueError(
            f"the state dict has parameter groups of sizes {theirs}, the optimizer has {sizes}"
        )


def loaded_options(options: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group, with those from a state dict in their places."""
    changed = {name: value for name, value in theirs.items() if name not in _OWN}
    return {**options, **copy.deepcopy(changed)}


def loaded_states(state_dict: dict[str, Any], groups: Sequence[Group]) -> list[Any]:
    """Return the states of the groups with the tensors from a state dict."""
    entries = dict(state_dict["state"])
    states = []
    for k, (group, options) in enumerate(zip(groups, state_dict["param_groups"], strict=True)):
        mine = group.by_parameter()
        theirs = [entries.pop(index, {}) for index in options["params"]]
        for i, (old, new) in enumerate(zip(mine, theirs, strict=True)):
            _check_names(f"parameter {i} of group {k}", old, new)
        shared = entries.pop(f"group {k}", {})
        _check_names(f"group {k}", group.shared(), shared)
        parts: list[Any] = []
        for name, part in group.entries():
            if isinstance(part, list):
                columns = zip(part, theirs, strict=True)
                parts.append([x if x is None else _load(name, x, new) for x, new in columns])
            else:
                parts.append(_load(name, part, shared))
        states.append(group.with_parts(parts))
    if any(entries.values()):
        raise ValueError(
            "the state dict belongs to another optimizer: it has state beyond that of this one, "
            f"for {sorted(map(str, entries))}"
        )
    return states


def _check_names(where: str, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    if set(mine) != set(theirs):
        raise ValueError(
            f"the state dict belongs to another optimizer: for {where} it has {sorted(theirs)}, "
            f"this one keeps {sorted(mine)}"
        )


def _load(name: str, old: Any, entries: dict[str, Any]) -> Any:
    new = entries[name]
    if not isinstance(old, torch.Tensor):
        return copy.deepcopy(new)
    if not isinstance(new, torch.Tensor):
        raise ValueError(f"the state dict is damaged: `{name}` must be a tensor, got {new!r}")
    if old.shape != new.shape:
        raise ValueError(
            f"the state dict belongs to other parameters: `{name}` has shape {tuple(new.shape)}, "
            f"here it has {tuple(old.shape)}"
        )
    return new.detach().to(old.device, old.dtype, copy=True).requires_grad_(old.requires_grad)
