"""Solvers of linear systems on trees: each takes options and returns ``(A, b) -> x``."""

from torchopt_implicit.linear_solve._base import LinearSolver
from torchopt_implicit.linear_solve.cg import CG, solve_cg
from torchopt_implicit.linear_solve.normal_cg import NormalCG, solve_normal_cg

__all__ = ["CG", "LinearSolver", "NormalCG", "solve_cg", "solve_normal_cg"]
