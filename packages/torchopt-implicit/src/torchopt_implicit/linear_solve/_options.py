"""The signature of the functions that return a solver: the options are the class's fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["with_options_of"]

_P = ParamSpec("_P")
_Solver = TypeVar("_Solver")


def with_options_of(
    solver: Callable[_P, _Solver],
) -> Callable[[Callable[..., _Solver]], Callable[_P, _Solver]]:
    """Return a decorator that gives a function the signature of the class that it returns."""

    def decorate(function: Any) -> Any:
        signature = inspect.signature(solver)
        name = getattr(solver, "__name__", signature.empty)
        function.__signature__ = signature.replace(return_annotation=name)
        return function

    return decorate
