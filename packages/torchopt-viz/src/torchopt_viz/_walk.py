"""Walking autograd's graph."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from torchopt_viz._private import levels

__all__ = [
    "Function",
    "Slot",
    "after",
    "before",
    "edge_of",
    "in_order",
    "is_leaf",
    "is_step",
    "name_of",
    "number_of",
    "slot_of",
]

# a node of autograd's graph
Function: TypeAlias = Any
# one of its outputs
Slot: TypeAlias = "tuple[Function, int]"


def edge_of(tensor: Tensor) -> GradientEdge:
    """Return where in a graph a tensor is that requires grad.

    So does :func:`torch.autograd.graph.get_gradient_edge`, except for a leaf from outside of the
    ``torch.func`` transform that is running.
    """
    if not tensor.is_leaf:
        return get_gradient_edge(tensor)
    with torch.enable_grad():
        view = tensor.view_as(tensor)
    function = next(x.grad_fn for x in levels(view) if x.grad_fn is not None)
    (leaf, _), *_ = function.next_functions
    assert leaf is not None
    return GradientEdge(leaf, 0)


def slot_of(edge: GradientEdge) -> Slot:
    """Return the slot that an edge leads to."""
    return edge.node, edge.output_nr


def is_leaf(function: Function) -> bool:
    """Return whether a node of autograd's graph stands for a leaf."""
    return type(function).__name__ == "AccumulateGrad"


def is_step(function: Function) -> bool:
    """Return whether a node is a fused optimizer step of `torchopt-accel`, or its backward."""
    forward = getattr(type(function), "_forward_cls", None)
    return forward is not None and forward.__module__.startswith("torchopt_accel.")


def name_of(function: Function) -> str:
    """Return what autograd calls a node, whatever its context calls itself (``ctx.name = ...``)."""
    return str(type(function).name(function))


def number_of(function: Function) -> int:
    """Return the sequence number of a node: how many this thread had made before it."""
    return int(type(function)._sequence_nr(function))


def before(roots: Iterable[Function]) -> dict[Function, list[Slot]]:
    """Return the inputs of all functions that the roots depend on."""
    inputs: dict[Function, list[Slot]] = {}
    todo = list(roots)
    while todo:
        function = todo.pop()
        if function not in inputs:
            inputs[function] = [slot for slot in function.next_functions if slot[0] is not None]
            todo += [source for source, _ in inputs[function]]
    return inputs


def in_order(inputs: dict[Function, list[Slot]]) -> list[Function]:
    """Return functions in order of creation, and after those they depend on.

    Sequence numbers count for each thread, so they order what the data leave open.
    """
    users: dict[Function, list[Function]] = {function: [] for function in inputs}
    missing = {}
    for function, slots in inputs.items():
        sources = {source for source, _ in slots}
        missing[function] = len(sources)
        for source in sources:
            users[source].append(function)
    ties = itertools.count()
    ready = [(_rank(f), next(ties), f) for f in inputs if missing[f] == 0]
    heapq.heapify(ready)
    order: list[Function] = []
    while ready:
        function = heapq.heappop(ready)[-1]
        order.append(function)
        for user in users[function]:
            missing[user] -= 1
            if missing[user] == 0:
                heapq.heappush(ready, (_rank(user), next(ties), user))
    return order


def after(
    starts: set[Function], order: Sequence[Function], inputs: dict[Function, list[Slot]]
) -> set[Function]:
    """Return the functions that depend on a start, the starts included."""
    found = set(starts)
    for function in order:
        if any(source in found for source, _ in inputs[function]):
            found.add(function)
    return found


def _rank(function: Function) -> int:
    return -1 if is_leaf(function) else number_of(function)
