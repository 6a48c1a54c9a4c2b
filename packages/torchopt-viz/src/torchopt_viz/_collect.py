"""From autograd's graph to records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import optree
import torch
from torch import Tensor

from torchopt.typing import TensorTree
from torchopt_viz._cause import TO_PYTHON
from torchopt_viz._graph import Cause, Graph, Node, NodeKind, Saved
from torchopt_viz._groups import Grouping, find_repeats
from torchopt_viz._memory import Kept, Storages, is_opaque, read_kept, sizes
from torchopt_viz._names import Names, Params, read_names
from torchopt_viz._private import levels
from torchopt_viz._recording import Recording
from torchopt_viz._walk import (
    Function,
    Slot,
    after,
    before,
    edge_of,
    in_order,
    is_leaf,
    is_step,
    name_of,
    number_of,
    slot_of,
)

__all__ = ["as_graph", "collect", "gradient_graph"]


def gradient_graph(
    var: TensorTree, params: Params = None, *, recording: Recording | None = None
) -> Graph:
    """Return the graph that a backward pass from ``var`` goes through, as plain data.

    Its nodes are the functions that ran, the leaves, the tensors that have a name, and the
    outputs. Inner steps are groups: a function belongs to the first step whose parameters depend
    on it, and to the outer loss if none does. Modules are groups, too: those that were recorded,
    or, without a recording, those whose parameters a function uses.

    Args:
        var: A tensor, or a tree of tensors.
        params: Names of tensors: a dict from names to tensors or from tensors to names, a module,
            a state of :func:`torchopt.extract_state_dict` with ``enable_visual=True``, pairs of a
            name and a tensor, or a sequence of these. States of one module are inner steps, in
            their order. Several tensors may have one name; a ``visual_prefix`` tells states apart.
        recording: What :func:`record` has seen of the computation. Default: nothing.

    Returns:
        A :class:`Graph`. It keeps no tensor alive.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a tensor of ``var`` has no graph, or a state has no names.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_viz import gradient_graph
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> states = [torchopt.extract_state_dict(net, enable_visual=True, visual_prefix="step0.")]
        >>> inner = torchopt.MetaSGD(net, lr=0.1)
        >>> inner.step(net(torch.ones(1, 2)).square().sum())
        >>> states += [torchopt.extract_state_dict(net, enable_visual=True, visual_prefix="step1.")]
        >>> graph = gradient_graph(net(torch.ones(1, 2)).sum(), states)
        >>> [group.label for group in graph.groups if group.kind == "step"]
        ['inner step 1', 'outer loss']
        >>> graph.unreached
        ()
    """
    return collect(var, read_names(params), recording)


def as_graph(var: TensorTree | Graph, params: Params, recording: Recording | None) -> Graph:
    """Return the graph that a picture is asked of: as it is, or collected.

    Raises:
        ValueError: If `params` or `recording` come with a :class:`Graph`, which has them already.
    """
    if not isinstance(var, Graph):
        return gradient_graph(var, params, recording=recording)
    if params is None and recording is None:
        return var
    given = "params" if params is not None else "recording"
    raise ValueError(
        f"`{given}` was given with a Graph, which is complete already; "
        f"pass it to gradient_graph(..., {given}=...)"
    )


def collect(var: TensorTree, names: Names, recording: Recording | None) -> Graph:
    """Return the graph, as :func:`gradient_graph` does, with names that have been read."""
    if recording is not None and not isinstance(recording, Recording):
        raise TypeError(
            "`recording` must be what `with record() as recording:` gives, got "
            f"{type(recording).__name__}"
        )
    return _Collector(_outputs(var), names, recording).graph()


def _outputs(var: TensorTree) -> dict[str, Tensor]:
    """Return the outputs by what they are called."""
    accessors, leaves, _ = optree.tree_flatten_with_accessor(var)
    found = {}
    for accessor, leaf in zip(accessors, leaves, strict=True):
        name = accessor.codify("output")
        shown = name.replace("output", "var", 1)
        if not isinstance(leaf, Tensor):
            raise TypeError(f"`{shown}` must be a tensor, got {type(leaf).__name__}")
        found[name] = next((x for x in levels(leaf) if x.requires_grad), leaf)
        if not found[name].requires_grad:
            raise ValueError(
                f"`{shown}`, a tensor of shape {tuple(leaf.shape)} and {leaf.dtype}, has no graph: "
                "it does not require grad. Compute it with floating-point numbers from tensors "
                "that require grad (`requires_grad_()`), outside of `torch.no_grad()`, without "
                "`detach()`, and with `inplace=False` where an optimizer's update is part of it"
            )
    if not found:
        raise TypeError("`var` must be a tensor or a tree of tensors, got a tree without any")
    return found


def _slots(tensor: Tensor) -> list[Slot]:
    """Return where a tensor is in graphs: of each transform that computes with it, or nowhere."""
    return [slot_of(edge_of(x)) for x in levels(tensor) if x.requires_grad]


class _Stop(NamedTuple):
    """A cut that is to become a node."""

    cause: Cause
    label: str
    where: str | None


def _label(function: Function) -> str:
    if not is_step(function):
        return name_of(function)
    is_backward = hasattr(function, "call")
    step = function.call.step if is_backward else function.step
    return f"{step.kernel.name} step" + (" backward" if is_backward else "")


class _Collector:
    """Makes the records of one graph."""

    def __init__(
        self, outputs: dict[str, Tensor], names: Names, recording: Recording | None
    ) -> None:
        self.names = names
        self.recording = recording
        self.outputs = {name: slot_of(edge_of(x)) for name, x in outputs.items()}
        self.tensors: dict[Slot, Tensor] = {slot: x for x in names.of for slot in _slots(x)}
        roots = [function for function, _ in self.outputs.values()]
        self.alive = before(roots)
        self.used: set[Slot] = {slot for slots in self.alive.values() for slot in slots}
        self.used.update(self.outputs.values())
        self.stops = self._stops()
        self.inputs, self.shown = self.alive, set(self.alive)
        if self.stops:
            self.inputs = before([*roots, *(function for function, _ in self.stops)])
        self.functions = in_order(self.inputs)
        if self.stops:
            starts = {*self.alive, *(function for function, _ in self.tensors)}
            self.shown = after(starts, self.functions, self.inputs)

        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self.key_of: dict[Slot, int] = {}
        self.unseen: list[int] = []
        self.storages = Storages()

    def _stops(self) -> dict[Slot, list[_Stop]]:
        """Return the cuts to show.

        A number that Python gets, for example to print it, matters where a tensor of the graph is
        converted, or where it is why a named tensor does not reach the output.
        """
        if self.recording is None:
            return {}
        cuts = [
            cut for cut in self.recording.cuts if slot_of(cut.source) not in self.outputs.values()
        ]
        quiet = [cut.source.node for cut in cuts if cut.operation in TO_PYTHON]
        inputs = before(function for function in quiet if function not in self.alive)
        lost = {function for function, i in self.tensors if (function, i) not in self.used}
        reason = {*self.alive, *after(lost, in_order(inputs), inputs)} if quiet else set()
        stops: dict[Slot, list[_Stop]] = {}
        for cut in cuts:
            if cut.operation not in TO_PYTHON or cut.source.node in reason:
                stop = _Stop(cut.cause, cut.operation, cut.where)
                stops.setdefault(slot_of(cut.source), []).append(stop)
        return stops

    def graph(self) -> Graph:
        """Return the graph."""
        for function in self.functions:
            if function in self.alive and is_leaf(function):
                self.storages.add_leaf(function.variable)
        grouping = Grouping(self.functions, self.inputs, self.names, self.recording, self.alive)
        for function in self.functions:
            if function not in self.shown or is_leaf(function):
                continue
            inputs = [slot for slot in self.inputs[function] if slot[0] in self.shown]
            for slot in inputs:
                if slot not in self.key_of and is_leaf(slot[0]):
                    self._add_leaf(slot)
            self._add_function(function, inputs, grouping)
        for slot in [*self.outputs.values(), *self.stops]:
            if slot not in self.key_of and slot[0] in self.shown:
                self._add_leaf(slot)
        for name, slot in self.outputs.items():
            self._add_output(name, slot)
        edges = tuple(dict.fromkeys(self.edges))
        nodes, groups = grouping.finish(self.nodes, edges)
        repeats = find_repeats(nodes, edges, groups)
        return Graph(nodes, edges, groups, repeats, self._unreached(), tuple(self.unseen))

    def _add(
        self,
        kind: NodeKind,
        label: str,
        inputs: Sequence[int] = (),
        names: tuple[str, ...] = (),
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        saved: tuple[Saved, ...] = (),
        group: int = 0,
        where: str | None = None,
        attrs: tuple[tuple[str, str], ...] = (),
        cause: Cause | None = None,
    ) -> int:
        key = len(self.nodes)
        size = None if shape is None else sizes(shape)
        kept = None if dtype is None else str(dtype).removeprefix("torch.")
        self.nodes.append(
            Node(key, kind, label, names, size, kept, saved, group, where, attrs, cause)
        )
        self.edges += [(source, key) for source in inputs]
        return key

    def _add_tensor(self, kind: NodeKind, tensor: Tensor, inputs: Sequence[int], group: int) -> int:
        return self._add(
            kind,
            type(tensor).__name__,
            inputs,
            names=self.names.of.get(tensor, ()),
            shape=tensor.shape,
            dtype=tensor.dtype,
            group=group,
        )

    def _add_leaf(self, slot: Slot) -> None:
        tensor = self.tensors.get(slot, slot[0].variable)
        kind: NodeKind = "parameter" if slot in self.tensors else "leaf"
        # the group is settled when the users are known
        self.key_of[slot] = self._add_tensor(kind, tensor, (), -1)
        self._add_stops(slot, -1)

    def _add_function(self, function: Function, inputs: Sequence[Slot], grouping: Grouping) -> None:
        where = None
        if self.recording is not None:
            number = number_of(function)
            where = self.recording.where(number)
            if where is None and is_step(function):
                where = self.recording.taken.line(number)
        group = grouping.of(function)
        metadata = next(iter(function._input_metadata), None)
        saved: tuple[Saved, ...] = ()
        kept, is_unseen = self._kept(function)
        if function in self.alive:
            saved = tuple(self.storages.count(name, x) for name, x in kept.tensors)
        key = self._add(
            "step" if is_step(function) else "function",
            _label(function),
            [self.key_of[slot] for slot in inputs],
            shape=None if metadata is None else metadata.shape,
            dtype=None if metadata is None else metadata.dtype,
            saved=saved,
            group=group,
            where=where,
            attrs=kept.attrs,
        )
        if is_unseen:
            self.unseen.append(key)
        if kept.overwritten:
            label = f"saved {', '.join(kept.overwritten)} overwritten"
            self._add("cut", label, [key], group=group, where=where, cause="in-place")
        for i in range(len(function._input_metadata)):
            self._add_named(function, i, key, group)

    def _kept(self, function: Function) -> tuple[Kept, bool]:
        """Return what a function keeps, and whether that may be more."""
        number = number_of(function)
        if self.recording is not None and self.recording.held.knows(number):
            return self.recording.held.of(number), False
        return read_kept(function), is_opaque(function)

    def _add_named(self, function: Function, i: int, key: int, group: int) -> None:
        slot = (function, i)
        self.key_of[slot] = key
        tensor = self.tensors.get(slot)
        if tensor is not None and (slot in self.used or slot in self.stops):
            self.key_of[slot] = self._add_tensor("tensor", tensor, [key], group)
        self._add_stops(slot, group)

    def _add_stops(self, slot: Slot, group: int) -> None:
        for cause, label, where in self.stops.get(slot, ()):
            source = self.key_of[slot]
            self._add("cut", label, [source], group=group, where=where, cause=cause)

    def _add_output(self, name: str, slot: Slot) -> None:
        source = self.nodes[self.key_of[slot]]
        metadata = slot[0]._input_metadata[slot[1]] if not is_leaf(slot[0]) else None
        self._add(
            "output",
            "Tensor",
            [source.key],
            names=(name,),
            shape=source.shape if metadata is None else metadata.shape,
            dtype=None if metadata is None else metadata.dtype,
        )

    def _unreached(self) -> tuple[str, ...]:
        lost = [name for name, x in self.names.wanted if self.used.isdisjoint(_slots(x))]
        return tuple(dict.fromkeys(lost))
