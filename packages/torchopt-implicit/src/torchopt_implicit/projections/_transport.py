"""The transport polytope: matrices with given sums of rows and columns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._tree import leading_vmap
from torchopt_implicit.projections._leaves import check_real, widen
from torchopt_implicit.projections._simplex import simplex_threshold

__all__ = ["project_transport"]

SUFFICIENT_DECREASE = 1e-4
#: trials in a row without a decrease before the search is given up
MAX_TRIALS = 40


class _State(NamedTuple):
    # multipliers of the rows' and the columns' sums
    x: torch.Tensor
    # the dual function there
    value: torch.Tensor
    # length of the next step, and how many in a row did not decrease it
    length: torch.Tensor
    trials: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def project_transport(
    x: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    *,
    maxiter: int = 200,
    throw: bool = False,
) -> torch.Tensor:
    r"""Project matrices onto the transport polytope :math:`\{Y \ge 0 : Y 1 = a, Y^\top 1 = b\}`.

    .. math::
        P(X) = \max(X + \alpha 1^\top + 1 \beta^\top, 0)

    The multipliers minimize the piecewise quadratic dual function, by a semismooth Newton method,
    so that two dozen iterations are usual. On the entries that are positive the projection is
    affine; that is what is differentiated.

    Args:
        x: Of shape ``(..., m, n)``.
        rows: :math:`a > 0`, of shape ``(..., m)``, the sums of rows.
        columns: :math:`b > 0`, of shape ``(..., n)``, the sums of columns; with the same total;
            a difference within rounding is shared by all. The leading dimensions of all broadcast.
        maxiter: The most iterations, of which each solves a linear system of size ``m + n``.
        throw: Whether a search that failed raises rather than warns.

    Returns:
        The projection, differentiable in all arguments, in directions that keep the totals equal.

    Raises:
        TypeError: If ``x`` is complex.
        ValueError: If shapes do not fit.
        FailedSolveError: If ``throw`` and no such matrix was found.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_transport
        >>> project_transport(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.ones(2), torch.ones(2))
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])

    References:
        - M. Blondel, V. Seguy, A. Rolet: Smooth and sparse optimal transport (2018), section 3.
        - X. Li, D. Sun, K.-C. Toh: On the efficient computation of a generalized Jacobian of the
          projector over the Birkhoff polytope (2020), algorithm 1.
    """
    check_real(x)
    m, n = x.shape[-2:] if x.ndim > 1 else (0, 0)
    if m == 0 or n == 0 or rows.shape[-1:] != (m,) or columns.shape[-1:] != (n,):
        raise ValueError(
            "`x`, `rows` and `columns` must have the shapes (..., m, n), (..., m) and (..., n) "
            f"with m and n at least 1, got {tuple(x.shape)}, {tuple(rows.shape)} and "
            f"{tuple(columns.shape)}"
        )
    wide, a, b = widen(x), rows.to(widen(x)), columns.to(widen(x))
    batch = torch.broadcast_shapes(x.shape[:-2], a.shape[:-1], b.shape[:-1])  # type: ignore[no-untyped-call]
    wide, a, b = wide.expand(*batch, m, n), a.expand(*batch, m), b.expand(*batch, n)

    total = torch.maximum(a.sum(-1), b.sum(-1))
    surplus = (a.sum(-1) - b.sum(-1)).unsqueeze(-1) / (m + n)
    a, b = a - surplus, b + surplus
    feasible = surplus.squeeze(-1).abs() * (m + n) <= 10 * torch.finfo(x.dtype).eps * total

    def find(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[Any, ...]:
        return _find_support(x, a, b, maxiter)

    with torch.no_grad():
        searched = leading_vmap(find, len(batch))
        support, iterations, error, status = searched(wide.detach(), a.detach(), b.detach())
        status = torch.where(feasible, status, int(Status.INFEASIBLE))
    report(
        Info(unwrap(iterations), unwrap(error), unwrap(status)),
        "project_transport",
        throw=throw,
        remedy="`rows` and `columns` must be positive and have the same sum",
    )
    return _affine_on(support, wide, a, b).to(x.dtype)


def _affine_on(
    support: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> torch.Tensor:
    """Return the nearest matrix with these sums that is zero outside of the support."""
    m = a.shape[-1]
    inside = x * support
    right = torch.cat((a - inside.sum(-1), b - inside.sum(-2)), -1)
    # singular: adding to all rows and taking from all columns is nothing
    inverse = torch.linalg.pinv(_normal_matrix(support), hermitian=True)
    multipliers = (inverse @ right.unsqueeze(-1)).squeeze(-1)
    shift = multipliers[..., :m].unsqueeze(-1) + multipliers[..., m:].unsqueeze(-2)
    return torch.relu((x + shift) * support)


def _normal_matrix(support: torch.Tensor) -> torch.Tensor:
    """Return the generalized Hessian of the dual function."""
    return torch.cat(
        (
            torch.cat((torch.diag_embed(support.sum(-1)), support), -1),
            torch.cat((support.mT, torch.diag_embed(support.sum(-2))), -1),
        ),
        -2,
    )


def _find_support(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, maxiter: int
) -> tuple[Any, ...]:
    """Return where the projection is positive, as ones and zeros, and how the search ended."""
    from torchopt_implicit.solvers._loop import Search, search  # solvers offer projections

    m = a.shape[-1]
    right = torch.cat((a, b))
    eps = torch.finfo(x.dtype).eps
    identity = torch.eye(right.shape[0], dtype=x.dtype, device=x.device)

    def primal(y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + y[:m].unsqueeze(-1) + y[m:])

    def dual(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        plan = primal(y)
        gradient = torch.cat((plan.sum(-1), plan.sum(-2))) - right
        return 0.5 * plan.square().sum() - right @ y, gradient

    def step(state: _State) -> _State:
        _, gradient = dual(state.x)
        norm = torch.linalg.vector_norm(gradient)
        hessian = _normal_matrix((primal(state.x) > 0).to(x.dtype))
        damping = norm.clamp(10 * eps, 1e-3)
        direction = -torch.linalg.solve(hessian + damping * identity, gradient)
        trial = state.x + state.length * direction
        value, new_gradient = dual(trial)
        # differences below the rounding of the values decide nothing
        slack = 8 * eps * state.value.abs()
        bound = state.value + SUFFICIENT_DECREASE * state.length * (gradient @ direction)
        accept = value <= bound + slack
        trials = torch.where(value <= bound, 0, state.trials + 1)
        return _State(
            x=torch.where(accept, trial, state.x),
            value=torch.where(accept, value, state.value),
            length=torch.where(accept, torch.ones_like(value), 0.5 * state.length),
            trials=trials,
            error=torch.where(accept, torch.linalg.vector_norm(new_gradient), state.error),
            failure=torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), 0),
        )

    # the rows alone are met by as many projections onto simplices
    start = torch.cat((-simplex_threshold(x, a).squeeze(-1), torch.zeros_like(b)))
    value, gradient = dual(start)
    zero = torch.zeros_like(value, dtype=torch.int64)
    state = _State(
        x=start,
        value=value,
        length=torch.ones_like(value),
        trials=zero,
        error=torch.linalg.vector_norm(gradient),
        failure=zero,
    )
    target: Any = 100 * eps * (torch.linalg.vector_norm(right) + x.abs().amax())
    found = search(step, Search(state, zero, target), maxiter)
    return (primal(found.state.x) > 0).to(x.dtype), *found.info
