"""Three ways to a gradient: through the steps of a solver, implicitly, and by sampling.

- :mod:`torchopt.diff.explicit`: through the steps of an inner loop, in bounded memory.
- :mod:`torchopt.diff.implicit`: through the solution of a problem rather than the iterations that
  led to it (`torchopt-implicit`).
- :mod:`torchopt.diff.zero_order`: from function values alone (`torchopt-zero`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchopt._extensions import attributes
from torchopt.diff import explicit

__all__: list[str] = ["explicit"]

if TYPE_CHECKING:
    from typing import TypeAlias

    import torchopt_implicit as implicit
    import torchopt_zero
    from torchopt.diff._zero_order import ZeroOrder

    # assigned for the reason given in `torchopt.nn`
    ImplicitMetaGradientModule: TypeAlias = implicit.ImplicitMetaGradientModule
    ZeroOrderGradientModule: TypeAlias = torchopt_zero.ZeroOrderGradientModule

    zero_order: ZeroOrder
    __all__ += ["ImplicitMetaGradientModule", "ZeroOrderGradientModule", "implicit", "zero_order"]
else:
    __getattr__, __dir__ = attributes(__name__)
