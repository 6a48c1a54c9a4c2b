"""Values whose derivative is an estimate, in every mode and transform of torch."""

from __future__ import annotations

import abc
from typing import Any, NoReturn

import torch
from torch import Tensor

from torchopt_zero._functorch import outside_of_batched_gradients

_REFUSAL = (
    "a zero-order estimate cannot be differentiated with respect to its arguments, which takes "
    "second derivatives of the objective; detach the estimate to treat it as a constant"
)


class Estimate(abc.ABC):
    """How to find the gradient of a value with respect to the first of some tensors.

    Args:
        count: How many tensors have a gradient; those after them are read only.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    @abc.abstractmethod
    def gradient(self, value: Tensor, seed: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the gradient, from plain tensors, with gradients disabled."""


def attach(estimate: Estimate, value: Tensor, seed: Tensor, tensors: list[Tensor]) -> Tensor:
    """Return a value whose gradient is found when asked for.

    The product of the estimate and a cotangent or a tangent is made of torch's operations, so it
    can be differentiated with respect to these. With respect to the tensors that would need second
    derivatives of the objective, which are not estimated: that raises.

    Args:
        estimate: What finds the gradient.
        value: The value, a constant.
        seed: A 0-dim integer, which each member of a batch under `torch.func.vmap` may have its own
            of.
        tensors: What :meth:`Estimate.gradient` is given. Changing one of them in place before the
            gradient is found raises.
    """
    output: Tensor = _Value.apply(estimate, value, seed, *tensors)  # type: ignore[no-untyped-call]
    return output


class _Value(torch.autograd.Function):
    """A value; its derivative is that of :class:`_Gradient`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(estimate: Estimate, value: Tensor, seed: Tensor, *tensors: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.estimate, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        gradient: tuple[Tensor, ...] = _Gradient.apply(ctx.estimate, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        leaves = ctx.saved_tensors[2 : 2 + len(gradient)]
        products = [
            (part * cotangents[0].to(part)).to(leaf)
            for part, leaf in zip(gradient, leaves, strict=True)
        ]
        rest = len(ctx.saved_tensors) - 2 - len(products)
        return None, None, None, *products, *[None] * rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        gradient: tuple[Tensor, ...] = _Gradient.apply(ctx.estimate, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
        value = ctx.saved_tensors[0]
        moves = tangents[3 : 3 + len(gradient)]
        total = torch.zeros_like(value)
        for part, move in zip(gradient, moves, strict=True):
            if move is not None:
                total = total + (part * move).sum().to(value)
        return total


class _Gradient(torch.autograd.Function):
    """The estimate, which only derivatives that are really needed ask to differentiate."""

    @staticmethod
    def forward(
        estimate: Estimate, value: Tensor, seed: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.no_grad(), outside_of_batched_gradients():
            return tuple(estimate.gradient(value, seed, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> NoReturn:
        raise RuntimeError(_REFUSAL)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> NoReturn:
        raise RuntimeError(_REFUSAL)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], estimate: Estimate, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Make one estimate after the other: each is a batch of samples by itself."""
        members = []
        for i in range(info.batch_size):
            member = [
                tensor if dim is None else tensor.select(dim, i)
                for tensor, dim in zip(tensors, in_dims[1:], strict=True)
            ]
            members.append(_Gradient.apply(estimate, *member))  # type: ignore[no-untyped-call]
        return tuple(map(torch.stack, zip(*members, strict=True))), (0,) * estimate.count
