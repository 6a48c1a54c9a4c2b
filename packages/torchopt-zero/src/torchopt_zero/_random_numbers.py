"""The random numbers that an evaluated function draws by itself, as dropout does."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Randomness = Literal["same", "different"]

#: Held by a thread that seeds torch's global generators, or looks whether they have moved on.
GENERATORS = threading.RLock()


def check_randomness(randomness: object) -> None:
    """Raise unless an argument is one of the words for it."""
    if randomness not in ("same", "different"):
        raise ValueError(f"`randomness` must be 'same' or 'different', got {randomness!r}")


class RandomNumbers:
    """torch's global generators of every device in use, put back on leaving; no other thread's.

    Args:
        tensors: Their devices are in use, and the CPU, and all CUDA devices once one is.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        devices = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            devices |= {torch.device("cuda", i) for i in range(torch.cuda.device_count())}
        self.devices = sorted(devices, key=str)

    def __enter__(self) -> RandomNumbers:
        GENERATORS.acquire()
        self._start = self.state()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.restore(self._start)
        finally:
            GENERATORS.release()

    def state(self) -> list[Tensor]:
        """Return the states of the generators."""
        return [
            torch.get_rng_state(),
            *(torch.get_device_module(d.type).get_rng_state(d) for d in self.devices),
        ]

    def restore(self, state: list[Tensor]) -> None:
        """Set the states of the generators."""
        torch.set_rng_state(state[0])
        for device, one in zip(self.devices, state[1:], strict=True):
            torch.get_device_module(device.type).set_rng_state(one, device)

    def seed(self, key: int) -> None:
        """Start all generators from a seed."""
        torch.default_generator.manual_seed(key)
        for device in self.devices:
            module = torch.get_device_module(device.type)
            with module.device(device):
                module.manual_seed(key)

    def drawn_since(self, state: list[Tensor]) -> bool:
        """Return whether a generator has moved on."""
        return not all(map(torch.equal, state, self.state()))
