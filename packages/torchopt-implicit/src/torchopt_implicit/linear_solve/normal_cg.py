"""Conjugate gradients on the normal equation, for any operator."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit.linear_solve._base import dot, has_ridge, norm
from torchopt_implicit.linear_solve._krylov import Krylov, Outcome, Stop, ratio
from torchopt_implicit.linear_solve._options import tolerances
from torchopt_implicit.linear_solve.cg import CG

__all__ = ["NormalCG", "solve_normal_cg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalCG(Krylov):
    """The solver that :func:`solve_normal_cg` returns, which documents its options."""

    def posed(
        self, A: LinearOperator, b: torch.Tensor
    ) -> tuple[Krylov, LinearOperator, torch.Tensor]:
        if not has_ridge(self.ridge):
            return self, A, b
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        method = CG(**options | {"ridge": None})
        return method, (A.T @ A).shifted(self.ridge), A.rmatvec(b)

    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        r = residual
        s = A.rmatvec(r)
        z = s if M is None else M(s)
        p = z.clone()
        sz = dot(s, z)
        count = torch.zeros_like(sz, dtype=torch.int64)
        broke = torch.zeros_like(sz, dtype=torch.bool)
        rounding = 10 * torch.finfo(r.dtype).eps
        gain = torch.zeros_like(sz)  # a lower bound of the norm of A
        steps = 0
        for steps in range(stop.limit + 1):
            slope, length = norm(s), norm(r)
            # at a least squares solution that solves nothing: b is out of reach of A
            broke = broke | ((slope <= rounding * gain * length) & (length > stop.tolerance))
            active = (length > stop.tolerance) & ~broke
            if steps == stop.limit or stop.is_due(steps, active):
                break
            Ap = A.matvec(p)
            stretched, extent = dot(Ap, Ap), dot(p, p)
            moves = active & (stretched > 0)
            broke = broke | (active & ~moves)
            gain = torch.maximum(gain, ratio(stretched, extent, extent > 0).sqrt())
            alpha = ratio(sz, stretched, moves)
            x.addcmul_(alpha, p)
            r.addcmul_(alpha, Ap, value=-1)
            s = A.rmatvec(r)
            z = s if M is None else M(s)
            old, sz = sz, dot(s, z)
            torch.addcmul(z, ratio(sz, old, moves), p, out=p)
            count = count + moves
        return Outcome(x, r, count, broke, steps)


def solve_normal_cg(
    *,
    ridge: float | torch.Tensor | None = None,
    init: Any = None,
    maxiter: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    M: Any = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> NormalCG:
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
    return NormalCG(
        ridge=ridge,
        init=init,
        M=M,
        throw=throw,
        **tolerances(maxiter, rtol, atol, truncate),
    )
