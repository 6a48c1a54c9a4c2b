"""Leaves of a point and of what goes with each: bounds, centers, weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._tree import describe_path

__all__ = [
    "check_last",
    "check_nonnegative",
    "check_real",
    "flatten",
    "leaves_of",
    "map_leaves",
    "norm_of",
    "soft_threshold",
    "widen",
]


def widen(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the precision to compute in: float32 for half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def flatten(x: Any, name: str = "x") -> tuple[list[torch.Tensor], optree.PyTreeSpec]:
    """Return the leaves of a tree of floating point tensors, and its structure.

    Raises:
        TypeError: If a leaf is anything else.
    """
    leaves, spec = optree.tree_flatten(x)
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor) or not (
            leaf.is_floating_point() or leaf.is_complex()
        ):
            kind = leaf.dtype if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise TypeError(
                f"`{name}` must be a tree of floating point tensors, got {kind} at "
                f"{describe_path(spec, i)}; convert it with torch.as_tensor(...)"
            )
    return leaves, spec


def leaves_of(
    parameter: Any, leaves: list[torch.Tensor], spec: optree.PyTreeSpec, name: str
) -> list[torch.Tensor]:
    """Return what of a parameter goes with each leaf: all of it, or the leaf of a like tree.

    Raises:
        ValueError: If it is neither a number, nor a tensor, nor a tree like the point.
        TypeError: If a leaf of it is neither a number nor a tensor.
    """
    if isinstance(parameter, (float, int, torch.Tensor)):
        given: list[Any] = [parameter] * len(leaves)
    else:
        try:
            given = spec.flatten_up_to(parameter)
        except (TypeError, ValueError):
            raise ValueError(
                f"`{name}` must be a number, a tensor, or a tree like `x`, which has the structure "
                f"{spec}, got {optree.tree_structure(parameter)}"
            ) from None
    for i, one in enumerate(given):
        if not isinstance(one, (float, int, torch.Tensor)):
            raise TypeError(
                f"`{name}` must be made of numbers and tensors, got {type(one).__name__} at "
                f"{describe_path(spec, i)}"
            )
    return [_like(one, leaf) for one, leaf in zip(given, leaves, strict=True)]


def _like(value: float | torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Return a parameter in the leaf's precision; real for a complex leaf, unless it is not."""
    is_complex = isinstance(value, torch.Tensor) and value.is_complex()
    dtype = leaf.dtype if is_complex or not leaf.is_complex() else leaf.dtype.to_real()
    return torch.as_tensor(value, dtype=dtype, device=leaf.device)


def map_leaves(function: Callable[..., torch.Tensor], x: Any, **parameters: Any) -> Any:
    """Apply ``function(leaf, *parameters)`` to each leaf, widened; the result has its dtype."""
    given, spec = flatten(x)
    leaves = [widen(leaf) for leaf in given]
    columns = [leaves_of(p, leaves, spec, name) for name, p in parameters.items()]
    results = [
        function(leaf, *(column[i] for column in columns)).to(own.dtype)
        for i, (leaf, own) in enumerate(zip(leaves, given, strict=True))
    ]
    return optree.tree_unflatten(spec, results)


def norm_of(leaves: list[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norm of leaves taken as one vector; zero, with no slope, where they are zero.

    They are scaled first, so that squares neither overflow nor vanish.
    """
    kinds = [leaf.abs().detach().amax() for leaf in leaves if leaf.numel()]
    if not kinds:
        return torch.zeros(())
    largest = torch.stack([kind.to(kinds[0]) for kind in kinds]).amax()
    safe = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)
    squares = [_squares(leaf / safe.to(leaf.device)).sum().to(safe) for leaf in leaves]
    total = torch.stack(squares).sum()
    # the root has no slope at zero, and a value that is not chosen must not poison the chosen one
    positive = ~(total <= 0)
    return torch.where(positive, safe * torch.where(positive, total, 1.0).sqrt(), 0.0)


def _is_continuous(x: torch.Tensor) -> bool:
    return x.is_floating_point() or x.is_complex()


def _squares(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj()).square() if x.is_complex() else x.square()


def soft_threshold(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Shorten each entry by the threshold, down to zero; complex entries keep their phase."""
    if not x.is_complex():
        return x.sign() * torch.relu(x.abs() - threshold)
    longer = ~(x.abs() <= threshold)
    return torch.where(longer, x * (1 - threshold / torch.where(longer, x, 1.0).abs()), 0.0)


def check_real(x: torch.Tensor, name: str = "x") -> torch.Tensor:
    """Return the tensor; raise where its entries have no order."""
    if x.is_complex():
        raise TypeError(
            f"`{name}` must be real, since complex numbers have no order, got {x.dtype}; "
            "torch.view_as_real(...) gives real and imaginary parts"
        )
    return x


def check_last(x: torch.Tensor, name: str = "x", least: int = 1) -> torch.Tensor:
    """Return the tensor; raise unless it is made of vectors ``(..., n)``."""
    if x.ndim == 0 or x.shape[-1] < least:
        raise ValueError(
            f"`{name}` must have the shape (..., n)"
            f"{f' with n at least {least}' if least else ''}, got {tuple(x.shape)}"
        )
    return x


def check_nonnegative(value: Any, name: str) -> None:
    """Raise if a number is negative; a tensor's values are not looked at."""
    if isinstance(value, (float, int)) and not value >= 0:
        raise ValueError(f"`{name}` must be non-negative, got {value!r}")
