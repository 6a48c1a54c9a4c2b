"""Linear algebra on trees."""

from torchopt_implicit._operator import LinearOperator

__all__ = ["LinearOperator"]
