"""The compiled modules, loaded when first needed."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

__all__ = ["BACKWARD", "BACKWARD_TANGENT", "FORWARD", "FORWARD_TANGENT", "load"]

# the operations, as numbered in cpp/rules/rules.hpp
FORWARD, BACKWARD, FORWARD_TANGENT, BACKWARD_TANGENT = range(4)


@functools.cache
def load(device_type: str) -> ModuleType:
    """Return the kernels for ``"cpu"`` or ``"cuda"``.

    Raises:
        ImportError: If they were not built, or do not load; with the reason.
    """
    if device_type not in ("cpu", "cuda"):
        raise ImportError(f"there are no kernels for the device type {device_type!r}")
    try:
        module = importlib.import_module(f"torchopt_accel._{device_type}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"torchopt-accel was built without its {device_type} kernels: build it where nvcc is, "
            "with the environment variable TORCHOPT_ACCEL_CUDA=ON"
        ) from error
    # the module asks the Python objects where there is no such interface
    module.lend_exchange(
        getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
        (torch.Tensor, torch.nn.Parameter),
    )
    return module
