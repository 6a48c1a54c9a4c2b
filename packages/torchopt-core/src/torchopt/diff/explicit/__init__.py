"""Explicit differentiation: through the steps of an inner loop.

- :func:`unroll` takes the steps; its result is differentiable in everything it depends on.
- A memory policy says what is stored for that: :class:`FullGraph`, :class:`Checkpointed`,
  :class:`Binomial`, :class:`Offloaded`, :class:`MixedMode`, and, approximately, :class:`Truncated`
  and :class:`FirstOrder`.
- :class:`MAML` clones and adapts a module, for programs written for `learn2learn`.
"""

from __future__ import annotations

from torchopt.diff.explicit._maml import MAML
from torchopt.diff.explicit._memory import (
    Binomial,
    Checkpointed,
    FirstOrder,
    FullGraph,
    Memory,
    MixedMode,
    Offloaded,
    Truncated,
)
from torchopt.diff.explicit._unroll import Unrolled, unroll

__all__ = [
    "MAML",
    "Binomial",
    "Checkpointed",
    "FirstOrder",
    "FullGraph",
    "Memory",
    "MixedMode",
    "Offloaded",
    "Truncated",
    "Unrolled",
    "unroll",
]
