"""The passes of a step beside the step itself: backward, and the tangents of forward and backward.

Each is one operation of the kernels, and has the same in `torchopt`'s own arithmetic, which is
differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from torchopt_accel import _native
from torchopt_accel._step import Step, Stream, chunks

__all__ = ["Call", "Tensors", "flat"]

_vjp: Any = torch.func.vjp  # typed as if it returned a third value
_empty_like: Any = torch.empty_like

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"
Function: TypeAlias = "Callable[..., tuple[torch.Tensor, ...]]"


class Call(NamedTuple):
    """An operation of the kernels, without its tensors.

    Operations take the input streams of the step :math:`x` (gradients, parameters, states), as many
    cotangents :math:`\\bar y` as the step has results, and tangents of some of these.
    """

    step: Step
    operation: int
    #: Whether each stream that the kernel takes is there.
    present: tuple[bool, ...]
    #: Whether each tensor that the kernel makes is needed.
    needed: tuple[bool, ...]

    @staticmethod
    def over(
        step: Step, operation: int, streams: Sequence[Stream], needed: Sequence[bool]
    ) -> tuple[Call, list[Any]]:
        """Return the call and its tensors, given each stream."""
        present = tuple([stream is not None for stream in streams])
        return Call(step, operation, present, tuple(needed)), flat(streams)

    def streams(self, tensors: Tensors) -> list[Stream]:
        """Return the streams that the kernel takes."""
        cut = iter(chunks(tensors, self.step.leaves))
        return [next(cut) if there else None for there in self.present]

    def evaluate(self, streams: Sequence[Stream]) -> list[torch.Tensor | None]:
        """Return what the kernel makes; None for what is not needed.

        Raises:
            NotCoveredError: If there is no kernel for these tensors.
        """
        n = self.step.leaves
        some = self._likes(streams)
        outputs: list[Any]
        if False in self.needed or [x for x in some if x is None]:
            outputs = [
                [_empty_like(x) if want and x is not None else None for x, want in pairs]
                for pairs in [zip(some, row, strict=True) for row in chunks(self.needed, n)]
            ]
        else:
            outputs = [[_empty_like(x) for x in some] for _ in range(len(self.needed) // n)]
        self.step.run(self.operation, streams, outputs)
        return flat(outputs)

    def composite(self, tensors: Tensors) -> list[torch.Tensor | None]:
        """Return what :meth:`evaluate` returns, in `torchopt`'s own arithmetic."""
        function, given, kept = self.function(tensors)
        found = iter(function(*given))
        return [next(found) if keep else None for keep in kept]

    def cotangents(self, tensors: Tensors, cotangents: Tensors) -> list[torch.Tensor | None]:
        """Return the cotangents of the tensors, in `torchopt`'s own arithmetic."""
        function, given, kept = self.function(tensors)
        results, pull = _vjp(function, *given)
        bars = [bar for bar, keep in zip(cotangents, kept, strict=True) if keep]
        found = iter(pull(tuple(map(_or_zeros, results, bars))))
        return [None if x is None else next(found) for x in tensors]

    def tangents(self, tensors: Tensors, tangents: Tensors) -> list[torch.Tensor | None]:
        """Return the tangents of what the kernel makes, in `torchopt`'s own arithmetic."""
        function, given, kept = self.function(tensors)
        dots = [dot for x, dot in zip(tensors, tangents, strict=True) if x is not None]
        found = iter(_jvp(function, given, list(map(_or_zeros, given, dots))))
        return [next(found) if keep else None for keep in kept]

    def function(self, tensors: Tensors) -> tuple[Function, list[torch.Tensor], list[bool]]:
        """Return the operation in `torchopt`'s own arithmetic.

        Returns:
            It as a function of those tensors that are not None; these; and which of the tensors
            that the kernel makes it returns.
        """
        step, n = self.step, self.step.leaves
        some = self._likes(self.streams(tensors))
        kept = [want and some[i % n] is not None for i, want in enumerate(self.needed)]
        evaluate = _COMPOSITES[self.operation]

        def function(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            remaining = iter(given)
            found = evaluate(
                step, self._filled([None if x is None else next(remaining) for x in tensors])
            )
            return tuple([x for x, keep in zip(found, kept, strict=True) if keep])

        return function, [x for x in tensors if x is not None], kept

    def _likes(self, streams: Sequence[Stream]) -> Sequence[torch.Tensor | None]:
        """Return for each leaf a tensor like those that the kernel makes.

        None where these are zero for want of a cotangent.
        """
        n, inputs = self.step.leaves, self.step.inputs
        # states lie as parameters do; gradients and cotangents often differ from them
        some = _some([*reversed(streams[:inputs]), *streams[inputs:]], n)
        if self.operation == _native.FORWARD_TANGENT:
            return some
        bars = streams[inputs : 2 * inputs - 1]
        if self.operation == _native.BACKWARD_TANGENT:
            bars = [*bars, *streams[3 * inputs - 1 :]]
        reached = _some(bars, n)
        if not [x for x in reached if x is None]:
            return some
        return [x if bar is not None else None for x, bar in zip(some, reached, strict=True)]

    def _filled(self, tensors: Tensors) -> list[list[torch.Tensor]]:
        """Return the streams, with zeros where there is none.

        What a derivative does not depend on was not saved.
        """
        streams, n = self.streams(tensors), self.step.leaves
        zeros = [
            torch.zeros(()) if x is None else torch.zeros(x.shape, dtype=x.dtype, device=x.device)
            for x in _some(streams, n)
        ]
        return [list(map(_or_zeros, zeros, stream or [None] * n)) for stream in streams]


def flat(streams: Sequence[Stream]) -> list[Any]:
    """Return the tensors of those streams that are there."""
    return [x for stream in streams if stream is not None for x in stream]


def _some(streams: Sequence[Stream], leaves: int) -> Sequence[torch.Tensor | None]:
    """Return for each leaf one of its tensors, None if there is none."""
    there = [stream for stream in streams if stream is not None]
    if there and not [x for x in there[0] if x is None]:
        return there[0]
    return [next((s[i] for s in there if s[i] is not None), None) for i in range(leaves)]


def _or_zeros(like: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros_like(like) if x is None else x


def _jvp(
    function: Function, primals: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return the tangents of a function's results, in reverse mode alone.

    The cotangents of the inputs are linear in those of the results; what transposes that map
    applies the Jacobian. Forward mode does not nest in eager mode.
    """
    results, pull = _vjp(function, *primals)
    _, push = _vjp(pull, tuple([torch.zeros_like(x) for x in results]))
    (found,) = push(tuple(tangents))
    return tuple(found)


Streams: TypeAlias = "Sequence[Sequence[torch.Tensor]]"


def _inputs(step: Step, streams: Streams) -> list[torch.Tensor]:
    """Return the tensors that `Step.composite` takes."""
    chosen = [x for k, x in enumerate(streams) if k != 1 or step.with_params]
    return [x for stream in chosen for x in stream]


def _backward(step: Step, streams: Streams) -> list[torch.Tensor]:
    _, pull = _vjp(step.composite, *_inputs(step, streams[: step.inputs]))
    found = list(pull(tuple(flat(streams[step.inputs :]))))
    if not step.with_params:
        n = step.leaves
        found[n:n] = [torch.zeros_like(x) for x in streams[1]]
    return found


def _forward_tangent(step: Step, streams: Streams) -> tuple[torch.Tensor, ...]:
    half = len(streams) // 2
    return _jvp(step.composite, _inputs(step, streams[:half]), _inputs(step, streams[half:]))


def _backward_tangent(step: Step, streams: Streams) -> tuple[torch.Tensor, ...]:
    def function(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(_backward(step, chunks(tensors, step.leaves)))

    half = len(streams) // 2
    return _jvp(function, flat(streams[:half]), flat(streams[half:]))


_COMPOSITES: dict[int, Callable[[Step, Streams], Sequence[torch.Tensor]]] = {
    _native.BACKWARD: _backward,
    _native.FORWARD_TANGENT: _forward_tangent,
    _native.BACKWARD_TANGENT: _backward_tangent,
}
