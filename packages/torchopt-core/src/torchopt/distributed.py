"""Task parallelism on torch's RPC and collectives, from `torchopt-dist`.

An alias: once imported, ``torchopt.distributed`` is the module ``torchopt_dist``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_dist import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


alias(__name__)
