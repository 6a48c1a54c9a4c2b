"""A step as one node of the autograd graph.

With :math:`F` the step and :math:`B(x, \\bar y) = F'(x)^T \\bar y` its backward pass, forward mode
over each closes the derivatives, because second derivatives are symmetric:

.. math::
    B_x(x, \\bar y)^T w = \\tfrac{d}{d\\epsilon} B(x + \\epsilon w, \\bar y), \\qquad
    B_{\\bar y}(x, \\bar y)^T w = F'(x)\\, w .

So `Forward` and `Backward` are differentiated by kernels. Derivatives of higher order, and those
inside of `torch.func` transforms, are taken of the step in `torchopt`'s own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from torchopt._workspace import is_transforming
from torchopt_accel import _native
from torchopt_accel._passes import (
    BackwardCall,
    backward,
    composite_backward,
    cotangents_of_backward,
    flat,
    has_nested_tangents,
    place,
    replayed_backward,
    tangents_of_backward,
    tangents_of_forward,
)
from torchopt_accel._step import NotCoveredError, Step, Stream, chunks

__all__ = ["apply"]


class _Call(NamedTuple):
    """What a function is called with, beside tensors."""

    step: Step
    #: The streams that the tensors are, where they are at hand.
    streams: list[Stream] | None


def apply(step: Step, streams: list[Stream]) -> list[list[torch.Tensor]]:
    """Return the result and the next state, as streams.

    Args:
        step: The step.
        streams: The gradients, the parameters or None, and each state.
    """
    tensors = flat(streams)
    if is_transforming() and has_nested_tangents():
        found = step.composite(*tensors)
    elif is_transforming():
        found = Forward.apply(_Call(step, None), *tensors)  # type: ignore[no-untyped-call]
    else:
        found = _apply_forward(_Call(step, streams), *tensors)
    return chunks(found, step.leaves)


class Forward(torch.autograd.Function):
    """The step."""

    @staticmethod
    def forward(call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        step, streams = call
        if streams is None:
            streams = step.split(tensors)
        like: Any = [streams[1] or streams[0], *streams[2:]]
        outputs = [[_empty_like(x) for x in stream] for stream in like]
        step.run(_native.FORWARD, streams, outputs)
        return tuple([x for stream in outputs for x in stream])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.step = step = inputs[0].step
        ctx.transformed = inputs[0].streams is None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*step.saved(inputs[1:]))
        if forward_ad._current_level >= 0 or is_transforming():
            ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        step: Step = ctx.step
        n = step.leaves
        needed = ctx.needs_input_grad[1:]
        streams = [*place(step.kept, ctx.saved_tensors, n), *chunks(cotangents, n)]
        if torch.is_grad_enabled() or ctx.transformed or is_transforming():
            found = _differentiable_backward(step, needed, streams)
        else:
            try:
                found = backward(step, needed, streams)
            except NotCoveredError:  # cotangents of `is_grads_batched=True` show no memory
                found = replayed_backward(step, needed, streams)
        if step.with_params and step.passes_params:
            return None, *found[:n], *cotangents[:n], *found[2 * n :]
        return None, *found

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        return tangents_of_forward(ctx.step, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: _Call, *tensors: Any) -> tuple[Any, Any]:
        batched = _batched(info.batch_size, in_dims[1:], tensors)
        outputs = Forward.apply(call, *batched)  # type: ignore[no-untyped-call]
        return outputs, tuple(0 for _ in outputs)


class Backward(torch.autograd.Function):
    """The backward pass of the step: from its inputs, and the cotangents of its outputs."""

    @staticmethod
    def forward(
        call: BackwardCall, *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        return tuple(backward(call.step, call.needed, call.streams(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if forward_ad._current_level >= 0 or is_transforming():
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        return None, *cotangents_of_backward(ctx.call, ctx.saved_tensors, cotangents)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[Any, ...]:
        return tangents_of_backward(ctx.call, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: BackwardCall, *tensors: Any) -> tuple[Any, Any]:
        batched = _batched(info.batch_size, in_dims[1:], tensors)
        outputs = Backward.apply(call, *batched)  # type: ignore[no-untyped-call]
        return outputs, tuple(None if x is None else 0 for x in outputs)


# Outside of transforms, `torch.autograd.Function.apply` only binds keyword arguments before it
# calls this, which takes longer than the step of a small network.
_apply_forward: Any = super(torch.autograd.Function, Forward).apply
_empty_like = torch.empty_like


def _differentiable_backward(
    step: Step, needed: Sequence[bool], streams: list[Stream]
) -> Sequence[torch.Tensor | None]:
    call = BackwardCall(step, [stream is not None for stream in streams], needed)
    if is_transforming() and has_nested_tangents():
        return composite_backward(call, flat(streams))
    found: tuple[torch.Tensor | None, ...] = Backward.apply(call, *flat(streams))  # type: ignore[no-untyped-call]
    return found


def _batched(size: int, in_dims: Sequence[int | None], tensors: Sequence[Any]) -> list[Any]:
    """Return the tensors with the batch dimension in front: a batch is a larger leaf."""
    return [
        None if x is None else x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, in_dims, strict=True)
    ]
