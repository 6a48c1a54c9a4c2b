"""What the arguments of implicit functions have to be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optree
import torch
from torch import nn

from torchopt_implicit._tree import describe_path
from torchopt_implicit.differentiation import Differentiation, Implicit

__all__ = [
    "check_argnums",
    "check_callable",
    "check_differentiable",
    "check_differentiation",
    "check_range",
    "check_unrolled",
    "keyword_filter",
    "split_aux",
]


def check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"`{name}` must be callable, got {value!r}")


def check_argnums(argnums: int | Sequence[int]) -> tuple[int, ...]:
    given = [argnums] if isinstance(argnums, int) else argnums
    if not isinstance(given, (tuple, list)) or not all(
        isinstance(i, int) and not isinstance(i, bool) for i in given
    ):
        raise TypeError(f"`argnums` must be an integer or a tuple of integers, got {argnums!r}")
    if min(given, default=1) < 1:
        raise ValueError(
            f"`argnums` must be positions from 1 on, got {argnums!r}: 0 is the initial guess, on "
            "which a solution does not depend"
        )
    return tuple(sorted(set(given)))


def check_range(positions: tuple[int, ...], signature: inspect.Signature) -> None:
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    count = sum(kind not in keyword for kind in kinds)
    if positions and positions[-1] >= count:
        raise ValueError(
            f"`argnums` must be positions of the solver's {count} arguments {signature}, got "
            f"{positions[-1]}"
        )


def check_differentiable(args: tuple[Any, ...], positions: tuple[int, ...], ns: str) -> None:
    """Raise if there is nothing to differentiate in, in an argument that is not empty."""
    for position in positions:
        leaves, spec = optree.tree_flatten(args[position], namespace=ns)
        if leaves and not any(isinstance(leaf, (torch.Tensor, nn.Module)) for leaf in leaves):
            raise TypeError(
                f"argument {position}, which is in `argnums`, must be a tree with tensors in it, "
                f"got {type(leaves[0]).__name__} at {describe_path(spec, 0)}; convert it with "
                "torch.as_tensor(...), or leave it out of `argnums`"
            )


def check_differentiation(strategy: Any, solve: Any) -> None:
    if not isinstance(strategy, Differentiation):
        raise TypeError(
            f"`differentiation` must be one of torchopt.diff.implicit.differentiation, such as "
            f"OneStep(), got {strategy!r}"
        )
    if solve is None:
        return
    check_callable("solve", solve)
    if not isinstance(strategy, Implicit):
        raise ValueError(
            f"`solve` solves the linear systems of implicit derivatives, of which "
            f"{strategy!r} has none: leave out one of the two"
        )


def check_unrolled(solution: Any, args: Sequence[Any], name: str, namespace: str) -> None:
    """Raise if a solver that ran with gradients lost them."""

    def requires_grad(tree: Any) -> bool:
        leaves = optree.tree_leaves(tree, namespace=namespace)
        return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in leaves)

    if torch.is_grad_enabled() and requires_grad(args) and not requires_grad(solution):
        raise RuntimeError(
            f"with differentiation=Unrolled() the steps of {name} are differentiated, but its "
            "solution does not depend on the arguments in `argnums` by operations that autograd "
            "records: look for torch.no_grad, detach and other libraries in it, and whether it "
            "took a step at all, or use Implicit()"
        )


def split_aux(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"with `has_aux=True` the solver must return a pair `(x, aux)`, got "
            f"{type(result).__name__}"
        )
    return result


def keyword_filter(function: Callable[..., Any]) -> Callable[[str], bool]:
    """Return whether a function takes a keyword argument of a name, as far as it tells."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return lambda name: False
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return lambda name: True
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return lambda name: name in parameters and parameters[name].kind in named
