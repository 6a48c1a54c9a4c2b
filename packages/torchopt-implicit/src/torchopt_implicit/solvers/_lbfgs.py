"""L-BFGS with a line search for the strong Wolfe conditions."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import Objective
from torchopt_implicit.solvers._linear_step import LinearSolve, derivative_solver
from torchopt_implicit.solvers._numbers import (
    Flag,
    Number,
    add_scaled,
    coefficient,
    divide,
    like,
    select,
)
from torchopt_implicit.solvers._solver import Solver
from torchopt_implicit.solvers._wolfe import Directions, descent_solver

__all__ = ["lbfgs"]


def lbfgs(
    objective: Objective,
    *,
    history: int = 10,
    maxiter: int = 500,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes by L-BFGS with strong Wolfe line searches.

    .. math::
        x^\star(\theta) = \arg\min_x f(x, \theta), \qquad
        x_{k+1} = x_k - t_k H_k \nabla_x f(x_k, \theta)

    where :math:`H_k` approximates the inverse Hessian from the last moves. One iteration is one
    evaluation of the objective and its gradient, which either is accepted as a step or narrows
    the search along the line. Derivatives come from :math:`\nabla_x f(x^\star, \theta) = 0`.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``.
        history: How many moves are remembered.
        maxiter: The most evaluations.
        tol: As in :func:`gradient_descent`.
        derivative_solve: As in :func:`gradient_descent`.
        linear_solve: The former name of ``derivative_solve``.
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
        >>> from torchopt_implicit.solvers import lbfgs
        >>> def rosenbrock(p, a, b):
        ...     return (a - p["x"]) ** 2 + b * (p["y"] - p["x"] ** 2) ** 2
        >>> a, b = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), torch.tensor(100.0)
        >>> start = {"x": torch.tensor(-1.0).double(), "y": torch.tensor(1.0).double()}
        >>> solution = lbfgs(rosenbrock)(start, a, b)  # x = a, y = a**2
        >>> torch.autograd.grad(solution["y"], a)
        (tensor(3.0000, dtype=torch.float64),)

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), algorithms 3.5, 3.6 and 7.5.
    """
    derivative_solve = derivative_solver(derivative_solve, linear_solve)
    if not isinstance(history, int) or history < 1:
        raise ValueError(f"`history` must be a positive integer, got {history!r}")

    return descent_solver(
        "lbfgs",
        objective,
        _Limited(history),
        maxiter=maxiter,
        tol=tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
        throw=throw,
    )


class _Memory(NamedTuple):
    # moves of `x`, changes of the gradient, and one over their product; the newest last, and with
    # the weight zero what was never filled
    moves: tuple[torch.Tensor, ...]
    changes: tuple[torch.Tensor, ...]
    weights: tuple[Number, ...]
    # size of the inverse Hessian along the newest
    scale: Number


@dataclasses.dataclass(frozen=True)
class _Limited(Directions[_Memory]):
    history: int

    @property
    def curvature(self) -> float:
        return 0.9

    def start(self, gradient: torch.Tensor, norm: Number) -> _Memory:
        none = (torch.zeros_like(gradient),) * self.history
        return _Memory(none, none, (like(norm, 0.0),) * self.history, like(norm, 1.0))

    def learn(
        self,
        memory: _Memory,
        useful: Flag,
        move: torch.Tensor,
        change: torch.Tensor,
        product: Number,
    ) -> _Memory:
        learned = _Memory(
            (*memory.moves[1:], move),
            (*memory.changes[1:], change),
            (*memory.weights[1:], divide(1.0, product)),
            divide(product, coefficient(change @ change)),
        )
        return select(useful, learned, memory)  # type: ignore[no-any-return]

    def direction(
        self, memory: _Memory, gradient: torch.Tensor, previous: torch.Tensor
    ) -> torch.Tensor:
        """Multiply by the approximate inverse Hessian."""
        # a weight of zero that can be read takes no part
        rows = [row for row in zip(*memory[:3], strict=True) if not _is_zero(row[2])]
        v = -gradient
        alphas = []
        for move, change, weight in reversed(rows):
            alphas.append(coefficient(move @ v, weight))
            v = add_scaled(v, -alphas[-1], change)
        v = memory.scale * v
        for (move, change, weight), alpha in zip(rows, reversed(alphas), strict=True):
            v = add_scaled(v, alpha - coefficient(change @ v, weight), move)
        return v

    def first_length(self, length: Number, slope: Number, new_slope: Number) -> Number:
        return like(length, 1.0)


def _is_zero(weight: Number) -> bool:
    return not isinstance(weight, torch.Tensor) and weight == 0
