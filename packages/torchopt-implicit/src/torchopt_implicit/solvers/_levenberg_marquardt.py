"""Nonlinear least squares by Levenberg and Marquardt."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Info, Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.solvers._loop import iterate, target_of
from torchopt_implicit.solvers._solver import (
    LinearSolve,
    Solver,
    by_size,
    check_arguments,
    flat_function,
    value_and_jacobian,
)

__all__ = ["levenberg_marquardt"]

#: trials without an accepted step before the search is given up
MAX_TRIALS = 40


class _State(NamedTuple):
    x: torch.Tensor
    # residuals and their Jacobian at `x`
    residual: torch.Tensor
    jacobian: torch.Tensor
    # largest squared column norms so far: the scale of the unknowns
    scale: torch.Tensor
    # relative damping, and by what a rejected step multiplies it
    damping: torch.Tensor
    growth: torch.Tensor
    trials: torch.Tensor
    error: torch.Tensor
    failure: torch.Tensor


def levenberg_marquardt(
    residual: Callable[..., Any],
    *,
    damping: float = 1e-3,
    maxiter: int = 200,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for nonlinear least squares.

    .. math::
        x^\star(\theta) = \arg\min_x \tfrac{1}{2} \|r(x, \theta)\|^2, \qquad
        (J^\top J + \lambda_k D_k)(x_{k+1} - x_k) = -J^\top r(x_k, \theta)

    with :math:`J = \partial_x r(x_k, \theta)`, :math:`D_k` the largest diagonal of
    :math:`J^\top J` so far and the damping :math:`\lambda_k` after Nielsen. One iteration evaluates
    the residuals and their dense Jacobian once. Derivatives come from :math:`J^\top r = 0` and see
    the full Hessian, not Gauss and Newton's part of it alone.

    Args:
        residual: ``residual(x, *args)`` returns a tree of residuals; ``x`` is a tree like ``init``.
        damping: The damping at the start, relative to :math:`D_0`.
        maxiter: The most evaluations.
        tol: Stop when :math:`\|J^\top r\|` is at most ``tol * max(1, its value at the
            start)``; 3.7e-11 in float64 and 2.4e-5 in float32 by default.
        linear_solve: As in :func:`gradient_descent`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``residual`` or ``linear_solve`` is not callable.
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import levenberg_marquardt
        >>> t = torch.linspace(0, 1, 8)
        >>> fit = levenberg_marquardt(lambda p, y: p["a"] * torch.exp(p["k"] * t) - y)
        >>> y = (2 * torch.exp(-t)).requires_grad_()
        >>> p = fit({"a": torch.tensor(1.0), "k": torch.tensor(0.0)}, y)
        >>> print(f"{p['a'].item():.3f} {p['k'].item():.3f}")
        2.000 -1.000
        >>> torch.autograd.grad(p["k"], y)[0].shape
        torch.Size([8])

    References:
        J. J. Moré: The Levenberg-Marquardt algorithm (1978); H. B. Nielsen: Damping parameter in
        Marquardt's method (1999), section 2.3.
    """
    check_arguments(residual, "residual", maxiter, tol, linear_solve)
    if not damping > 0:
        raise ValueError(f"`damping` must be positive, got {damping!r}")

    def half_square(x: Any, *args: Any) -> torch.Tensor:
        out = residual(x, *args)
        vector = Layout.of(out, "the residuals").ravel(out, "the residuals")
        return 0.5 * vector.square().sum()

    def search(init: Any, *args: Any) -> tuple[Any, Info]:
        layout = Layout.of(init, "init")
        linearize = value_and_jacobian(flat_function(residual, layout, args))
        state = _start(linearize, layout.ravel(init, "init"), damping)
        state, info = iterate(
            functools.partial(_step, linearize),
            state,
            target=target_of(state, tol),
            maxiter=maxiter,
        )
        return layout.unravel(state.x), info

    differentiate = functools.partial(
        custom_root,
        torch.func.grad(half_square),
        solve=by_size(solves.CG) if linear_solve is None else linear_solve,
    )
    return Solver("levenberg_marquardt", search, differentiate, throw=throw)


_Linearize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _start(linearize: _Linearize, x: torch.Tensor, damping: float) -> _State:
    residual, jacobian = linearize(x)
    error = torch.linalg.vector_norm(residual @ jacobian)
    zero = torch.zeros((), dtype=torch.int64, device=x.device)
    return _State(
        x=x,
        residual=residual,
        jacobian=jacobian,
        scale=jacobian.square().sum(0),
        damping=torch.full_like(error, damping),
        growth=torch.full_like(error, 2.0),
        trials=zero,
        error=error,
        failure=zero,
    )


def _step(linearize: _Linearize, state: _State) -> _State:
    x, residual, jacobian = state.x, state.residual, state.jacobian
    gradient = residual @ jacobian
    largest = state.scale.amax() if x.numel() else state.scale.sum()
    eps = torch.finfo(x.dtype).eps
    # an unknown no residual depends on still needs a positive scale
    scale = state.scale.clamp_min(eps * largest) + torch.finfo(x.dtype).tiny
    damping = state.damping * scale
    factor, broken = torch.linalg.cholesky_ex(jacobian.mT @ jacobian + torch.diag(damping))
    move = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)

    trial = x + move
    new_residual, new_jacobian = linearize(trial)
    # of half the squares; as products of differences they keep their digits
    actual = 0.5 * ((residual - new_residual) @ (residual + new_residual))
    predicted = 0.5 * (move @ (damping * move - gradient))
    ratio = actual / predicted
    slack = 8 * eps * (residual @ residual)
    accept = ((ratio > 1e-4) | ((actual.abs() <= slack) & (predicted <= slack))) & (broken == 0)
    accept = accept & torch.isfinite(new_jacobian).all()

    x = torch.where(accept, trial, x)
    residual = torch.where(accept, new_residual, residual)
    jacobian = torch.where(accept, new_jacobian, jacobian)
    gentler = (1 - (2 * ratio - 1) ** 3).clamp(1 / 3, 2.0)
    damping = state.damping * torch.where(accept, gentler, state.growth)
    trials = torch.where(accept, 0, state.trials + 1)
    return _State(
        x=x,
        residual=residual,
        jacobian=jacobian,
        scale=torch.maximum(state.scale, jacobian.square().sum(0)),
        damping=damping.clamp_min(eps),
        growth=torch.where(accept, 2.0, 2 * state.growth),
        trials=trials,
        error=torch.linalg.vector_norm(residual @ jacobian),
        failure=torch.where(trials > MAX_TRIALS, int(Status.STAGNATED), 0),
    )
