"""Linear systems within an iteration, and in derivatives: which solver solves them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve import LinearSolver

__all__ = ["LinearSolve", "derivative_solver", "solve_step", "with_layout"]

#: ``(matvec, b) -> x``
LinearSolve = Callable[..., Any]


def solve_step(
    linear_solve: LinearSolve, A: LinearOperator, b: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Return the solution of a linear system between vectors by a user's solver of trees.

    Args:
        linear_solve: As for :func:`~torchopt_implicit.custom_root`. An inexact solution is as good:
            the search looks at what the step does.
        A: An operator on vectors.
        b: The right-hand side.
        layout: That of the unknowns.
    """
    if isinstance(linear_solve, LinearSolver):
        x: torch.Tensor = linear_solve.solve(A, b)[0]
        return x
    if layout.spec.is_leaf():  # as these functions have always been called
        one: Any = (0,)
        layout = layout._replace(spec=optree.tree_structure(one))
    solution = linear_solve(with_layout(A, layout, A.tags), layout.unravel(b))
    if isinstance(solution, torch.Tensor):
        solution = (solution,)
    return layout.ravel(solution, "the result of `linear_solve`")


def with_layout(A: LinearOperator, layout: Layout, tags: Tag) -> LinearOperator:
    """Return a square operator with another layout of its vectors, or with other tags."""
    return LinearOperator(
        A.matvec,
        A.rmatvec,
        layout,
        layout,
        tags=tags,
        relinearized=lambda: with_layout(A.relinearized, layout, tags),
    )


def derivative_solver(
    derivative_solve: LinearSolve | None, linear_solve: LinearSolve | None
) -> LinearSolve | None:
    """Return the solver for derivatives, which ``linear_solve`` was the name of.

    Raises:
        TypeError: If both are given.
    """
    if linear_solve is None:
        return derivative_solve
    if derivative_solve is not None:
        raise TypeError(
            "`linear_solve` is the former name of `derivative_solve`: give the latter alone"
        )
    warnings.warn(
        "`linear_solve` is called `derivative_solve` now, since it concerns derivatives alone",
        DeprecationWarning,
        stacklevel=3,
    )
    return linear_solve
