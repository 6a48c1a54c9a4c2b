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
    wanted = [i for i, p in enumerate(params) if p is not None and p.requires_grad]
    grads: list[torch.Tensor | None] = [None] * len(params)
    if wanted:
        found = torch.autograd.grad(
            loss,
            [p for p in params if p is not None and p.requires_grad],
            create_graph=create_graph,
            allow_unused=True,
        )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    if all(grad is None for grad in grads):
        raise ValueError(f"`loss` does not depend on any parameter of {owner}")
    return grads
