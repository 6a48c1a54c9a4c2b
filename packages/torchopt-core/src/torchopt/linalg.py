"""Linear solvers on trees (conjugate gradient, Neumann series...), from `torchopt-implicit`.

An alias: once imported, ``torchopt.linalg`` is the module ``torchopt_implicit.linalg``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


alias(__name__)
