"""Ways to differentiate what autograd alone does not: implicitly, and by sampling.

- :mod:`torchopt.diff.implicit`: through the solution of a problem rather than the iterations that
  led to it (`torchopt-implicit`).
- :mod:`torchopt.diff.zero_order`: from function values alone (`torchopt-zero`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchopt._extensions import attributes

__all__: list[str] = []

if TYPE_CHECKING:
    import torchopt_implicit as implicit
    from torchopt.diff._zero_order import ZeroOrder

    zero_order: ZeroOrder
    __all__ += ["implicit", "zero_order"]
else:
    __getattr__, __dir__ = attributes(__name__)
