"""Random numbers that depend on a task, and not on where or after what it runs."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int | None, index: int, device: torch.device) -> Iterator[None]:
    """Start torch's, Python's and NumPy's global generators from a task, and put them back after.

    Args:
        seed: Of the meta-step; ``None`` leaves them alone.
        index: Of the task.
        device: Whose generator of torch's is started along with that of the CPU.
    """
    if seed is None:
        yield
        return
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little") >> 1
    # NumPy's global generator is what programs that are not told another one use
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    on_device = device.type == "cuda"
    try:
        with torch.random.fork_rng(devices=[device] if on_device else []):
            torch.default_generator.manual_seed(number)
            if on_device:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(number)
            random.seed(number)
            np.random.seed(number % (1 << 32))  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
