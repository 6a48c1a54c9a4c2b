"""Which boxes a picture of a graph shows, and which nodes each of them stands for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from torchopt_viz._elementwise import is_elementwise, operation
from torchopt_viz._graph import Graph, Group
from torchopt_viz._roles import role_of_leaves

__all__ = ["Box", "View", "listed", "view"]

# so many boxes of tensors that come from one function are one box
MANY = 6

# what tells boxes apart: "node" or "group", and its key
Key: TypeAlias = "tuple[str, int]"


class Box(NamedTuple):
    """Something to draw: one node, a chain, tensors that are used alike, or a whole group."""

    # the keys of the nodes it stands for, in order
    nodes: tuple[int, ...]
    # the group it is drawn in
    group: int
    # the group it stands for
    collapsed: int | None


class View(NamedTuple):
    """What to draw."""

    boxes: tuple[Box, ...]
    # between boxes
    edges: tuple[tuple[int, int], ...]
    # by node, its box
    box_of: tuple[int, ...]
    # those to draw, by the visible group around them
    inside: dict[int, list[int]]


def view(graph: Graph, kinds: Collection[str], max_depth: int | None, fold: bool) -> View:
    """Return what to draw.

    Args:
        graph: The graph.
        kinds: The kinds of groups to show; nodes of any other are drawn in the group around it.
        max_depth: How many levels of groups are open; None: all. A cut is shown in any case.
        fold: Whether chains of elementwise functions are one box, and tensors that are used alike,
            or that one function makes many of; leaves only with those of their role.
    """
    around = _visible(graph.groups, kinds)
    inside: dict[int, list[int]] = {}
    for group in graph.groups:
        chain = around[group.key]
        if group.key > 0 and chain[-1] == group.key and not _is_closed(chain, max_depth):
            inside.setdefault(chain[-2], []).append(group.key)
    key_of: list[Key] = []
    home: dict[Key, int] = {}
    for node in graph.nodes:
        chain = around[node.group]
        depth = len(chain) - 1 if max_depth is None else min(max_depth, len(chain) - 1)
        is_shown = node.kind == "cut" or not _is_closed(chain, max_depth)
        key = ("node", node.key) if is_shown else ("group", chain[depth + 1])
        key_of.append(key)
        home[key] = chain[depth]
    if fold:
        _fold(graph, key_of, home)
    members: dict[Key, list[int]] = {}
    for number, key in enumerate(key_of):
        members.setdefault(key, []).append(number)
    index = {key: i for i, key in enumerate(members)}
    boxes = tuple(
        Box(tuple(nodes), home[key], key[1] if key[0] == "group" else None)
        for key, nodes in members.items()
    )
    box_of = tuple(index[key] for key in key_of)
    edges = dict.fromkeys((box_of[source], box_of[target]) for source, target in graph.edges)
    return View(boxes, tuple((a, b) for a, b in edges if a != b), box_of, inside)


def _visible(groups: Sequence[Group], kinds: Collection[str]) -> list[list[int]]:
    """Return for each group the groups around it that are shown, itself last."""
    chains: list[list[int]] = []
    for group in groups:  # a parent comes before its children
        outer = [] if group.parent is None else chains[group.parent]
        shown = group.parent is None or group.kind in kinds
        chains.append([*outer, group.key] if shown else outer)
    return chains


def _is_closed(chain: Sequence[int], max_depth: int | None) -> bool:
    """Return whether the last of a chain of groups is closed; the whole graph never is."""
    return max_depth is not None and len(chain) > max_depth + 1


def _fold(graph: Graph, key_of: list[Key], home: dict[Key, int]) -> None:
    """Give the nodes of each chain one key, and tensors that belong together."""
    users: list[list[int]] = [[] for _ in graph.nodes]
    sources: list[list[int]] = [[] for _ in graph.nodes]
    for source, target in graph.edges:
        users[source].append(target)
        sources[target].append(source)
    for node in reversed(graph.nodes):  # the users of a node have been seen before
        if len(users[node.key]) != 1 or not _is_elementwise(graph, node.key):
            continue
        user = users[node.key][0]
        mine, theirs = key_of[node.key], key_of[user]
        is_open = mine[0] == theirs[0] == "node" and home[mine] == home[theirs]
        if is_open and _is_elementwise(graph, user):
            key_of[node.key] = theirs
    _join_tensors(graph, key_of, home, lambda key: (sources[key], users[key]))
    _join_tensors(graph, key_of, home, lambda key: (sources[key],), least=MANY)


def _join_tensors(
    graph: Graph,
    key_of: list[Key],
    home: dict[Key, int],
    ends: Callable[[int], tuple[list[int], ...]],
    least: int = 2,
) -> None:
    """Give tensors whose ends are the same one key, where there are so many of them."""
    roles = role_of_leaves(graph)
    alike: dict[object, list[int]] = {}
    for node in graph.nodes:
        box = key_of[node.key]
        if node.kind in ("parameter", "leaf", "tensor") and box[0] == "node":
            at = (frozenset(key_of[end] for end in group) for group in ends(node.key))
            role = roles.get(node.key)
            alike.setdefault((node.kind, role, home[box], *at), []).append(node.key)
    for keys in alike.values():
        if len({key_of[key] for key in keys}) >= least:
            first = key_of[keys[0]]
            for key in keys:
                key_of[key] = first


def _is_elementwise(graph: Graph, key: int) -> bool:
    node = graph.nodes[key]
    return node.kind == "function" and is_elementwise(operation(node.label))


def listed(labels: Sequence[str]) -> str:
    """Return the operations of a chain, one on a line."""
    runs = [(label, len(list(run))) for label, run in groupby(map(operation, labels))]
    return "\n".join(label if n == 1 else f"{label} x{n}" for label, n in runs)
