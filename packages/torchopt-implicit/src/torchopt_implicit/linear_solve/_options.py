"""What the functions that return a solver make of options: they are the fields of its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["with_options_of", "with_truncation"]

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


def with_truncation(options: dict[str, Any], *, by_limit: bool = False) -> dict[str, Any]:
    """Return the options with `truncate=True` where it is not among them but meant.

    TorchOpt 0.7 had no word for it. There, a limit next to a tolerance of 0, such as
    ``maxiter=5, atol=0``, is how truncated solves are written (iMAML's, Rajeswaran et al., 2019).

    Args:
        options: The options that are given, by name.
        by_limit: Whether a limit says so by itself, as the number of terms of a series does.
    """
    tolerances = [options[name] for name in ("rtol", "atol") if name in options]
    is_meant = (by_limit or tolerances) and not any(tolerances)
    if "truncate" in options or options.get("maxiter") is None or not is_meant:
        return options
    return {**options, "truncate": True}
