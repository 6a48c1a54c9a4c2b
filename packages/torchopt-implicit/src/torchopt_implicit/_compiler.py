"""How functions that look at values meet `torch.compile`."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

__all__ = ["eager", "uncompiled"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def eager(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return the function as one that `torch.compile` leaves alone, and all that it calls.

    What comes before and after it is compiled. A search that stops by what it finds, and linear
    systems below the transforms of `torch.func`, are no graph that could be.
    """

    @functools.wraps(function)
    def door(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if torch.compiler.is_dynamo_compiling():
            # here and not before: the compiler is a heavy import
            return torch.compiler.disable(function)(*args, **kwargs)  # type: ignore[no-any-return,no-untyped-call]
        return function(*args, **kwargs)

    return door


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` returned as it was written, where every operation is to be seen."""
    if "torch._dynamo" not in sys.modules:  # so that nothing was compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        # of hooks that are called twice
        warnings.filterwarnings("ignore", "Using `torch.compile\\(module\\)` when there are global")
        yield
