"""Implicit differentiation: derivatives of solutions, however they were found.

:func:`custom_root` and :func:`custom_fixed_point` decorate a solver,
:class:`ImplicitMetaGradientModule` is a module that is solved, :mod:`~torchopt_implicit.solvers`
have their derivatives built in. :mod:`~torchopt_implicit.linear_solve` and
:mod:`~torchopt_implicit.linalg` are the linear algebra underneath.
"""

from torchopt_implicit import (
    bilevel,
    differentiation,
    linalg,
    linear_solve,
    projections,
    proximal,
    solvers,
)
from torchopt_implicit._affine import affine_root
from torchopt_implicit._error_bounds import (
    HypergradientError,
    Lipschitz,
    hypergradient_error,
    stationarity,
)
from torchopt_implicit._module import ImplicitMetaGradientModule
from torchopt_implicit._optimality import KKTSolution, kkt_conditions
from torchopt_implicit._root import custom_fixed_point, custom_root
from torchopt_implicit._status import FailedSolveError, FailedSolveWarning, Info, Status

__all__ = [
    "FailedSolveError",
    "FailedSolveWarning",
    "HypergradientError",
    "ImplicitMetaGradientModule",
    "Info",
    "KKTSolution",
    "Lipschitz",
    "Status",
    "affine_root",
    "bilevel",
    "custom_fixed_point",
    "custom_root",
    "differentiation",
    "hypergradient_error",
    "kkt_conditions",
    "linalg",
    "linear_solve",
    "projections",
    "proximal",
    "solvers",
    "stationarity",
]
