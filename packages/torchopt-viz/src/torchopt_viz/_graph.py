"""The records that describe a gradient graph: what collecting makes, and what pictures are made of.

They hold numbers and text only: a :class:`Graph` keeps no tensor alive, and pickles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from html import escape
from typing import Literal, NamedTuple

__all__ = ["Graph", "Group", "Memory", "Node", "Repeat", "Saved", "uncompiled"]

NodeKind = Literal["function", "step", "parameter", "leaf", "tensor", "output", "cut"]
GroupKind = Literal["graph", "step", "module", "backward"]
Cause = Literal["detached", "in-place", "no_grad", "integer"]


class Saved(NamedTuple):
    """One tensor that a node keeps for its backward pass."""

    # "self" for `_saved_self`; the position for functions written in Python: "saved[0]"
    name: str
    shape: tuple[int, ...]
    # "float32"
    dtype: str
    # what it adds to the totals: the size of its storage, or 0 if a tensor before it shares that
    nbytes: int
    # index of the storage in the graph: equal for tensors that share memory
    storage: int
    # whether the storage is a leaf's, so that it is there without the graph
    leaf: bool


class Node(NamedTuple):
    """A function that ran, or a tensor that has a name, is a leaf or is an output."""

    # its position in `Graph.nodes`: in order of creation, a leaf before its first user
    key: int
    # "function"; "step", a fused optimizer step; "parameter", a leaf with a name; "leaf", one
    # without; "tensor", no leaf but named; "output"; "cut", where a gradient stops
    kind: NodeKind
    # "AddmmBackward0"; the class for tensors; for a cut, what cut it: "detach"
    label: str
    # what the tensor is called
    names: tuple[str, ...]
    shape: tuple[int, ...] | None
    dtype: str | None
    saved: tuple[Saved, ...]
    # the innermost group
    group: int
    # "train.py:31" where that was recorded
    where: str | None
    # what else the node keeps, as text: ("alpha", "1")
    attrs: tuple[tuple[str, str], ...]
    # of a cut
    cause: Cause | None

    @property
    def name(self) -> str | None:
        """The name of the tensor, several joined by ``", "``."""
        return ", ".join(self.names) or None


class Group(NamedTuple):
    """Nodes that belong together. Groups form a tree, the first is the whole graph."""

    key: int
    # None for the whole graph
    parent: int | None
    kind: GroupKind
    # "inner step 3", "layers.0 (Conv2d)"
    label: str


class Repeat(NamedTuple):
    """Groups of one structure that follow one another in the same group."""

    # the first of them
    first: int
    # all of them, in order
    groups: tuple[int, ...]


class Memory(NamedTuple):
    """Bytes that are kept alive for the backward pass, each storage counted once."""

    # by group: in its own nodes
    own: tuple[int, ...]
    # by group: in its nodes and the groups within it
    inclusive: tuple[int, ...]
    # of the whole graph
    total: int
    # the part of the total that is leaves, such as parameters: memory that is there anyway
    leaves: int


class Graph(NamedTuple):
    """The graph that a backward pass from some outputs would go through, as plain data.

    Example:
        >>> import torch
        >>> from torchopt_viz import gradient_graph
        >>> net = torch.nn.Linear(2, 1)
        >>> graph = gradient_graph(net(torch.ones(1, 2)), dict(net.named_parameters()))
        >>> [node.name or node.label for node in graph.nodes]
        ['weight', 'TBackward0', 'bias', 'AddmmBackward0', 'output']
        >>> [graph.nodes[key].label for key in graph.path("weight")]
        ['Parameter', 'TBackward0', 'AddmmBackward0', 'Tensor']
    """

    nodes: tuple[Node, ...]
    # (source, target) in the direction of the data: the target uses the source's value
    edges: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    repeats: tuple[Repeat, ...]
    # the names among those given that do not reach an output
    unreached: tuple[str, ...]
    # keys of functions whose saved tensors torch does not show, such as `torch._foreach_mul`: their
    # memory is missing from the totals, unless :func:`record` has seen them run
    unseen: tuple[int, ...] = ()

    def memory(self) -> Memory:
        """Return the bytes that each group keeps alive for the backward pass."""
        own = [0] * len(self.groups)
        leaves = 0
        for node in self.nodes:
            for saved in node.saved:
                own[node.group] += saved.nbytes
                leaves += saved.nbytes if saved.leaf else 0
        inclusive = list(own)
        for group in reversed(self.groups):  # a parent comes before its children
            if group.parent is not None:
                inclusive[group.parent] += inclusive[group.key]
        return Memory(tuple(own), tuple(inclusive), inclusive[0], leaves)

    def _repr_html_(self) -> str:
        """Return what notebooks show: the page of :func:`save_html`, in a frame of its own."""
        from torchopt_viz._page import page_of

        return (
            '<iframe sandbox="allow-scripts allow-downloads" title="Gradient graph" '
            'style="width: 100%; height: 600px; border: 1px solid #8884; border-radius: 6px" '
            f'srcdoc="{escape(page_of(self, "Gradient graph"))}"></iframe>'
        )

    def find(self, name: str) -> int:
        """Return the key of the node of a tensor.

        Args:
            name: One of the tensor's names.

        Raises:
            KeyError: If no node has it, or several have.
        """
        name = uncompiled(name)
        found = [node.key for node in self.nodes if name in node.names]
        if len(found) == 1:
            return found[0]
        if found:
            raise KeyError(
                f"{name!r} is the name of {len(found)} tensors; give each a name of its own, as "
                "`visual_prefix` does for the states of a module"
            )
        known = [name for node in self.nodes for name in node.names]
        if name in self.unreached:
            raise KeyError(f"{name!r} does not reach the output; in the graph are {known}")
        raise KeyError(f"no tensor of the graph is named {name!r}; there are {known}")

    def path(self, start: str | int) -> tuple[int, ...]:
        """Return the keys of all nodes on paths from a node to an output, in order.

        Args:
            start: The name of a tensor, or the key of a node.

        Returns:
            The keys, the start and the outputs among them; none if no output is reached.

        Raises:
            KeyError: If no node has this name or key, or several have the name.
        """
        key = self.find(start) if isinstance(start, str) else start
        if not 0 <= key < len(self.nodes):
            raise KeyError(f"`start` must be a key from 0 to {len(self.nodes) - 1}, got {key}")
        users: list[list[int]] = [[] for _ in self.nodes]
        inputs: list[list[int]] = [[] for _ in self.nodes]
        for source, target in self.edges:
            users[source].append(target)
            inputs[target].append(source)
        outputs = [node.key for node in self.nodes if node.kind == "output"]
        return tuple(sorted(_reach([key], users) & _reach(outputs, inputs)))


def uncompiled(name: str) -> str:
    """Return a name without what :func:`torch.compile` puts into those of a module.

    Example:
        >>> from torchopt_viz._graph import uncompiled
        >>> uncompiled("step0._orig_mod.layers.0.weight")
        'step0.layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod") or name


def _reach(starts: Iterable[int], neighbours: list[list[int]]) -> set[int]:
    """Return the nodes that can be reached, the starts included."""
    reached = set(starts)
    queue = deque(reached)
    while queue:
        for key in neighbours[queue.popleft()]:
            if key not in reached:
                reached.add(key)
                queue.append(key)
    return reached
