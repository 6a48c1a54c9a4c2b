"""A picture that says what to install when it cannot be drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import graphviz  # type: ignore[import-untyped]

__all__ = ["GraphvizNotFoundError", "Picture"]

P = ParamSpec("P")
T = TypeVar("T")


class GraphvizNotFoundError(graphviz.ExecutableNotFound):  # type: ignore[misc]
    """The program that draws is not installed."""

    def __init__(self) -> None:
        RuntimeError.__init__(
            self,
            "drawing needs the program `dot`, which was not found: install Graphviz (`apt install "
            "graphviz`, `brew install graphviz`, `conda install graphviz`, or from "
            "https://graphviz.org/download), or use the text, `.source`, which needs no program",
        )


def _explained(method: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(method)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except graphviz.ExecutableNotFound:
            raise GraphvizNotFoundError from None

    return explained


class Picture(graphviz.Digraph):  # type: ignore[misc]
    """A :class:`graphviz.Digraph` whose methods that draw say what to install."""

    render: Any = _explained(graphviz.Digraph.render)
    pipe: Any = _explained(graphviz.Digraph.pipe)
    unflatten: Any = _explained(graphviz.Digraph.unflatten)
