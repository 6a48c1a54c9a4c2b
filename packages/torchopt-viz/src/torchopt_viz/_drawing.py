"""The text of a picture, for Graphviz."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Literal

import graphviz  # type: ignore[import-untyped]

from torchopt_viz._graph import Graph, Node
from torchopt_viz._labels import (
    LISTED,
    bytes_text,
    label_of,
    label_of_several,
    printable,
    tooltip_of,
)
from torchopt_viz._picture import Picture
from torchopt_viz._view import Box, View

__all__ = ["Direction", "Drawing"]

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


def _html(name: str) -> str:
    # Graphviz puts the name of the node for `\\N`, here as well
    return escape(printable(name)).replace("\\", "\\\\")


class Drawing:
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
        self.inputs: list[list[int]] = [[] for _ in shown.boxes]
        self.users: list[list[int]] = [[] for _ in shown.boxes]
        for source, target in shown.edges:
            self.inputs[target].append(source)
            self.users[source].append(target)
        self.kinds: set[str] = set()

    def dot(self, direction: Direction) -> graphviz.Digraph:
        """Return the picture."""
        dot = Picture(
            "gradient_graph",
            graph_attr={
                "rankdir": direction,
                "ranksep": "0.25",
                "nodesep": "0.15",
                # ranks of the whole graph, not of each frame, so that all arrows lead one way
                "newrank": "true",
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
        self._stack_steps(dot)
        at = self.view.box_of
        marked = {
            (at[source], at[target])
            for source, target in self.graph.edges
            if source in self.path and target in self.path
        }
        below = "s" if direction == "TB" else "e"
        for source, target in self.view.edges:
            style: dict[str, str] = {}
            if (source, target) in marked:
                style |= {"color": _HIGHLIGHT, "penwidth": "2.5"}
            box = self.view.boxes[source]
            if box.collapsed is None and len(box.nodes) > 1:
                style["tailport"] = below  # a long list would have them at its nearest corner
            dot.edge(f"n{source}", f"n{target}", **style)
        dot.node("legend", self._legend(), shape="plain", style="")
        return dot

    def _draw_group(self, dot: graphviz.Digraph, key: int) -> None:
        """Write the boxes of a group, and the groups within it."""
        for i in self.boxes.get(key, ()):
            self._draw_box(dot, i, self.view.boxes[i])
        for inner in self.view.inside.get(key, ()):
            group = self.graph.groups[inner]
            with dot.subgraph(name=f"cluster_{inner}") as cluster:
                cluster.attr(
                    label="",
                    style="rounded,filled",
                    fillcolor=_CLUSTERS[group.kind],
                    color="#999999",
                )
                self._draw_title(cluster, inner)
                self._draw_group(cluster, inner)

    def _draw_title(self, dot: graphviz.Digraph, key: int) -> None:
        """Write the title of a frame: a box, which arrows lead around, above those in the frame."""
        size = self._size(key)
        label = self.graph.groups[key].label
        title = printable(f"{label}  ({size})" if size else label)
        dot.node(f"t{key}", graphviz.escape(title), shape="plain", style="", fontsize="11")
        within = self._boxes_within(key)
        # boxes of closed groups may depend on each other: then the one that began first is first
        first = {i for i in within if within.isdisjoint(self.inputs[i])}
        for i in sorted(first | {min(within)}):
            dot.edge(f"t{key}", f"n{i}", style="invis")
        for inner in self.view.inside.get(key, ()):
            dot.edge(f"t{key}", f"t{inner}", style="invis", weight="0")

    def _boxes_within(self, key: int) -> set[int]:
        """Return the boxes in a frame, and in those within it."""
        found = set(self.boxes.get(key, ()))
        for inner in self.view.inside.get(key, ()):
            found |= self._boxes_within(inner)
        return found

    def _stack_steps(self, dot: graphviz.Digraph) -> None:
        """Have each step begin below the middle of what the one before it ends with."""
        inside = self.view.inside.get(0, ())
        steps = [key for key in inside if self.graph.groups[key].kind == "step"]
        for before, after in pairwise(steps):
            ending = self._boxes_within(before)
            dot.node(f"s{after}", style="invis", shape="point", width="0", height="0")
            for i in sorted(ending):
                if ending.isdisjoint(self.users[i]):
                    dot.edge(f"n{i}", f"s{after}", style="invis", weight="20")
            dot.edge(f"s{after}", f"t{after}", style="invis", weight="50")

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
