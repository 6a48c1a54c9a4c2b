"""Functions that run on some ranks only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torchopt_dist._info import get_rank

__all__ = ["not_on_rank", "on_rank", "rank_non_zero_only", "rank_zero_only"]

P = ParamSpec("P")
T = TypeVar("T")


def _where(condition: Callable[[int], bool], func: Callable[P, T]) -> Callable[P, T | None]:
    @functools.wraps(func)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return func(*args, **kwargs) if condition(get_rank()) else None

    return wrapped


def _checked(ranks: tuple[int, ...]) -> frozenset[int]:
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise ValueError(f"`ranks` must be non-negative ints, got {rank!r}")
    return frozenset(ranks)


def on_rank(*ranks: int) -> Callable[[Callable[P, T]], Callable[P, T | None]]:
    """Return a decorator: the function runs on the given ranks; elsewhere it returns ``None``.

    Args:
        ranks: The ranks, from 0.

    Raises:
        ValueError: A rank is negative, or not a number.

    Example:
        >>> from torchopt.distributed import on_rank
        >>> @on_rank(0)
        ... def greet():
        ...     return "hello"
        >>> greet()
        'hello'
    """
    chosen = _checked(ranks)
    return lambda func: _where(lambda rank: rank in chosen, func)


def not_on_rank(*ranks: int) -> Callable[[Callable[P, T]], Callable[P, T | None]]:
    """Return a decorator: the function runs on all but the given ranks, as for `on_rank`."""
    chosen = _checked(ranks)
    return lambda func: _where(lambda rank: rank not in chosen, func)


def rank_zero_only(func: Callable[P, T]) -> Callable[P, T | None]:
    """Make a function run on rank 0 only; elsewhere it returns ``None``."""
    return on_rank(0)(func)


def rank_non_zero_only(func: Callable[P, T]) -> Callable[P, T | None]:
    """Make a function run on all ranks but 0; there it returns ``None``."""
    return not_on_rank(0)(func)
