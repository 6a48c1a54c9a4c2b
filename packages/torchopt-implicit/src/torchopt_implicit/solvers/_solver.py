"""A solver whose solution differentiates: a method, its stopping test, its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import optree
import torch
from torch import nn

from torchopt_implicit import linear_solve
from torchopt_implicit._arguments import check_differentiation
from torchopt_implicit._compiler import eager
from torchopt_implicit._functorch import unwrap
from torchopt_implicit._status import Info, Status, report
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation, Implicit, Unrolled
from torchopt_implicit.linear_solve._krylov import Krylov
from torchopt_implicit.solvers._loop import Search, advance, begin, precise, search
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Flag

__all__ = [
    "Solver",
    "SolverState",
    "as_numbers",
    "by_size",
    "check_arguments",
    "detach",
    "lowered",
]

REMEDY = "Raise `maxiter` or `tol`, or start closer to the solution"


class SolverState(NamedTuple):
    """How far a solver is, from :meth:`Solver.init_state` and :meth:`Solver.update`.

    A tree of tensors and numbers that can be saved, loaded, and gone on from.
    """

    #: the iterate, a tree like the solution
    solution: Any
    #: what the method knows, and when it is to stop
    search: Search[Any]

    @property
    def info(self) -> Info:
        """How the search ended, if it is over here; ``info.residual_norm`` shows the progress."""
        return as_numbers(self.search.info)

    @property
    def is_running(self) -> bool | torch.Tensor:
        """Whether neither the tolerance is reached nor the method has failed; ``maxiter`` apart."""
        running: Flag = self.search.is_running
        if isinstance(running, torch.Tensor) and not running.ndim and unwrap(running) is running:
            return bool(running)
        return running  # type: ignore[no-any-return]


@final
class Solver:
    r"""A callable ``(init, *args) -> solution`` with implicit gradients built in.

    The functions of :mod:`torchopt_implicit.solvers` return one. It works on trees of tensors:

    - ``solver(init, *args)`` returns the solution, a tree like ``init``, and warns where the
      solver failed, or raises with ``throw=True``;
    - ``solver.run(init, *args)`` returns ``(solution, info)`` and leaves the verdict to the caller;
    - ``solver.init_state(init, *args)`` and ``solver.update(state, *args)`` go step by step;
    - ``solver.run_iterator(init, batches, *args)`` takes one step for each batch of data, if the
      method is made for that;
    - ``solver.attach(solution, *args)`` gives derivatives to a solution that was found otherwise.

    The solution is differentiable in the tensors and modules among ``args``, whatever else is in
    these trees, and in those that the user's function closes over; in reverse and forward mode and
    to any order, at the cost of one linear solve and without the memory of an unrolled loop. It
    does not depend on ``init``. ``differentiation=`` says otherwise, see
    :mod:`torchopt_implicit.differentiation`.

    For a batch of problems, each with its own number of iterations, ``torch.vmap(solver)`` solves
    all at once; ``in_dims`` says which arguments carry the batch. Then the fields of ``info`` are
    tensors.

    A new solver is a function that returns one, from a :class:`Method` and the conditions that its
    solution satisfies.

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

        Step by step:

        >>> state = solver.init_state(torch.ones(3), a.detach())
        >>> while state.is_running:
        ...     state = solver.update(state, a.detach())
        >>> state.info.status.name, state.info.iterations
        ('CONVERGED', 5)
    """

    def __init__(
        self,
        name: str,
        bind: Callable[[Layout, tuple[Any, ...]], Method[Any]],
        differentiate: Callable[..., Any],
        *,
        maxiter: int,
        tol: float | None,
        throw: bool,
        differentiation: Differentiation | None = None,
        start: Callable[[Any], tuple[Layout, torch.Tensor]] | None = None,
        default_tol: Callable[[float], float] = precise,
        absolute: bool = False,
        takes_batches: bool = False,
    ) -> None:
        """Combine a method, its stopping test, and the derivative of what it finds.

        Args:
            name: For messages.
            bind: ``(layout, args) -> method``: the method on the problem with these arguments. The
                layout is that of the solution; ``layout.unravel`` makes its trees from vectors.
            differentiate: ``(argnums, has_aux, ...) -> decorator``: ``custom_root`` or
                ``custom_fixed_point`` with the conditions that a solution satisfies, and the linear
                solver of an implicit derivative. Nothing else is needed to differentiate.
            maxiter: The most iterations.
            tol: The tolerance, see :func:`~torchopt_implicit.solvers._loop.begin`.
            throw: Whether a failed search raises.
            differentiation: How the solution is differentiated, as for ``custom_root``.
            start: ``init -> (layout, vector)``: the layout of the solution and the vector that
                the method's ``init_state`` is given. By default ``init`` is a tree like the
                solution.
            default_tol: The tolerance for the precision of the unknowns, where none is given.
            absolute: Whether the tolerance is the error to reach itself.
            takes_batches: Whether the method may go on from a state of a problem with other
                arguments, so that :meth:`run_iterator` makes sense.
        """
        self.name = name
        self._bind = bind
        self._differentiate = differentiate
        self._maxiter = maxiter
        self._tol = tol
        self._throw = throw
        self._differentiation = Implicit() if differentiation is None else differentiation
        self._start = _start if start is None else start
        self._default_tol = default_tol
        self._absolute = absolute
        self._takes_batches = takes_batches

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    @eager
    def __call__(self, init: Any, *args: Any) -> Any:
        """Return the solution; report a failure."""
        solution, info = self._run(init, args)
        report(lowered(info), self.name, throw=self._throw, remedy=REMEDY)
        return solution

    @eager
    def run(self, init: Any, *args: Any) -> tuple[Any, Info]:
        """Return the solution and how the search ended, whatever it was."""
        solution, info = self._run(init, args)
        return solution, as_numbers(info)

    @eager
    def init_state(self, init: Any, *args: Any) -> SolverState:
        """Return the state before the first iteration.

        Args:
            init: Where to start, as for a call; for a warm start the ``solution`` of a state.
            *args: The arguments of the problem.
        """
        layout, vector = self._start(init)
        state = self._begin(layout, vector, args)
        return SolverState(layout.unravel(state.state.x), state)

    @eager
    def update(self, state: SolverState, *args: Any) -> SolverState:
        """Return the state after one more iteration; the given one stays as it is.

        A problem that is not running any more is left where it is. So ``maxiter`` updates give
        what :meth:`run` gives. It records gradients as any function does: call it under
        `torch.no_grad` unless its steps are to be differentiated, and :meth:`attach` the implicit
        derivative at the end.

        Args:
            state: From :meth:`init_state` or :meth:`update`.
            *args: The arguments of the problem, the same as before.
        """
        layout = Layout.of(state.solution, "the solution")
        now = state.search
        now = advance(self._bind(layout, args).update, now, now.is_running)
        return SolverState(layout.unravel(now.state.x), now)

    @eager
    def run_iterator(self, init: Any, batches: Iterable[Any], *args: Any) -> SolverState:
        """Return the state after one iteration on each batch of data.

        The problem of an iteration has the arguments ``(*args, batch)``. Nothing ends the run but
        the last batch, and a loss that is not finite. The result has no derivatives: give the
        solution those of the problem on all data by :meth:`attach`.

        Args:
            init: Where to start, as for a call, or a state to go on from.
            batches: Of data, any trees.
            *args: The other arguments of the problem.

        Raises:
            TypeError: If the method needs the same problem in each iteration.
            ValueError: If there is no batch.
        """
        if not self._takes_batches:
            raise TypeError(
                f"{self.name} needs the same problem in each iteration: use armijo_sgd or "
                "polyak_sgd for batches of data"
            )
        state = init if isinstance(init, SolverState) else None
        with torch.no_grad():
            for batch in batches:
                data = detach((*args, batch))
                state = self.init_state(init, *data) if state is None else state
                now = state.search._replace(target=-math.inf)
                state = self.update(state._replace(search=now), *data)
        if state is None:
            raise ValueError("`batches` must have at least one batch")
        return state

    @eager
    def attach(self, solution: Any, *args: Any) -> Any:
        """Return a solution that was found otherwise, with its derivatives in the arguments.

        Args:
            solution: A tree that solves the problem with the arguments: from :meth:`update`, from a
                file, or from another solver. It is taken as it is.
            *args: The arguments of the problem.
        """
        if isinstance(self._differentiation, Unrolled):
            raise ValueError(
                f"{self.name} with differentiation=Unrolled() differentiates its own steps, and a "
                "solution that was found otherwise has none: use Implicit()"
            )
        return self._differentiable(lambda init, *args: (detach(init), None), solution, args)[0]

    def _run(self, init: Any, args: tuple[Any, ...]) -> tuple[Any, Info]:
        def solve(init: Any, *args: Any) -> tuple[Any, Info]:
            if not isinstance(self._differentiation, Unrolled):
                init, args = detach((init, args))
            layout, vector = self._start(init)
            now = self._begin(layout, vector, args)
            now = search(self._bind(layout, args).update, now, self._maxiter)
            # in memory of its own, though no step was taken from `init`
            x = now.state.x.clone()
            is_unrolled = isinstance(self._differentiation, Unrolled)
            if is_unrolled and not torch.as_tensor(lowered(now.info).iterations).any():
                x = _with_zero_derivatives(x, args)
            return layout.unravel(x), now.info

        return self._differentiable(solve, init, args)

    def _begin(self, layout: Layout, vector: torch.Tensor, args: tuple[Any, ...]) -> Search[Any]:
        tol = self._default_tol(layout.eps) if self._tol is None else self._tol
        return begin(self._bind(layout, args).init_state(vector), tol, absolute=self._absolute)

    def _differentiable(
        self, solve: Callable[..., tuple[Any, Any]], init: Any, args: tuple[Any, ...]
    ) -> tuple[Any, Any]:
        solve.__name__ = self.name
        argnums = tuple(i for i, arg in enumerate(args, start=1) if _is_differentiable(arg))
        options: dict[str, Any] = {"argnums": argnums, "has_aux": True}
        if not isinstance(self._differentiation, Implicit):
            options |= {"solve": None, "differentiation": self._differentiation}
        result: tuple[Any, Any] = self._differentiate(**options)(solve)(init, *args)
        return result


def _start(init: Any) -> tuple[Layout, torch.Tensor]:
    layout = Layout.of(init, "init")
    return layout, layout.ravel(init, "init")


def _with_zero_derivatives(x: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
    """Return the vector as a function of the arguments that is constant: no step was taken."""
    leaves: list[Any] = optree.tree_leaves(args)  # type: ignore[arg-type]
    for leaf in leaves:
        for t in leaf.parameters() if isinstance(leaf, nn.Module) else (leaf,):
            if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex()):
                x = x + t.flatten()[:0].abs().sum().to(x)
    return x


def as_numbers(info: Info) -> Info:
    """Return an info of tensors as one of numbers, if it is of one problem outside transforms."""
    if any(isinstance(x, torch.Tensor) and (unwrap(x) is not x or x.ndim) for x in info):
        return info
    iterations, residual_norm, status = info
    return Info(int(iterations), float(residual_norm), Status(int(status)))


def lowered(info: Info) -> Info:
    """Return an info of tensors underneath the transforms of `torch.func`."""
    iterations, residual_norm, status = (unwrap(torch.as_tensor(field)) for field in info)
    return Info(iterations, residual_norm, status)


def detach(tree: Any) -> Any:
    """Return the tree with its tensors detached."""
    return optree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree)


def _is_differentiable(arg: Any) -> bool:
    leaves = optree.tree_leaves(arg)
    return any(isinstance(leaf, (torch.Tensor, nn.Module)) for leaf in leaves)


def check_arguments(
    function: Any,
    name: str,
    maxiter: int,
    tol: float | None,
    *,
    differentiation: Differentiation | None = None,
    **linear_solvers: Any,
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
    for keyword, solve in linear_solvers.items():
        if solve is not None and not callable(solve):
            raise TypeError(
                f"`{keyword}` must be callable as {keyword}(matvec, b), got "
                f"{type(solve).__name__}; for example torchopt_implicit.linear_solve.solve_cg()"
            )
    if differentiation is None or isinstance(differentiation, Implicit):
        return
    check_differentiation(differentiation, None)
    if linear_solvers.get("derivative_solve") is not None:
        raise ValueError(
            f"`derivative_solve` solves the linear systems of implicit derivatives, of which "
            f"{differentiation!r} has none: leave out one of the two"
        )


def by_size(iterative: type[Krylov]) -> linear_solve.LinearSolver:
    """Return a linear solver that factorises small systems and iterates on large ones."""
    return linear_solve.solve_auto(iterative=iterative)
