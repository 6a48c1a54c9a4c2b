"""Solvers with implicit gradients built in, each batched by `torch.vmap` on tensors."""

from torchopt_implicit.solvers._anderson import anderson
from torchopt_implicit.solvers._bfgs import bfgs
from torchopt_implicit.solvers._bisection import bisection
from torchopt_implicit.solvers._broyden import broyden
from torchopt_implicit.solvers._dogleg import dogleg
from torchopt_implicit.solvers._gauss_newton import gauss_newton
from torchopt_implicit.solvers._gradient_descent import gradient_descent
from torchopt_implicit.solvers._lbfgs import lbfgs
from torchopt_implicit.solvers._levenberg_marquardt import levenberg_marquardt
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._newton import newton
from torchopt_implicit.solvers._nonlinear_cg import nonlinear_cg
from torchopt_implicit.solvers._projected_gradient import projected_gradient
from torchopt_implicit.solvers._projections import project_ball, project_box, project_simplex
from torchopt_implicit.solvers._qp import QPSolution, qp
from torchopt_implicit.solvers._solver import Solver, SolverState
from torchopt_implicit.solvers._stochastic import armijo_sgd, polyak_sgd

__all__ = [
    "Method",
    "QPSolution",
    "Solver",
    "SolverState",
    "anderson",
    "armijo_sgd",
    "bfgs",
    "bisection",
    "broyden",
    "dogleg",
    "gauss_newton",
    "gradient_descent",
    "lbfgs",
    "levenberg_marquardt",
    "newton",
    "nonlinear_cg",
    "polyak_sgd",
    "project_ball",
    "project_box",
    "project_simplex",
    "projected_gradient",
    "qp",
]
