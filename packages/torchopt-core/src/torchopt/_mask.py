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
        params: What a function sees, as active leaves, if the workspace has no parameters.
        work: The workspace.
    """
    indices = range(work.spec.num_leaves) if work.active is None else work.active
    if mask is None:
        return list(range(len(indices)))
    if not isinstance(mask, (bool, dict, list, tuple)) and callable(mask):
        if params is None:
            raise ValueError("a `mask` given as a function needs `params` in `update`")
        mask = mask(work.unflatten(work.merge(params)) if work.params is None else work.params)
    selected = resolve_mask(mask, work.spec)
    return [k for k, i in enumerate(indices) if selected[i]]


def resolve_mask(mask: Any, spec: optree.PyTreeSpec) -> list[bool]:
    """Return for each leaf of a structure what a mask, a prefix of it, says.

    The mask is walked along the paths of the leaves, which a compiler can trace.

    Raises:
        ValueError: If the mask is not a prefix.
    """
    try:
        walks = [_walk(mask, path) for path in spec.paths()]
        fits = _count_leaves(mask) == len({steps for _, steps in walks})
    except (LookupError, TypeError):
        fits = False
    if not fits:
        raise ValueError(
            f"`mask` must be a tree of bools that is a prefix of the parameters' tree {spec}, "
            f"got {mask!r}"
        )
    return [keep for keep, _ in walks]


def _walk(mask: Any, path: tuple[Any, ...]) -> tuple[bool, tuple[Any, ...]]:
    """Return the bool on the way along ``path``, and the steps to it; ``None`` is ``False``."""
    for depth, key in enumerate(path):
        if mask is None or isinstance(mask, bool):
            return bool(mask), path[:depth]
        if not isinstance(mask, (dict, list, tuple)):
            raise LookupError
        mask = mask[key]
    if mask is not None and not isinstance(mask, bool):
        raise LookupError
    return bool(mask), path


def _count_leaves(mask: Any) -> int:
    if isinstance(mask, dict):
        return sum(map(_count_leaves, mask.values()))
    if isinstance(mask, (list, tuple)):
        return sum(map(_count_leaves, mask))
    return 1
