"""Nonlinear least squares by Powell's dogleg method."""

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
    add_scaled,
    clamp,
    divide,
    is_finite,
    like,
    maximum,
    minimum,
    negate,
    read,
    root,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["dogleg"]

#: trials without an accepted step before the search is given up
MAX_TRIALS = 60


class _State(NamedTuple):
    x: torch.Tensor
    # residuals at `x`, and their derivatives
    at: Linearization
    # both ends of the path: the minimizers of the model along the gradient, and of all
    cauchy: torch.Tensor
    gauss_newton: torch.Tensor
    # of the region in which the model is trusted
    radius: Number
    trials: Any
    error: Number
    failure: Any


def dogleg(
    residual: Callable[..., Any],
    *,
    radius: float = 1.0,
    maxiter: int = 200,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for nonlinear least squares by Powell's dogleg method.

    .. math::
        x^\star(\theta) = \arg\min_x \tfrac{1}{2} \|r(x, \theta)\|^2, \qquad
        x_{k+1} = x_k + p_k, \quad \|p_k\| \le \Delta_k

    The step goes from :math:`x_k` to the minimizer of :math:`\|J p + r\|` along the gradient, and
    from there to the minimizer of all, as far as the radius :math:`\Delta_k` allows. One iteration
    evaluates the residuals and their dense Jacobian once; a step that is not taken needs no new
    decomposition.

    Args:
        residual: ``residual(x, *args)`` returns a tree of residuals; ``x`` is a tree like ``init``.
        radius: The first radius.
        maxiter: The most evaluations.
        tol: As in :func:`levenberg_marquardt`.
        derivative_solve: As in :func:`gradient_descent`.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``residual`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import dogleg
        >>> def rosenbrock(x, b):
        ...     return torch.stack((1 - x[0], b * (x[1] - x[0] ** 2)))
        >>> dogleg(rosenbrock)(torch.tensor([-1.2, 1.0]), torch.tensor(10.0))
        tensor([1., 1.])

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), section 4.1 and algorithm 4.1.
    """
    check_arguments(
        residual,
        "residual",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    if not radius > 0:
        raise ValueError(f"`radius` must be positive, got {radius!r}")

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Dogleg:
        return _Dogleg(residuals_of(residual, layout, args, None), radius)

    differentiate = functools.partial(
        custom_root,
        gradient_of(half_square(residual)),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "dogleg",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _Dogleg(Method[_State]):
    residuals: Residuals
    radius: float

    def init_state(self, x: torch.Tensor) -> _State:
        at = self.residuals.linearize(x)
        (error,) = read(torch.linalg.vector_norm(at.gradient))
        return self._trust(x, at, like(error, self.radius), error, like(error, 0))

    def update(self, state: _State) -> _State:
        x, at = state.x, state.at
        step = _along_path(state.cauchy, state.gauss_newton, state.radius)
        trial = x + step
        new = self.residuals.linearize(trial)
        image = at.jacobian @ step
        actual, predicted, square, length, error = read(
            0.5 * ((at.residual - new.residual) @ (at.residual + new.residual)),
            -(at.gradient @ step) - 0.5 * (image @ image),
            at.residual @ at.residual,
            torch.linalg.vector_norm(step),
            torch.linalg.vector_norm(new.gradient),
        )
        ratio = divide(actual, predicted)
        slack = 8 * self.residuals.eps * square
        hardly = (abs(actual) <= slack) & (predicted <= slack)
        accept = ((ratio > 1e-4) | hardly) & is_finite(error)

        good = accept & (ratio > 0.75) & (length >= 0.99 * state.radius)
        bad = negate(accept) | ((ratio < 0.25) & negate(hardly))
        radius = select(good, 2 * state.radius, state.radius)
        radius = select(bad, 0.25 * minimum(length, state.radius), radius)
        trials = select(accept, like(error, 0), state.trials + 1)
        kept = state._replace(radius=radius, trials=trials, failure=_failure(trials))
        if accept is False:
            return kept
        return select(accept, self._trust(trial, new, radius, error, trials), kept)  # type: ignore[no-any-return]

    def _trust(
        self, x: torch.Tensor, at: Linearization, radius: Number, error: Number, trials: Any
    ) -> _State:
        whole = self.residuals.step(x, at, None)
        image = at.jacobian @ at.gradient.detach()
        (curvature,) = read(image @ image)
        # along a gradient of zero no step is needed
        length = select(curvature > 0, divide(error * error, curvature), like(error, 0.0))
        cauchy = add_scaled(torch.zeros_like(x), -length, at.gradient)
        return _State(x, at, cauchy, whole, radius, trials, error, _failure(trials))


def _along_path(first: torch.Tensor, last: torch.Tensor, radius: Number) -> torch.Tensor:
    """Return the point where the path over ``first`` to ``last`` leaves the ball."""
    rest = last - first
    to_first, square, along, to_last = read(
        torch.linalg.vector_norm(first),
        rest @ rest,
        first @ rest,
        torch.linalg.vector_norm(last),
    )
    # the larger root of |first + t rest| = radius
    inside = maximum(radius * radius - to_first * to_first, 0.0)
    t = divide(-along + root(along * along + square * inside), square)
    t = select(to_last <= radius, like(t, 1.0), t)
    t = clamp(select(is_finite(t), t, like(t, 0.0)), 0.0, 1.0)
    on_path = add_scaled(first, t, rest)
    shrunk = minimum(divide(radius, to_first), 1.0) * first
    return select(to_first < radius, on_path, shrunk)  # type: ignore[no-any-return]


def _failure(trials: Any) -> Any:
    return select(trials > MAX_TRIALS, int(Status.STAGNATED), like(trials, 0))
