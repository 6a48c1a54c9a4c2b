"""Which inner step and which module a node belongs to, and which groups are alike."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Sequence
from itertools import accumulate, groupby
from typing import Any

from torchopt_viz._graph import Group, GroupKind, Node, Repeat
from torchopt_viz._names import Names
from torchopt_viz._recording import Recording
from torchopt_viz._walk import Function, Slot, is_leaf, is_step, name_of, number_of

__all__ = ["Grouping", "find_repeats"]

# a group within its parent: kind, what tells it from its siblings, label
Level = tuple[GroupKind, str, str]

# they give a parameter another shape, so that what uses it uses the parameter
_RESHAPING = {
    f"{name}Backward0"
    for name in ("Expand", "Permute", "T", "Transpose", "Unsqueeze", "UnsafeView", "View")
}


class Grouping:
    """Sorts functions into groups, which are made as they are needed."""

    def __init__(
        self,
        functions: Sequence[Function],
        inputs: dict[Function, list[Slot]],
        names: Names,
        recording: Recording | None,
        alive: Container[Function],
    ) -> None:
        self._recording = recording
        self._groups = [Group(0, None, "graph", "graph")]
        self._index: dict[tuple[int, Level], int] = {}
        self._steps = _steps(functions, inputs, names, recording, alive)
        self._count = max(self._steps.values(), default=0)
        self._modules = _modules_by_name(functions, inputs, names) if recording is None else {}

    def of(self, function: Function) -> int:
        """Return the group of a function."""
        levels: list[Level] = []
        if self._count:
            step = self._steps.get(function)
            label = "outer loss" if step is None else f"inner step {step}"
            levels.append(("step", label, label))
        if self._recording is None:
            parts = self._modules.get(function, "").split(".")
            paths = [".".join(parts[: i + 1]) for i in range(len(parts)) if parts[0]]
            levels += [("module", path, path) for path in paths]
        else:
            context = self._recording.context(number_of(function))
            levels += [("module", path, label) for path, label in context.modules]
            if context.backward:
                levels.append(("backward", "", "backward"))
        group = 0
        for level in levels:
            key = (group, level)
            if key not in self._index:
                self._index[key] = len(self._groups)
                self._groups.append(Group(len(self._groups), group, level[0], level[2]))
            group = self._index[key]
        return group

    def finish(
        self, nodes: Sequence[Node], edges: Sequence[tuple[int, int]]
    ) -> tuple[tuple[Node, ...], tuple[Group, ...]]:
        """Return the nodes and the groups, each leaf in the group that its users share.

        A leaf is never in a step: the step begins with it.
        """
        shared: dict[int, int] = {}
        for source, target in edges:
            if nodes[source].group < 0 and nodes[target].kind != "cut":
                group = nodes[target].group
                shared[source] = self._common(shared.get(source, group), group)
        finished = [
            node
            if node.group >= 0
            else node._replace(group=self._outside_of_steps(shared.get(node.key, 0)))
            for node in nodes
        ]
        return tuple(finished), tuple(self._groups)

    def _common(self, one: int, other: int) -> int:
        if one == other:
            return one
        return max(set(_around(self._groups, one)) & set(_around(self._groups, other)))

    def _outside_of_steps(self, group: int) -> int:
        for key in _around(self._groups, group):
            if self._groups[key].kind == "step":
                group = self._groups[key].parent or 0
        return group


def _steps(
    functions: Sequence[Function],
    inputs: dict[Function, list[Slot]],
    names: Names,
    recording: Recording | None,
    alive: Container[Function],
) -> dict[Function, int]:
    """Return the number of the first step whose parameters depend on a function.

    A function on a path that was cut belongs to the step in which it ran. There are such paths
    only with a recording, so that sequence numbers tell.
    """
    steps: list[list[Function]]
    if names.steps:
        steps = [[tensor.grad_fn for tensor in step] for step in names.steps]
        ends = [[function for function in step if function in inputs] for step in steps]
    elif recording is not None:
        numbered = sorted((f for f in functions if not is_leaf(f)), key=number_of)
        numbers = [number_of(f) for f in numbered]
        steps = [
            [
                f
                for f in numbered[
                    bisect_left(numbers, step.start) : bisect_left(numbers, step.limit)
                ]
                if step.made(number_of(f), is_step(f))
            ]
            for step in recording.steps
        ]
        ends = [step for step in steps if step]
    else:
        return {}
    found: dict[Function, int] = {}
    for number, step in enumerate(ends, 1):
        todo = list(step)
        while todo:
            function = todo.pop()
            if function not in found:
                found[function] = number
                todo += [source for source, _ in inputs[function]]
    if recording is not None:
        highest = (max((number_of(end) for end in step), default=0) for step in ends)
        last = list(accumulate(highest, max))
        for function in functions:
            if function not in found and function not in alive:
                number = bisect_left(last, number_of(function)) + 1
                if number <= len(last):
                    found[function] = number
    return found


def _modules_by_name(
    functions: Sequence[Function], inputs: dict[Function, list[Slot]], names: Names
) -> dict[Function, str]:
    """Return the path of the module whose parameters a function uses."""
    paths = {
        (tensor.grad_fn, tensor.output_nr): name.rpartition(".")[0]
        for tensor, name in names.local.items()
        if tensor.grad_fn is not None
    }
    for function in functions:
        tensor = function.variable if is_leaf(function) else None
        if tensor is not None and tensor in names.local:
            paths[function, 0] = names.local[tensor].rpartition(".")[0]
    found: dict[Function, str] = {}
    for function in functions:
        used = [paths[slot] for slot in inputs[function] if slot in paths]
        if used:
            found[function] = _common_path(used)
            if len(used) == len(inputs[function]) and name_of(function) in _RESHAPING:
                paths[function, 0] = found[function]
    return found


def _common_path(paths: Sequence[str]) -> str:
    parts = [path.split(".") for path in paths]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def find_repeats(
    nodes: Sequence[Node], edges: Sequence[tuple[int, int]], groups: Sequence[Group]
) -> tuple[Repeat, ...]:
    """Return the runs of sibling groups that have the same nodes and edges inside."""
    around = [_around(groups, group.key) for group in groups]
    position: list[dict[int, int]] = [{} for _ in groups]
    order: list[dict[int, int]] = [{} for _ in groups]
    content: list[list[Any]] = [[] for _ in groups]
    for node in nodes:
        for key in around[node.group]:
            position[key][node.key] = len(position[key])
            inner = order[key].setdefault(node.group, len(order[key]))
            content[key].append((node.kind, node.label, node.shape, inner))
    for source, target in edges:
        inside = set(around[nodes[source].group])
        for key in around[nodes[target].group]:
            if key in inside:
                content[key].append((position[key][source], position[key][target]))
    siblings: dict[int | None, list[Group]] = {}
    for group in groups:
        siblings.setdefault(group.parent, []).append(group)
    found = []
    for family in siblings.values():
        for _, run in groupby(family, lambda g: (g.kind, hash(tuple(content[g.key])))):
            keys = tuple(group.key for group in run)
            if len(keys) > 1:
                found.append(Repeat(keys[0], keys))
    return tuple(found)


def _around(groups: Sequence[Group], key: int) -> list[int]:
    """Return a group and those around it."""
    chain = [key]
    while (parent := groups[chain[-1]].parent) is not None:
        chain.append(parent)
    return chain
