"""Whether there are compiled kernels for a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch

from torchopt_accel import _native

__all__ = ["is_available"]

Device: TypeAlias = "str | int | torch.device"


def is_available(devices: Device | Iterable[Device] | None = None) -> bool:
    """Return whether the compiled optimizer steps are ready to run on all of ``devices``.

    Args:
        devices: A device, or several: strings, ``torch.device`` objects, or the indices of CUDA
            devices. ``None`` means both the CPU and CUDA.

    Returns:
        Whether each device is there and the kernels for it load. Never true for other kinds of
        devices, such as ``"meta"``.

    Raises:
        RuntimeError: If a string does not name a device.
        TypeError: If something is not a device.

    Example:
        >>> import torchopt_accel
        >>> torchopt_accel.is_available("cpu")
        True
        >>> torchopt_accel.is_available(["cpu", "meta"])
        False
    """
    if devices is None:
        devices = ("cpu", "cuda")
    if isinstance(devices, (str, int, torch.device)):
        devices = (devices,)
    return all(_is_ready(device) for device in devices)


def _is_ready(device: Device) -> bool:
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise TypeError(
            "`devices` must be strings, integers or torch.device objects, got "
            f"{type(device).__name__}"
        )
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        # torch wraps large indices around
        index = device if isinstance(device, int) else found.index or 0
        if not 0 <= index < count:
            return False
    try:
        _native.load(found.type)
    except ImportError:
        return False
    return True
