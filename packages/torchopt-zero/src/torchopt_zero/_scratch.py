"""Memory that one tile of samples leaves to the next."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor


class Scratch:
    """Uninitialized tensors by name, allocated once.

    What :meth:`take` returns is valid until the same name is taken again. Fresh memory costs more
    than what is computed in it: the system hands it out page by page.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Tensor] = {}

    def take(
        self, name: Hashable, rows: int, columns: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return a matrix."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < rows * columns:
            buffer = torch.empty(rows * columns, dtype=dtype, device=device)
            self._buffers[name] = buffer
        return buffer[: rows * columns].view(rows, columns)
