"""Pictures of gradient graphs, for Graphviz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Literal

import graphviz  # type: ignore[import-untyped]
from torch import Tensor

from torchopt.typing import TensorTree
from torchopt_viz._collect import as_graph, collect
from torchopt_viz._graph import Graph, Node
from torchopt_viz._labels import (
    LISTED,
    bytes_text,
    label_of,
    label_of_several,
    printable,
    tooltip_of,
)
from torchopt_viz._names import Names, Params, read_names
from torchopt_viz._picture import Picture
from torchopt_viz._recording import Recording
from torchopt_viz._view import Box, View, view

__all__ = ["make_dot", "resize_graph"]

GroupBy = Literal["step", "module"]
Direction = Literal["TB", "LR"]

_COLORS = {
    "parameter": ("#9ecae1", "leaf with a name"),
    "leaf": ("#e3eef9", "leaf"),
    "tensor": ("#c7d7f0", "tensor with a name"),
    "function": ("#eeeeee", "function"),
    "step": ("#d5b8e8", "fused optimizer step"),
    "group": ("#fff3c4", "closed group"),
    "saved": ("#fdc586", "saved for backward"),
    "output": ("#a6dba0", "output"),
    "cut": ("#f4826f", "the gradient stops"),
}
_SHAPES = {"cut": "octagon", "saved": "note"}
_CLUSTERS = {"step": "#f3f7fb", "module": "#fafafa", "backward": "#f7f0f0"}
_HIGHLIGHT = "#c2185b"


def make_dot(
    var: TensorTree | Graph,
    params: Params = None,
    show_attrs: bool = False,
    show_saved: bool = False,
    max_attr_chars: int = 50,
    *,
    group_by: GroupBy | Sequence[GroupBy] | None = None,
    fold: bool = False,
    max_depth: int | None = None,
    highlight: Tensor | str | None = None,
    recording: Recording | None = None,
    direction: Direction = "TB",
) -> graphviz.Digraph:
    """Draw the graph that a backward pass from ``var`` goes through.

    Arrows follow the data, from parameters to outputs. The colours are explained in the picture,
    and so is which of the named tensors do not reach the output.

    Args:
        var: A tensor, a tree of tensors, or a :class:`Graph`.
        params: Names of tensors: a dict from names to tensors or from tensors to names, a module,
            a state of :func:`torchopt.extract_state_dict` with ``enable_visual=True``, pairs of a
            name and a tensor, or a sequence of these. States of one module are inner steps, in
            their order. Several tensors may have one name; a ``visual_prefix`` tells states apart.
            Not with a :class:`Graph`.
        show_attrs: Whether to list what functions keep apart from tensors.
        show_saved: Whether to show the tensors that functions keep for the backward pass.
        max_attr_chars: Attributes are cut to this length.
        group_by: Draw frames around inner steps (``"step"``), modules (``"module"``) or both.
        fold: Draw each chain of elementwise functions as one box that lists them, and likewise
            tensors that come from and go to the same boxes; where six boxes or more of tensors
            come from one function, or are leaves of one group, they are one, too.
        max_depth: Open only so many levels of groups; a deeper one is one box. Needs ``group_by``.
        highlight: A tensor, or its name: mark its paths to the output. With a :class:`Graph`, which
            keeps no tensor, a name.
        recording: What :func:`record` has seen of the computation: adds the exact modules, and
            the places where gradients stop. Not with a :class:`Graph`.
        direction: Whether arrows lead from top to bottom (``"TB"``, the default) or from left to
            right (``"LR"``).

    Returns:
        A :class:`graphviz.Digraph`. Its ``source`` needs no program; its ``render`` and ``pipe``
        need Graphviz, and say so where it is missing.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a tensor of ``var`` has no graph, a state has no names, what to highlight
            does not reach the output or is one of several of that name, a number or choice is
            out of range, or `params` or `recording` come with a :class:`Graph`.

    Example:
        >>> import torch
        >>> from torchopt_viz import make_dot
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh())
        >>> dot = make_dot(net(torch.ones(1, 2)).sum(), dict(net.named_parameters()))
        >>> "0.weight" in dot.source
        True
    """
    kinds = _kinds(group_by)
    _check(kinds, max_depth, max_attr_chars)
    _check_direction(direction)
    name: str | None
    if isinstance(highlight, Tensor) and not isinstance(var, Graph):
        names = read_names(params)
        name = _own_name(names, highlight)
        graph = collect(var, names, recording)
    elif highlight is None or isinstance(highlight, str):
        name = highlight
        graph = as_graph(var, params, recording)
    else:
        what = "a name, with a Graph" if isinstance(var, Graph) else "a tensor or a name"
        raise TypeError(f"`highlight` must be {what}, got {type(highlight).__name__}")
    path = frozenset(() if name is None else _path(graph, name, name is highlight))
    shown = view(graph, kinds, max_depth, fold)
    return _Drawing(graph, shown, path, show_saved, max_attr_chars if show_attrs else None).dot(
        direction
    )


def _own_name(names: Names, tensor: Tensor) -> str:
    """Return a name that the tensor alone has; give it one if need be."""
    shared = Counter(name for own in names.of.values() for name in own)
    own = names.of.get(tensor, ())
    for name in own:
        if shared[name] == 1:
            return name
    names.of[tensor] = (*own, "highlighted")
    return "highlighted"


def _path(graph: Graph, name: str, is_given: bool) -> tuple[int, ...]:
    """Return the path from a tensor; it was given by name, or the name was looked up."""
    what = repr(name) if is_given else "the tensor"
    try:
        path = graph.path(name)
    except KeyError as error:
        if is_given:
            raise ValueError(f"`highlight`: {error.args[0]}") from None
        path = ()
    if not path:
        raise ValueError(f"`highlight`: {what} does not reach the output")
    return path


def _kinds(group_by: object) -> set[str]:
    if group_by is None:
        return set()
    chosen = list(group_by) if isinstance(group_by, (list, tuple, set, frozenset)) else [group_by]
    if not all(kind in ("step", "module") for kind in chosen):
        raise ValueError(f"`group_by` must be 'step', 'module', both or None, got {group_by!r}")
    kinds = {kind for kind in ("step", "module") if kind in chosen}
    return kinds | {"backward"} if "module" in kinds else kinds


def _check_direction(direction: object) -> None:
    if direction not in ("TB", "LR"):
        raise ValueError(f"`direction` must be 'TB' or 'LR', got {direction!r}")


def _check(kinds: set[str], max_depth: int | None, max_attr_chars: int) -> None:
    depth = 0 if max_depth is None else max_depth
    for name, number in (("max_depth", depth), ("max_attr_chars", max_attr_chars)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"`{name}` must be an integer, got {type(number).__name__}")
    if max_attr_chars < 1:
        raise ValueError(f"`max_attr_chars` must be a positive integer, got {max_attr_chars}")
    if depth < 0:
        raise ValueError(f"`max_depth` must be non-negative or None, got {max_depth}")
    if max_depth is not None and not kinds:
        raise ValueError(f"`max_depth={max_depth}` is a depth of groups: choose `group_by`, too")


def resize_graph(
    dot: graphviz.Digraph, size_per_element: float = 0.5, min_size: float = 12.0
) -> None:
    """Scale the canvas of a picture with how much is in it, in place.

    Args:
        dot: The picture.
        size_per_element: Inches for each line of the picture's text. Default: 0.5.
        min_size: Inches at least. Default: 12.0.

    Example:
        >>> import graphviz
        >>> from torchopt_viz import resize_graph
        >>> dot = graphviz.Digraph(body=["a -> b"] * 30)
        >>> resize_graph(dot)
        >>> dot.graph_attr["size"]
        '15.0,15.0'
    """
    size = float(max(min_size, len(dot.body) * size_per_element))
    dot.graph_attr["size"] = f"{size},{size}"


def _html(name: str) -> str:
    # Graphviz puts the name of the node for `\\N`, here as well
    return escape(printable(name)).replace("\\", "\\\\")


class _Drawing:
    """Writes the text of a picture."""

    def __init__(
        self,
        graph: Graph,
        shown: View,
        path: frozenset[int],
        show_saved: bool,
        max_attr_chars: int | None,
    ) -> None:
        self.graph = graph
        self.view = shown
        self.path = path
        self.show_saved = show_saved
        self.max_attr_chars = max_attr_chars
        self.memory = graph.memory().inclusive
        # the groups that keep more than torch shows
        self.partial: set[int] = set()
        for key in graph.unseen:
            group: int | None = graph.nodes[key].group
            while group is not None:
                self.partial.add(group)
                group = graph.groups[group].parent
        self.boxes: dict[int, list[int]] = {}
        for i, box in enumerate(shown.boxes):
            self.boxes.setdefault(box.group, []).append(i)
        self.kinds: set[str] = set()

    def dot(self, direction: Direction) -> graphviz.Digraph:
        """Return the picture."""
        dot = Picture(
            "gradient_graph",
            graph_attr={
                "rankdir": direction,
                "ranksep": "0.25",
                "nodesep": "0.15",
                "compound": "true",
                # hundreds of nodes draw in half the time; what small graphs need is far below
                "nslimit": "2",
                "nslimit1": "2",
            },
            node_attr={
                "style": "filled",
                "shape": "box",
                "fontname": "Helvetica",
                "fontsize": "10",
                "height": "0.2",
                "margin": "0.08,0.04",
                "color": "#666666",
            },
            edge_attr={"arrowsize": "0.6", "color": "#777777"},
        )
        self._draw_group(dot, 0)
        at = self.view.box_of
        marked = {
            (at[source], at[target])
            for source, target in self.graph.edges
            if source in self.path and target in self.path
        }
        for source, target in self.view.edges:
            if (source, target) in marked:
                dot.edge(f"n{source}", f"n{target}", color=_HIGHLIGHT, penwidth="2.5")
            else:
                dot.edge(f"n{source}", f"n{target}")
        dot.node("legend", self._legend(), shape="plain", style="")
        resize_graph(dot)
        return dot

    def _draw_group(self, dot: graphviz.Digraph, key: int) -> None:
        """Write the boxes of a group, and the groups within it."""
        for i in self.boxes.get(key, ()):
            self._draw_box(dot, i, self.view.boxes[i])
        for inner in self.view.inside.get(key, ()):
            group = self.graph.groups[inner]
            with dot.subgraph(name=f"cluster_{inner}") as cluster:
                size = self._size(inner)
                cluster.attr(
                    label=graphviz.escape(
                        printable(f"{group.label}  ({size})" if size else group.label)
                    ),
                    style="rounded,filled",
                    fillcolor=_CLUSTERS[group.kind],
                    color="#999999",
                    fontname="Helvetica",
                    fontsize="11",
                    labeljust="l",
                )
                self._draw_group(cluster, inner)

    def _size(self, group: int) -> str:
        """Return the bytes that a group keeps, as text."""
        size = bytes_text(self.memory[group])
        return f"at least {size}" if size and group in self.partial else size

    def _draw_box(self, dot: graphviz.Digraph, i: int, box: Box) -> None:
        nodes = [self.graph.nodes[key] for key in box.nodes]
        kind = nodes[0].kind if box.collapsed is None else "group"
        self.kinds.add(kind)
        if box.collapsed is not None:
            group = self.graph.groups[box.collapsed]
            count = f"{len(nodes)} node" + "s" * (len(nodes) > 1)
            lines = [printable(group.label), count, self._size(group.key)]
            label = "\n".join(filter(None, lines))
        elif len(nodes) > 1:
            label = label_of_several(nodes)
        else:
            label = label_of(nodes[0], self.max_attr_chars)
        style = {"fillcolor": _COLORS[kind][0]}
        if kind in _SHAPES:
            style["shape"] = _SHAPES[kind]
        if kind == "group":
            style["peripheries"] = "2"
        if not self.path.isdisjoint(box.nodes):
            style |= {"color": _HIGHLIGHT, "penwidth": "2.5"}
        tooltip = "\n".join(filter(None, map(tooltip_of, nodes[:20])))
        dot.node(
            f"n{i}", graphviz.escape(label), tooltip=graphviz.escape(tooltip or label), **style
        )
        if self.show_saved and box.collapsed is None:
            self._draw_saved(dot, i, nodes)

    def _draw_saved(self, dot: graphviz.Digraph, i: int, nodes: Sequence[Node]) -> None:
        for j, saved in enumerate(saved for node in nodes for saved in node.saved):
            self.kinds.add("saved")
            size = bytes_text(saved.nbytes) or "counted above"
            label = f"{saved.name} {saved.shape}\n{saved.dtype}, {size}"
            dot.node(
                f"n{i}s{j}",
                graphviz.escape(label),
                fillcolor=_COLORS["saved"][0],
                shape=_SHAPES["saved"],
            )
            dot.edge(f"n{i}", f"n{i}s{j}", style="dashed", arrowhead="none")

    def _legend(self) -> str:
        cell = '<tr><td bgcolor="{0}" align="left">{1}</td></tr>'
        rows = [cell.format(*_COLORS[kind]) for kind in _COLORS if kind in self.kinds]
        if self.path:
            rows.append(cell.format("white", f'<font color="{_HIGHLIGHT}">highlighted</font>'))
        if self.graph.unreached:
            names = [_html(name) for name in self.graph.unreached[:LISTED]]
            more = len(self.graph.unreached) - len(names)
            names += [f"and {more} more"] if more else []
            text = 'not reached:<br align="left"/>' + '<br align="left"/>'.join(names)
            rows.append(cell.format(_COLORS["cut"][0], text + '<br align="left"/>'))
        return f'<<table border="0" cellborder="1" cellspacing="2">{"".join(rows)}</table>>'
