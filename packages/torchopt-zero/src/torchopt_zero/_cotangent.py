"""The product of an estimate and a cotangent, and what its own derivatives are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def scale_gradient(
    cotangent: Tensor, gradient: Sequence[Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Multiply an estimate at some leaves by a scalar.

    It can be differentiated with respect to the cotangent. With respect to the leaves it would need
    second derivatives of the objective, which are not estimated: that raises.
    """
    scaled: tuple[Tensor, ...] = _Scaled.apply(  # type: ignore[no-untyped-call]
        cotangent, len(gradient), *gradient, *map(_Refusal.apply, leaves)
    )
    return scaled


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cotangent: Tensor, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cotangent, *tensors[:count])
        return tuple(part * cotangent.to(part) for part in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        cotangent, *gradient = ctx.saved_tensors
        count = len(gradient)
        products = [
            (part * tangent).sum().to(cotangent)
            for part, tangent in zip(gradient, tangents, strict=True)
        ]
        return torch.stack(products).sum(), None, *([None] * 2 * count)


class _Refusal(torch.autograd.Function):
    """The identity. Only a backward pass that really needs it meets its derivative."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, tangent: Tensor) -> Tensor:
        raise RuntimeError(
            "a zero-order estimate cannot be differentiated with respect to its arguments, which "
            "takes second derivatives of the objective; detach the estimate to treat it as a "
            "constant"
        )
