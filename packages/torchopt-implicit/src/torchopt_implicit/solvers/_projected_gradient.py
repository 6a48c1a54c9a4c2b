"""Projected gradient descent with backtracking."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_fixed_point
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._flat import Objective, flat_value_and_grad, gradient_of
from torchopt_implicit.solvers._linear_step import LinearSolve, derivative_solver
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments
from torchopt_implicit.solvers._spectral import SpectralGradient

__all__ = ["projected_gradient"]


def projected_gradient(
    objective: Objective,
    projection: Callable[..., Any],
    *,
    stepsize: float = 1.0,
    maxiter: int = 2000,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes over a convex set by projected gradient steps.

    .. math::
        x^\star(\theta) = \arg\min_{x \in C(\theta)} f(x, \theta), \qquad
        x_{k+1} = P_{C(\theta)}(x_k - t_k \nabla_x f(x_k, \theta))

    Derivatives come from the fixed point :math:`x^\star = P(x^\star - \nabla_x f(x^\star))`. They
    exist wherever the projection is differentiable, so not where a constraint just becomes active.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree like ``init``.
        projection: ``projection(x, *args)`` returns the point of the set nearest to ``x``, a tree
            like it. It is given the same arguments as the objective, so that the set may depend
            on them differentiably; see :func:`project_box`, :func:`project_simplex` and
            :func:`project_ball`.
        stepsize: The first length to try.
        maxiter: The most evaluations.
        tol: Stop when :math:`\|x - P(x - \nabla f(x))\|` is at most ``tol * max(1, its value at
            the start)``; 3.7e-11 in float64 and 2.4e-5 in float32 by default.
        derivative_solve: Solves with :math:`I - \partial P(I - \nabla^2 f)` in derivatives. A
            factorisation for up to 256 unknowns and GMRES beyond by default.
        linear_solve: The former name of ``derivative_solve``.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``objective``, ``projection`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, or the objective is not scalar.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import project_box, projected_gradient
        >>> solver = projected_gradient(
        ...     lambda x, target, upper: ((x - target) ** 2).sum(),
        ...     lambda x, target, upper: project_box(x, 0.0, upper),
        ... )
        >>> target = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
        >>> upper = torch.tensor(1.0, requires_grad=True)
        >>> x = solver(torch.zeros(3), target, upper)
        >>> torch.autograd.grad(x.sum(), (target, upper))
        (tensor([0., 1., 0.]), tensor(1.))

    References:
        E. G. Birgin, J. M. Martínez, M. Raydan: Nonmonotone spectral projected gradient methods
        on convex sets (2000).
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
    check_arguments(projection, "projection", maxiter, tol)
    if not stepsize > 0:
        raise ValueError(f"`stepsize` must be positive, got {stepsize!r}")
    gradient = gradient_of(objective)

    def fixed_point(x: Any, *args: Any) -> Any:
        moved = optree.tree_map(torch.sub, x, gradient(x, *args))
        return projection(moved, *args)

    def bind(layout: Layout, args: tuple[Any, ...]) -> SpectralGradient:
        def project(x: torch.Tensor) -> torch.Tensor:
            return layout.ravel(projection(layout.unravel(x), *args), "the projection")

        value_and_grad = flat_value_and_grad(objective, layout, args)
        return SpectralGradient(value_and_grad, project, stepsize, layout.eps)

    differentiate = functools.partial(
        custom_fixed_point,
        fixed_point,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "projected_gradient",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )
