"""Differentiation of solvers by the implicit function theorem."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch

from torchopt_implicit._autograd import attach
from torchopt_implicit._implicit_solver import ImplicitSolver
from torchopt_implicit._system import System
from torchopt_implicit._tree import Layout, describe_path
from torchopt_implicit.linear_solve import solve_auto

__all__ = [
    "build_system",
    "check_argnums",
    "check_callable",
    "check_differentiable",
    "custom_fixed_point",
    "custom_root",
    "implicit_solution",
    "unravel_solution",
]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def custom_root(
    optimality_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool = False,
    solve: Callable[[Any, Any], Any] | None = None,
    *,
    namespace: str = "",
) -> Decorator:
    r"""Return a decorator that makes a solver of an equation differentiable.

    The solver finds :math:`x(\theta)` with :math:`F(x(\theta), \theta) = 0`. However it does that,

    .. math:: \partial x(\theta) = -[\partial_x F(x, \theta)]^{-1}\, \partial_\theta F(x, \theta).

    The solver is not differentiated: it runs once, without gradients, and may be anything. Each
    derivative solves one linear system, with matvecs by automatic differentiation of ``F``. Reverse
    mode, forward mode, `torch.func` transforms and derivatives of derivatives all work.

    Derivatives reach the arguments in ``argnums`` only: not tensors that the functions have from
    elsewhere, such as the parameters of a module among the arguments, nor the initial guess.

    Args:
        optimality_fn: :math:`F`, called as ``optimality_fn(x, *args[1:])`` with the solver's
            arguments; returns a tree like ``x``. Where a function is minimized, its gradient.
        argnums: The positions of the solver's arguments to differentiate in: 1 or more, since 0 is
            the initial guess, on which the solution does not depend. Each may be any tree of
            tensors; integer tensors in it are constants. All other arguments may be anything.
        has_aux: Whether the solver returns ``(x, aux)``; ``aux`` is passed on untouched.
        solve: Solves linear systems: a solver of :mod:`torchopt.linear_solve`, by default
            :func:`~torchopt.linear_solve.solve_auto`, which factorizes up to 256 unknowns; where
            ``F`` is the gradient of a convex function of more, ``solve_cg()`` takes half the time.
            Or any function ``(matvec, b) -> x``, of
            trees like the solution, but with tuples of one in the place of a single tensor.
        namespace: In which optree looks for the types of nodes of trees.

    Returns:
        A decorator of a solver ``solver(init, *args)``, with keyword arguments resolved by its
        signature. Keyword-only arguments reach ``optimality_fn`` if it takes them.

    Raises:
        TypeError: If a function is not callable, ``argnums`` is not made of integers, or, when
            called, a leaf of the solution or of a differentiated argument is not a tensor.
        ValueError: If ``argnums`` is out of range, or, when differentiated, the solution and what
            ``optimality_fn`` returns differ in structure or shapes.
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
    return _decorator(optimality_fn, argnums, has_aux, solve, namespace, "optimality_fn")


def custom_fixed_point(
    fixed_point_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool = False,
    solve: Callable[[Any, Any], Any] | None = None,
    *,
    namespace: str = "",
) -> Decorator:
    r"""Return a decorator that makes a solver of a fixed-point equation differentiable.

    The solver finds :math:`x(\theta)` with :math:`x = T(x, \theta)`, a root of :math:`T(x) - x`.

    Args:
        fixed_point_fn: :math:`T`, called as ``fixed_point_fn(x, *args[1:])``.
        argnums: As for :func:`custom_root`.
        has_aux: As for :func:`custom_root`.
        solve: As for :func:`custom_root`.
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
        leaves = [new - old for new, old in zip(mapped, own, strict=True)]
        return optree.tree_unflatten(layout.spec, leaves)

    return _decorator(residual, argnums, has_aux, solve, namespace, "fixed_point_fn")


def _decorator(
    residual_fn: Callable[..., Any],
    argnums: int | Sequence[int],
    has_aux: bool,
    solve: Callable[[Any, Any], Any] | None,
    namespace: str,
    name: str,
) -> Decorator:
    positions = check_argnums(argnums)
    solve = solve_auto() if solve is None else solve
    check_callable("solve", solve)
    accepts = _keyword_filter(residual_fn)

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        check_callable("the decorated solver", solver)
        signature = inspect.signature(solver)
        _check_range(positions, signature)
        linear = ImplicitSolver(solve, getattr(solver, "__name__", type(solver).__name__))

        @functools.wraps(solver)
        def solve_implicitly(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
            if positions[-1] >= len(args):
                raise ValueError(
                    f"`argnums` must be positions of the arguments, of which there are "
                    f"{len(args)}, got {positions[-1]}"
                )
            check_differentiable(args, positions, namespace)
            with torch.no_grad():
                result = solver(*args, **kwargs)
            solution, aux = _split_aux(result) if has_aux else (result, None)
            known = {key: value for key, value in kwargs.items() if accepts(key)}
            solution = implicit_solution(
                lambda x, *rest: residual_fn(x, *rest, **known),
                solution,
                args[1:],
                tuple(i - 1 for i in positions),
                linear,
                name=name,
                namespace=namespace,
            )
            return (solution, aux) if has_aux else solution

        return solve_implicitly

    return decorate


def implicit_solution(
    residual_fn: Callable[..., Any],
    solution: Any,
    args: tuple[Any, ...],
    argnums: Sequence[int],
    linear: ImplicitSolver,
    *,
    name: str = "optimality_fn",
    namespace: str = "",
) -> Any:
    """Return a solution with derivatives in arguments.

    Args:
        residual_fn: Called as ``residual_fn(x, *args)``.
        solution: A tree where it is zero.
        args: Its other arguments.
        argnums: Which of these to differentiate in.
        linear: Solves linear systems.
        name: What to call ``residual_fn`` in messages.
        namespace: In which optree looks for the types of nodes of trees.
    """
    layout = Layout.of(solution, "the solution", namespace=namespace)
    vector = layout.join(layout.flatten(solution, "the solution")).detach()
    system, tensors = build_system(
        residual_fn, layout, args, argnums, linear, name=name, namespace=namespace
    )
    if any(system.differentiable):
        vector = attach(system, vector, tensors)
    return unravel_solution(layout, vector)


def unravel_solution(layout: Layout, vector: torch.Tensor) -> Any:
    """Return the tree of a solution, in clones, so that a leaf may be written to."""
    return optree.tree_unflatten(layout.spec, [leaf.clone() for leaf in layout.split(vector)])


def build_system(
    residual_fn: Callable[..., Any],
    layout: Layout,
    args: tuple[Any, ...],
    argnums: Sequence[int],
    linear: ImplicitSolver,
    *,
    name: str,
    namespace: str,
    is_affine: bool = False,
) -> tuple[System, tuple[torch.Tensor, ...]]:
    """Return the equation between vectors, and all tensors among the arguments.

    These become inputs of autograd functions, differentiated in or not, so that `torch.func`
    transforms see them.
    """
    everything: Any = args
    leaves, spec = optree.tree_flatten(everything, namespace=namespace)
    owners = [i for i, arg in enumerate(args) for _ in optree.tree_leaves(arg, namespace=namespace)]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    tensors = tuple(leaves[i] for i in places)
    differentiable = [
        owners[i] in argnums and (leaves[i].is_floating_point() or leaves[i].is_complex())
        for i in places
    ]
    template = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def residual(vector: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        whole = list(template)
        for i, tensor in zip(places, tensors, strict=True):
            whole[i] = tensor
        value = residual_fn(layout.unravel(vector), *optree.tree_unflatten(spec, whole))
        return layout.ravel(value, f"what `{name}` returns, like the solution,")

    return System(residual, layout, differentiable, linear, is_affine=is_affine), tensors


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"`{name}` must be callable, got {value!r}")


def check_argnums(argnums: int | Sequence[int]) -> tuple[int, ...]:
    given = [argnums] if isinstance(argnums, int) else argnums
    if not isinstance(given, (tuple, list)) or not all(
        isinstance(i, int) and not isinstance(i, bool) for i in given
    ):
        raise TypeError(f"`argnums` must be an integer or a tuple of integers, got {argnums!r}")
    if not given or min(given) < 1:
        raise ValueError(
            f"`argnums` must be positions from 1 on, got {argnums!r}: 0 is the initial guess, on "
            "which a solution does not depend"
        )
    return tuple(sorted(set(given)))


def _check_range(positions: tuple[int, ...], signature: inspect.Signature) -> None:
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    count = sum(kind not in keyword for kind in kinds)
    if positions[-1] >= count:
        raise ValueError(
            f"`argnums` must be positions of the solver's {count} arguments {signature}, got "
            f"{positions[-1]}"
        )


def check_differentiable(args: tuple[Any, ...], positions: tuple[int, ...], ns: str) -> None:
    for position in positions:
        leaves, spec = optree.tree_flatten(args[position], namespace=ns)
        for i, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor):
                raise TypeError(
                    f"argument {position}, which is in `argnums`, must be a tree of tensors, got "
                    f"{type(leaf).__name__} at {describe_path(spec, i)}; convert it with "
                    "torch.as_tensor(...), or pass it as an argument of its own"
                )


def _split_aux(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"with `has_aux=True` the solver must return a pair `(x, aux)`, got "
            f"{type(result).__name__}"
        )
    return result


def _keyword_filter(function: Callable[..., Any]) -> Callable[[str], bool]:
    """Return whether a function takes a keyword argument of a name, as far as it tells."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return lambda name: False
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return lambda name: True
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return lambda name: name in parameters and parameters[name].kind in named
