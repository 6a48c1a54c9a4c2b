"""A solver whose solution differentiates: what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import optree
import torch

from torchopt_implicit import linear_solve
from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve._krylov import Krylov

__all__ = [
    "LinearSolve",
    "Objective",
    "Solver",
    "as_numbers",
    "by_size",
    "check_arguments",
    "detach",
    "flat_function",
    "flat_value_and_grad",
    "lowered",
    "value_and_jacobian",
]

#: ``(solution, *args) -> 0-dim tensor``
Objective = Callable[..., torch.Tensor]
#: ``(matvec, b) -> x``
LinearSolve = Callable[..., Any]


@final
class Solver:
    r"""A callable ``(init, *args) -> solution`` with implicit gradients built in.

    The functions of :mod:`torchopt_implicit.solvers` return one. It works on trees of tensors:

    - ``solver(init, *args)`` returns the solution, a tree like ``init``, and warns where the
      solver failed, or raises with ``throw=True``;
    - ``solver.run(init, *args)`` returns ``(solution, info)`` and leaves the verdict to the caller.

    The solution is differentiable in each of ``args`` that is a tree of floating point tensors, in
    reverse and forward mode and to any order, at the cost of one linear solve and without the
    memory of an unrolled loop. It does not depend on ``init``, and gradients do not reach tensors
    that the user's function merely closes over: pass them as arguments.

    For a batch of problems, each with its own number of iterations, ``torch.vmap(solver)`` solves
    all at once; ``in_dims`` says which arguments carry the batch. Then the fields of ``info`` are
    tensors.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import newton
        >>> solver = newton(lambda x, a: x**2 - a)
        >>> a = torch.tensor([4.0, 9.0, 25.0], requires_grad=True)
        >>> roots = torch.vmap(solver)(torch.ones(3), a)
        >>> roots
        tensor([2., 3., 5.], grad_fn=...)
        >>> torch.autograd.grad(roots.sum(), a)  # 1 / (2 sqrt(a))
        (tensor([0.2500, 0.1667, 0.1000]),)
    """

    def __init__(
        self,
        name: str,
        search: Callable[..., tuple[Any, Info]],
        differentiate: Callable[..., Any],
        *,
        throw: bool,
    ) -> None:
        """Combine a search and its implicit derivative.

        Args:
            name: For messages.
            search: ``(init, *args) -> (solution, info)``, info in tensors.
            differentiate: ``(argnums, has_aux) -> decorator``: ``custom_root`` or
                ``custom_fixed_point`` with all but these arguments.
            throw: Whether a failed search raises.
        """
        self.name = name
        self._search = search
        self._differentiate = differentiate
        self._throw = throw

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def __call__(self, init: Any, *args: Any) -> Any:
        """Return the solution; report a failure."""
        solution, info = self._run(init, args)
        remedy = "Raise `maxiter` or `tol`, or start closer to the solution"
        report(lowered(info), self.name, throw=self._throw, remedy=remedy)
        return solution

    def run(self, init: Any, *args: Any) -> tuple[Any, Info]:
        """Return the solution and how the search ended, whatever it was."""
        solution, info = self._run(init, args)
        return solution, as_numbers(info)

    def _run(self, init: Any, args: tuple[Any, ...]) -> tuple[Any, Info]:
        argnums = tuple(i for i, arg in enumerate(args, start=1) if _is_differentiable(arg))

        def solve(init: Any, *args: Any) -> tuple[Any, Info]:
            init, args = detach((init, args))
            with torch.no_grad():
                return self._search(init, *args)

        solve.__name__ = self.name
        if argnums:
            solve = self._differentiate(argnums=argnums, has_aux=True)(solve)
        return solve(init, *args)


def as_numbers(info: Info) -> Info:
    """Return an info of tensors as one of numbers, if it is of one problem outside transforms."""
    fields = [torch.as_tensor(field) for field in info]
    if any(unwrap(field) is not field or field.ndim for field in fields):
        return info
    iterations, residual_norm, status = fields
    return Info(int(iterations), float(residual_norm), Status(int(status)))


def lowered(info: Info) -> Info:
    """Return an info of tensors underneath the transforms of `torch.func`."""
    iterations, residual_norm, status = (unwrap(torch.as_tensor(field)) for field in info)
    return Info(iterations, residual_norm, status)


def detach(tree: Any) -> Any:
    """Return the tree with its tensors detached."""
    return optree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree)


def _is_differentiable(arg: Any) -> bool:
    leaves = optree.tree_leaves(arg, none_is_leaf=True)
    return len(leaves) > 0 and all(isinstance(leaf, torch.Tensor) for leaf in leaves)


def check_arguments(
    function: Any, name: str, maxiter: int, tol: float | None, solve: Any = None
) -> None:
    """Raise if an argument that the solvers share is not what it has to be."""
    if not callable(function):
        raise TypeError(
            f"`{name}` must be callable as {name}(solution, *args), got {type(function).__name__}"
        )
    if not isinstance(maxiter, int) or maxiter < 0:
        raise ValueError(f"`maxiter` must be a non-negative integer, got {maxiter!r}")
    if tol is not None and not tol > 0:
        raise ValueError(f"`tol` must be positive, or None for the default, got {tol!r}")
    if solve is not None and not callable(solve):
        raise TypeError(
            f"`linear_solve` must be callable as linear_solve(matvec, b), got "
            f"{type(solve).__name__}; for example torchopt_implicit.linear_solve.solve_cg()"
        )


def flat_function(
    function: Callable[..., Any], layout: Layout, args: tuple[Any, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of trees as one from vectors to vectors."""

    def flat(vector: torch.Tensor) -> torch.Tensor:
        out = function(layout.unravel(vector), *args)
        return Layout.of(out, "the function's result").ravel(out, "the function's result")

    return flat


def flat_value_and_grad(
    objective: Objective, layout: Layout, args: tuple[Any, ...]
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return the value and the gradient of an objective as a function of a vector."""

    def value(vector: torch.Tensor) -> torch.Tensor:
        out = objective(layout.unravel(vector), *args)
        if not isinstance(out, torch.Tensor) or out.shape != ():
            got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out)
            raise ValueError(
                f"`objective` must return a 0-dim tensor, got {got}; sum or average it, and use "
                "torch.vmap(solver) for a batch of problems"
            )
        return out.to(vector.dtype)

    differentiated = torch.func.grad_and_value(value)

    def value_and_grad(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient, result = differentiated(vector)
        return result, gradient

    return value_and_grad


def value_and_jacobian(
    function: Callable[[torch.Tensor], torch.Tensor], *, square: bool = False
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Return the value and the dense Jacobian of a function as a function of a vector.

    With ``square`` there must be as many values as unknowns.
    """

    def with_value(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = function(vector)
        if square and value.shape != vector.shape:
            raise ValueError(
                f"`function` must return as many values as there are unknowns, got "
                f"{value.numel()} values for {vector.numel()} unknowns; for least squares use "
                "levenberg_marquardt"
            )
        value = value.to(vector.dtype)
        return value, value

    jacobian = torch.func.jacrev(with_value, has_aux=True)

    def both(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if vector.numel() == 0:
            value, _ = with_value(vector)
            return value, value.new_zeros(value.numel(), 0)
        matrix, value = jacobian(vector)
        return value, matrix

    return both


def by_size(iterative: type[Krylov]) -> linear_solve.LinearSolver:
    """Return a linear solver that factorises small systems and iterates on large ones."""
    return linear_solve.solve_auto(iterative=iterative)
