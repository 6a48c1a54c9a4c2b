"""Gradient descent with backtracking."""

from __future__ import annotations

import functools
from typing import Any

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_root
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import Objective, flat_value_and_grad, gradient_of
from torchopt_implicit.solvers._linear_step import LinearSolve, derivative_solver
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments
from torchopt_implicit.solvers._spectral import SpectralGradient

__all__ = ["gradient_descent"]


def gradient_descent(
    objective: Objective,
    *,
    stepsize: float = 1.0,
    maxiter: int = 2000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes by gradient descent with backtracking.

    .. math::
        x^\star(\theta) = \arg\min_x f(x, \theta), \qquad
        x_{k+1} = x_k - t_k \nabla_x f(x_k, \theta)

    One iteration is one evaluation of the objective and its gradient. A step is taken if
    :math:`f(x_{k+1}) \le \max_{j < 10} f(x_{k-j}) - 10^{-4}\, t_k \|\nabla f(x_k)\|^2` and
    shortened otherwise; after a step the next length to try is that of Barzilai and Borwein.
    Derivatives come from :math:`\nabla_x f(x^\star, \theta) = 0`.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``.
        stepsize: The first length to try.
        maxiter: The most evaluations.
        tol: Stop when the gradient's norm is at most ``tol * max(1, its norm at the start)``. By
            default 3.7e-11 in float64 and 2.4e-5 in float32.
        derivative_solve: Solves with the Hessian in derivatives: a callable ``(matvec, b) -> x`` as
            those of :mod:`torchopt_implicit.linear_solve`. A factorisation for up to 256 unknowns
            and conjugate gradients beyond by default.
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
        >>> from torchopt_implicit.solvers import gradient_descent
        >>> ridge = gradient_descent(lambda w, penalty: ((w - 3) ** 2).sum() + penalty * w @ w)
        >>> penalty = torch.tensor(2.0, requires_grad=True)
        >>> w = ridge(torch.zeros(2), penalty)  # 3 / (1 + penalty)
        >>> torch.autograd.grad(w.sum(), penalty)
        (tensor(-0.6667),)

    References:
        M. Raydan: The Barzilai and Borwein gradient method for the large scale unconstrained
        minimization problem (1997).
    """
    derivative_solve = derivative_solver(derivative_solve, linear_solve)
    check_arguments(
        objective,
        "objective",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    if not stepsize > 0:
        raise ValueError(f"`stepsize` must be positive, got {stepsize!r}")

    def bind(layout: Layout, args: tuple[Any, ...]) -> SpectralGradient:
        value_and_grad = flat_value_and_grad(objective, layout, args)
        return SpectralGradient(value_and_grad, None, stepsize, layout.eps)

    differentiate = functools.partial(
        custom_root,
        gradient_of(objective),
        solve=by_size(solves.CG) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "gradient_descent",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )
