"""Solvers with implicit gradients built in, each batched by `torch.vmap` on tensors."""

from torchopt_implicit.projections import project_box, project_simplex
from torchopt_implicit.projections import project_l2_ball as project_ball
from torchopt_implicit.solvers._anderson import anderson
from torchopt_implicit.solvers._bfgs import bfgs
from torchopt_implicit.solvers._bisection import bisection
from torchopt_implicit.solvers._block_coordinate_descent import block_coordinate_descent
from torchopt_implicit.solvers._broyden import broyden
from torchopt_implicit.solvers._dogleg import dogleg
from torchopt_implicit.solvers._gauss_newton import gauss_newton
from torchopt_implicit.solvers._gradient_descent import gradient_descent
from torchopt_implicit.solvers._lbfgs import lbfgs
from torchopt_implicit.solvers._lbfgsb import lbfgsb
from torchopt_implicit.solvers._levenberg_marquardt import levenberg_marquardt
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._mirror_descent import mirror_descent
from torchopt_implicit.solvers._newton import newton
from torchopt_implicit.solvers._nonlinear_cg import nonlinear_cg
from torchopt_implicit.solvers._projected_gradient import projected_gradient
from torchopt_implicit.solvers._proximal_gradient import proximal_gradient
from torchopt_implicit.solvers._qp import QPSolution, qp
from torchopt_implicit.solvers._solver import Solver, SolverState
from torchopt_implicit.solvers._sparse_qp import SparseQPSolution, sparse_qp
from torchopt_implicit.solvers._stochastic import armijo_sgd, polyak_sgd

__all__ = [
    "Method",
    "QPSolution",
    "Solver",
    "SolverState",
    "SparseQPSolution",
    "anderson",
    "armijo_sgd",
    "bfgs",
    "bisection",
    "block_coordinate_descent",
    "broyden",
    "dogleg",
    "gauss_newton",
    "gradient_descent",
    "lbfgs",
    "lbfgsb",
    "levenberg_marquardt",
    "mirror_descent",
    "newton",
    "nonlinear_cg",
    "polyak_sgd",
    "project_ball",
    "project_box",
    "project_simplex",
    "projected_gradient",
    "proximal_gradient",
    "qp",
    "sparse_qp",
]
