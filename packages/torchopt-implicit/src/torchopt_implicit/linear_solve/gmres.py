"""GMRES with restarts, for any operator, without its transpose."""

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
    norm,
    with_ridge,
)
from torchopt_implicit.linear_solve._iterate import Outcome, Stop, iterate, ratio
from torchopt_implicit.linear_solve._options import with_options_of, with_truncation

__all__ = ["GMRES", "solve_gmres"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GMRES(LinearSolver):
    """The solver that :func:`solve_gmres` returns, which documents its options."""

    ridge: float | torch.Tensor | None = None
    init: Any = None
    maxiter: int | None = None
    restart: int = 20
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
        if self.restart < 1:
            raise ValueError(f"`restart` must be positive, got {self.restart}")

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        matvec = with_ridge(A.matvec, self.ridge)
        M = None if self.M is None else as_operator(self.M, A.domain).matvec
        x = None if self.init is None else A.domain.ravel(self.init, "init").expand_as(b)

        def cycle(x: torch.Tensor, residual: torch.Tensor, stop: Stop) -> Outcome:
            return _cycle(matvec, M or (lambda v: v), self.restart, x, residual, stop)

        return iterate(
            cycle,
            lambda x: b - matvec(x),
            x,
            b,
            rtol=self.rtol,
            atol=self.atol,
            maxiter=default_maxiter(self.maxiter, A.domain.size),
            truncate=self.truncate,
        )


def _cycle(
    matvec: FlatMap,
    M: FlatMap,
    restart: int,
    x: torch.Tensor,
    residual: torch.Tensor,
    stop: Stop,
) -> Outcome:
    steps = min(restart, stop.limit, residual.shape[-1])
    size = norm(residual)
    active = size.detach() > stop.tolerance
    basis = [ratio(residual, size, size > 0)]  # orthonormal
    columns: list[torch.Tensor] = []  # of the Hessenberg matrix, (*batch, k + 2)
    count = torch.zeros_like(size, dtype=torch.int64)
    done = ~active
    weights, left = None, residual
    for k in range(steps):
        w = matvec(M(basis[k]))
        reach = norm(w)
        V = torch.stack(basis, dim=-2)
        # classical Gram-Schmidt, twice, is as orthogonal as it gets
        h = (V @ w.unsqueeze(-1)).squeeze(-1)
        w = w - (h.unsqueeze(-2) @ V).squeeze(-2)
        again = (V @ w.unsqueeze(-1)).squeeze(-1)
        w = w - (again.unsqueeze(-2) @ V).squeeze(-2)
        length = norm(w)
        grows = length > torch.finfo(w.dtype).eps * reach
        length = torch.where(grows, length, 0)
        basis.append(ratio(w, length, grows))
        columns.append(torch.cat([h + again, length.reshape(*h.shape[:-1], 1)], dim=-1))
        count = count + ~done
        weights, claimed = _least_squares(columns, size.reshape(*h.shape[:-1], 1))
        claimed = claimed.reshape(size.shape)
        done = done | (claimed <= stop.tolerance) | ~grows
        if stop.is_due(k, ~done):
            break
    if weights is None:
        return Outcome(x, residual, count, torch.zeros_like(active), 1)
    V = torch.stack(basis[: len(columns)], dim=-2)
    change = M((weights.unsqueeze(-2) @ V).squeeze(-2))
    x = torch.where(active, x + change, x)
    left = residual - torch.where(active, matvec(change), 0)
    # the space is exhausted and the residual is not in it: singular
    broke = active & ~(norm(left).detach() < 0.999999 * size.detach()) & ~grows
    return Outcome(x, left, count, broke, len(columns))


def _least_squares(
    columns: list[torch.Tensor], size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what minimizes ``|size * e1 - H y|``, and that norm; of the shortest y if many."""
    rows = len(columns) + 1
    H = torch.stack(
        [torch.nn.functional.pad(column, (0, rows - column.shape[-1])) for column in columns], -1
    )
    target = torch.nn.functional.pad(size, (0, rows - 1))
    y = (torch.linalg.pinv(H) @ target.unsqueeze(-1)).squeeze(-1)
    return y, norm(target - (H @ y.unsqueeze(-1)).squeeze(-1)).detach()


@with_options_of(GMRES)
def solve_gmres(**kwargs: Any) -> GMRES:
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
    return GMRES(**with_truncation(kwargs))
