"""Pictures of gradient graphs, for Graphviz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import graphviz  # type: ignore[import-untyped]
from torch import Tensor

from torchopt.typing import TensorTree
from torchopt_viz._collect import as_graph, collect
from torchopt_viz._drawing import Direction, Drawing
from torchopt_viz._graph import Graph
from torchopt_viz._names import Names, Params, read_names
from torchopt_viz._recording import Recording
from torchopt_viz._view import view

__all__ = ["make_dot", "resize_graph"]

GroupBy = Literal["step", "module"]


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
    drawing = Drawing(graph, shown, path, show_saved, max_attr_chars if show_attrs else None)
    dot = drawing.dot(direction)
    resize_graph(dot)
    return dot


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
