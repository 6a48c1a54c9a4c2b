"""Linear solvers for implicit differentiation, from `torchopt-implicit`.

An alias: once imported, ``torchopt.linear_solve`` is the module ``torchopt_implicit.linear_solve``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_implicit.linear_solve import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


alias(__name__)
