"""What the functions that return an iterative solver make of the options that they are given."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["Tolerances", "tolerances"]


class Tolerances(TypedDict):
    """When a solver stops: fields of its class."""

    maxiter: int | None
    rtol: float
    atol: float
    truncate: bool


def tolerances(
    maxiter: int | None,
    rtol: float | None,
    atol: float | None,
    truncate: bool | None,
    *,
    by_limit: bool = False,
) -> Tolerances:
    """Return when to stop, with ``truncate=True`` where nothing is said of it but it is meant.

    TorchOpt 0.7 had no word for it. There, a limit next to a tolerance of 0, such as
    ``maxiter=5, atol=0``, is how truncated solves are written (iMAML's, Rajeswaran et al., 2019).

    Args:
        maxiter: As given, like all others; ``None`` where nothing is.
        rtol: 1e-5 by default.
        atol: 0 by default.
        truncate: Whether to end at the limit is no failure.
        by_limit: Whether a limit says so by itself, as the number of terms of a series does.
    """
    given = [tolerance for tolerance in (rtol, atol) if tolerance is not None]
    if truncate is None:
        truncate = maxiter is not None and (by_limit or bool(given)) and not any(given)
    return {
        "maxiter": maxiter,
        "rtol": 1e-5 if rtol is None else rtol,
        "atol": 0.0 if atol is None else atol,
        "truncate": truncate,
    }
