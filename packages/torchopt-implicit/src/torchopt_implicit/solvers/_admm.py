"""The alternating direction method of multipliers for quadratic programs, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from torchopt_implicit._status import Info, Status
from torchopt_implicit.solvers._coordinates import Matrix

__all__ = ["Program", "conjugate_gradients", "solve"]

#: of the proximal term, and of the relaxation of each step
SIGMA, RELAXATION = 1e-6, 1.6
#: how much stiffer equations are than inequalities
STIFFER = 1e3
#: iterations between looks at the residuals; after how many of these the penalty may change, and
#: by which factor it has to be wrong
CHECK_EVERY, ADAPT_EVERY, ADAPT_FACTOR = 10, 5, 5.0
EQUILIBRATIONS = 10
#: the most steps of an inner solve, which starts from the last solution
INNER = 30
#: looks in a row at which a certificate has to hold
CERTAIN = 3
CERTIFICATE = 1e-6

Vectors = tuple[torch.Tensor, torch.Tensor]


class Program(NamedTuple):
    """A quadratic program, with a symmetric ``Q``."""

    Q: Matrix
    q: torch.Tensor
    A: Matrix
    lower: torch.Tensor
    upper: torch.Tensor


class _Scaling(NamedTuple):
    # of the unknowns, of the constraints, of the objective
    unknowns: torch.Tensor
    constraints: torch.Tensor
    objective: float


def solve(
    program: Program, init: Vectors | None, *, tol: float, maxiter: int
) -> tuple[torch.Tensor, torch.Tensor, Info]:
    """Return the minimizer, the multipliers, and how the search ended."""
    scaled, scaling = _equilibrate(program)
    Q, A, At = (x.for_products() for x in (scaled.Q, scaled.A, scaled.A.T))
    q, lower, upper = scaled.q, scaled.lower, scaled.upper
    m, n = scaled.A.shape
    x, y = q.new_zeros(n), q.new_zeros(m)
    if init is not None:
        x = init[0].to(q) / scaling.unknowns
        y = init[1].to(q) * scaling.objective / scaling.constraints
    z = torch.minimum(torch.maximum(A @ x, lower), upper)
    if bool((lower > upper).any()):  # the projections would hide it
        gap = float((program.lower - program.upper).max())
        return _result(x, y, scaling, Info(0, gap, Status.INFEASIBLE))
    ones = torch.ones_like(lower)
    stiffness = torch.where(lower == upper, STIFFER * ones, ones)
    stiffness = torch.where((lower == -math.inf) & (upper == math.inf), 1e-3 * ones, stiffness)
    penalty = 0.1
    diagonal, squares = scaled.Q.diagonal(), scaled.A.T.row_sums_of_squares(stiffness)
    primal = dual = math.inf
    certain, kind = 0, Status.CONVERGED
    looks = 0
    iteration = 0
    previous = x, y
    while True:
        if iteration % CHECK_EVERY == 0 or iteration == maxiter:
            Ax, Qx, Aty = A @ x, Q @ x, At @ y
            primal, dual, sizes = _residuals(scaling, Ax, z, Qx, q, Aty)
            error = max(primal / (1 + sizes[0]), dual / (1 + sizes[1]))
            if not (math.isfinite(primal) and math.isfinite(dual)):
                return _result(x, y, scaling, Info(iteration, math.nan, Status.NOT_FINITE))
            if error <= tol:
                return _result(x, y, scaling, Info(iteration, error, Status.CONVERGED))
            if iteration >= maxiter:
                return _result(x, y, scaling, Info(iteration, error, Status.ITERATION_LIMIT))
            if iteration:
                found = _certificate(scaled, Q, A, At, x - previous[0], y - previous[1])
                certain = certain + 1 if found is kind and found.is_failure else 1
                kind = found
                if certain >= CERTAIN and found.is_failure:
                    return _result(x, y, scaling, Info(iteration, error, found))
            looks += 1
            if looks % ADAPT_EVERY == 0 and dual > 0 and primal > 0:
                ratio = (primal / max(sizes[0], 1e-10)) / (dual / max(sizes[1], 1e-10))
                factor = math.sqrt(ratio)
                if not 1 / ADAPT_FACTOR <= factor <= ADAPT_FACTOR:
                    penalty = min(max(penalty * factor, 1e-6), 1e6)
        rho = penalty * stiffness

        def operator(v: torch.Tensor, rho: torch.Tensor = rho) -> torch.Tensor:
            product: torch.Tensor = Q @ v + SIGMA * v + At @ (rho * (A @ v))
            return product

        right = SIGMA * x - q + At @ (rho * z - y)
        accuracy = min(0.1 * math.sqrt(max(primal * dual, 0.0)), 1e-2)
        jacobi = diagonal + SIGMA + penalty * squares
        step = conjugate_gradients(operator, jacobi, right, x, accuracy, INNER)
        previous = x, y
        predicted = RELAXATION * (A @ step) + (1 - RELAXATION) * z
        x = RELAXATION * step + (1 - RELAXATION) * x
        z = torch.minimum(torch.maximum(predicted + y / rho, lower), upper)
        y = y + rho * (predicted - z)
        iteration += 1


def conjugate_gradients(
    operator: Callable[[torch.Tensor], torch.Tensor],
    diagonal: torch.Tensor,
    right: torch.Tensor,
    x: torch.Tensor,
    accuracy: float,
    limit: int,
) -> torch.Tensor:
    """Return an approximate solution, starting from ``x``, scaled by the diagonal."""
    r = right - operator(x)
    target = max(accuracy, 1e-14 * float(torch.linalg.vector_norm(right)))
    z = r / diagonal
    p, rz = z, float(r @ z)
    for _ in range(max(limit, 20)):
        if float(torch.linalg.vector_norm(r)) <= target:
            break
        Ap = operator(p)
        curvature = float(p @ Ap)
        if not curvature > 0:
            break
        x = torch.add(x, p, alpha=rz / curvature)
        r = torch.add(r, Ap, alpha=-rz / curvature)
        z = r / diagonal
        old, rz = rz, float(r @ z)
        p = torch.add(z, p, alpha=rz / old)
    return x


def _equilibrate(program: Program) -> tuple[Program, _Scaling]:
    """Scale rows and columns of the optimality conditions to the same size, after Ruiz."""
    Q, q, A, lower, upper = program
    m, n = A.shape
    D, E = q.new_ones(n), q.new_ones(m)
    for _ in range(EQUILIBRATIONS):
        scaled_A = A.scaled(E, D)
        columns = torch.maximum(Q.scaled(D, D).row_norms(), scaled_A.T.row_norms())
        rows = scaled_A.row_norms()
        D = D / torch.where(columns > 0, columns, 1.0).sqrt()
        E = E / torch.where(rows > 0, rows, 1.0).sqrt()
    Q, q, A = Q.scaled(D, D), D * q, A.scaled(E, D)
    size = max(float(Q.row_norms().mean()) if n else 0.0, _largest(q))
    c = 1 / size if size > 0 else 1.0
    scaled = Program(Q.with_values(c * Q.values), c * q, A, E * lower, E * upper)
    return scaled, _Scaling(D, E, c)


def _residuals(
    scaling: _Scaling,
    Ax: torch.Tensor,
    z: torch.Tensor,
    Qx: torch.Tensor,
    q: torch.Tensor,
    Aty: torch.Tensor,
) -> tuple[float, float, tuple[float, float]]:
    """Return the residuals of the program as it was given, and the sizes of what they compare."""
    D, E, c = scaling
    primal = _largest((Ax - z) / E)
    dual = _largest((Qx + q + Aty) / D) / c
    rows = max(_largest(Ax / E), _largest(z / E))
    columns = max(_largest(Qx / D), _largest(Aty / D), _largest(q / D)) / c
    return primal, dual, (rows, columns)


def _certificate(
    program: Program,
    Q: torch.Tensor,
    A: torch.Tensor,
    At: torch.Tensor,
    dx: torch.Tensor,
    dy: torch.Tensor,
) -> Status:
    """Return what the last changes of an iteration that diverges prove, up to rounding."""
    lower, upper = program.lower, program.upper
    size = _largest(dy)
    if size > CERTIFICATE:
        positive, negative = dy.clamp_min(0), dy.clamp_max(0)
        # no multiplier may lean on a bound that is infinite
        leaning = torch.where(torch.isinf(upper), positive, 0.0) - torch.where(
            torch.isinf(lower), negative, 0.0
        )
        support = torch.where(torch.isinf(upper), 0.0, upper) @ positive
        support = support + torch.where(torch.isinf(lower), 0.0, lower) @ negative
        if (
            _largest(At @ dy) <= CERTIFICATE * size
            and _largest(leaning) <= CERTIFICATE * size
            and float(support) < -CERTIFICATE * size
        ):
            return Status.INFEASIBLE
    size = _largest(dx)
    if size > CERTIFICATE and float(program.q @ dx) < -CERTIFICATE * size:
        rows = A @ dx
        above = torch.where(torch.isinf(upper), 0.0, rows.clamp_min(0))
        below = torch.where(torch.isinf(lower), 0.0, -rows.clamp_max(0))
        if (
            _largest(Q @ dx) <= CERTIFICATE * size
            and max(_largest(above), _largest(below)) <= CERTIFICATE * size
        ):
            return Status.UNBOUNDED
    return Status.CONVERGED


def _largest(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _result(
    x: torch.Tensor, y: torch.Tensor, scaling: _Scaling, info: Info
) -> tuple[torch.Tensor, torch.Tensor, Info]:
    """Return the solution of the program as it was given."""
    return scaling.unknowns * x, scaling.constraints * y / scaling.objective, info
