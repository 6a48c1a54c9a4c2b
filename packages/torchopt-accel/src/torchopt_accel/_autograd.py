"""A step as one node of the autograd graph, and its derivatives as further ones.

With :math:`F` the step, :math:`B(x, \\bar y) = F'(x)^T \\bar y` its backward pass, and
:math:`\\dot F` and :math:`\\dot B` their forward mode,

.. math::
    \\dot F(x, \\dot x) = F'(x)\\, \\dot x, \\qquad
    \\dot B(x, \\bar y, \\dot x, \\dot{\\bar y})
        = \\tfrac{d}{d\\epsilon} B(x + \\epsilon \\dot x, \\bar y + \\epsilon \\dot{\\bar y}),

these four, which are what the kernels compute, are all that second derivatives need, because these
are symmetric:

.. math::
    B_x^T w &= \\dot B(x, \\bar y, w, 0), & \\qquad B_{\\bar y}^T w &= \\dot F(x, w), \\\\
    \\dot F_x^T w &= \\dot B(x, w, \\dot x, 0), & \\qquad \\dot F_{\\dot x}^T w &= B(x, w) .

Those of :math:`\\dot B`, and the forward mode of :math:`\\dot F`, are taken of the step in
`torchopt`'s own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from torchopt.kernels import NotCoveredError
from torchopt_accel import _native
from torchopt_accel._levels import (
    LeveledFunction,
    has_nested_tangents,
    has_wrapped,
    is_transforming,
    run,
)
from torchopt_accel._passes import Call, Tensors, flat
from torchopt_accel._step import Step, Stream, chunks

__all__ = ["apply"]


class _Call(NamedTuple):
    """What the step is called with, beside tensors."""

    step: Step
    #: The streams that the tensors are, where they are at hand.
    streams: list[Stream] | None


def apply(step: Step, streams: list[Stream]) -> list[list[torch.Tensor]]:
    """Return the result and the next state, as streams.

    Args:
        step: The step.
        streams: The gradients, the parameters or None, and each state.
    """
    tensors: Any = flat(streams)
    found: Any
    if not is_transforming():
        found = Forward.apply_plainly(_Call(step, streams), *tensors)
    elif has_nested_tangents():
        # the tangents of tangents would be taken of this arithmetic, at twice the cost
        found = step.composite(*tensors)
    else:
        found = run(Forward, _Call(step, None), tensors)
    return chunks(found, step.leaves)


class Forward(LeveledFunction):
    """The step."""

    @staticmethod
    def forward(call: _Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        step, streams = call
        if streams is None:
            streams = step.split(tensors)
        # the result lies as parameters and states do: gradients often differ from them
        like: Any = [streams[1] or streams[-1] or streams[0], *streams[2:]]
        outputs = [[_empty_like(x) for x in stream] for stream in like]
        step.run(_native.FORWARD, streams, outputs)
        return tuple([x for stream in outputs for x in stream])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.step = step = inputs[0].step
        ctx.kept = step.kept
        if not step.decays and step.with_params:
            needed, n = ctx.needs_input_grad[1:], step.leaves
            if True not in needed[:n] and True not in needed[2 * n :]:
                # the parameters' cotangents depend on nothing: gradients were detached
                ctx.kept = (False,) * step.inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*step.saved(inputs[1:], ctx.kept))
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        step: Step = ctx.step
        n, needed = step.leaves, ctx.needs_input_grad[1:]
        saved = iter(chunks(ctx.saved_tensors, n))
        streams = [next(saved) if keep else None for keep in ctx.kept]
        passes = step.with_params and step.passes_params
        if passes or not step.with_params:
            params = (False,) * n
            needed = (*needed[:n], *params, *needed[2 * n if passes else n :])
        found = _evaluate(step, _native.BACKWARD, [*streams, *chunks(cotangents, n)], needed)
        if passes:
            return None, *found[:n], *cotangents[:n], *found[2 * n :]
        if not step.with_params:
            return None, *found[:n], *found[2 * n :]
        return None, *found

    @staticmethod
    def tangents(call: _Call, tensors: Tensors, tangents: Tensors) -> Tensors:
        return _tangents_of_step(call.step, tensors, tangents)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[Any, ...]:
        step: Step = ctx.step
        found = _tangents_of_step(step, ctx.saved_tensors, tangents)
        return _or_zeros(found, ctx.saved_tensors[: step.leaves])


_empty_like = torch.empty_like


def _tangents_of_step(step: Step, tensors: Tensors, tangents: Tensors) -> Tensors:
    streams = [*step.split(tensors), *step.split(tangents)]
    needed = (True,) * (step.leaves * (step.inputs - 1))
    return _evaluate(step, _native.FORWARD_TANGENT, streams, needed)


class Pass(LeveledFunction):
    """Another operation of the kernels."""

    @staticmethod
    def forward(call: Call, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return tuple(call.evaluate(call.streams(tensors)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor | None) -> tuple[Any, ...]:
        call: Call = ctx.call
        step, n, inputs = call.step, call.step.leaves, call.step.inputs
        if call.operation == _native.BACKWARD_TANGENT:
            return None, *call.cotangents(ctx.saved_tensors, cotangents)
        streams = call.streams(ctx.saved_tensors)
        needed = [row or [False] * n for row in call.rows(ctx.needs_input_grad[1:])]
        x, others, w = streams[:inputs], streams[inputs:], chunks(cotangents, n)
        nothing: list[Stream] = [None] * (inputs - 1)
        if call.operation == _native.BACKWARD:
            first = (_native.BACKWARD_TANGENT, [*x, *others, *w, *nothing])
            second = (_native.FORWARD_TANGENT, [*x, *w])
        else:
            first = (_native.BACKWARD_TANGENT, [*x, *w, *others, *nothing])
            second = (_native.BACKWARD, [*x, *w])
        found = [
            *_evaluate(step, *first, flat(needed[:inputs])),
            *_evaluate(step, *second, flat(needed[inputs:])),
        ]
        there = zip(chunks(found, n), call.present, strict=True)
        return None, *[y for row, present in there if present for y in row]

    @staticmethod
    def tangents(call: Call, tensors: Tensors, tangents: Tensors) -> Tensors:
        if call.operation != _native.BACKWARD:
            return call.tangents(tensors, tangents)
        streams = [*call.streams(tensors), *call.streams(tangents)]
        return _evaluate(call.step, _native.BACKWARD_TANGENT, streams, call.needed)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[Any, ...]:
        call: Call = ctx.call
        found = Pass.tangents(call, ctx.saved_tensors, tangents)
        likes = call.likes(call.streams(ctx.saved_tensors))
        every = [*likes] * (len(call.needed) // call.step.leaves)
        return _or_zeros(found, [x if n else None for x, n in zip(every, call.needed, strict=True)])

    @staticmethod
    def composite(call: Call, tensors: Tensors) -> Tensors:
        return call.composite(tensors)


def _or_zeros(found: Tensors, likes: Tensors) -> tuple[torch.Tensor | None, ...]:
    """Return tangents with zeros where there is none: torch takes None for no result only."""
    every = [*likes] * (len(found) // len(likes))
    return tuple(
        [
            torch.zeros_like(like) if x is None and like is not None else x
            for x, like in zip(found, every, strict=True)
        ]
    )


def _evaluate(
    step: Step, operation: int, streams: Sequence[Stream], needed: Sequence[bool]
) -> Tensors:
    """Return what an operation makes; differentiable where a graph or a transform asks for it."""
    if True not in needed:
        return [None] * len(needed)
    call, tensors = Call.over(step, operation, streams, needed)
    recorded = torch.is_grad_enabled() or forward_ad._current_level >= 0 or is_transforming()
    if not recorded:
        count = step.leaves * sum(call.present[: step.inputs])
        if not has_wrapped(tensors[:count], tensors[count:]):
            try:
                return call.evaluate(streams)
            except NotCoveredError:
                return call.composite(tensors)
    return run(Pass, call, tensors)
