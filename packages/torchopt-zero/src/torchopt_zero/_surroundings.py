"""What is set around a call and decides what a function does: autocast and the default device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class Surroundings:
    """The settings of a forward pass, to be had again in the backward pass.

    Args:
        tensors: Autocast is looked up for their devices and the CPU.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in sorted({"cpu", *(tensor.device.type for tensor in tensors)})
            if torch.amp.is_autocast_available(kind)
        ]
        self.device = torch.get_default_device()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Set what was set then."""
        with ExitStack() as stack:
            for kind, dtype, enabled in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype, enabled))
            if torch.get_default_device() != self.device:
                stack.enter_context(self.device)
            yield
