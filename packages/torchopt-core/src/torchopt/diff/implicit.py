"""Implicit differentiation of solvers, from `torchopt-implicit`.

An alias: once imported, ``torchopt.diff.implicit`` is the module ``torchopt_implicit``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_implicit import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


alias(__name__)
