"""Hooks on the gradients of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from torchopt._context import Context
from torchopt._rule import Rule
from torchopt._types import Leaves
from torchopt._updates import FactoredUpdates
from torchopt.base import EmptyState, GradientTransformation, RuleTransformation

__all__ = ["nan_to_num_hook", "register_hook", "zero_nan_hook"]


def zero_nan_hook(g: torch.Tensor) -> torch.Tensor:
    """Return ``g`` with NaN replaced by zero.

    Example:
        >>> import torch, torchopt
        >>> torchopt.hook.zero_nan_hook(torch.tensor([1.0, float("nan")]))
        tensor([1., 0.])
    """
    return torch.where(torch.isnan(g), torch.zeros_like(g), g)


@dataclasses.dataclass(frozen=True)
class _NanToNum:
    nan: float
    posinf: float | None
    neginf: float | None

    def __call__(self, g: torch.Tensor) -> torch.Tensor:
        return torch.nan_to_num(g, nan=self.nan, posinf=self.posinf, neginf=self.neginf)


def nan_to_num_hook(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a hook that replaces NaN and infinities, with :func:`torch.nan_to_num`'s arguments.

    Example:
        >>> import torch, torchopt
        >>> torchopt.hook.nan_to_num_hook(posinf=9.0)(torch.tensor([float("inf")]))
        tensor([9.])
    """
    return _NanToNum(nan, posinf, neginf)


@dataclasses.dataclass(frozen=True, eq=False)
class _RegisterHook(Rule):
    hook: Callable[[torch.Tensor], torch.Tensor | None]

    # the hook sees complex gradients as they are
    elementwise = False

    def __post_init__(self) -> None:
        if not callable(self.hook):
            raise TypeError(f"`hook` must be callable, got {self.hook!r}")

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        # on aliases: the tensors themselves may be the caller's
        leaves = [x.view_as(x) if x.requires_grad else x for x in updates.materialize(context)]
        for x in leaves:
            if x.requires_grad:
                x.register_hook(self.hook)  # type: ignore[no-untyped-call]
        return FactoredUpdates(leaves), state


def register_hook(hook: Callable[[torch.Tensor], torch.Tensor | None]) -> GradientTransformation:
    """Register a hook on the updates, called with their gradient in the backward pass.

    In a differentiable inner loop this sees, and may replace, the meta-gradient that flows through
    the updates: for example :func:`zero_nan_hook`. Updates that require no grad have none.

    Args:
        hook: ``hook(grad) -> grad or None``, as for :meth:`torch.Tensor.register_hook`.

    Raises:
        TypeError: If ``hook`` is not callable.

    Example:
        >>> import torch, torchopt
        >>> impl = torchopt.chain(
        ...     torchopt.register_hook(torchopt.hook.zero_nan_hook), torchopt.sgd(lr=0.1)
        ... )
        >>> g = torch.tensor([0.0], requires_grad=True)
        >>> updates, _ = impl.update(g.sqrt() * 0.0, impl.init(g), inplace=False)
        >>> updates.requires_grad
        True
    """
    return RuleTransformation(_RegisterHook(hook))
