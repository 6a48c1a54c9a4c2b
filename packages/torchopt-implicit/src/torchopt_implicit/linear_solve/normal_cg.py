"""Conjugate gradients on the normal equation, for any operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator, as_operator
from torchopt_implicit._status import Info
from torchopt_implicit.linear_solve._base import (
    LinearSolver,
    check_options,
    default_maxiter,
    dot,
    has_ridge,
    norm,
    with_ridge,
)
from torchopt_implicit.linear_solve._iterate import (
    Outcome,
    Stop,
    add_scaled,
    iterate,
    ratio,
)
from torchopt_implicit.linear_solve._options import with_options_of, with_truncation

__all__ = ["NormalCG", "solve_normal_cg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalCG(LinearSolver):
    """The solver that :func:`solve_normal_cg` returns, which documents its options."""

    ridge: float | torch.Tensor | None = None
    init: Any = None
    maxiter: int | None = None
    rtol: float = 1e-5
    atol: float = 0.0
    M: Any = None
    truncate: bool = False

    def __post_init__(self) -> None:
        check_options(
            ridge=self.ridge,
            maxiter=self.maxiter,
            rtol=self.rtol,
            atol=self.atol,
            truncate=self.truncate,
        )

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        layout = A.domain
        x = None if self.init is None else layout.ravel(self.init, "init")
        x = None if x is None else x.expand(*b.shape[:-1], layout.size)
        M = None if self.M is None else as_operator(self.M, layout).matvec
        regularized = has_ridge(self.ridge)
        target = A.rmatvec(b) if regularized else b
        slope = with_ridge(lambda x: A.rmatvec(A.matvec(x)), self.ridge)

        def cycle(x: torch.Tensor, residual: torch.Tensor, stop: Stop) -> Outcome:
            r = b - A.matvec(x) if regularized else residual
            return _cycle(A, M, self.ridge if regularized else None, x, r, stop)

        return iterate(
            cycle,
            lambda x: target - (slope(x) if regularized else A.matvec(x)),
            x,
            target,
            rtol=self.rtol,
            atol=self.atol,
            maxiter=default_maxiter(self.maxiter, layout.size),
            truncate=self.truncate,
        )


def _cycle(
    A: LinearOperator,
    M: FlatMap | None,
    ridge: float | torch.Tensor | None,
    x: torch.Tensor,
    r: torch.Tensor,
    stop: Stop,
) -> Outcome:
    s = A.rmatvec(r) if ridge is None else A.rmatvec(r) - ridge * x
    z = s if M is None else M(s)
    p = z.clone()
    sz = dot(s, z)
    count = torch.zeros_like(sz, dtype=torch.int64)
    broke = torch.zeros_like(sz, dtype=torch.bool)
    rounding = 10 * torch.finfo(r.dtype).eps
    gain = torch.zeros_like(sz)  # a lower bound of the norm of A
    steps = 0
    for steps in range(stop.limit + 1):
        slope = norm(s.detach())
        length = slope if ridge is not None else norm(r.detach())
        if ridge is None:
            # at a least squares solution that solves nothing: b is out of reach of A
            broke = broke | ((slope <= rounding * gain * length) & (length > stop.tolerance))
        active = (length > stop.tolerance) & ~broke
        if steps == stop.limit or stop.is_due(steps, active):
            break
        Ap = A.matvec(p)
        stretched, extent = dot(Ap, Ap), dot(p, p)
        curvature = stretched if ridge is None else stretched + ridge * extent
        moves = active & (curvature > 0)
        broke = broke | (active & ~moves)
        gain = torch.maximum(gain, ratio(stretched.detach(), extent.detach(), extent > 0).sqrt())
        alpha = ratio(sz, curvature, moves)
        x = add_scaled(x, alpha, p, out=x)
        r = add_scaled(r, alpha, Ap, -1, out=r)
        s = A.rmatvec(r) if ridge is None else A.rmatvec(r) - ridge * x
        z = s if M is None else M(s)
        old, sz = sz, dot(s, z)
        p = add_scaled(z, ratio(sz, old, moves), p, out=p)
        count = count + moves
    return Outcome(x, r if ridge is None else s, count, broke, steps)


@with_options_of(NormalCG)
def solve_normal_cg(**kwargs: Any) -> NormalCG:
    r"""Return a solver of :math:`(A^\top A + \rho I) x = A^\top b` by conjugate gradients.

    For any operator that is not singular: symmetric or not. An iteration costs one matvec and one
    with the transpose; the condition number that decides how many are needed is that of :math:`A`,
    squared. Without a ridge the tolerance is on :math:`b - A x`, else on the residual of the normal
    equation, and so is the residual norm of the info.

    Args:
        ridge: :math:`\rho`, 0 by default.
        init: The tree to start from, 0 by default.
        maxiter: Limit on iterations; ten for each unknown by default.
        rtol: The residual norm to reach, relative to that of the right-hand side, 1e-5 by default.
        atol: Or absolutely, 0 by default; the larger of both counts.
        M: A preconditioner, an approximate inverse of :math:`A^\top A + \rho I`.
        truncate: Whether ``maxiter`` iterations are what is wanted, so that ending there is no
            failure. False by default, but True where ``maxiter`` is given and tolerances that are
            0 are, as in ``maxiter=5, atol=0``.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`NormalCG`, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> solver = torchopt.linear_solve.solve_normal_cg()
        >>> solver(A, torch.tensor([2.0, -3.0])).round(decimals=4)
        tensor([3., 1.])

    Reference:
        Bjorck, Numerical methods for least squares problems, 1996, section 7.4 (CGLS).
    """
    return NormalCG(**with_truncation(kwargs))
