"""Equations that are affine in the unknown: one linear solve forward, one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchopt_implicit._arguments import check_argnums, check_callable, check_differentiable
from torchopt_implicit._autograd import attach
from torchopt_implicit._autograd import solve as _solve
from torchopt_implicit._implicit_solver import ImplicitSolver
from torchopt_implicit._solution import build_system, unravel_solution
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve import solve_lu

__all__ = ["affine_root"]


def affine_root(
    optimality_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    solve: Callable[[Any, Any], Any] | None = None,
    *,
    namespace: str = "",
) -> Callable[..., Any]:
    r"""Return a differentiable solver of :math:`F(x, \theta) = 0` for F affine in x.

    .. math:: x(\theta) = x_0 - [\partial_x F(\theta)]^{-1} F(x_0, \theta)

    Least squares, ridge regression, kernel methods, equality-constrained quadratic programs,
    discretized linear differential equations. The factorization of a direct solver serves the
    solution and its derivatives of any order.

    Args:
        optimality_fn: :math:`F`, called as ``optimality_fn(x, *args)``; returns a tree like ``x``.
        argnums: As for :func:`custom_root`.
        solve: As for :func:`custom_root`, by default :func:`~torchopt.linear_solve.solve_lu`.
        namespace: As for :func:`custom_root`.

    Returns:
        A solver, called as ``solver(init, *args)``; ``init`` is a tree like the solution, from
        which iterative solvers start.

    Raises:
        TypeError: As :func:`custom_root` does.
        ValueError: As :func:`custom_root` does.
        FailedSolveError: If a linear solve fails and is to throw.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.eye(2), torch.tensor([2.0, 4.0])
        >>> ridge = torchopt.diff.implicit.affine_root(
        ...     lambda w, penalty: X.T @ (X @ w - y) + penalty * w, argnums=1
        ... )
        >>> penalty = torch.tensor(1.0, requires_grad=True)
        >>> w = ridge(torch.zeros(2), penalty)
        >>> w.detach(), torch.autograd.grad(w.sum(), penalty)
        (tensor([1., 2.]), (tensor(-1.5000),))
    """
    check_callable("optimality_fn", optimality_fn)
    positions = check_argnums(argnums)
    linear_solve = solve_lu() if solve is None else solve
    check_callable("solve", linear_solve)
    linear = ImplicitSolver(linear_solve, "affine_root")

    def solver(init: Any, *args: Any) -> Any:
        if positions[-1] > len(args):
            raise ValueError(
                f"`argnums` must be positions of the arguments, of which there are "
                f"{len(args) + 1}, got {positions[-1]}"
            )
        check_differentiable((init, *args), positions, namespace)
        layout = Layout.of(init, "init", namespace=namespace)
        start = layout.ravel(init, "init").detach()
        system, tensors = build_system(
            optimality_fn,
            layout,
            start,
            args,
            tuple(i - 1 for i in positions),
            linear,
            name="optimality_fn",
            namespace=namespace,
            is_affine=True,
        )
        known = tuple(tensor.detach() for tensor in tensors)
        with torch.no_grad():
            step = _solve(system, False, system.function(start, *known), start, known)
        return unravel_solution(layout, attach(system, (start - step).detach(), tensors))

    return solver
