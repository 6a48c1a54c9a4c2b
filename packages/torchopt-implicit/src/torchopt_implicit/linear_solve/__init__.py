"""Solvers of linear systems on trees: each takes options and returns ``(A, b) -> x``."""

from torchopt_implicit.linear_solve._base import Factorization, LinearSolver
from torchopt_implicit.linear_solve.auto import Automatic, solve_auto
from torchopt_implicit.linear_solve.bicgstab import BiCGSTAB, solve_bicgstab
from torchopt_implicit.linear_solve.cg import CG, solve_cg
from torchopt_implicit.linear_solve.cholesky import Cholesky, solve_cholesky
from torchopt_implicit.linear_solve.gmres import GMRES, solve_gmres
from torchopt_implicit.linear_solve.inv import Neumann, solve_inv
from torchopt_implicit.linear_solve.lstsq import LeastSquares, solve_lstsq
from torchopt_implicit.linear_solve.lu import LU, solve_lu
from torchopt_implicit.linear_solve.normal_cg import NormalCG, solve_normal_cg
from torchopt_implicit.linear_solve.nystrom import (
    Nystrom,
    diagonal_preconditioner,
    nystrom_preconditioner,
    solve_nystrom,
)
from torchopt_implicit.linear_solve.qr import QR, solve_qr
from torchopt_implicit.linear_solve.structured import (
    Diagonal,
    Triangular,
    Tridiagonal,
    solve_diagonal,
    solve_triangular,
    solve_tridiagonal,
)

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "QR",
    "Automatic",
    "BiCGSTAB",
    "Cholesky",
    "Diagonal",
    "Factorization",
    "LeastSquares",
    "LinearSolver",
    "Neumann",
    "NormalCG",
    "Nystrom",
    "Triangular",
    "Tridiagonal",
    "diagonal_preconditioner",
    "nystrom_preconditioner",
    "solve_auto",
    "solve_bicgstab",
    "solve_cg",
    "solve_cholesky",
    "solve_diagonal",
    "solve_gmres",
    "solve_inv",
    "solve_lstsq",
    "solve_lu",
    "solve_normal_cg",
    "solve_nystrom",
    "solve_qr",
    "solve_triangular",
    "solve_tridiagonal",
]
