"""What is written in the boxes of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from torchopt_viz._elementwise import operation
from torchopt_viz._graph import Node
from torchopt_viz._view import listed

__all__ = ["LISTED", "bytes_text", "label_of", "label_of_several", "printable", "tooltip_of"]

# names in one place
LISTED = 24


def printable(text: str) -> str:
    """Return a text on one line; what cannot be seen is written as in Python, like ``\\x1b``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def label_of(node: Node, max_attr_chars: int | None) -> str:
    """Return the label of a node, with its attributes cut to a length, or without."""
    shape = None if node.shape is None else str(node.shape)
    if node.kind == "cut":
        return _lines(f"{node.cause}: {node.label}", node.where)
    if node.kind not in ("function", "step"):
        return _lines(node.name, shape)
    lines: list[str | None] = [operation(node.label)]
    if max_attr_chars is not None:
        for name, value in node.attrs:
            is_long = len(value) > max_attr_chars
            lines.append(f"{name}: {value[:max_attr_chars]}{'...' if is_long else ''}")
    return _lines(*lines)


def _lines(*texts: str | None) -> str:
    return "\n".join(map(printable, filter(None, texts)))


def label_of_several(nodes: Sequence[Node]) -> str:
    """Return the label of a chain of functions, or of tensors that are used alike."""
    if nodes[0].kind == "function":
        return listed([node.label for node in nodes])
    if nodes[0].kind == "leaf":
        return f"{len(nodes)} leaves"
    more = len(nodes) - LISTED
    listed_nodes = [f"{node.name} {node.shape}" for node in nodes[:LISTED]]
    return _lines(*listed_nodes, f"and {more} more" if more > 0 else None)


def tooltip_of(node: Node) -> str:
    """Return what a node is, on one line."""
    saved = sum(saved.nbytes for saved in node.saved)
    shape = "" if node.shape is None else f"{node.shape} {node.dtype}"
    parts = [node.label, shape, f"saves {bytes_text(saved)}" if saved else "", node.where]
    return printable(", ".join(filter(None, parts)))


def bytes_text(count: int) -> str:
    """Return a number of bytes as text; nothing for none."""
    if count < 1024:
        return f"{count} B" if count else ""
    size, units = float(count), ["KiB", "MiB", "GiB", "TiB"]
    while (size := size / 1024) >= 1024 and len(units) > 1:
        units.pop(0)
    return f"{size:.3g} {units[0]}"
