"""Quadratic programs in batches, differentiable in all of their data."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchopt_implicit._compiler import eager
from torchopt_implicit._functorch import is_forward_mode, is_transforming
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Info, report
from torchopt_implicit.solvers import _interior_point
from torchopt_implicit.solvers._kkt import Data, KKTSolver, times
from torchopt_implicit.solvers._solver import as_numbers, detach, lowered

__all__ = ["QPSolution", "qp"]


class QPSolution(NamedTuple):
    """The solution of a quadratic program, see :func:`qp`. All but ``info`` is differentiable."""

    #: the minimizer, of shape ``(..., n)``
    z: torch.Tensor
    #: multipliers of the inequalities, non-negative, of shape ``(..., m)``
    lam: torch.Tensor
    #: multipliers of the equalities, of shape ``(..., p)``
    nu: torch.Tensor
    #: how each problem of the batch ended
    info: Info


@eager
def qp(
    Q: torch.Tensor,
    q: torch.Tensor,
    G: torch.Tensor | None = None,
    h: torch.Tensor | None = None,
    A: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    *,
    maxiter: int = 50,
    tol: float | None = None,
    throw: bool = False,
) -> QPSolution:
    r"""Solve a batch of convex quadratic programs, differentiably in all data.

    .. math::
        \min_z \tfrac{1}{2} z^\top Q z + q^\top z \quad \text{such that} \quad
        G z \le h, \quad A z = b

    A primal-dual interior-point method solves all problems of the batch at once; each stops on its
    own. It works in float64 whatever the dtype of the data, since its systems are ill-conditioned
    by construction, and answers in that of the data. Derivatives come from the optimality
    conditions

    .. math::
        Q z + q + G^\top \lambda + A^\top \nu = 0, \quad \lambda \circ (G z - h) = 0, \quad A z = b

    with the factorisation that the forward solve ended with, for the transposed system as well.
    They exist where the constraints that hold with equality have positive multipliers and
    independent rows; elsewhere a derivative warns, and is one-sided at best. Of ``Q`` only the
    symmetric part counts.

    Args:
        Q: Of shape ``(..., n, n)``, positive semidefinite; zero for a linear program.
        q: Of shape ``(..., n)``.
        G: Of shape ``(..., m, n)``; no inequalities by default.
        h: Of shape ``(..., m)``; given if and only if ``G`` is.
        A: Of shape ``(..., p, n)``; no equalities by default.
        b: Of shape ``(..., p)``; given if and only if ``A`` is.
            The leading dimensions of all arguments broadcast.
        maxiter: The most iterations, of which each factorises one matrix of size ``n`` for each
            problem; 10 to 15 are usual.
        tol: The relative error to reach in stationarity, constraints and duality gap; 1e-9 by
            default, and 1e-7 for data in float32.
        throw: Whether a problem that was not solved raises rather than warns.

    Returns:
        A :class:`QPSolution`. Its ``info.status`` is ``Status.INFEASIBLE`` where multipliers
        were found which prove, up to rounding, that no point satisfies the constraints, and
        ``Status.UNBOUNDED`` where a direction was found along which the objective has no minimum.
        If both are so, either may be answered.

    Raises:
        TypeError: If an argument is not a tensor, or dtypes differ.
        ValueError: If shapes do not fit, only one of a pair is given, or a number is out of range.
        FailedSolveError: If ``throw`` and a problem was not solved.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import qp
        >>> x = torch.tensor([[0.6, 1.0], [0.1, 0.5]], dtype=torch.float64, requires_grad=True)
        >>> eye, ones = torch.eye(2).double(), torch.ones(1, 2).double()
        >>> # the point of the simplex nearest to each row of x
        >>> solution = qp(eye, -x, -eye, eye.new_zeros(2), ones, eye.new_ones(1))
        >>> solution.z.detach()
        tensor([[0.3000, 0.7000],
                [0.3000, 0.7000]], dtype=torch.float64)
        >>> torch.autograd.grad(solution.z[:, 0].sum(), x)
        (tensor([[ 0.5000, -0.5000],
                [ 0.5000, -0.5000]], dtype=torch.float64),)
        >>> solution.info.status
        tensor([0, 0])

    References:
        B. Amos, J. Z. Kolter: OptNet: Differentiable optimization as a layer in neural networks
        (2017), section 3.
    """
    Q, q, G, h, A, b = _checked(Q, q, G, h, A, b)
    if not isinstance(maxiter, int) or maxiter < 0:
        raise ValueError(f"`maxiter` must be a non-negative integer, got {maxiter!r}")
    if tol is None:
        tol = 1e-9 if Q.dtype == torch.float64 else 1e-7
    if not tol > 0:
        raise ValueError(f"`tol` must be positive, or None for the default, got {tol!r}")

    given = (Q, q, G, h, A, b)
    with torch.no_grad():
        program = _program(*detach(given))
        state, solved, info = _interior_point.solve(program, tol=tol, maxiter=maxiter)
    z, lam, nu = (x.to(Q.dtype) for x in (state.x, state.lam, state.nu))
    report(
        lowered(info),
        "qp",
        throw=throw,
        remedy="`info.status` of the result says which problems are concerned",
    )
    argnums = tuple(i for i, x in enumerate(given, start=1) if _may_differentiate(x))
    if argnums:
        accuracy = torch.finfo(Q.dtype).eps ** 0.4
        solver = KKTSolver.of(solved, tolerance=accuracy, throw=throw)

        solution = z, lam, nu

        def known(init: None, *data: torch.Tensor) -> Any:
            return solution

        known.__name__ = "qp"
        z, lam, nu = custom_root(_conditions, argnums=argnums, solve=solver)(known)(None, *given)
    return QPSolution(z, lam, nu, as_numbers(info))


def _conditions(
    solution: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    Q: torch.Tensor,
    q: torch.Tensor,
    G: torch.Tensor,
    h: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z, lam, nu = solution
    Qz = 0.5 * (times(Q, z) + times(Q.mT, z))
    return (
        Qz + q + times(G.mT, lam) + times(A.mT, nu),
        lam * (times(G, z) - h),
        times(A, z) - b,
    )


def _program(
    Q: torch.Tensor,
    q: torch.Tensor,
    G: torch.Tensor,
    h: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
) -> Data:
    """Return the program in double precision, all of it with as many batch dimensions."""
    Q, q, G, h, A, b = (x.double() for x in (Q, q, G, h, A, b))
    count = max(*(x.ndim - 2 for x in (Q, G, A)), *(x.ndim - 1 for x in (q, h, b)))

    def lifted(x: torch.Tensor, own: int) -> torch.Tensor:
        return x.reshape((1,) * (count + own - x.ndim) + x.shape)

    return Data.of(
        lifted((Q + Q.mT).mul_(0.5), 2),
        lifted(q, 1),
        lifted(G, 2),
        lifted(h, 1),
        lifted(A, 2),
        lifted(b, 1),
    )


def _may_differentiate(x: torch.Tensor) -> bool:
    """Return whether a derivative in ``x`` may be asked for: always under transforms."""
    wanted = x.requires_grad and torch.is_grad_enabled()
    return is_transforming() or is_forward_mode() or wanted


def _checked(*given: Any) -> list[torch.Tensor]:
    Q, q, G, h, A, b = given
    for name, x in zip("Qq", (Q, q), strict=True):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(f"`{name}` must be a tensor of floats, got {_kind(x)}")
    if q.ndim < 1:
        raise ValueError("`q` must have the shape (..., n), got a 0-dim tensor")
    n = q.shape[-1]
    if Q.shape[-2:] != (n, n) or Q.ndim < 2:
        raise ValueError(
            f"`Q` must have the shape (..., {n}, {n}), since `q` ends in {n}, got {tuple(Q.shape)}"
        )
    pairs = []
    for names, matrix, vector in (("Gh", G, h), ("Ab", A, b)):
        if (matrix is None) != (vector is None):
            missing = names[matrix is not None]
            raise ValueError(f"`{names[0]}` and `{names[1]}` go together, but `{missing}` is None")
        if matrix is None:
            matrix, vector = q.new_zeros(0, n), q.new_zeros(0)
        for name, x in zip(names, (matrix, vector), strict=True):
            if not isinstance(x, torch.Tensor) or x.dtype != q.dtype:
                raise TypeError(f"`{name}` must be a tensor of {q.dtype} like `q`, got {_kind(x)}")
        if matrix.ndim < 2 or vector.ndim < 1 or matrix.shape[-2:] != (vector.shape[-1], n):
            raise ValueError(
                f"`{names[0]}` and `{names[1]}` must have the shapes (..., m, {n}) and (..., m), "
                f"got {tuple(matrix.shape)} and {tuple(vector.shape)}"
            )
        pairs += [matrix, vector]
    if Q.dtype != q.dtype:
        raise TypeError(f"`Q` must be a tensor of {q.dtype} like `q`, got {_kind(Q)}")
    batches = {
        name: tuple(x.shape[:-own])
        for name, x, own in zip("QqGhAb", (Q, q, *pairs), (2, 1) * 3, strict=True)
    }
    try:
        torch.broadcast_shapes(*batches.values())  # type: ignore[no-untyped-call]
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions of the arguments must broadcast, got {batches}"
        ) from None
    return [Q, q, *pairs]


def _kind(x: Any) -> str:
    return str(x.dtype) if isinstance(x, torch.Tensor) else type(x).__name__
