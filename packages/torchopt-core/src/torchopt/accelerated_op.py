"""Compiled optimizer steps, from `torchopt-accel`.

An alias: once imported, ``torchopt.accelerated_op`` is the module ``torchopt_accel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


alias(__name__)
