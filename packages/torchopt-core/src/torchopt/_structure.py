"""Trees of one structure, in which kinds of dicts and kinds of sequences may differ.

Gradients from `torch.autograd.grad` are a tuple where the parameters are a list, a named tuple or
an ``OrderedDict``'s values. So leaves are matched by position in a sequence and by key in a dict,
whatever kind of sequence or dict it is.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

import optree
import torch

__all__ = ["aligned", "flatten_like", "tuple_structure", "unflatten_like"]

_SEQUENCES = (list, tuple, deque)


def aligned(spec: optree.PyTreeSpec, tree: Any) -> list[Any]:
    """Return what a tree has in the places of a structure's leaves, which may be trees themselves.

    Raises:
        ValueError: If its structure is another one, above these.
    """
    kind: Any = spec.type
    if kind is None:
        return [tree]
    if not issubclass(kind, (*_SEQUENCES, dict)):
        return spec.flatten_up_to(tree)
    if issubclass(kind, dict):
        if not isinstance(tree, dict) or tree.keys() != set(spec.entries()):
            raise ValueError("a dict with other keys, or none")
        parts = [tree[key] for key in spec.entries()]
    else:
        if not isinstance(tree, _SEQUENCES) or len(tree) != spec.num_children:
            raise ValueError("a sequence of another length, or none")
        if type(tree) is not kind and hasattr(tree, "_fields") and hasattr(kind, "_fields"):
            raise ValueError("a named tuple of another type")
        parts = list(tree)
    found = []
    for child, part in zip(spec.children(), parts, strict=True):
        found.extend(aligned(child, part))
    return found


def flatten_like(spec: optree.PyTreeSpec, tree: Any, name: str) -> list[Any]:
    """Return the leaves of a tree that must be shaped like the parameters.

    Raises:
        ValueError: If it is not.
    """
    leaves: list[Any]
    leaves, found = optree.tree_flatten(tree, none_is_leaf=True)
    if found != spec:
        try:
            leaves = aligned(spec, tree)
            kinds = (torch.Tensor, type(None), int, float)
            matches = all(isinstance(x, kinds) for x in leaves)
        except (ValueError, TypeError):
            matches = False
        if not matches:
            raise ValueError(
                f"the structure of `{name}` differs from that of the updates: "
                f"`{name}` is {found}, the updates are {spec}"
            )
    return leaves


def unflatten_like(spec: optree.PyTreeSpec, leaves: Sequence[Any], tree: Any) -> Any:
    """Return the tree with these leaves of a structure, of the kinds that a tree like it has."""
    own = optree.tree_structure(tree, none_is_leaf=True)
    if own == spec:
        return optree.tree_unflatten(spec, leaves)
    positions = aligned(spec, optree.tree_unflatten(own, range(own.num_leaves)))
    placed: list[Any] = [None] * len(positions)
    for i, x in zip(positions, leaves, strict=True):
        placed[i] = x
    return optree.tree_unflatten(own, placed)


@functools.lru_cache(maxsize=64)
def tuple_structure(length: int) -> optree.PyTreeSpec:
    """Return the tree structure of a tuple of leaves."""
    return optree.tree_structure((0,) * length, none_is_leaf=True)  # type: ignore[arg-type]
