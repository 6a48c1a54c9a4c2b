"""Modules with meta-parameters, and running a module with other tensors in its place.

``ImplicitMetaGradientModule`` comes from `torchopt-implicit` and ``ZeroOrderGradientModule`` from
`torchopt-zero`, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchopt._extensions import attributes
from torchopt.nn._meta_gradient_module import MetaGradientModule
from torchopt.nn._stateless import reparameterize, reparametrize, swap_state

__all__ = ["MetaGradientModule", "reparameterize", "reparametrize", "swap_state"]

if TYPE_CHECKING:
    from typing import TypeAlias

    import torchopt_implicit
    import torchopt_zero

    # assigned, because pyright takes a name imported from what is not installed for an error
    # in the program that imports it from here
    ImplicitMetaGradientModule: TypeAlias = torchopt_implicit.ImplicitMetaGradientModule
    ZeroOrderGradientModule: TypeAlias = torchopt_zero.ZeroOrderGradientModule
    __all__ += ["ImplicitMetaGradientModule", "ZeroOrderGradientModule"]
else:
    __getattr__, __dir__ = attributes(__name__)
