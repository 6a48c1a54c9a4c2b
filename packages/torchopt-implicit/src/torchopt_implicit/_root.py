"""Differentiation of solvers by the implicit function theorem."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch

from torchopt_implicit._arguments import (
    check_argnums,
    check_callable,
    check_differentiable,
    check_differentiation,
    check_range,
    check_unrolled,
    keyword_filter,
    split_aux,
)
from torchopt_implicit._compiled import CompilerCache
from torchopt_implicit._compiler import eager
from torchopt_implicit._implicit_solver import ImplicitSolver
from torchopt_implicit._solution import implicit_solution
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation, Implicit, Unrolled
from torchopt_implicit.linear_solve import solve_auto

__all__ = ["custom_fixed_point", "custom_root"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def custom_root(
    optimality_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool = False,
    solve: Callable[[Any, Any], Any] | None = None,
    *,
    differentiation: Differentiation | None = None,
    namespace: str = "",
) -> Decorator:
    r"""Return a decorator that makes a solver of an equation differentiable.

    The solver finds :math:`x(\theta)` with :math:`F(x(\theta), \theta) = 0`. However it does that,

    .. math:: \partial x(\theta) = -[\partial_x F(x, \theta)]^{-1}\, \partial_\theta F(x, \theta).

    The solver is not differentiated: it runs once, without gradients, and may be anything; other
    ways are a matter of ``differentiation``. Each derivative solves one linear system, with matvecs
    by automatic differentiation of ``F``. Reverse mode, forward mode, `torch.func` transforms and
    derivatives of derivatives all work.

    Derivatives reach the arguments in ``argnums``, and tensors that ``optimality_fn`` closes over,
    such as the parameters of a module. They do not reach other arguments, nor the initial guess. A
    tensor that requires gradients where they cannot follow is an error that names it.

    ``optimality_fn`` is evaluated once more at the solution, and again by derivatives: with the
    autocast, the random numbers and the modes of modules (training or not) of that time, and
    without effect on tensors from elsewhere, so that running statistics of normalization stay what
    the solver left. If those tensors change in place before a derivative is taken, that is an
    error. Beside that it has to be a pure function: other Python state that it reads, such as an
    attribute or an entry of a list, must not change before the last derivative is taken.

    Args:
        optimality_fn: :math:`F`, called as ``optimality_fn(x, *args[1:])`` with the solver's
            arguments; returns a tree like ``x``. Where a function is minimized, its gradient.
        argnums: The positions of the solver's arguments to differentiate in: 1 or more, since 0 is
            the initial guess, on which the solution does not depend; none if only what
            ``optimality_fn`` closes over is to be differentiated in. Each may be any tree with
            tensors or modules in it; what else is there is constant, integer tensors are, too. All
            other arguments may be anything, and all of them is constant.
        has_aux: Whether the solver returns ``(x, aux)``; ``aux`` is passed on untouched.
        solve: Solves linear systems: a solver of :mod:`torchopt.linear_solve`, by default
            :func:`~torchopt.linear_solve.solve_auto`, which factorizes up to 256 unknowns; where
            ``F`` is the gradient of a convex function of more, ``solve_cg()`` takes half the time.
            Or any function ``(matvec, b) -> x``, of
            trees like the solution, but with tuples of one in the place of a single tensor.
        differentiation: How, see :mod:`torchopt.diff.implicit.differentiation`: by default
            :class:`~torchopt_implicit.differentiation.Implicit`, the only one that uses ``solve``.
        namespace: In which optree looks for the types of nodes of trees.

    Returns:
        A decorator of a solver ``solver(init, *args)``, with keyword arguments resolved by its
        signature. Keyword-only arguments reach ``optimality_fn`` if it takes them.

    Raises:
        TypeError: If a function is not callable, ``argnums`` is not made of integers, or, when
            called, a leaf of the solution is not a tensor, or a differentiated argument has none.
        ValueError: If ``argnums`` is out of range, or ``solve`` is given to another
            ``differentiation`` than an implicit one, or, when differentiated, the solution and what
            ``optimality_fn`` returns differ in structure or shapes.
        RuntimeError: If ``optimality_fn`` depends on a tensor from elsewhere that requires
            gradients by a way on which these cannot follow, or, when differentiated, if one that it
            has from elsewhere was changed in place since.
        FailedSolveError: When differentiated, if the linear solve fails and is to throw.

    Example:
        >>> import torch, torchopt
        >>> @torchopt.diff.implicit.custom_root(lambda x, a: x**2 - a, argnums=1)
        ... def square_root(init, a):
        ...     x = init
        ...     for _ in range(20):
        ...         x = (x + a / x) / 2
        ...     return x
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> square_root(torch.tensor(1.0), a).backward()
        >>> a.grad  # 1 / (2 sqrt(a))
        tensor(0.2500)

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, NeurIPS 2022.
    """
    check_callable("optimality_fn", optimality_fn)
    options = (argnums, has_aux, solve, differentiation, namespace)
    return _decorator(optimality_fn, *options, name="optimality_fn")


def custom_fixed_point(
    fixed_point_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool = False,
    solve: Callable[[Any, Any], Any] | None = None,
    *,
    differentiation: Differentiation | None = None,
    namespace: str = "",
) -> Decorator:
    r"""Return a decorator that makes a solver of a fixed-point equation differentiable.

    The solver finds :math:`x(\theta)` with :math:`x = T(x, \theta)`, a root of :math:`x - T(x)`.

    Args:
        fixed_point_fn: :math:`T`, called as ``fixed_point_fn(x, *args[1:])``.
        argnums: As for :func:`custom_root`.
        has_aux: As for :func:`custom_root`.
        solve: As for :func:`custom_root`.
        differentiation: As for :func:`custom_root`.
        namespace: As for :func:`custom_root`.

    Returns:
        A decorator, as :func:`custom_root` does, and raises what that raises.

    Example:
        >>> import torch, torchopt
        >>> @torchopt.diff.implicit.custom_fixed_point(lambda x, a: torch.cos(a * x), argnums=1)
        ... def solver(init, a):
        ...     x = init
        ...     for _ in range(100):
        ...         x = torch.cos(a * x)
        ...     return x
        >>> a = torch.tensor(1.0, requires_grad=True)
        >>> x = solver(torch.tensor(0.0), a)
        >>> x.backward()
        >>> torch.allclose(a.grad, -x * x.sin() / (1 + x.sin()))
        True
    """
    check_callable("fixed_point_fn", fixed_point_fn)

    @functools.wraps(fixed_point_fn)
    def residual(x: Any, *args: Any, **kwargs: Any) -> Any:
        layout = Layout.of(x, "the solution", namespace=namespace)
        mapped = layout.flatten(fixed_point_fn(x, *args, **kwargs), "what `fixed_point_fn` returns")
        own = optree.tree_leaves(x, namespace=namespace)
        leaves = [old - new for new, old in zip(mapped, own, strict=True)]
        return optree.tree_unflatten(layout.spec, leaves)

    options = (argnums, has_aux, solve, differentiation, namespace)
    return _decorator(residual, *options, name="fixed_point_fn")


def _decorator(
    residual_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    solve: Callable[[Any, Any], Any] | None,
    differentiation: Differentiation | None,
    namespace: str,
    name: str,
) -> Decorator:
    positions = check_argnums(argnums)
    strategy = Implicit() if differentiation is None else differentiation
    check_differentiation(strategy, solve)
    solve = strategy.linear_solver(solve_auto() if solve is None else solve)
    accepts = keyword_filter(residual_fn)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        check_callable("the decorated solver", solver)
        signature = inspect.signature(solver)
        check_range(positions, signature)
        title = getattr(solver, "__name__", type(solver).__name__)
        linear = None if solve is None else ImplicitSolver(solve, title)
        is_compiled = isinstance(strategy, Implicit) and strategy.compiled
        cache = CompilerCache() if is_compiled else None

        @eager
        @functools.wraps(solver)
        def solve_implicitly(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
            if positions and positions[-1] >= len(args):
                raise ValueError(
                    f"`argnums` must be positions of the arguments, of which there are "
                    f"{len(args)}, got {positions[-1]}"
                )
            check_differentiable(args, positions, namespace)
            is_unrolled = isinstance(strategy, Unrolled)
            with contextlib.nullcontext() if is_unrolled else torch.no_grad():
                result = solver(*args, **kwargs)
            solution, aux = split_aux(result) if has_aux else (result, None)
            if is_unrolled:
                check_unrolled(solution, [args[i] for i in positions], title, namespace)
                return result
            known = {key: value for key, value in kwargs.items() if accepts(key)}
            solution = implicit_solution(
                lambda x, *rest: residual_fn(x, *rest[:-1], **rest[-1]),
                solution,
                (*args[1:], known),
                tuple(i - 1 for i in positions),
                linear,
                name=name,
                namespace=namespace,
                cache=cache,
            )
            return (solution, aux) if has_aux else solution

        return solve_implicitly

    return decorate
