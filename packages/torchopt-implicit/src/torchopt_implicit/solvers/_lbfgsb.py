"""L-BFGS within bounds, by projection along two metrics."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import optree
import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_fixed_point
from torchopt_implicit._status import Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.projections import project_box
from torchopt_implicit.solvers._flat import (
    Objective,
    ValueAndGrad,
    flat_value_and_grad,
    gradient_of,
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
    read,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["lbfgsb"]

SUFFICIENT_DECREASE = 1e-4
#: how near to a bound, relative to the size of an entry, counts as at it
NEAR = 1e-3
#: trials in a row without a decrease before the search is given up
MAX_TRIALS = 40


class _State(NamedTuple):
    x: torch.Tensor
    value: Number
    gradient: torch.Tensor
    # length of the next step, and how many in a row did not decrease the objective
    length: Number
    trials: Any
    # the last moves of `x` and changes of the gradient, newest last; zero where never filled
    moves: torch.Tensor
    changes: torch.Tensor
    error: Number
    failure: Any


def lbfgsb(
    objective: Objective,
    *,
    history: int = 10,
    maxiter: int = 500,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes within bounds by a projected L-BFGS method.

    .. math::
        x^\star(l, u, \theta) = \arg\min_{l \le x \le u} f(x, \theta), \qquad
        x_{k+1} = P(x_k + t_k d_k)

    Entries at a bound towards which the objective decreases take a gradient step, which leaves them
    there; the others take a quasi-Newton step, of the moves restricted to them. One iteration is
    one evaluation of the objective and its gradient, which either is accepted as a step or
    shortens it. Derivatives come from the fixed point :math:`x^\star = P(x^\star - \nabla f)`; they
    exist where entries at a bound have gradients that are not zero.

    The solver is called as ``solver(init, (lower, upper), *args)``, and is differentiable in the
    bounds, too: each a number, a tensor that broadcasts to ``init``, or a tree of these. Where a
    lower bound is above its upper one, the status is ``Status.INFEASIBLE``.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``. It
            is not given the bounds.
        history: How many moves are remembered.
        maxiter: The most evaluations.
        tol: Stop when :math:`\|x - P(x - \nabla f(x))\|` is at most ``tol * max(1, its value at
            the start)``; 3.7e-11 in float64 and 2.4e-5 in float32 by default.
        derivative_solve: As for :func:`projected_gradient`.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, the objective is not scalar, or, when called,
            there are no bounds.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import lbfgsb
        >>> def rosenbrock(x):
        ...     return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        >>> upper = torch.tensor([0.5, 2.0]).double().requires_grad_()
        >>> x = lbfgsb(rosenbrock)(torch.zeros(2).double(), (torch.tensor(-1.0), upper))
        >>> x.detach()
        tensor([0.5000, 0.2500], dtype=torch.float64)
        >>> torch.autograd.grad(x[1], upper)  # x[1] = x[0]**2
        (tensor([1., 0.], dtype=torch.float64),)

    References:
        - D. Bertsekas: Projected Newton methods for optimization problems with simple constraints
          (1982), section 2.
        - D. Kim, S. Sra, I. Dhillon: Tackling box-constrained optimization via a new projected
          quasi-Newton approach (2010).
    """
    check_arguments(
        objective,
        "objective",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    if not isinstance(history, int) or history < 1:
        raise ValueError(f"`history` must be a positive integer, got {history!r}")
    gradient = gradient_of(objective)

    def fixed_point(x: Any, bounds: Any, *args: Any) -> Any:
        return project_box(optree.tree_map(torch.sub, x, gradient(x, *args)), *_pair(bounds))

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Bounded:
        if not args:
            raise ValueError(
                "lbfgsb is called as solver(init, (lower, upper), *args), got no bounds"
            )
        lower, upper = (_flat(bound, layout) for bound in _pair(args[0]))
        value_and_grad = flat_value_and_grad(objective, layout, args[1:])
        return _Bounded(value_and_grad, lower, upper, history, layout.eps)

    differentiate = functools.partial(
        custom_fixed_point,
        fixed_point,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "lbfgsb",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


def _pair(bounds: Any) -> tuple[Any, Any]:
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (lower, upper), got {type(bounds).__name__}")
    lower, upper = bounds
    return lower, upper


def _flat(bound: Any, layout: Layout) -> torch.Tensor:
    """Return a bound as a vector: the projection of infinitely far points shows it."""
    far = torch.full((layout.size,), torch.inf, dtype=layout.dtype, device=layout.device)
    return layout.ravel(project_box(layout.unravel(far), bound, bound), "the bounds")


@dataclasses.dataclass(frozen=True)
class _Bounded(Method[_State]):
    value_and_grad: ValueAndGrad
    lower: torch.Tensor
    upper: torch.Tensor
    history: int
    # below this, relative to the objective, differences decide nothing
    eps: float

    def init_state(self, x: torch.Tensor) -> _State:
        x = self._project(x)
        objective, gradient = self.value_and_grad(x)
        crossing = self._crossing()
        value, error, gap = read(objective, self._error(x, gradient), crossing)
        none = torch.zeros_like(gradient).expand(self.history, -1)
        zero = like(error, 0)
        length = divide(1.0, maximum(error, 1.0))
        failure = select(gap > 0, like(error, int(Status.INFEASIBLE)), zero)
        return _State(x, value, gradient, length, zero, none, none, error, failure)

    def update(self, state: _State) -> _State:
        x, value, gradient, length, *_ = state
        near = minimum(state.error, NEAR) * x.abs().clamp_min(1.0)
        held = ((x - self.lower <= near) & (gradient > 0)) | (
            (self.upper - x <= near) & (gradient < 0)
        )
        direction = torch.where(held, -gradient, self._quasi_newton(state, ~held))
        trial = self._project(add_scaled(x, length, direction))
        objective, new_gradient = self.value_and_grad(trial)
        move, change = (trial - x).detach(), (new_gradient - gradient).detach()
        new_value, free_slope, held_slope, product, square, new_error = read(
            objective,
            (gradient * direction * ~held).sum(),
            (gradient * move * held).sum(),
            move @ change,
            change @ change,
            self._error(trial, new_gradient),
        )
        slope = length * free_slope + held_slope
        # differences below the rounding of the values decide nothing
        slack = 8 * self.eps * abs(value)
        bound = value + SUFFICIENT_DECREASE * slope
        accept = (new_value <= bound + slack) & is_finite(new_error)
        parabola = divide(-0.5 * length * slope, new_value - value - slope)
        parabola = select(is_finite(parabola), parabola, like(length, 0.0))
        shorter = clamp(parabola, 0.1 * length, 0.5 * length)
        trials = select(new_value <= bound, like(value, 0), state.trials + 1)
        failure = select(trials > MAX_TRIALS, int(Status.STAGNATED), 0)
        kept = state._replace(length=shorter, trials=trials, failure=failure)
        learned = torch.as_tensor(product > self.eps * square, device=x.device)
        taken = _State(
            trial,
            new_value,
            new_gradient,
            like(length, 1.0),
            trials,
            _push(learned, state.moves, move),
            _push(learned, state.changes, change),
            new_error,
            failure,
        )
        return select(accept, taken, kept)  # type: ignore[no-any-return]

    def _quasi_newton(self, state: _State, free: torch.Tensor) -> torch.Tensor:
        """Multiply by the approximate inverse Hessian of the entries that are free."""
        moves, changes = state.moves * free, state.changes * free
        products = (moves * changes).sum(-1)
        squares = (changes * changes).sum(-1)
        useful = products > self.eps * squares
        weights = torch.where(useful, 1 / torch.where(useful, products, 1.0), 0.0)
        # of the newest pair that is of use
        order = torch.arange(1, self.history + 1, device=free.device)
        newest = ((order == (order * useful).amax()) & useful).to(products)
        scale = torch.where(useful.any(), (products * newest).sum() / (squares * newest).sum(), 1.0)
        v = -state.gradient * free
        alphas = []
        for i in reversed(range(self.history)):
            alphas.append(weights[i] * (moves[i] @ v))
            v = v - alphas[-1] * changes[i]
        v = scale * v
        for i, alpha in enumerate(reversed(alphas)):
            v = v + (alpha - weights[i] * (changes[i] @ v)) * moves[i]
        return v

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def _error(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        error: torch.Tensor = torch.linalg.vector_norm(x - self._project(x - gradient))
        return error + self._crossing()

    def _crossing(self) -> torch.Tensor:
        """Return how far lower bounds are above upper ones, which no point can satisfy."""
        gap = torch.where(self.lower > self.upper, self.lower - self.upper, 0.0)
        return torch.linalg.vector_norm(gap)  # type: ignore[no-any-return]


def _push(wanted: torch.Tensor, rows: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return torch.where(wanted, torch.cat((rows[1:], row.unsqueeze(0))), rows)
