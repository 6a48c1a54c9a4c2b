"""Nonlinear least squares by Gauss and Newton, with backtracking."""

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
from torchopt_implicit.solvers._numbers import Number, add_scaled, is_finite, like, read, select
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["gauss_newton"]

#: halvings of a step before the search is given up
MAX_TRIALS = 40


class _State(NamedTuple):
    x: torch.Tensor
    # residuals at `x`, and their derivatives
    at: Linearization
    # Gauss and Newton's step from there, and the slope of half the squares along it
    direction: torch.Tensor
    slope: Number
    # how much of the step to try
    length: Number
    trials: Any
    error: Number
    failure: Any


def gauss_newton(
    residual: Callable[..., Any],
    *,
    maxiter: int = 200,
    tol: float | None = None,
    linear_solve: LinearSolve | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for nonlinear least squares by Gauss-Newton steps with backtracking.

    .. math::
        x^\star(\theta) = \arg\min_x \tfrac{1}{2} \|r(x, \theta)\|^2, \qquad
        x_{k+1} = x_k + t_k p_k, \qquad p_k = \arg\min_p \|J p + r(x_k, \theta)\|

    with :math:`J = \partial_x r(x_k, \theta)`; of several minimizers the step is the shortest. It
    is halved until it decreases the squares. One iteration evaluates the residuals and their
    Jacobian once. Fast where residuals are small or nearly linear; elsewhere
    :func:`levenberg_marquardt` is more robust.

    Args:
        residual: ``residual(x, *args)`` returns a tree of residuals; ``x`` is a tree like ``init``.
        maxiter: The most evaluations.
        tol: As in :func:`levenberg_marquardt`.
        linear_solve: Solves :math:`J^\top J p = -J^\top r` by products with :math:`J` and its
            transpose, as in :func:`levenberg_marquardt`. By default the dense Jacobian is
            decomposed.
        derivative_solve: As in :func:`levenberg_marquardt`.
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
        >>> from torchopt_implicit.solvers import gauss_newton
        >>> t = torch.linspace(0, 1, 8)
        >>> fit = gauss_newton(lambda k, y: torch.exp(k * t) - y)
        >>> y = torch.exp(-t).requires_grad_()
        >>> k = fit(torch.tensor(0.0), y)
        >>> print(f"{k.item():.3f}")
        -1.000
        >>> torch.autograd.grad(k, y)[0].shape
        torch.Size([8])

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), section 10.3.
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

    def bind(layout: Layout, args: tuple[Any, ...]) -> _GaussNewton:
        return _GaussNewton(residuals_of(residual, layout, args, linear_solve))

    differentiate = functools.partial(
        custom_root,
        gradient_of(half_square(residual)),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "gauss_newton",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _GaussNewton(Method[_State]):
    residuals: Residuals

    def init_state(self, x: torch.Tensor) -> _State:
        at = self.residuals.linearize(x)
        (error,) = read(torch.linalg.vector_norm(at.gradient))
        return self._begin_line(x, at, error, like(error, 0))

    def update(self, state: _State) -> _State:
        t, at = state.length, state.at
        trial = add_scaled(state.x, t, state.direction)
        new = self.residuals.linearize(trial)
        decrease, square, error = read(
            0.5 * ((at.residual - new.residual) @ (at.residual + new.residual)),
            at.residual @ at.residual,
            torch.linalg.vector_norm(new.gradient),
        )
        # differences below the rounding of the squares decide nothing
        slack = 8 * self.residuals.eps * square
        accept = (decrease >= -1e-4 * t * state.slope - slack) & is_finite(error)
        trials = select(accept & (decrease > 0), like(error, 0), state.trials + 1)
        shorter = state._replace(length=0.5 * t, trials=trials, failure=_failure(trials))
        if accept is False:
            return shorter
        return select(accept, self._begin_line(trial, new, error, trials), shorter)  # type: ignore[no-any-return]

    def _begin_line(self, x: torch.Tensor, at: Linearization, error: Number, trials: Any) -> _State:
        direction = self.residuals.step(x, at, None)
        (slope,) = read(at.gradient @ direction)
        failure = select(is_finite(slope) | (error == 0), _failure(trials), int(Status.BREAKDOWN))
        return _State(x, at, direction, slope, like(error, 1.0), trials, error, failure)


def _failure(trials: Any) -> Any:
    return select(trials > MAX_TRIALS, int(Status.STAGNATED), like(trials, 0))
