"""Accelerated proximal gradient descent with backtracking and restarts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_fixed_point
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import (
    Objective,
    ValueAndGrad,
    flat_function,
    flat_value_and_grad,
    gradient_of,
)
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import (
    Number,
    add_scaled,
    divide,
    like,
    maximum,
    negate,
    read,
    root,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["proximal_gradient"]

#: trials in a row that were too long before the search is given up
MAX_TRIALS = 60


class _State(NamedTuple):
    x: torch.Tensor
    # the extrapolated point, the objective's value and gradient there
    y: torch.Tensor
    value: Number
    gradient: torch.Tensor
    # length of the next step, and the sequence that sets how far to extrapolate
    length: Number
    momentum: Number
    # in a row that were too long
    trials: Any
    error: Number
    failure: Any


def proximal_gradient(
    objective: Objective,
    prox: Callable[..., Any],
    *,
    stepsize: float = 1.0,
    acceleration: bool = True,
    maxiter: int = 2000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes a smooth function plus a simple one by FISTA.

    .. math::
        x^\star(\theta) = \arg\min_x f(x, \theta) + g(x, \theta), \qquad
        x_{k+1} = \operatorname{prox}_{t g}(y_k - t \nabla f(y_k)), \quad
        y_{k+1} = x_{k+1} + \beta_k (x_{k+1} - x_k)

    The step is shortened until :math:`f` lies below its quadratic bound, and lengthened where the
    bound is loose. Extrapolation starts anew whenever it leads uphill. Derivatives come from the
    fixed point :math:`x^\star = \operatorname{prox}_g(x^\star - \nabla f(x^\star))`; they exist
    wherever the proximal operator is differentiable, so not where an entry just becomes zero.

    Args:
        objective: :math:`f`: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like
            ``init``.
        prox: ``prox(x, stepsize, *args)`` returns the proximal operator of ``stepsize`` times
            :math:`g` at ``x``, a tree like it; see :mod:`torchopt_implicit.proximal`. It is given
            the same arguments as the objective, so that :math:`g` may depend on them.
        stepsize: The first length to try.
        acceleration: Whether to extrapolate: an objective that is convex is minimized at the rate
            :math:`1/k^2` rather than :math:`1/k`.
        maxiter: The most iterations, each one proximal operator, one gradient and two values.
        tol: Stop when :math:`\|y - x\| / t` is at most ``tol * max(1, its value at the start)``;
            3.7e-11 in float64 and 2.4e-5 in float32 by default.
        derivative_solve: Solves with :math:`I - \partial \operatorname{prox}(I - \nabla^2 f)` in
            derivatives. A factorisation for up to 256 unknowns and GMRES beyond by default.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective``, ``prox`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, or the objective is not scalar.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_l1
        >>> from torchopt_implicit.solvers import proximal_gradient
        >>> lasso = proximal_gradient(
        ...     lambda w, weight, X, y: 0.5 * (X @ w - y).square().sum(),
        ...     lambda w, stepsize, weight, X, y: prox_l1(w, stepsize * weight),
        ... )
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> w = lasso(torch.zeros(2), weight, torch.eye(2), torch.tensor([2.0, 0.3]))
        >>> torch.autograd.grad(w.sum(), weight)
        (tensor(-1.),)

    References:
        - A. Beck, M. Teboulle: A fast iterative shrinkage-thresholding algorithm for linear inverse
          problems (2009), section 4.
        - B. O'Donoghue, E. Candès: Adaptive restart for accelerated gradient schemes (2015),
          section 3.2.
    """
    check_arguments(
        objective,
        "objective",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    check_arguments(prox, "prox", maxiter, tol)
    if not stepsize > 0:
        raise ValueError(f"`stepsize` must be positive, got {stepsize!r}")
    gradient = gradient_of(objective)

    def fixed_point(x: Any, *args: Any) -> Any:
        return prox(optree.tree_map(torch.sub, x, gradient(x, *args)), 1.0, *args)

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Proximal:
        def flat_prox(x: torch.Tensor, length: Number) -> torch.Tensor:
            return layout.ravel(prox(layout.unravel(x), length, *args), "what `prox` returns")

        value_of = flat_function(objective, layout, args)
        return _Proximal(
            flat_value_and_grad(objective, layout, args),
            lambda x: value_of(x)[0],
            flat_prox,
            stepsize,
            acceleration,
            layout.eps,
        )

    differentiate = functools.partial(
        custom_fixed_point,
        fixed_point,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "proximal_gradient",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _Proximal(Method[_State]):
    value_and_grad: ValueAndGrad
    value: Callable[[torch.Tensor], torch.Tensor]
    prox: Callable[[torch.Tensor, Number], torch.Tensor]
    stepsize: float
    acceleration: bool
    # below this, relative to the objective, differences decide nothing
    eps: float

    def init_state(self, x: torch.Tensor) -> _State:
        objective, gradient = self.value_and_grad(x)
        norm = torch.linalg.vector_norm(x - self.prox(x - gradient, 1.0))
        value, error = read(objective, norm)
        one, zero = like(error, 1.0), like(error, 0)
        length = like(error, self.stepsize)
        return _State(x, x, value, gradient, length, one, zero, error, zero)

    def update(self, state: _State) -> _State:
        x, y, value, gradient, length, momentum, *_ = state
        trial = self.prox(add_scaled(y, -length, gradient), length)
        move = (trial - y).detach()
        new_value, slope, square, uphill = read(
            self.value(trial), gradient @ move, move @ move, -(move @ (trial - x))
        )
        # differences below the rounding of the values decide nothing
        slack = 8 * self.eps * maximum(abs(value), abs(new_value))
        excess = new_value - value - slope
        accept = excess <= square / (2 * length) + slack
        loose = (4 * length * excess <= square / 2) & (square / (2 * length) > slack)
        trials = select(accept, like(value, 0), state.trials + 1)
        failure = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
        kept = state._replace(length=0.5 * length, trials=trials, failure=failure)
        if accept is False:
            return kept

        following = 0.5 * (1 + root(1 + 4 * momentum * momentum))
        onwards = negate(uphill > 0) if self.acceleration else like(value, 0) != 0
        weight = select(onwards, (momentum - 1) / following, like(value, 0.0))
        following = select(onwards, following, like(value, 1.0))
        point = add_scaled(trial, weight, trial - x)
        objective, new_gradient = self.value_and_grad(point)
        (next_value,) = read(objective)
        taken = _State(
            trial,
            point,
            next_value,
            new_gradient,
            select(loose, 2 * length, length),
            following,
            trials,
            divide(root(square), length),
            failure,
        )
        return select(accept, taken, kept)  # type: ignore[no-any-return]
