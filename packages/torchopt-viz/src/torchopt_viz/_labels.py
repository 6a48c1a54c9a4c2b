"""What is written in the boxes of a picture."""

from __future__ import annotations

from collections.abc import Sequence

from torchopt_viz._graph import Node
from torchopt_viz._view import listed

__all__ = ["LISTED", "bytes_text", "label_of", "label_of_several", "tooltip_of"]

# names in one place
LISTED = 24


def label_of(node: Node, max_attr_chars: int | None) -> str:
    """Return the label of a node, with its attributes cut to a length, or without."""
    shape = None if node.shape is None else str(node.shape)
    if node.kind == "cut":
        return "\n".join(filter(None, [f"{node.cause}: {node.label}", node.where]))
    if node.kind not in ("function", "step"):
        return "\n".join(filter(None, [node.name, shape]))
    lines = [node.label]
    if max_attr_chars is not None:
        for name, value in node.attrs:
            is_long = len(value) > max_attr_chars
            lines.append(f"{name}: {value[:max_attr_chars]}{'...' if is_long else ''}")
    return "\n".join(lines)


def label_of_several(nodes: Sequence[Node]) -> str:
    """Return the label of a chain of functions, or of tensors that are used alike."""
    if nodes[0].kind == "function":
        return listed([node.label for node in nodes])
    if nodes[0].kind == "leaf":
        return f"{len(nodes)} leaves"
    lines = [f"{node.name} {node.shape}" for node in nodes[:LISTED]]
    more = len(nodes) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)


def tooltip_of(node: Node) -> str:
    """Return what a node is, on one line."""
    saved = sum(saved.nbytes for saved in node.saved)
    shape = "" if node.shape is None else f"{node.shape} {node.dtype}"
    parts = [node.label, shape, f"saves {bytes_text(saved)}" if saved else "", node.where]
    return ", ".join(filter(None, parts))


def bytes_text(count: int) -> str:
    """Return a number of bytes as text; nothing for none."""
    if count < 1024:
        return f"{count} B" if count else ""
    size, units = float(count), ["KiB", "MiB", "GiB", "TiB"]
    while (size := size / 1024) >= 1024 and len(units) > 1:
        units.pop(0)
    return f"{size:.3g} {units[0]}"
