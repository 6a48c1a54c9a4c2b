"""The passes of a step beside the step itself: backward, and the tangents of forward and backward.

Each is one operation of the kernels, and has the same in `torchopt`'s own arithmetic, which is
differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from torchopt_accel import _native
from torchopt_accel._levels import is_transforming
from torchopt_accel._step import Step, Stream, chunks

__all__ = ["Call", "Tensors", "flat"]

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
        return self.rows(tensors)

    def rows(self, values: Sequence[Any]) -> list[Any]:
        """Return for each stream what there is for its tensors, None where it is absent."""
        cut = iter(chunks(values, self.step.leaves))
        return [next(cut) if there else None for there in self.present]

    def evaluate(self, streams: Sequence[Stream]) -> list[torch.Tensor | None]:
        """Return what the kernel makes; None for what is not needed.

        Raises:
            NotCoveredError: If there is no kernel for these tensors.
        """
        n = self.step.leaves
        some = self.likes(streams)
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
        _, pull = _vjp(function, *given)
        found = iter(pull([bar for bar, keep in zip(cotangents, kept, strict=True) if keep]))
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
        some = self.likes(self.streams(tensors))
        kept = [want and some[i % n] is not None for i, want in enumerate(self.needed)]
        evaluate = _COMPOSITES[self.operation]

        def function(*given: torch.Tensor) -> tuple[torch.Tensor, ...]:
            remaining = iter(given)
            streams = self.streams([None if x is None else next(remaining) for x in tensors])
            found = evaluate(step, self._filled(streams))
            return tuple([x for x, keep in zip(found, kept, strict=True) if keep])

        return function, [x for x in tensors if x is not None], kept

    def likes(self, streams: Sequence[Stream]) -> Sequence[torch.Tensor | None]:
        """Return for each leaf a tensor like those that the kernel makes.

        None where these are zero, for want of what they are linear in.
        """
        n, inputs = self.step.leaves, self.step.inputs
        # states lie as parameters do; gradients and cotangents often differ from them
        some = _some([*reversed(streams[:inputs]), *streams[inputs:]], n)
        first = _some(streams[inputs : 2 * inputs - 1], n)
        if self.operation == _native.FORWARD_TANGENT:
            first = _some(streams[inputs:], n)
        elif self.operation == _native.BACKWARD_TANGENT:
            x_dots = _some(streams[2 * inputs - 1 : 3 * inputs - 1], n)
            bar_dots = _some(streams[3 * inputs - 1 :], n)
            first = [
                bar_dot if bar_dot is not None else None if bar is None else x_dot
                for bar, x_dot, bar_dot in zip(first, x_dots, bar_dots, strict=True)
            ]
        if not [x for x in first if x is None]:
            return some
        return [x if reached is not None else None for x, reached in zip(some, first, strict=True)]

    def _filled(self, streams: Sequence[Stream]) -> list[list[Any]]:
        """Return the streams, with zeros for inputs and tangents that there are none of.

        What a derivative does not depend on was not saved. Cotangents stay None, so that those
        that there are may be of any kind, sparse for example.
        """
        n, inputs = self.step.leaves, self.step.inputs
        zeros = [
            torch.zeros(()) if x is None else torch.zeros(x.shape, dtype=x.dtype, device=x.device)
            for x in _some(streams, n)
        ]
        nothing = [None] * n
        filled: list[list[Any]] = []
        for k, stream in enumerate(streams):
            is_bar = self.operation != _native.FORWARD_TANGENT and inputs <= k < 2 * inputs - 1
            rows = stream or nothing
            filled.append(list(rows) if is_bar else list(map(_or_zeros, zeros, rows)))
        return filled


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


def _vjp(
    function: Function, *primals: torch.Tensor
) -> tuple[Sequence[torch.Tensor], Callable[[Tensors], tuple[torch.Tensor, ...]]]:
    """Return a function's results, and what pulls their cotangents back; as `torch.func.vjp`.

    Outside of transforms plain autograd does so in half the time. A cotangent may be None.
    """
    if is_transforming():
        outputs, pull_all = torch.func.vjp(function, *primals)  # type: ignore[misc]
        return outputs, lambda bars: pull_all(tuple(map(_or_zeros, outputs, bars)))
    with torch.enable_grad():
        # tensors of their own, one of which may have been given twice
        inputs = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in primals]
        results = function(*inputs)

    def pull(bars: Tensors) -> tuple[torch.Tensor, ...]:
        pairs = zip(results, bars, strict=True)
        tracked = [(y, bar) for y, bar in pairs if y.requires_grad and bar is not None]
        return torch.autograd.grad(
            [y for y, _ in tracked],
            inputs,
            [bar for _, bar in tracked],
            retain_graph=True,
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )

    return results, pull


def _jvp(
    function: Function, primals: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Return the tangents of a function's results, in reverse mode alone.

    The cotangents of the inputs are linear in those of the results; what transposes that map
    applies the Jacobian. Forward mode does not nest in eager mode.
    """
    results, pull = _vjp(function, *primals)
    zeros = [torch.zeros_like(x) for x in results]
    _, push = _vjp(lambda *bars: pull(bars), *zeros)
    return push(tangents)


Streams: TypeAlias = "Sequence[Sequence[Any]]"


def _inputs(step: Step, streams: Streams) -> list[torch.Tensor]:
    """Return the tensors that `Step.composite` takes."""
    chosen = [x for k, x in enumerate(streams) if k != 1 or step.with_params]
    return [x for stream in chosen for x in stream]


def _backward(step: Step, streams: Streams) -> list[torch.Tensor]:
    _, pull = _vjp(step.composite, *_inputs(step, streams[: step.inputs]))
    return _with_params(step, pull(flat(streams[step.inputs :])), streams)


def _forward_tangent(step: Step, streams: Streams) -> tuple[torch.Tensor, ...]:
    half = len(streams) // 2
    return _jvp(step.composite, _inputs(step, streams[:half]), _inputs(step, streams[half:]))


def _backward_tangent(step: Step, streams: Streams) -> list[torch.Tensor]:
    """The Hessian of the product of the results and their cotangents, which is symmetric."""
    half = len(streams) // 2
    bars = flat(streams[step.inputs : half])

    def function(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results, pull = _vjp(step.composite, *inputs)
        return (*pull(bars), *results)

    _, pull = _vjp(function, *_inputs(step, streams[:half][: step.inputs]))
    return _with_params(step, pull(_inputs(step, streams[half:])), streams)


def _with_params(step: Step, found: Sequence[torch.Tensor], streams: Streams) -> list[torch.Tensor]:
    """Return the cotangents of all inputs, with zeros for parameters that are not among them."""
    if step.with_params:
        return list(found)
    n = step.leaves
    return [*found[:n], *[torch.zeros_like(x) for x in streams[1]], *found[n:]]


_COMPOSITES: dict[int, Callable[[Step, Streams], Sequence[torch.Tensor]]] = {
    _native.BACKWARD: _backward,
    _native.FORWARD_TANGENT: _forward_tangent,
    _native.BACKWARD_TANGENT: _backward_tangent,
}
