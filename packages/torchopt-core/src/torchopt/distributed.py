"""Task parallelism on torch's RPC and collectives, from `torchopt-dist`.

An alias: once imported, ``torchopt.distributed`` is the module ``torchopt_dist``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


alias(__name__)
