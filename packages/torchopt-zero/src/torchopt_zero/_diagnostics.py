"""How good an estimate is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from torchopt_zero._leaves import like_leaves


class Diagnostics(NamedTuple):
    """What repeated estimates say; lists hold one tensor per differentiated tensor."""

    # the mean of the estimates
    gradient: list[Tensor]
    # of that mean, entry by entry: the sample deviation of one estimate over sqrt(repeats)
    standard_error: list[Tensor]
    # of one estimate: the deviation of all its entries over the norm of the mean
    relative_error: float
    # between the mean and the reference gradient; ``None`` without one
    cosine: float | None
    # between single estimates and the reference, on average; ``None`` without one
    single_cosine: float | None


def diagnose(
    function: Callable[..., Tensor],
    *args: Any,
    reference: Any = None,
    repeats: int = 16,
    **kwargs: Any,
) -> Diagnostics:
    r"""Repeat an estimate with fresh seeds, and measure it.

    Args:
        function: A decorated function, or a :class:`ZeroOrderGradientModule`.
        *args: What it is called with. Its differentiated tensors are those in `args` that require
            a gradient and, for a module, its parameters that do.
        reference: A tree of tensors like these, e.g. from `torch.autograd.grad` where the objective
            is differentiable, or from the ``"finite-difference"`` method. Default: none.
        repeats: How many estimates, at least 2. Default: 16.
        **kwargs: What it is called with.

    Returns:
        A :class:`Diagnostics`. An unbiased estimate lies within four of its `standard_error` of the
        gradient of the smoothed objective.

    Raises:
        ValueError: If `repeats` is less than 2, nothing requires a gradient, or `reference` has
            other shapes.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import diagnose
        >>> decorate = torchopt.diff.zero_order(torch.randn, "antithetic", num_samples=50)
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> found = diagnose(decorate(lambda x: x.square().sum()), x, reference=2 * x)
        >>> found.cosine > 0.9
        True
    """
    if repeats < 2:
        raise ValueError(f"`repeats` must be at least 2, got {repeats}")
    sources: Any = [*args, *(function.parameters() if isinstance(function, nn.Module) else ())]
    leaves = [
        leaf
        for leaf in optree.tree_leaves(sources)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not leaves:
        raise ValueError("nothing in `args` requires a gradient; call requires_grad_() on a tensor")
    target = None if reference is None else _flat(like_leaves(reference, leaves, "reference"))
    estimates = torch.stack(
        [
            _flat(
                torch.autograd.grad(
                    function(*args, **kwargs), leaves, allow_unused=True, materialize_grads=True
                )
            )
            for _ in range(repeats)
        ]
    )
    mean = estimates.mean(0)
    deviation = estimates.std(0)
    return Diagnostics(
        gradient=_like(mean, leaves),
        standard_error=_like(deviation / repeats**0.5, leaves),
        relative_error=float(deviation.norm() / mean.norm()),
        cosine=None if target is None else float(_cosine(mean, target)),
        single_cosine=None if target is None else float(_cosine(estimates, target).mean()),
    )


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().double().reshape(-1).cpu() for tensor in tensors])


def _like(flat: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [leaf.numel() for leaf in leaves])
    return [part.view(leaf.shape).to(leaf) for part, leaf in zip(parts, leaves, strict=True)]


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1)
