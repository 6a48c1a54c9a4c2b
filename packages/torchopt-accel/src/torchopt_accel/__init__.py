"""Compiled, differentiable optimizer steps for `torchopt`, on CPU and CUDA.

With this package installed, every optimizer of `torchopt` uses it wherever it applies; see
``use_accelerated_op``. A step of all leaves is one call and one node of the autograd graph.
"""

from torchopt.kernels import NotCoveredError
from torchopt_accel._availability import is_available
from torchopt_accel._compiled import PROVIDER
from torchopt_accel._transform import scale_by_accelerated_adam

__all__ = [
    "PROVIDER",
    "NotCoveredError",
    "is_available",
    "scale_by_accelerated_adam",
]
