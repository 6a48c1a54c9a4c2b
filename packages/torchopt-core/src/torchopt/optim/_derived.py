"""The bases of the stateful and the differentiable classes, one for each: ``_derived.Adam``.

At run time the base of every ``Meta...`` is :class:`DerivedMetaOptimizer` and that of every other
class is :class:`DerivedOptimizer`, which take their signature from a functional form. No type
checker and no editor can follow that, so what they read is ``_derived.pyi``, where each base has
the signature and the documentation of its class. ``nox -s stubs`` writes it; the base of a new
class can be named before it is there.
"""

from __future__ import annotations

from torchopt.optim._meta import DerivedMetaOptimizer
from torchopt.optim._stateful import DerivedOptimizer


def __getattr__(name: str) -> type[DerivedOptimizer] | type[DerivedMetaOptimizer]:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return DerivedMetaOptimizer if name.startswith("Meta") else DerivedOptimizer
