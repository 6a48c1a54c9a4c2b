"""GMRES with restarts, for any operator, without its transpose."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt_implicit._operator import FlatMap, LinearOperator
from torchopt_implicit.linear_solve._base import norm
from torchopt_implicit.linear_solve._krylov import Krylov, Outcome, Stop, ratio
from torchopt_implicit.linear_solve._options import tolerances

__all__ = ["GMRES", "solve_gmres"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(Krylov):
    """The solver that :func:`solve_gmres` returns, which documents its options."""

    restart: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restart < 1:
            raise ValueError(f"`restart` must be positive, got {self.restart}")

    def cycle(
        self,
        A: LinearOperator,
        M: FlatMap | None,
        x: torch.Tensor,
        residual: torch.Tensor,
        stop: Stop,
    ) -> Outcome:
        M = M or (lambda v: v)
        size = norm(residual)
        active = size > stop.tolerance
        count = torch.zeros_like(size, dtype=torch.int64)
        steps = min(self.restart, stop.limit, residual.shape[-1])
        if steps == 0:
            return Outcome(x, residual, count, torch.zeros_like(active), 1)
        column = (*residual.shape[:-1], 1)  # of numbers, where `norm` returns 0-dim ones
        V = residual.new_zeros(*residual.shape[:-1], steps + 1, residual.shape[-1])
        V[..., 0, :] = ratio(residual, size, size > 0)  # rows are orthonormal
        hessenberg = _Triangle(size.reshape(column), steps)
        done = ~active
        k = 0
        for k in range(steps):
            w = A.matvec(M(V[..., k, :]))
            reach = norm(w)
            basis = V[..., : k + 1, :]
            # classical Gram-Schmidt, twice, is as orthogonal as it gets
            h = (basis @ w.unsqueeze(-1)).squeeze(-1)
            w = w - (h.unsqueeze(-2) @ basis).squeeze(-2)
            again = (basis @ w.unsqueeze(-1)).squeeze(-1)
            w = w - (again.unsqueeze(-2) @ basis).squeeze(-2)
            length = norm(w)
            grows = length > torch.finfo(w.dtype).eps * reach
            length = torch.where(grows, length, 0)
            V[..., k + 1, :] = ratio(w, length, grows)
            count = count + ~done
            claimed = hessenberg.append(torch.cat([h + again, length.reshape(column)], -1))
            done = done | (claimed.reshape(size.shape) <= stop.tolerance) | ~grows
            if stop.is_due(k, ~done):
                break
        y = hessenberg.solve()
        change = M((y.unsqueeze(-2) @ V[..., : k + 1, :]).squeeze(-2))
        x = torch.where(active, x + change, x)
        left = residual - torch.where(active, A.matvec(change), 0)
        # the space is exhausted and the residual is not in it: singular
        broke = active & ~(norm(left) < 0.999999 * size) & ~grows
        return Outcome(x, left, count, broke, k + 1)


class _Triangle:
    r"""The least squares problem :math:`\min_y \|\beta e_1 - H y\|`, column by column of ``H``.

    Givens rotations make the Hessenberg matrix triangular: one more for each column.
    """

    def __init__(self, beta: torch.Tensor, steps: int) -> None:
        batch = beta.shape[:-1]
        eye = torch.eye(steps + 1, dtype=beta.dtype, device=beta.device)
        self.Q = eye.expand(*batch, steps + 1, steps + 1).clone()  # the product of the rotations
        self.R = beta.new_zeros(*batch, steps + 1, steps)
        self.g = torch.nn.functional.pad(beta, (0, steps))  # Q beta e_1
        self.k = 0

    def append(self, column: torch.Tensor) -> torch.Tensor:
        """Add a column ``(*batch, k + 2)``; return the norm of what is left, ``(*batch, 1)``."""
        k = self.k
        Q = self.Q[..., : k + 2, : k + 2]
        h = (Q @ column.unsqueeze(-1)).squeeze(-1)
        a, b = h[..., k : k + 1], h[..., k + 1 : k + 2]
        length = torch.hypot(a, b)
        c, s = torch.where(length > 0, a / length, 1), ratio(b, length, length > 0)
        top, bottom = Q[..., k, :].clone(), Q[..., k + 1, :].clone()
        Q[..., k, :], Q[..., k + 1, :] = c * top + s * bottom, c * bottom - s * top
        self.R[..., : k + 1, k] = h[..., : k + 1]
        self.R[..., k : k + 1, k] = length
        g = self.g[..., k : k + 1].clone()
        self.g[..., k : k + 1], self.g[..., k + 1 : k + 2] = c * g, -s * g
        self.k = k + 1
        return self.g[..., k + 1 : k + 2].abs()

    def solve(self) -> torch.Tensor:
        """Return the ``y`` of least norm, ``(*batch, k)``."""
        R, g = self.R[..., : self.k, : self.k], self.g[..., : self.k].unsqueeze(-1)
        diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
        smallest, largest = diagonal.amin(-1), diagonal.amax(-1)
        regular = bool((smallest > self.k * torch.finfo(R.dtype).eps * largest).all())
        if regular:
            y: torch.Tensor = torch.linalg.solve_triangular(R, g, upper=True)
            return y.squeeze(-1)
        finite = torch.isfinite(R).all(-1).all(-1)[..., None, None]  # others would raise
        inverse = torch.linalg.pinv(torch.where(finite, R, 0))
        y = torch.where(finite, inverse, torch.nan) @ g
        return y.squeeze(-1)


def solve_gmres(
    *,
    ridge: float | torch.Tensor | None = None,
    init: Any = None,
    maxiter: int | None = None,
    restart: int = 20,
    rtol: float | None = None,
    atol: float | None = None,
    M: Any = None,
    truncate: bool | None = None,
    throw: bool = False,
) -> GMRES:
    r"""Return a solver of :math:`(A + \rho I) x = b` by generalized minimal residuals.

    For any operator that is not singular. An iteration costs one matvec and no transpose; it keeps
    ``restart`` vectors and starts anew then, with one more matvec.

    Args:
        ridge: :math:`\rho`, 0 by default.
        init: The tree to start from, 0 by default.
        maxiter: Limit on iterations in all; ten for each unknown by default.
        restart: Iterations between restarts, 20 by default.
        rtol: The residual norm to reach, relative to that of ``b``, 1e-5 by default.
        atol: Or absolutely, 0 by default; the larger of both counts.
        M: A preconditioner from the right, an approximate inverse.
        truncate: Whether ``maxiter`` iterations are what is wanted, so that ending there is no
            failure. False by default, but True where ``maxiter`` is given and tolerances that are
            0 are, as in ``maxiter=5, atol=0``.
        throw: Whether a failure raises, rather than warns.

    Returns:
        A :class:`GMRES`, called as ``solver(A, b)``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
        >>> torchopt.linear_solve.solve_gmres()(A, torch.tensor([2.0, -3.0])).round(decimals=4)
        tensor([3., 1.])

    Reference:
        Saad and Schultz, GMRES: a generalized minimal residual algorithm, 1986.
    """
    return GMRES(
        ridge=ridge,
        init=init,
        M=M,
        throw=throw,
        restart=restart,
        **tolerances(maxiter, rtol, atol, truncate),
    )
