"""Implicit differentiation of solvers, and the linear algebra it rests on."""

from torchopt_implicit._status import FailedSolveError, FailedSolveWarning, Info, Status

__all__ = ["FailedSolveError", "FailedSolveWarning", "Info", "Status"]
