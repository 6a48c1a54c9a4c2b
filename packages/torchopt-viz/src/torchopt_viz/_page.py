"""A gradient graph as one interactive HTML file."""

from __future__ import annotations

import html
import json
import re
import struct
import sys
import zlib
from array import array
from base64 import b64encode
from collections.abc import Iterable
from importlib import resources
from itertools import pairwise
from os import PathLike
from pathlib import Path

from torchopt.typing import TensorTree
from torchopt_viz._collect import as_graph
from torchopt_viz._graph import Graph
from torchopt_viz._labels import printable
from torchopt_viz._names import Params
from torchopt_viz._recording import Recording
from torchopt_viz._roles import role_of_leaves

__all__ = ["page_of", "save_html"]

_SCRIPTS = (
    *("data.js", "tree.js", "place.js", "layout.js"),
    *("draw.js", "panel.js", "viewer.js", "main.js"),
)


def save_html(
    var: TensorTree | Graph,
    params: Params = None,
    *,
    path: str | PathLike[str],
    title: str = "Gradient graph",
    recording: Recording | None = None,
) -> Path:
    """Write a gradient graph as one HTML file to explore in a browser, no network needed.

    The page pans (drag), zooms (wheel), opens and closes steps and modules (click), finds names,
    labels and modules (``/``), shows shapes, saved bytes and source lines (hover) and the paths
    from a node to the output (click). Beside the graph it lists the bytes that each step and each
    module keep alive for the backward pass, the parameters that do not reach the output, and the
    places where a gradient is cut. Repeated steps are folded into one box.

    Args:
        var: The outputs, as in :func:`make_dot`, or a :class:`Graph`.
        params: The tensors with names, as in :func:`make_dot`; not with a :class:`Graph`.
        path: The file to write. Its folder must exist.
        title: What the page is called. Default: ``"Gradient graph"``.
        recording: What :func:`record` saw of the computation: modules, source lines and cuts; not
            with a :class:`Graph`. Default: none.

    Returns:
        The path of the file.

    Raises:
        ValueError: If `params` or `recording` come with a :class:`Graph`, which has them already.

    Example:
        >>> import tempfile, torch
        >>> from torchopt_viz import save_html
        >>> net = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_html(net(torch.ones(1, 2)), net, path=f"{folder}/graph.html")
        ...     file.stat().st_size > 0
        True
    """
    text = page_of(as_graph(var, params, recording), title)
    path = Path(path)
    path.write_text(text, encoding="utf-8")
    return path


def page_of(graph: Graph, title: str) -> str:
    """Return the page of a graph."""
    viewer = resources.files(__package__) / "viewer"

    def read(name: str) -> str:
        return (viewer / name).read_text(encoding="utf-8")

    parts = {
        "title": html.escape(printable(title)),
        "style": read("style.css"),
        "data": b64encode(_pack(graph)).decode(),
        "scripts": "\n".join(map(read, _SCRIPTS)),
    }
    return re.sub(r"<!--\{(\w+)\}-->", lambda match: parts[match[1]], read("page.html"))


def _pack(graph: Graph) -> bytes:
    """Return the graph as columns of numbers and a table of its strings, deflated."""
    strings: dict[str, int] = {"": 0}

    def texts(values: Iterable[str | None]) -> list[int]:
        return [strings.setdefault(value or "", len(strings)) for value in values]

    nodes = graph.nodes
    roles = role_of_leaves(graph)
    saved = [tensor for node in nodes for tensor in node.saved]
    edges = sorted((target, source) for source, target in graph.edges)
    targets = [0, *(target for target, _ in edges)]
    columns = {
        "kind": texts(node.kind for node in nodes),
        "label": texts(node.label for node in nodes),
        "name": texts(node.name for node in nodes),
        "shape": texts(_shape(node.shape) for node in nodes),
        "dtype": texts(node.dtype for node in nodes),
        "where": texts(node.where for node in nodes),
        "attrs": texts(json.dumps(node.attrs) if node.attrs else None for node in nodes),
        "cause": texts(node.cause for node in nodes),
        "role": texts(roles.get(node.key) for node in nodes),
        "group": [node.group for node in nodes],
        "saves": [len(node.saved) for node in nodes],
        "savedName": texts(tensor.name for tensor in saved),
        "savedShape": texts(_shape(tensor.shape) for tensor in saved),
        "savedDtype": texts(tensor.dtype for tensor in saved),
        "savedBytes": [tensor.nbytes for tensor in saved],
        "savedLeaf": [int(tensor.leaf) for tensor in saved],
        "targetStep": [after - before for before, after in pairwise(targets)],
        "sourceOffset": [_zigzag(target - source) for target, source in edges],
    }
    packed = {name: _planes(values) for name, values in columns.items()}
    head = json.dumps(
        {
            "strings": list(strings),
            "groups": [[group.parent, group.kind, group.label] for group in graph.groups],
            "repeats": [repeat.groups for repeat in graph.repeats],
            "unreached": graph.unreached,
            "unseen": graph.unseen,
            "columns": [[name, len(columns[name]), width] for name, (width, _) in packed.items()],
        },
        separators=(",", ":"),
    ).encode()
    body = b"".join(planes for _, planes in packed.values())
    return zlib.compress(struct.pack("<I", len(head)) + head + body, 9)


def _shape(shape: tuple[int, ...] | None) -> str | None:
    return None if shape is None else f"({', '.join(map(str, shape))})"


def _zigzag(value: int) -> int:
    """Map 0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return 2 * value if value >= 0 else -2 * value - 1


def _planes(values: list[int]) -> tuple[int, bytes]:
    """Return the bytes per number, and all lowest bytes, then all second bytes, ...

    Numbers of one column are alike in their high bytes, so that these deflate to almost nothing.
    """
    width = (max(values, default=0).bit_length() + 7) // 8
    numbers = array("Q", values)
    if sys.byteorder == "big":
        numbers.byteswap()
    raw = numbers.tobytes()
    return width, b"".join(raw[place::8] for place in range(width))
