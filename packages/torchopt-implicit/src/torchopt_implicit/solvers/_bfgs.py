"""BFGS with a line search for the strong Wolfe conditions."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch

from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import Objective
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._numbers import Flag, Number, like, read, select
from torchopt_implicit.solvers._solver import Solver
from torchopt_implicit.solvers._wolfe import Directions, descent_solver

__all__ = ["bfgs"]


def bfgs(
    objective: Objective,
    *,
    maxiter: int = 500,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes by BFGS with strong Wolfe line searches.

    .. math::
        x_{k+1} = x_k - t_k H_k \nabla_x f(x_k, \theta), \qquad
        H_{k+1} = (I - \rho s y^\top) H_k (I - \rho y s^\top) + \rho s s^\top

    with :math:`s` the move, :math:`y` the change of the gradient and :math:`\rho = 1 / s^\top y`.
    It keeps the whole :math:`n \times n` matrix and needs fewer evaluations than :func:`lbfgs`,
    which is for many unknowns. One iteration is one evaluation of the objective and its gradient.

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
        >>> from torchopt_implicit.solvers import bfgs
        >>> solver = bfgs(lambda x, a: torch.cosh(x - a).sum())
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> x = solver(torch.zeros(2), a)
        >>> torch.autograd.grad(x.sum(), a)
        (tensor([1., 1.]),)

    References:
        J. Nocedal, S. J. Wright: Numerical Optimization (2006), algorithm 6.1, and equation 6.20
        for the scale of :math:`H_0`.
    """
    return descent_solver(
        "bfgs",
        objective,
        _Dense(),
        maxiter=maxiter,
        tol=tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
        throw=throw,
    )


class _Memory(NamedTuple):
    inverse: torch.Tensor
    # whether a step has been learned from
    begun: Flag


@dataclasses.dataclass(frozen=True)
class _Dense(Directions[_Memory]):
    @property
    def curvature(self) -> float:
        return 0.9

    def start(self, gradient: torch.Tensor, norm: Number) -> _Memory:
        eye = torch.eye(gradient.numel(), dtype=gradient.dtype, device=gradient.device)
        return _Memory(eye, norm != norm)

    def learn(
        self,
        memory: _Memory,
        useful: Flag,
        move: torch.Tensor,
        change: torch.Tensor,
        product: Number,
    ) -> _Memory:
        if useful is False:
            return memory
        (square,) = read(change @ change)
        # the first matrix has the size of the inverse Hessian along the first step
        scale = select(memory.begun, like(square, 1.0), product / square)
        inverse = scale * memory.inverse
        image = inverse @ change
        curved = (product + change @ image) / (product * product)
        learned = (
            inverse
            + curved * torch.outer(move, move)
            - (torch.outer(image, move) + torch.outer(move, image)) / product
        )
        return select(useful, _Memory(learned, useful | True), memory)  # type: ignore[no-any-return]

    def direction(
        self, memory: _Memory, gradient: torch.Tensor, previous: torch.Tensor
    ) -> torch.Tensor:
        return -(memory.inverse @ gradient)

    def first_length(self, length: Number, slope: Number, new_slope: Number) -> Number:
        return like(length, 1.0)
