"""Large sparse quadratic programs by the alternating direction method of multipliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._functorch import is_readable
from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Info, report
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout
from torchopt_implicit.solvers._admm import Program, conjugate_gradients, solve
from torchopt_implicit.solvers._coordinates import Matrix, as_matrix
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._loop import precise
from torchopt_implicit.solvers._solver import detach

__all__ = ["SparseQPSolution", "sparse_qp"]

#: unknowns and multipliers up to which derivatives factorize
DIRECT_SIZE = 256


class SparseQPSolution(NamedTuple):
    """The solution of a quadratic program, see :func:`sparse_qp`."""

    #: the minimizer, of shape ``(n,)``, differentiable
    z: torch.Tensor
    #: multipliers of the constraints, of shape ``(m,)``, differentiable: positive where the upper
    #: bound is active, negative where the lower one is
    y: torch.Tensor
    #: how the search ended
    info: Info


def sparse_qp(
    Q: torch.Tensor,
    q: torch.Tensor,
    A: torch.Tensor,
    lower: float | torch.Tensor,
    upper: float | torch.Tensor,
    *,
    init: tuple[torch.Tensor, torch.Tensor] | None = None,
    maxiter: int = 10_000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    throw: bool = False,
) -> SparseQPSolution:
    r"""Solve a convex quadratic program with sparse matrices, differentiably in all data.

    .. math::
        \min_z \tfrac{1}{2} z^\top Q z + q^\top z \quad \text{such that} \quad l \le A z \le u

    The alternating direction method of multipliers needs products with the matrices alone: each
    iteration solves a linear system by a few conjugate gradient steps from the last solution. Data
    are equilibrated and the penalty adapts. For small dense programs, batches, or high accuracy
    :func:`qp` is faster. Derivatives come from the conditions

    .. math::
        Q z + q + A^\top y = 0, \qquad A z = P_{[l, u]}(A z + y)

    Args:
        Q: Of shape ``(n, n)``, positive semidefinite; dense, or sparse (COO or CSR). Both
            triangles are stored; only the symmetric part counts.
        q: Of shape ``(n,)``.
        A: Of shape ``(m, n)``, dense or sparse.
        lower: :math:`l`, broadcasting to ``(m,)``; ``-inf`` for none, equal to ``upper`` for an
            equation.
        upper: :math:`u`, likewise.
        init: ``(z, y)`` to start from, for instance the solution of a program like this one.
        maxiter: The most iterations.
        tol: The error to reach in the constraints and in stationarity, absolute and relative; 1e-7
            by default, and 1e-4 for data in float32.
        derivative_solve: Solves with the symmetric derivative of the conditions, on pairs
            ``(z, y)``. By default a factorisation for up to 256 unknowns and multipliers, and GMRES
            beyond, preconditioned by conjugate gradients with active constraints softened.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`SparseQPSolution`. Gradients of a sparse matrix are sparse like it. Its
        ``info.status`` is ``Status.INFEASIBLE`` or ``Status.UNBOUNDED`` where a certificate was
        found, a lower bound above its upper one among them.

    Raises:
        TypeError: If an argument is not a tensor of floats, or dtypes differ.
        ValueError: If shapes do not fit, or a number is out of its range.
        NotImplementedError: Under `torch.vmap`: problems of a batch are solved one by one.
        FailedSolveError: If ``throw`` and the program was not solved.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import sparse_qp
        >>> eye = torch.eye(3, dtype=torch.float64).to_sparse()
        >>> q = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
        >>> z = sparse_qp(eye, q, eye, -1.0, 1.0).z  # the point of the box nearest to -q
        >>> z.detach().round(decimals=4)
        tensor([ 1.0000, -0.5000, -1.0000], dtype=torch.float64)
        >>> torch.autograd.grad(z.sum(), q)
        (tensor([-0., -1., -0.], dtype=torch.float64),)

    References:
        B. Stellato, G. Banjac, P. Goulart, A. Bemporad, S. Boyd: OSQP: an operator splitting solver
        for quadratic programs (2020), algorithm 1 and sections 3.4, 5.1 and 5.2.
    """
    _check(Q, q, A)
    if not isinstance(maxiter, int) or maxiter < 0:
        raise ValueError(f"`maxiter` must be a non-negative integer, got {maxiter!r}")
    if tol is None:
        tol = 1e-7 if q.dtype == torch.float64 else 1e-4
    if not tol > 0:
        raise ValueError(f"`tol` must be positive, or None for the default, got {tol!r}")
    m = A.shape[0]
    low, high = (
        torch.as_tensor(bound, dtype=q.dtype, device=q.device).expand(m) for bound in (lower, upper)
    )
    curvature, constraints = as_matrix(Q), as_matrix(A)
    data = (curvature.values, q, constraints.values, low, high)
    if not all(is_readable(x) for x in data):
        raise NotImplementedError(
            "sparse_qp looks at its residuals, and so cannot run under torch.vmap; solve the "
            "problems one by one, or use qp, which solves batches of dense programs"
        )
    with torch.no_grad():
        program = _program(curvature, constraints, detach(data))
        z, y, info = solve(program, detach(init), tol=tol, maxiter=maxiter)
        inverse = _preconditioner(program, z, y)
    report(info, "sparse_qp", throw=throw, remedy="Raise `maxiter` or `tol`")
    solution = z.to(q.dtype), y.to(q.dtype)

    if derivative_solve is None and q.shape[0] + m <= DIRECT_SIZE:
        derivative_solve = solves.LU()
    elif derivative_solve is None:
        derivative_solve = solves.GMRES(M=inverse, rtol=precise(torch.finfo(q.dtype).eps))

    def known(init: None, *data: torch.Tensor) -> Any:
        return solution

    known.__name__ = "sparse_qp"
    differentiable = custom_root(
        _conditions(curvature, constraints),
        argnums=(1, 2, 3, 4, 5),
        solve=derivative_solve,
    )(known)
    z, y = differentiable(None, *data)
    return SparseQPSolution(z, y, info)


def _conditions(curvature: Matrix, constraints: Matrix) -> Callable[..., Any]:
    """Return the conditions, with a symmetric derivative.

    Where the projection is on a bound, that bound is to be met; elsewhere the multiplier is to be
    zero. Which is the case does not change nearby.
    """

    def conditions(
        solution: tuple[torch.Tensor, torch.Tensor],
        Q: torch.Tensor,
        q: torch.Tensor,
        A: torch.Tensor,
        lower: torch.Tensor,
        upper: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z, y = solution
        symmetric = curvature.with_values(Q)
        rows = constraints.with_values(A)
        Qz = 0.5 * (symmetric.times(z) + symmetric.T.times(z))
        Az = rows.times(z)
        shifted = (Az + y).detach()
        above, below = shifted >= upper, shifted <= lower
        active = above | below
        bound = torch.where(above, upper, torch.where(below, lower, 0.0))
        return (
            Qz + q + rows.T.times(torch.where(active, y, 0.0)),
            torch.where(active, Az - bound, -y),
        )

    return conditions


def _preconditioner(program: Program, z: torch.Tensor, y: torch.Tensor) -> LinearOperator:
    r"""Return the inverse of the conditions' derivative, with active constraints softened.

    Softened equations :math:`A_a z - y_a / \rho` leave a positive definite system in ``z`` alone,
    for conjugate gradients; a few iterations of GMRES make up for the difference.
    """
    Q, A, At = (x.for_products() for x in (program.Q, program.A, program.A.T))
    n = z.shape[0]
    shifted = A @ z + y
    active = ((shifted >= program.upper) | (shifted <= program.lower)).to(z)
    sizes = program.A.row_sums_of_squares(torch.ones_like(z))
    diagonal = program.Q.diagonal()
    size = float(diagonal.abs().mean()) if n else 1.0
    size = size if size > 0 else 1.0
    rho = 1e3 * size * active / torch.where(sizes > 0, sizes, 1.0)
    ridge = 1e-8 * size
    jacobi = diagonal + ridge + program.A.T.row_sums_of_squares(rho)

    def operator(v: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = Q @ v + ridge * v + At @ (rho * (A @ v))
        return product

    def single(b: torch.Tensor) -> torch.Tensor:
        u, w = b[:n].double(), b[n:].double()
        right = u + At @ (rho * w)
        target = 1e-12 * float(torch.linalg.vector_norm(right))
        dz = conjugate_gradients(operator, jacobi, right, torch.zeros_like(u), target, 10 * n)
        dy = torch.where(active > 0, rho * (A @ dz - w), -w)
        return torch.cat((dz, dy)).to(b.dtype)

    def matvec(b: torch.Tensor) -> torch.Tensor:
        rows = [single(row) for row in b.reshape(-1, b.shape[-1])]
        return torch.stack(rows).reshape(b.shape)

    layout = Layout.of((z, y), "the solution")
    return LinearOperator(matvec, matvec, layout, layout, tags=Tag.SYMMETRIC)


def _program(curvature: Matrix, constraints: Matrix, data: tuple[torch.Tensor, ...]) -> Program:
    """Return the program in double precision."""
    Q, q, A, lower, upper = (x.double() for x in data)
    return Program(
        curvature.with_values(Q).symmetric(), q, constraints.with_values(A), lower, upper
    )


def _check(Q: Any, q: Any, A: Any) -> None:
    for name, x in (("Q", Q), ("q", q), ("A", A)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
            raise TypeError(f"`{name}` must be a tensor of floats, got {got}")
        if x.dtype != q.dtype:
            raise TypeError(f"`{name}` must be a tensor of {q.dtype} like `q`, got {x.dtype}")
    if q.ndim != 1:
        raise ValueError(f"`q` must have the shape (n,), got {tuple(q.shape)}")
    n = q.shape[0]
    if Q.shape != (n, n):
        raise ValueError(f"`Q` must have the shape ({n}, {n}) like `q`, got {tuple(Q.shape)}")
    if A.ndim != 2 or A.shape[1] != n:
        raise ValueError(f"`A` must have the shape (m, {n}), got {tuple(A.shape)}")
