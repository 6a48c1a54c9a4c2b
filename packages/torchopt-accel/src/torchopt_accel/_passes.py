"""The passes of a step: backward, and the tangents of forward and backward.

Each is one operation of the kernels; the higher derivatives are taken of the step in `torchopt`'s
own arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch._C._functorch import TransformType, get_interpreter_stack

from torchopt._workspace import is_transforming
from torchopt_accel import _native
from torchopt_accel._step import Step, Stream, chunks

__all__ = [
    "BackwardCall",
    "backward",
    "composite_backward",
    "cotangents_of_backward",
    "flat",
    "has_nested_tangents",
    "place",
    "replayed_backward",
    "tangents_of_backward",
    "tangents_of_forward",
]

_vjp: Any = torch.func.vjp  # typed as if it returned a third value

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"


class BackwardCall(NamedTuple):
    """What the backward pass is called with, beside tensors."""

    step: Step
    #: Whether each stream (the inputs of the step, and the cotangents of its outputs) is there.
    present: list[bool]
    #: Whether each input of the step needs a cotangent.
    needed: Sequence[bool]

    def streams(self, tensors: Sequence[Any]) -> list[Stream]:
        """Return all streams, given the tensors of those that are there."""
        return place(self.present, tensors, self.step.leaves)


def flat(streams: Sequence[Stream]) -> list[Any]:
    """Return the tensors of those streams that are there."""
    return [x for stream in streams if stream is not None for x in stream]


def place(present: Sequence[bool], tensors: Sequence[Any], size: int) -> list[Stream]:
    """Return all streams, given the tensors of those that are ``present``."""
    cut = iter(chunks(tensors, size))
    return [next(cut) if there else None for there in present]


def has_nested_tangents() -> bool:
    """Return whether forward mode runs inside of forward mode.

    There `torch.autograd.Function` loses the outer tangents: its `jvp` is not differentiated.
    """
    stack = get_interpreter_stack() or ()
    return len([x for x in stack if x.key() == TransformType.Jvp]) > 1


def backward(
    step: Step, needed: Sequence[bool], streams: Sequence[Stream]
) -> list[torch.Tensor | None]:
    """Return the cotangents of the inputs that are needed; see :class:`BackwardCall`."""
    outputs = _empty(_wanted(step, needed, streams))
    step.run(_native.BACKWARD, streams, _padded(step, outputs))
    return flat(outputs)


def replayed_backward(
    step: Step, needed: Sequence[bool], streams: Sequence[Stream]
) -> list[torch.Tensor | None]:
    """Return what :func:`backward` returns, by recording the step anew."""
    wanted = flat(_wanted(step, needed, streams))
    inputs, cotangents = _filled(step, streams)
    with torch.enable_grad():
        given = [x.detach().requires_grad_() for x in flat(inputs)]
        results = step.composite(*given)
        found = torch.autograd.grad(results, given, flat(cotangents))
    return [None if like is None else x for like, x in zip(wanted, found, strict=True)]


def composite_backward(call: BackwardCall, tensors: Tensors) -> list[torch.Tensor | None]:
    """Return what :func:`backward` returns, in `torchopt`'s own arithmetic."""
    function, primals, kept = _composite_backward(call, tensors)
    found = iter(function(*primals))
    return [next(found) if keep else None for keep in kept]


def cotangents_of_backward(
    call: BackwardCall, tensors: Tensors, cotangents: Tensors
) -> list[torch.Tensor | None]:
    """Return the cotangents of what the backward pass takes, given those of what it returns."""
    step = call.step
    streams = call.streams(tensors)
    if _is_differentiated(*tensors, *cotangents):
        function, primals, kept = _composite_backward(call, tensors)
        results, pull = _vjp(function, *primals)
        given = [w for w, keep in zip(cotangents, kept, strict=True) if keep]
        found = iter(pull(tuple(map(_or_zeros, results, given))))
        return [None if x is None else next(found) for x in tensors]

    inputs, bars = streams[: step.inputs], streams[step.inputs :]
    dots = _padded(step, chunks(cotangents, step.leaves))
    inputs_bar, bars_bar = _empty(inputs), _empty(bars)
    nothing: list[Stream] = [None] * len(bars)
    step.run(_native.BACKWARD_TANGENT, [*streams, *dots, *nothing], inputs_bar)
    step.run(_native.FORWARD_TANGENT, [*inputs, *dots], bars_bar)
    return flat([*inputs_bar, *bars_bar])


def tangents_of_backward(
    call: BackwardCall, tensors: Tensors, tangents: Tensors
) -> tuple[torch.Tensor | None, ...]:
    """Return the tangents of what the backward pass returns."""
    step = call.step
    if _is_differentiated(*tensors, *tangents):
        function, primals, kept = _composite_backward(call, tensors)
        given = [dot for x, dot in zip(tensors, tangents, strict=True) if x is not None]
        dots = list(map(_or_zeros, primals, given))
        found = iter(_jvp(function, primals, dots))
        return tuple(next(found) if keep else None for keep in kept)
    streams = call.streams(tensors)
    outputs = _empty(_wanted(step, call.needed, streams))
    inputs = [*streams, *call.streams(tangents)]
    step.run(_native.BACKWARD_TANGENT, inputs, _padded(step, outputs))
    return tuple(flat(outputs))


def tangents_of_forward(
    step: Step, tensors: Sequence[torch.Tensor], tangents: Tensors
) -> tuple[torch.Tensor, ...]:
    """Return the tangents of the step's outputs."""
    if _is_differentiated(*tensors, *tangents):
        return _jvp(step.composite, tensors, list(map(_or_zeros, tensors, tangents)))
    inputs = step.split(tensors)
    grads, _, *states = inputs
    outputs = _empty([grads, *states])
    step.run(_native.FORWARD_TANGENT, [*inputs, *step.split(tangents)], outputs)
    return tuple(flat(outputs))


def _is_differentiated(*tensors: torch.Tensor | None) -> bool:
    """Return whether what is computed of these tensors now may be differentiated itself."""
    return is_transforming() or (
        torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    )


def _or_zeros(like: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros_like(like) if x is None else x


def _jvp(
    function: Callable[..., tuple[torch.Tensor, ...]],
    primals: Sequence[torch.Tensor],
    tangents: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, ...]:
    """Return the tangents of a function's results, in reverse mode alone.

    The cotangents of the inputs are linear in those of the results; what transposes that map
    applies the Jacobian. Forward mode does not nest in eager mode.
    """
    results, pull = _vjp(function, *primals)
    _, push = _vjp(pull, tuple([torch.zeros_like(x) for x in results]))
    (found,) = push(tuple(tangents))
    return tuple(found)


def _wanted(step: Step, needed: Sequence[bool], streams: Sequence[Stream]) -> list[Any]:
    """Return for each input of the step a cotangent's like where one is needed, else None."""
    n = step.leaves
    cotangents: list[Any] = [stream for stream in streams[step.inputs :] if stream is not None]
    some = cotangents[0] if cotangents else [None] * n
    if [x for x in some if x is None]:
        some = [next((s[i] for s in cotangents if s[i] is not None), None) for i in range(n)]
    if False not in needed:
        wanted = [some] * (len(needed) // n)
    else:
        wanted = [
            [x if want else None for x, want in zip(some, row, strict=True)]
            for row in chunks(needed, n)
        ]
    if step.with_params and step.passes_params:
        wanted[1] = [None] * n
    return wanted


def _empty(streams: Sequence[Stream]) -> list[Stream]:
    """Return new tensors like those of the streams."""
    return [
        None if s is None else [None if x is None else torch.empty_like(x) for x in s]
        for s in streams
    ]


def _padded(step: Step, streams: list[Stream]) -> list[Stream]:
    """Return the streams for the kernels, which always have one of parameters."""
    return streams if step.with_params else [streams[0], None, *streams[1:]]


def _filled(step: Step, streams: Sequence[Stream]) -> tuple[list[Any], list[Any]]:
    """Return the inputs of the step and the cotangents of its outputs, zeros where there is none.

    What the derivatives do not depend on was not saved.
    """
    n = range(step.leaves)
    known = [next((s[i] for s in streams if s and s[i] is not None), None) for i in n]
    zeros = [
        torch.zeros(()) if x is None else torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        for x in known
    ]
    filled = [list(map(_or_zeros, zeros, s or [None] * step.leaves)) for s in streams]
    inputs = filled[: step.inputs]
    if not step.with_params:
        del inputs[1]
    return inputs, filled[step.inputs :]


def _composite_backward(
    call: BackwardCall, tensors: Tensors
) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...], list[bool]]:
    """Return the backward pass in arithmetic that is differentiable to any order.

    Returns:
        It as a function of those tensors that are not None; these; and which of the inputs'
        cotangents it returns.
    """
    step = call.step
    kept = [x is not None for x in flat(_wanted(step, call.needed, call.streams(tensors)))]

    def function(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        remaining = iter(given)
        streams = call.streams([None if x is None else next(remaining) for x in tensors])
        inputs, cotangents = _filled(step, streams)
        _, pull = _vjp(step.composite, *flat(inputs))
        found = pull(tuple(flat(cotangents)))
        return tuple([x for x, keep in zip(found, kept, strict=True) if keep])

    return function, tuple([x for x in tensors if x is not None]), kept
