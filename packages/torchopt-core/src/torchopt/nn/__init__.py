"""Modules with meta-parameters, and running a module with other tensors in its place.

``ImplicitMetaGradientModule`` comes from `torchopt-implicit` and ``ZeroOrderGradientModule`` from
`torchopt-zero`, on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import attributes
from torchopt.nn._meta_gradient_module import MetaGradientModule
from torchopt.nn._stateless import reparameterize, reparametrize, swap_state

__all__ = ["MetaGradientModule", "reparameterize", "reparametrize", "swap_state"]

if TYPE_CHECKING:
    ImplicitMetaGradientModule: Any
    ZeroOrderGradientModule: Any

__getattr__, __dir__ = attributes(__name__)
