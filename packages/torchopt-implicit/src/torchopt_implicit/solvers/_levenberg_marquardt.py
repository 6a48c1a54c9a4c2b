"""Nonlinear least squares by Levenberg and Marquardt."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import gradient_of
from torchopt_implicit.solvers._least_squares import (
    Linearization,
    Residuals,
    half_square,
    residuals_of,
)
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import (
    Number,
    clamp,
    divide,
    is_finite,
    like,
    maximum,
    read,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["levenberg_marquardt"]

#: trials without an accepted step before the search is given up
MAX_TRIALS = 40


class _State(NamedTuple):
    x: torch.Tensor
    # residuals at `x`, and their derivatives
    at: Linearization
    # largest squared column norms so far: the scale of the unknowns
    scale: torch.Tensor
    # relative damping, and by what a rejected step multiplies it
    damping: Number
    growth: Number
    trials: Any
    error: Number
    failure: Any


def levenberg_marquardt(
    residual: Callable[..., Any],
    *,
    damping: float = 1e-3,
    maxiter: int = 200,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
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
        linear_solve: Solves for the steps, by products with :math:`J` and its transpose instead of
            the dense Jacobian, and with :math:`D = I`: a callable ``(matvec, b) -> x`` for a
            positive definite system, as :func:`~torchopt_implicit.linear_solve.solve_cg` returns.
            By default the dense matrix is factorised.
        derivative_solve: As in :func:`gradient_descent`; ``linear_solve`` if that is given.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``residual`` or a linear solver is not callable.
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
    check_arguments(
        residual,
        "residual",
        maxiter,
        tol,
        linear_solve=linear_solve,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    derivative_solve = linear_solve if derivative_solve is None else derivative_solve
    if not damping > 0:
        raise ValueError(f"`damping` must be positive, got {damping!r}")

    def bind(layout: Layout, args: tuple[Any, ...]) -> _LevenbergMarquardt:
        return _LevenbergMarquardt(residuals_of(residual, layout, args, linear_solve), damping)

    differentiate = functools.partial(
        custom_root,
        gradient_of(half_square(residual)),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "levenberg_marquardt",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _LevenbergMarquardt(Method[_State]):
    residuals: Residuals
    damping: float

    def init_state(self, x: torch.Tensor) -> _State:
        at = self.residuals.linearize(x)
        (error,) = read(torch.linalg.vector_norm(at.gradient))
        zero = like(error, 0)
        return _State(
            x=x,
            at=at,
            scale=self.residuals.scale(at),
            damping=like(error, self.damping),
            growth=like(error, 2.0),
            trials=zero,
            error=error,
            failure=zero,
        )

    def update(self, state: _State) -> _State:
        x, at = state.x, state.at
        largest = state.scale.amax() if x.numel() else state.scale.sum()
        eps = torch.finfo(x.dtype).eps
        # an unknown no residual depends on still needs a positive scale
        scale = state.scale.clamp_min(eps * largest) + torch.finfo(x.dtype).tiny
        damping = state.damping * scale
        move = self.residuals.step(x, at, damping)

        trial = x + move
        new = self.residuals.linearize(trial)
        # of half the squares; as products of differences they keep their digits
        actual, predicted, square, error = read(
            0.5 * ((at.residual - new.residual) @ (at.residual + new.residual)),
            0.5 * (move @ (damping * move - at.gradient)),
            at.residual @ at.residual,
            torch.linalg.vector_norm(new.gradient),
        )
        ratio = divide(actual, predicted)
        slack = 8 * self.residuals.eps * square
        hardly = (abs(actual) <= slack) & (predicted <= slack)
        accept = ((ratio > 1e-4) | hardly) & is_finite(error)

        cube = (2 * ratio - 1) * (2 * ratio - 1) * (2 * ratio - 1)
        gentler = clamp(1 - cube, 1 / 3, 2.0)
        next_damping = state.damping * select(accept, gentler, state.growth)
        trials = select(accept, like(error, 0), state.trials + 1)
        kept = state._replace(
            damping=maximum(next_damping, eps),
            growth=select(accept, like(error, 2.0), 2 * state.growth),
            trials=trials,
            failure=select(trials > MAX_TRIALS, int(Status.STAGNATED), 0),
        )
        if accept is False:
            return kept
        scale = torch.maximum(state.scale, self.residuals.scale(new))
        taken = kept._replace(x=trial, at=new, scale=scale, error=error)
        return select(accept, taken, kept)  # type: ignore[no-any-return]
