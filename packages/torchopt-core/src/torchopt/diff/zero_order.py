"""Zero-order gradient estimators, from `torchopt-zero`: the module and, called, its decorator.

An alias: once imported, ``torchopt.diff.zero_order`` is the module ``torchopt_zero``, and calling
it calls ``torchopt_zero.zero_order``.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_zero import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


class _DecoratorModule(ModuleType):
    """A module that can be called like the function ``zero_order`` in it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.zero_order(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.zero_order)


_module = alias(__name__)
if not callable(_module):
    _module.__class__ = _DecoratorModule
