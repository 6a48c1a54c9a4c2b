"""Compiled optimizer steps, from `torchopt-accel`.

An alias: once imported, ``torchopt.accelerated_op`` is the module ``torchopt_accel``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_accel import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


alias(__name__)
