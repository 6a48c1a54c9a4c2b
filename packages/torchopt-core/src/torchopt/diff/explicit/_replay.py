"""Functions that are run again for their derivatives, instead of storing what these need.

A :class:`Pure` function maps tensors to tensors and may be run any number of times. What it depends
on is among its inputs. :func:`replay` calls it and stores the inputs alone. Its pullback is a pure
function of inputs and cotangents, and so is the pullback's; hence derivatives of every order exist,
and each stores what the function's own pullback stores.

A `vmap` around it becomes a level of the function itself, and a `torch.func.grad` lowers it: in the
end every pure function runs on plain tensors, below all transforms, by plain autograd.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from torchopt._context import is_transforming
from torchopt.diff.explicit._functorch import (
    is_batched_here,
    jvp_levels,
    legacy_batch,
    unwrap_dead,
)

__all__ = ["Flags", "Level", "Pullback", "Pure", "replay", "smooth_among"]

Tensors = tuple[torch.Tensor, ...]
#: For each of some tensors, whether a `vmap` batches it.
Flags = tuple[bool, ...]


class Level(NamedTuple):
    """A `vmap` around a pure function: its batch is the first dimension of those it batches."""

    size: int
    batched: Flags
    randomness: str


class Pure(abc.ABC):
    """A function of tensors that can be run again.

    A subclass computes one problem in :meth:`compute`; called, it computes all problems of its
    levels. Called under `torch.no_grad` it records no graph; else its outputs are connected to the
    inputs, but to nothing else.
    """

    #: The `vmap` levels around it, the outermost one first.
    levels: tuple[Level, ...] = ()
    #: After a call: of each output, for each level, whether it is batched.
    outputs: list[Flags]

    @abc.abstractmethod
    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the outputs."""

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        outputs, self.outputs = _run(self.compute, self.levels, tensors)
        return tuple(outputs)

    def batched(self, level: Level) -> Pure:
        """Return the function with another level around those it has."""
        found = copy.copy(self)
        found.levels = (level, *self.levels)
        return found

    def constants(self) -> range:
        """Return the positions of outputs that have no derivative; known after a call."""
        return range(0)

    def aligned(self, batched: Flags) -> Flags:
        """Return which inputs a level has to batch if it batches the given ones."""
        return batched

    def pullback(self, wanted: Sequence[int], given: Sequence[int]) -> Pullback:
        """Return the pure function of inputs and cotangents that is the transposed derivative.

        Args:
            wanted: The positions of the inputs to differentiate in.
            given: The positions of the outputs that have a cotangent.
        """
        return Pullback(self, wanted, given)


def _run(
    function: Callable[..., Sequence[torch.Tensor]],
    levels: tuple[Level, ...],
    tensors: Sequence[torch.Tensor],
) -> tuple[list[torch.Tensor], list[Flags]]:
    """Return the outputs of a function within levels, and which level batches which of them."""
    if not levels:
        outputs = list(function(*tensors))
        return outputs, [()] * len(outputs)
    first, rest = levels[0], levels[1:]
    found: list[Any] = []

    def inner(batch: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs, flags = _run(function, rest, tensors)
        is_here = [is_batched_here(x) for x in outputs]
        found[:] = outputs, is_here, flags
        return batch, *[x for x, here in zip(outputs, is_here, strict=True) if here]

    # a level batches something even where all of the inputs are shared
    batch = torch.empty((first.size, 0), device="cpu")
    dims = (0, *[0 if flag else None for flag in first.batched])
    _, *batched = torch.vmap(inner, in_dims=dims, randomness=first.randomness)(batch, *tensors)
    outputs, is_here, flags = found
    remaining = iter(batched)
    result = [next(remaining) if h else x for x, h in zip(outputs, is_here, strict=True)]
    return result, [(h, *f) for h, f in zip(is_here, flags, strict=True)]


def replay(function: Pure, *tensors: torch.Tensor) -> Tensors:
    """Return ``function(*tensors)``, whose derivatives run it again."""
    found: Tensors = _Replay.apply(function, *tensors)  # type: ignore[no-untyped-call]
    return found


def smooth_among(outputs: Sequence[torch.Tensor], constants: range) -> list[int]:
    """Return the positions of outputs that may have a derivative."""
    return [
        j
        for j, x in enumerate(outputs)
        if j not in constants and (x.is_floating_point() or x.is_complex())
    ]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(function: Pure, *tensors: torch.Tensor) -> Tensors:
        given = {id(x) for x in tensors}
        # an input among the outputs would be a view of it
        return tuple([x.clone() if id(x) in given else x for x in function(*tensors)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.function, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[output[j] for j in ctx.function.constants()])
        ctx.save_for_backward(*tensors)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        tensors = [unwrap_dead(x) for x in ctx.saved_tensors]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        given = [j for j, g in enumerate(grads) if g is not None]
        result: list[Any] = [None] * (1 + len(tensors))
        if given and wanted:
            pullback = ctx.function.pullback(wanted, given)
            cotangents = [g for g in grads if g is not None]
            batch = legacy_batch(cotangents)
            if batch is None:
                found = replay(pullback, *tensors, *cotangents)
            else:  # by `is_grads_batched`
                pullback.extra = (True,)
                outputs = replay(pullback, *tensors, *batch.unwrapped(cotangents))
                found = tuple(batch.wrapped(outputs))
            for i, g in zip(wanted, found, strict=True):
                result[1 + i] = g
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if jvp_levels() > 1:
            raise NotImplementedError(
                "forward mode over forward mode with reverse mode between them is not supported by "
                "torch's autograd functions; take one of the forward derivatives in reverse mode, "
                "as torch.func.jacrev does, or use `memory=FullGraph()`"
            )
        tensors = [unwrap_dead(x) for x in ctx.saved_tensors]
        number = len(tangents) - 1
        inputs, outputs = tensors[:number], tensors[number:]
        moving = [i for i, t in enumerate(tangents[1:]) if t is not None]
        smooth = smooth_among(outputs, ctx.function.constants())
        # the transpose of the pullback, which is linear in the cotangents
        pullback = ctx.function.pullback(moving, smooth)
        push = Pullback(pullback, range(number, number + len(smooth)), range(len(moving)))
        zeros = [torch.zeros_like(outputs[j]) for j in smooth]
        given = [t for t in tangents[1:] if t is not None]
        found = dict(zip(smooth, replay(push, *inputs, *zeros, *given), strict=True))
        return tuple([found.get(j) for j in range(len(outputs))])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], function: Pure, *tensors: torch.Tensor
    ) -> tuple[Tensors, tuple[int | None, ...]]:
        dims = in_dims[1:]
        flags = tuple(d is not None for d in dims)
        moved = [x if d is None else x.movedim(d, 0) for x, d in zip(tensors, dims, strict=True)]
        expanded = function.aligned(flags)
        for i, (old, new) in enumerate(zip(flags, expanded, strict=True)):
            if new and not old:
                moved[i] = moved[i].expand(info.batch_size, *moved[i].shape)
        own = function.batched(Level(info.batch_size, expanded, info.randomness))
        outputs = replay(own, *moved)
        function.outputs = [flags[1:] for flags in own.outputs]
        return outputs, tuple([0 if flags[0] else None for flags in own.outputs])


class Pullback(Pure):
    """The transposed derivative of a pure function, by a graph of all of it."""

    #: Of the dimensions that levels have put in front of the cotangents, which ones are of
    #: cotangents alone, so that one run of the function serves them all.
    extra: Flags = ()

    def __init__(self, function: Pure, wanted: Sequence[int], given: Sequence[int]) -> None:
        self.function, self.wanted, self.given = function, tuple(wanted), tuple(given)

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        outputs = tuple(self.compute(*tensors))
        self.outputs = [(True,) * len(self.extra)] * len(outputs)
        return outputs

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        number = len(tensors) - len(self.given)
        inputs, cotangents = list(tensors[:number]), tensors[number:]
        if is_transforming():
            return self._transformed(inputs, cotangents)
        is_recorded = torch.is_grad_enabled()
        for i, x in enumerate(inputs):
            if is_recorded and x.requires_grad:
                inputs[i] = x.view_as(x)  # so that one input's gradient is not another's, too
            else:
                inputs[i] = x.detach()
        for i in self.wanted:
            if not inputs[i].requires_grad:
                inputs[i].requires_grad_()
        variables = [inputs[i] for i in self.wanted]
        with torch.enable_grad():
            outputs = self.function(*inputs)
            pairs = [
                (outputs[j], self._in_front(g))
                for j, g in zip(self.given, cotangents, strict=True)
                if outputs[j].requires_grad
            ]
            found: list[torch.Tensor | None] = [None] * len(variables)
            reached: list[int] = []

            def pull(*grads: torch.Tensor) -> Tensors:
                every = torch.autograd.grad(
                    [x for x, _ in pairs],
                    variables,
                    grads,
                    create_graph=is_recorded,
                    retain_graph=is_recorded,
                    allow_unused=True,
                )
                reached[:] = [k for k, g in enumerate(every) if g is not None]
                return tuple([every[k] for k in reached])

            if pairs:
                # not `is_grads_batched`, which batches in a way of its own
                run = torch.vmap(pull) if any(self.extra) else pull
                pulled = run(*[g for _, g in pairs])
                for k, g in zip(reached, pulled, strict=True):
                    found[k] = g
        sizes = cotangents[0].shape
        return [
            self._zeros(x, sizes) if g is None else self._in_place(g, sizes)
            for x, g in zip(variables, found, strict=True)
        ]

    def _transformed(
        self, inputs: list[torch.Tensor], cotangents: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the same, within a transform."""

        def outputs(*variables: torch.Tensor) -> Tensors:
            full = list(inputs)
            for i, x in zip(self.wanted, variables, strict=True):
                full[i] = x
            found = self.function(*full)
            return tuple([found[j] for j in self.given])

        pull: Callable[..., Tensors]
        pull = torch.func.vjp(outputs, *[inputs[i] for i in self.wanted])[1]
        if not any(self.extra):
            return list(pull(tuple(cotangents)))
        pulled = torch.vmap(pull)(tuple([self._in_front(g) for g in cotangents]))
        return [self._in_place(g, cotangents[0].shape) for g in pulled]

    def _order(self) -> list[int]:
        """Return the dimensions of the levels, those of cotangents alone first."""
        return sorted(range(len(self.extra)), key=lambda i: not self.extra[i])

    def _in_front(self, cotangent: torch.Tensor) -> torch.Tensor:
        """Return a cotangent with one dimension in front in the place of its extra ones."""
        if not any(self.extra):
            return cotangent
        found = cotangent.permute(*self._order(), *range(len(self.extra), cotangent.ndim))
        return found.flatten(0, sum(self.extra) - 1)

    def _in_place(self, gradient: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return a gradient with its extra dimensions where those of the cotangents are."""
        if not any(self.extra):
            return gradient
        order, number = self._order(), sum(self.extra)
        own = [sizes[i] for i in order[:number]]
        found = gradient.reshape(*own, *gradient.shape[1:])
        inverse = [order.index(i) for i in range(len(order))]
        return found.permute(*inverse, *range(len(order), found.ndim))

    def _zeros(self, x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        own = [n for n, is_extra in zip(sizes, self.extra, strict=False) if is_extra]
        if not own:
            return torch.zeros_like(x)
        return self._in_place(x.new_zeros((math.prod(own), *x.shape)), sizes)

    def aligned(self, batched: Flags) -> Flags:
        number = len(batched) - len(self.given)
        own = list(batched[:number])
        if any(own):
            for i in self.wanted:
                own[i] = True
        return (*own, *[True for _ in self.given])

    def batched(self, level: Level) -> Pure:
        found = copy.copy(self)
        own = level.batched[: len(level.batched) - len(self.given)]
        found.extra = (not any(own), *self.extra)
        if any(own):
            found.function = self.function.batched(level._replace(batched=own))
        return found
