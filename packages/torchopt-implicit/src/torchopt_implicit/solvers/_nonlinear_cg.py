"""Nonlinear conjugate gradients."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import Objective
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._numbers import (
    Flag,
    Number,
    add_scaled,
    divide,
    is_finite,
    like,
    maximum,
    minimum,
    read,
    select,
)
from torchopt_implicit.solvers._solver import Solver
from torchopt_implicit.solvers._wolfe import Directions, descent_solver

__all__ = ["nonlinear_cg"]


def nonlinear_cg(
    objective: Objective,
    *,
    maxiter: int = 2000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes by nonlinear conjugate gradients.

    .. math::
        d_{k+1} = -g_{k+1} + \max(\beta_k, \eta_k)\, d_k, \qquad
        \beta_k = \Bigl(y_k - 2 d_k \frac{\|y_k\|^2}{d_k^\top y_k}\Bigr)^{\!\top}
        \frac{g_{k+1}}{d_k^\top y_k}, \qquad
        \eta_k = \frac{-1}{\|d_k\| \min(0.01, \|g_k\|)}

    with gradients :math:`g_k` and their changes :math:`y_k`. These directions always descend. A few
    vectors are all the memory it takes, fewer than :func:`lbfgs`. One iteration is one evaluation
    of the objective and its gradient, in a search for the strong Wolfe conditions.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``.
        maxiter: The most evaluations.
        tol: As in :func:`gradient_descent`.
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
        >>> from torchopt_implicit.solvers import nonlinear_cg
        >>> solver = nonlinear_cg(lambda x, a: torch.cosh(x - a).sum())
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> x = solver(torch.zeros(2), a)
        >>> torch.autograd.grad(x.sum(), a)
        (tensor([1., 1.]),)

    References:
        W. W. Hager, H. Zhang: A new conjugate gradient method with guaranteed descent and an
        efficient line search (2005), equations 1.3 and 1.5 to 1.7.
    """
    return descent_solver(
        "nonlinear_cg",
        objective,
        _Conjugate(),
        maxiter=maxiter,
        tol=tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
        throw=throw,
    )


class _Memory(NamedTuple):
    # of the last step: move, change of the gradient, their product
    move: torch.Tensor
    change: torch.Tensor
    product: Number


@dataclasses.dataclass(frozen=True)
class _Conjugate(Directions[_Memory]):
    @property
    def curvature(self) -> float:
        return 0.1

    def start(self, gradient: torch.Tensor, norm: Number) -> _Memory:
        none = torch.zeros_like(gradient)
        return _Memory(none, none, like(norm, 0.0))

    def learn(
        self,
        memory: _Memory,
        useful: Flag,
        move: torch.Tensor,
        change: torch.Tensor,
        product: Number,
    ) -> _Memory:
        return select(useful, _Memory(move, change, product), memory)  # type: ignore[no-any-return]

    def direction(
        self, memory: _Memory, gradient: torch.Tensor, previous: torch.Tensor
    ) -> torch.Tensor:
        move, change, product = memory
        (square,) = read(change @ change)
        # for the move s = t d: beta d = (y - 2 s |y|^2 / s.y).g s / s.y
        conjugate = add_scaled(change, divide(-2 * square, product), move)
        weight, length, norm = read(
            conjugate @ gradient.detach(),
            torch.linalg.vector_norm(move),
            torch.linalg.vector_norm(gradient - change),
        )
        beta = maximum(divide(weight, product), divide(-1.0, length * minimum(norm, 0.01)))
        beta = select(is_finite(beta), beta, like(norm, 0.0))
        return add_scaled(-gradient, beta, move)

    def first_length(self, length: Number, slope: Number, new_slope: Number) -> Number:
        return length
