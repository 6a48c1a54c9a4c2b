"""Masks: which leaves of a tree something applies to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree

from torchopt._context import Context

__all__ = ["mask_positions", "resolve_mask", "resolve_prefix", "tree_of"]


def mask_positions(mask: Any, context: Context) -> list[int]:
    """Return the positions, among the leaves with an update, that ``mask`` selects.

    Args:
        mask: ``None`` for all, a tree of bools (or a prefix of it), or a function from the tree of
            parameters (of updates, where the parameters are not given) to one.
        context: The context.
    """
    if mask is None or mask is True:
        return list(range(context.size))
    if not isinstance(mask, (bool, dict, list, tuple)) and callable(mask):
        mask = mask(tree_of(context))
    selected = resolve_mask(mask, context.spec)
    return [k for k, i in enumerate(context.positions) if selected[i]]


def tree_of(context: Context) -> Any:
    """Return the tree of parameters, or of updates where the parameters are not given."""
    if context.tree is not None:
        return context.tree
    leaves = context.like if context.params is None else context.params
    return context.unflatten(leaves or [])


def resolve_mask(mask: Any, spec: optree.PyTreeSpec) -> list[bool]:
    """Return for each leaf of a structure what a mask, a prefix of it, says.

    Raises:
        ValueError: If the mask is not a prefix.
    """
    found = resolve_prefix(mask, spec, lambda x: x is None or isinstance(x, bool))
    if found is None:
        raise ValueError(
            f"`mask` must be a tree of bools that is a prefix of the parameters' tree {spec}, "
            f"got {mask!r}"
        )
    return [bool(x) for x in found]


def resolve_prefix(
    prefix: Any, spec: optree.PyTreeSpec, is_value: Callable[[Any], bool]
) -> list[Any] | None:
    """Return for each leaf of a structure the value of a prefix tree above it; None if it is none.

    The prefix is walked along the paths of the leaves, which a compiler can trace.
    """
    if isinstance(prefix, (list, tuple)) and spec.type in (list, tuple):
        is_flat = len(prefix) == spec.num_children == spec.num_leaves
        if is_flat and all(map(is_value, prefix)):
            return list(prefix)
    try:
        walks = [_walk(prefix, path, is_value) for path in spec.paths()]
        fits = _count_values(prefix) == len({steps for _, steps in walks})
    except (LookupError, TypeError):
        return None
    return [value for value, _ in walks] if fits else None


def _walk(
    prefix: Any, path: tuple[Any, ...], is_value: Callable[[Any], bool]
) -> tuple[Any, tuple[Any, ...]]:
    """Return the value on the way along ``path``, and the steps to it."""
    for depth, key in enumerate(path):
        if is_value(prefix):
            return prefix, path[:depth]
        if not isinstance(prefix, (dict, list, tuple)):
            raise LookupError
        prefix = prefix[key]
    if not is_value(prefix):
        raise LookupError
    return prefix, path


def _count_values(prefix: Any) -> int:
    if isinstance(prefix, dict):
        return sum(map(_count_values, prefix.values()))
    if isinstance(prefix, (list, tuple)):
        return sum(map(_count_values, prefix))
    return 1
