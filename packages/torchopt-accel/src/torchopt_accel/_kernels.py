"""Which formulas of `torchopt` have kernels."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Kernel", "find_kernel"]


class Kernel(NamedTuple):
    """A compiled rule, as listed in ``cpp/rules/rules.hpp``."""

    name: str
    #: Whether the backward pass depends on the gradients, and on each state.
    needs: tuple[bool, ...]


_NEEDS = {
    "sgd": (False,),
    "momentum": (False, False),
    "adam": (True, True, True),
    "adagrad": (True, True),
    "adadelta": (True, True, True),
    "adamax": (True, True, True),
    "rmsprop": (True, True),
    "centered_rmsprop": (True, True, True),
    "rmsprop+momentum": (True, True, False),
    "centered_rmsprop+momentum": (True, True, True, False),
}


def find_kernel(formula: str) -> Kernel | None:
    """Return the kernel of a formula of :mod:`torchopt.kernels`, by name."""
    needs = _NEEDS.get(formula)
    return None if needs is None else Kernel(formula.replace("+", "_"), needs)
