"""Masks: which leaves of a tree something applies to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optree

    from torchopt._arithmetic import Leaves
    from torchopt._workspace import Workspace

__all__ = ["mask_positions", "resolve_mask"]


def mask_positions(mask: Any, params: Leaves | None, work: Workspace) -> list[int]:
    """Return the positions, among the active leaves, that ``mask`` selects.

    Args:
        mask: ``None`` for all, a tree of bools (or a prefix of it), or a function from the tree of
            parameters to one.
        params: The active leaves of the parameters; needed by a function.
        work: The workspace.
    """
    indices = range(work.spec.num_leaves) if work.active is None else work.active
    if mask is None:
        return list(range(len(indices)))
    if not isinstance(mask, (bool, dict, list, tuple)) and callable(mask):
        if params is None:
            raise ValueError("a `mask` given as a function needs `params` in `update`")
        mask = mask(work.unflatten(work.merge(params)))
    selected = resolve_mask(mask, work.spec)
    return [k for k, i in enumerate(indices) if selected[i]]


def resolve_mask(mask: Any, spec: optree.PyTreeSpec) -> list[bool]:
    """Return for each leaf of a structure what a mask, a prefix of it, says.

    The mask is walked along the paths of the leaves, which a compiler can trace.

    Raises:
        ValueError: If the mask is not a prefix.
    """
    walks = [_walk(mask, path) for path in spec.paths()]
    reached = {steps for _, steps in walks}
    if any(keep is None for keep, _ in walks) or _count_bools(mask) != len(reached):
        raise ValueError(
            f"`mask` must be a tree of bools that is a prefix of the parameters' tree {spec}, "
            f"got {mask!r}"
        )
    return [bool(keep) for keep, _ in walks]


def _walk(mask: Any, path: tuple[Any, ...]) -> tuple[bool | None, tuple[Any, ...]]:
    """Return the bool on the way along ``path``, or ``None``, and the steps to it."""
    for depth, key in enumerate(path):
        if isinstance(mask, bool):
            return mask, path[:depth]
        if isinstance(mask, dict):
            known = key in mask
        else:
            known = isinstance(mask, (list, tuple)) and isinstance(key, int) and key < len(mask)
        if not known:
            return None, path
        mask = mask[key]
    return (mask if isinstance(mask, bool) else None), path


def _count_bools(mask: Any) -> int:
    if isinstance(mask, dict):
        return sum(map(_count_bools, mask.values()))
    if isinstance(mask, (list, tuple)):
        return sum(map(_count_bools, mask))
    return 1
