"""From a loss to its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["check_loss", "gradients"]


def check_loss(loss: Any) -> None:
    """Raise unless ``loss`` is a scalar tensor that requires a gradient."""
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f"`loss` must be a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"`loss` must be a scalar, got shape {tuple(loss.shape)}: reduce it, "
            "for example by `loss.mean()`"
        )
    if not loss.requires_grad:
        raise ValueError(
            "`loss` does not require grad: it does not depend on the parameters, or was computed "
            "under `torch.no_grad()` or from detached tensors"
        )


def gradients(
    loss: torch.Tensor, params: Sequence[torch.Tensor | None], owner: str, create_graph: bool
) -> list[torch.Tensor | None]:
    """Return the gradients of ``loss``, ``None`` for what it does not depend on.

    Raises:
        ValueError: If it depends on none of the parameters.
    """
    check_loss(loss)
    wanted = [p for p in params if p is not None and p.requires_grad]
    grads: list[torch.Tensor | None] = []
    if wanted:
        found = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)
        grads.extend(found)
    if len(wanted) < len(params):
        remaining = iter(grads)
        grads = [next(remaining) if p is not None and p.requires_grad else None for p in params]
    if not [grad for grad in grads if grad is not None]:
        raise ValueError(f"`loss` does not depend on any parameter of {owner}")
    return grads
