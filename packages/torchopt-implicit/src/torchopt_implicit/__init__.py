"""Implicit differentiation of solvers, and the linear algebra it rests on."""

from torchopt_implicit import linalg, linear_solve
from torchopt_implicit._root import custom_fixed_point, custom_root
from torchopt_implicit._status import FailedSolveError, FailedSolveWarning, Info, Status

__all__ = [
    "FailedSolveError",
    "FailedSolveWarning",
    "Info",
    "Status",
    "custom_fixed_point",
    "custom_root",
    "linalg",
    "linear_solve",
]
