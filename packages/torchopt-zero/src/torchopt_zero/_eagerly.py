"""Calls that `torch.compile` steps around."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function that a compiler is not to trace: it breaks the graph there.

    Python decides along the way (seeds, how a function is evaluated). The function that is sampled
    may be compiled by itself.
    """
    if torch.compiler.is_compiling():
        disabled: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled(*args, **kwargs)
    return function(*args, **kwargs)
