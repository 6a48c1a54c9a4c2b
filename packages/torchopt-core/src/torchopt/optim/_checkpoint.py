"""The state of a stateful optimizer as plain data that `torch.optim` reads, too, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import optree
import torch

from torchopt.optim._layout import Layout

__all__ = ["check_owner", "loaded_options", "loaded_rows", "plain_options", "plain_rows"]

_PLAIN = (int, float, str, bool, torch.Tensor, type(None))
# kept as the optimizer has them
_OWN = {"params", "param_names"}
# what `torch.optim` counts where it is not needed here, keeps for an option that is off, or
# computes in (L-BFGS)
_IGNORED = {"step", "max_exp_avg_sq", "al"}


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group that are plain data: no schedules, no functions."""
    return {
        name: value
        for name, value in options.items()
        if all(isinstance(x, _PLAIN) for x in optree.tree_leaves(value, none_is_leaf=True))
    }


def plain_rows(state: dict[Any, Any]) -> dict[Any, Any]:
    """Return the state by parameter without what is None, and with step counts as torch's."""
    return {
        key: {
            name: _as_torch_counts(x) if name == "step" else x
            for name, x in row.items()
            if x is not None
        }
        for key, row in state.items()
    }


def _as_torch_counts(x: Any) -> Any:
    """Return an integer count as the float32 that `torch.optim` adds to."""
    is_count = isinstance(x, torch.Tensor) and x.dtype == torch.int64
    return x.to(torch.float32) if is_count else x


def check_owner(
    name: str, state_dict: dict[str, Any], groups: Sequence[dict[str, Any]] | None = None
) -> None:
    """Raise unless a state dict was made by the transformation ``name``, for such groups."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError("a state dict has the entries `state` and `param_groups`")
    owner = state_dict.get("transformation", name)
    if owner != name:
        raise ValueError(f"the state dict belongs to another optimizer: {owner}, this is {name}")
    if groups is None:
        return
    sizes = [len(group["params"]) for group in groups]
    theirs = [len(options["params"]) for options in state_dict["param_groups"]]
    if sizes != theirs:
        raise ValueError(
            f"the state dict has parameter groups of sizes {theirs}, the optimizer has {sizes}"
        )


def loaded_options(options: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a parameter group, with those from a state dict in their places."""
    changed = {name: value for name, value in theirs.items() if name not in _OWN}
    return {**options, **copy.deepcopy(changed)}


def loaded_rows(
    layout: Layout, params: Sequence[torch.Tensor], rows: Sequence[dict[str, Any]], where: str
) -> list[dict[str, Any]]:
    """Return the state of each parameter, from that in a state dict.

    Raises:
        ValueError: If it belongs to another optimizer, to other parameters, or is damaged.
    """
    return [
        _loaded_row(layout, p, row, f"parameter {i} of {where}", is_first=i == 0)
        for i, (p, row) in enumerate(zip(params, rows, strict=True))
    ]


def _loaded_row(
    layout: Layout, param: torch.Tensor, row: dict[str, Any], where: str, is_first: bool
) -> dict[str, Any]:
    row = {name: x for name, x in row.items() if x is not None}
    known = {entry.name for entry in layout.entries if is_first or not entry.is_shared}
    unknown = row.keys() - known - _IGNORED
    moments = {entry.name for entry in layout.entries if entry.is_moment}
    present = row.keys() & moments
    # a partition's parameters have the moments of their own part
    missing = set() if layout.is_partitioned else moments - present
    if unknown or (row.keys() - _shared(layout) and missing):
        raise ValueError(
            f"the state dict belongs to another optimizer: for {where} it has {sorted(row)}, "
            f"this one keeps {sorted(known)}"
        )
    loaded: dict[str, Any] = {}
    for entry in layout.entries:
        if entry.name in row and (is_first or not entry.is_shared):
            loaded[entry.name] = _loaded(entry.name, row[entry.name], param, entry)
    if loaded.keys() - _shared(layout):
        for entry in layout.entries:
            if entry.name in loaded or entry.is_shared:
                continue
            if entry.missing is not None:
                loaded[entry.name] = torch.tensor(
                    int(entry.missing), dtype=torch.int64, device="cpu"
                )
            elif entry.name == "step" and not layout.is_partitioned:
                raise ValueError(
                    f"the state dict belongs to another optimizer: for {where} it has no `step`"
                )
            else:
                loaded[entry.name] = None
    return loaded


def _shared(layout: Layout) -> set[str]:
    return {entry.name for entry in layout.entries if entry.is_shared}


def _loaded(name: str, value: Any, param: torch.Tensor, entry: Any) -> Any:
    if name == "step" and not entry.is_shared:
        count = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return count.detach().to("cpu", torch.int64, copy=True)
    if entry.is_number:
        found = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return found.detach().to("cpu", torch.float64, copy=True)
    if entry.is_moment and not isinstance(value, torch.Tensor):
        raise ValueError(f"the state dict is damaged: `{name}` must be a tensor, got {value!r}")
    if entry.is_moment and value.shape != param.shape:
        raise ValueError(
            f"the state dict belongs to other parameters: `{name}` has shape "
            f"{tuple(value.shape)}, here it has {tuple(param.shape)}"
        )
    if entry.is_moment or (not entry.is_shared and isinstance(value, torch.Tensor)):
        dtype = param.dtype if entry.is_moment or value.is_floating_point() else value.dtype
        return value.detach().to(param.device, dtype, copy=True)
    return copy.deepcopy(value)
