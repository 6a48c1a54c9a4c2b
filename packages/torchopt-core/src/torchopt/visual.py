"""Pictures of gradient graphs and optimizer trajectories, from `torchopt-viz`.

An alias: once imported, ``torchopt.visual`` is the module ``torchopt_viz``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt._extensions import alias

if TYPE_CHECKING:
    from torchopt_viz import *  # noqa: F403

    def __getattr__(name: str) -> Any: ...  # where it is not installed


alias(__name__)
