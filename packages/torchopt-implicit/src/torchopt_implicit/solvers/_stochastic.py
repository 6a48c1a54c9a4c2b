"""Gradient steps on batches of data, with step sizes that need no tuning."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
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
    divide,
    is_finite,
    like,
    minimum,
    read,
    select,
)
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["armijo_sgd", "polyak_sgd"]

#: halvings of a step on one batch
MAX_TRIALS = 30


def armijo_sgd(
    objective: Objective,
    *,
    stepsize: float = 1.0,
    decrease: float = 0.1,
    growth: float = 1.5,
    maxiter: int = 500,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver by stochastic gradient steps whose length a line search finds.

    .. math::
        x_{k+1} = x_k - t_k g_k, \qquad f_k(x_{k+1}) \le f_k(x_k) - c\, t_k \|g_k\|^2

    with the objective :math:`f_k` on the batch of iteration :math:`k` and :math:`g_k = \nabla
    f_k(x_k)`. The length starts ``growth`` times the last one, and is halved until the condition
    holds: an iteration evaluates the objective at least twice. It is made for
    :meth:`Solver.run_iterator`; where a model can fit all data, no decay of the length is needed.

    Args:
        objective: ``objective(x, *args, batch)`` returns a 0-dim tensor.
        stepsize: The first length, and the largest.
        decrease: :math:`c`, between 0 and 1.
        growth: At least 1.
        maxiter: The most iterations of a call on data that stays the same.
        tol: As in :func:`gradient_descent`, likewise.
        derivative_solve: As in :func:`gradient_descent`.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, or the objective is not scalar.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import armijo_sgd
        >>> X = torch.randn(64, 3)
        >>> y = X @ torch.tensor([1.0, 2.0, 3.0])
        >>> solver = armijo_sgd(lambda w, batch: (X[batch] @ w - y[batch]).square().mean())
        >>> batches = (rows for _ in range(100) for rows in torch.randperm(64).split(16))
        >>> w = solver.run_iterator(torch.zeros(3), batches).solution
        >>> torch.allclose(w, torch.tensor([1.0, 2.0, 3.0]), atol=1e-3)
        True

    References:
        S. Vaswani et al.: Painless stochastic gradient: interpolation, line-search, and
        convergence rates (2019), section 4 and algorithm 1.
    """
    for name, value, valid in (
        ("stepsize", stepsize, stepsize > 0),
        ("decrease", decrease, 0 < decrease < 1),
        ("growth", growth, growth >= 1),
    ):
        if not valid:
            raise ValueError(f"`{name}` is out of its range, got {value!r}")

    def method(value_and_grad: ValueAndGrad) -> Method[Any]:
        return _Armijo(value_and_grad, stepsize, decrease, growth)

    return _solver(
        "armijo_sgd", objective, method, maxiter, tol, derivative_solve, differentiation, throw
    )


def polyak_sgd(
    objective: Objective,
    *,
    stepsize: float = 1.0,
    lowest: float = 0.0,
    scale: float = 0.5,
    maxiter: int = 2000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver by stochastic gradient steps of Polyak's length.

    .. math::
        x_{k+1} = x_k - t_k g_k, \qquad
        t_k = \min\Bigl(t_{\max}, \frac{f_k(x_k) - f^\star}{c \|g_k\|^2}\Bigr)

    with the objective :math:`f_k` on the batch of iteration :math:`k` and :math:`g_k = \nabla
    f_k(x_k)`. An iteration evaluates the objective once. It is made for
    :meth:`Solver.run_iterator`.

    Args:
        objective: ``objective(x, *args, batch)`` returns a 0-dim tensor.
        stepsize: The largest length :math:`t_{\max}`.
        lowest: :math:`f^\star`, the least value on a batch: 0 for most losses.
        scale: :math:`c`.
        maxiter: As in :func:`armijo_sgd`.
        tol: As in :func:`armijo_sgd`.
        derivative_solve: As in :func:`gradient_descent`.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, or the objective is not scalar.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import polyak_sgd
        >>> solver = polyak_sgd(lambda x, batch: (x - batch).square().sum())
        >>> solver.run_iterator(torch.zeros(2), [torch.ones(2)] * 40).solution
        tensor([1., 1.])

    References:
        N. Loizou et al.: Stochastic Polyak step-size for SGD: an adaptive learning rate for fast
        convergence (2021), equation 3.
    """
    for name, value in (("stepsize", stepsize), ("scale", scale)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value!r}")

    def method(value_and_grad: ValueAndGrad) -> Method[Any]:
        return _Polyak(value_and_grad, stepsize, lowest, scale)

    return _solver(
        "polyak_sgd", objective, method, maxiter, tol, derivative_solve, differentiation, throw
    )


def _solver(
    name: str,
    objective: Objective,
    method: Any,
    maxiter: int,
    tol: float | None,
    derivative_solve: LinearSolve | None,
    differentiation: Differentiation | None,
    throw: bool,
) -> Solver:
    check_arguments(
        objective,
        "objective",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )

    def bind(layout: Layout, args: tuple[Any, ...]) -> Method[Any]:
        bound: Method[Any] = method(flat_value_and_grad(objective, layout, args))
        return bound

    differentiate = functools.partial(
        custom_root,
        gradient_of(objective),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        name,
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
        takes_batches=True,
    )


class _State(NamedTuple):
    x: torch.Tensor
    # of the last step
    length: Number
    # the norm of the gradient that it went along
    error: Number
    failure: Any


@dataclasses.dataclass(frozen=True)
class _Armijo(Method[_State]):
    value_and_grad: ValueAndGrad
    stepsize: float
    decrease: float
    growth: float

    def init_state(self, x: torch.Tensor) -> _State:
        (error,) = read(torch.linalg.vector_norm(self.value_and_grad(x)[1]))
        return _State(x, like(error, self.stepsize), error, like(error, 0))

    def update(self, state: _State) -> _State:
        objective, gradient = self.value_and_grad(state.x)
        value, error = read(objective, torch.linalg.vector_norm(gradient))
        t = minimum(self.growth * state.length, like(error, self.stepsize))
        square = error * error
        for _ in range(MAX_TRIALS):
            (new,) = read(self.value_and_grad(add_scaled(state.x, -t, gradient))[0])
            enough = new <= value - self.decrease * t * square
            if enough is True:
                break
            t = select(enough, t, 0.5 * t)
        t = select(is_finite(error), t, like(error, 0.0))
        x = add_scaled(state.x, -t, gradient)
        return _State(x, t, error, like(error, 0))


@dataclasses.dataclass(frozen=True)
class _Polyak(Method[_State]):
    value_and_grad: ValueAndGrad
    stepsize: float
    lowest: float
    scale: float

    def init_state(self, x: torch.Tensor) -> _State:
        (error,) = read(torch.linalg.vector_norm(self.value_and_grad(x)[1]))
        return _State(x, like(error, 0.0), error, like(error, 0))

    def update(self, state: _State) -> _State:
        objective, gradient = self.value_and_grad(state.x)
        value, error = read(objective, torch.linalg.vector_norm(gradient))
        t = divide(value - self.lowest, self.scale * error * error)
        t = minimum(select(t == t, t, like(error, 0.0)), like(error, self.stepsize))
        x = add_scaled(state.x, -t, gradient)
        return _State(x, t, error, like(error, 0))
