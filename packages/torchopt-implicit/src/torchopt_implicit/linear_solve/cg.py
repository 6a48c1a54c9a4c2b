"""Conjugate gradients, for symmetric positive definite operators."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit.linear_solve._base import dot
from torchopt_implicit.linear_solve._krylov import Krylov, Outcome, Stop, ratio
from torchopt_implicit.linear_solve._options import tolerances

__all__ = ["CG", "solve_cg"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CG(Krylov):
    """The solver that :func:`solve_cg` returns, which documents its options."""

    presumes_symmetry: ClassVar[bool] = True

    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        r = residual
        z = r if M is None else M(r)
        p = z.clone()
        rz = dot(r, z)
        count = torch.zeros_like(rz, dtype=torch.int64)
        broke = torch.zeros_like(rz, dtype=torch.bool)
        gain = torch.zeros_like(rz)  # a lower bound of the norm of A
        rounding = torch.finfo(r.dtype).eps
        target = stop.tolerance**2
        steps = 0
        for steps in range(stop.limit + 1):
            squared = rz if M is None else dot(r, r)
            active = (squared > target) & ~broke
            if steps == stop.limit or stop.is_due(steps, active):
                break
            Ap = A.matvec(p)
            curvature = dot(p, Ap)
            steepness = (curvature / dot(p, p)).abs()
            gain = torch.fmax(gain, steepness)
            moves = active & (steepness > rounding * gain)
            broke = broke | (active ^ moves)
            alpha = ratio(rz, curvature, moves)
            x.addcmul_(alpha, p)
            r.addcmul_(alpha, Ap, value=-1)
            z = r if M is None else M(r)
            old, rz = rz, dot(r, z)
            torch.addcmul(z, ratio(rz, old, moves), p, out=p)
            count = count + moves
        return Outcome(x, r, count, broke, steps)


def solve_cg(
    *,
    ridge: float | torch.Tensor | None = None,
    init: Any = None,
    maxiter: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    M: Any = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> CG:
    r"""Return a solver of :math:`(A + \rho I) x = b` by conjugate gradients.

    For symmetric operators that are positive definite. An iteration costs one matvec.

    Args:
        ridge: :math:`\rho`, 0 by default.
        init: The tree to start from, 0 by default.
        maxiter: Limit on iterations; ten for each unknown by default.
        rtol: The residual norm to reach, relative to that of ``b``, 1e-5 by default.
        atol: Or absolutely, 0 by default; the larger of both counts.
        M: A preconditioner, an approximate inverse: like ``A`` a callable, matrix or operator.
        truncate: Whether ``maxiter`` iterations are what is wanted, so that ending there is no
            failure. False by default, but True where ``maxiter`` is given and tolerances that are
            0 are, as in ``maxiter=5, atol=0``.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`CG`, called as ``solver(A, b)``; ``solver.solve(A, b)`` returns the info, too.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.linear_solve.solve_cg(rtol=1e-6)
        >>> solver(lambda x: {"w": 2 * x["w"]}, {"w": torch.tensor([2.0, 4.0])})
        {'w': tensor([1., 2.])}

    Reference:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems, 1952.
    """
    return CG(
        ridge=ridge,
        init=init,
        M=M,
        throw=throw,
        **tolerances(maxiter, rtol, atol, truncate),
    )
