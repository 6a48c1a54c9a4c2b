"""The gradient of an inner step, differentiated by forward mode over reverse mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from torchopt._context import is_transforming
from torchopt.diff.explicit._functorch import forward_mode
from torchopt.diff.explicit._gradient import Evaluate, Evaluation, Generators, Inputs, exact
from torchopt.diff.explicit._replay import Flags, Level, Pullback, Pure, Tensors, replay
from torchopt.diff.explicit._surroundings import Surroundings

__all__ = ["mixed"]


def mixed(evaluate: Evaluate, inputs: Inputs, generators: Generators = ()) -> Evaluation:
    """Return the gradient; what is stored for its derivatives are the inputs alone."""
    loss = _Loss(evaluate, [len(part) for part in inputs], Surroundings(generators))
    function = _InnerGradient(loss)
    found = replay(function, *inputs.leaves, *inputs.buffers, *inputs.shared)
    used, number = function.used, sum(function.used)
    remaining = iter(found[1 : 1 + number])
    grads = [next(remaining) if flag else None for flag in used]
    return Evaluation(found[0], grads, list(found[1 + number :]))


class _Loss(Pure):
    """The loss as a function of everything it depends on."""

    def __init__(
        self, evaluate: Evaluate, sizes: Sequence[int], surroundings: Surroundings
    ) -> None:
        self.evaluate, self._sizes, self.surroundings = evaluate, list(sizes), surroundings

    def inputs(self, tensors: Sequence[torch.Tensor]) -> Inputs:
        """Return the inputs, which are tensors one after the other."""
        remaining = iter(tensors)
        return Inputs(*[[next(remaining) for _ in range(size)] for size in self._sizes])

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        with self.surroundings.restored(tensors):
            value, _ = self.evaluate(self.inputs(tensors))
        return [value.reshape(())]

    @property
    def buffers(self) -> int:
        """The number of buffers."""
        return self._sizes[1]

    def within(self, levels: tuple[Level, ...]) -> Pure:
        """Return the loss within levels."""
        found = _Loss(self.evaluate, self._sizes, self.surroundings)
        found.levels = levels
        return found


class _InnerGradient(Pure):
    """Loss, gradient and buffers as a function of everything the loss depends on."""

    def __init__(self, loss: _Loss) -> None:
        self.loss = loss
        # which parameters have a gradient; known to copies, too
        self.used: list[bool] = []

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        with self.loss.surroundings.restored(tensors):
            found = exact(self.loss.evaluate, self.loss.inputs(tensors))
        self.used[:] = [g is not None for g in found.grads]
        return [found.value, *[g for g in found.grads if g is not None], *found.buffers]

    def pullback(self, wanted: Sequence[int], given: Sequence[int]) -> Pullback:
        return _HessianProduct(self, wanted, given)

    def constants(self) -> range:
        first = 1 + sum(self.used)
        return range(first, first + self.loss.buffers)


class _HessianProduct(Pullback):
    r"""The pullback of a gradient: a Hessian is symmetric, so it is a directional derivative.

    With cotangents :math:`c` of the loss :math:`L(\theta, a)` and :math:`v` of its gradient,
    :math:`c\, \nabla L + \partial_\epsilon \nabla L(\theta + \epsilon v, a)`, where
    :math:`\nabla` is in all inputs.
    """

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        own = self.function
        assert isinstance(own, _InnerGradient)
        number = len(tensors) - len(self.given)
        inputs, cotangents = tensors[:number], tensors[number:]
        places = [-1, *[i for i, flag in enumerate(own.used) if flag]]
        directions = {places[j]: g for j, g in zip(self.given, cotangents, strict=True)}
        scale = directions.pop(-1, None)
        sizes = [level.size for level in own.levels]
        if (
            is_transforming()
            or forward_ad._current_level >= 0  # which cannot be nested
            or any(self.extra)
            or any(v.ndim != len(sizes) + _ndim(inputs, own, i) for i, v in directions.items())
        ):
            return super().compute(*tensors)
        is_recorded = torch.is_grad_enabled()
        variables = [
            x.view_as(x) if is_recorded and x.requires_grad else x.detach() for x in inputs
        ]
        for i in self.wanted:
            if not variables[i].requires_grad:
                variables[i].requires_grad_()
        levels = tuple(_batching(level, directions) for level in own.levels)
        found: list[torch.Tensor | None]
        with forward_ad.dual_level(), forward_mode(), torch.enable_grad():
            moved = list(variables)
            for i, v in directions.items():
                x = variables[i]
                for k, level in enumerate(own.levels):
                    if not level.batched[i]:
                        x = x.unsqueeze(k).expand(*sizes[: k + 1], *x.shape[k:])
                # whose tangent is laid out as it is
                moved[i] = forward_ad.make_dual(x.contiguous(), v)  # type: ignore[no-untyped-call]
            (value,) = own.loss.within(levels)(*moved)
            chosen = [variables[i] for i in self.wanted]
            found = [None] * len(chosen)
            if directions and value.requires_grad:
                grads = torch.autograd.grad(
                    value.sum(),
                    chosen,
                    create_graph=is_recorded,
                    retain_graph=is_recorded or scale is not None,
                    allow_unused=True,
                )
                found = [None if g is None else _tangent(g) for g in grads]
            value = forward_ad.unpack_dual(value).primal  # type: ignore[no-untyped-call]
        if scale is not None and value.requires_grad:
            scale = scale.expand_as(value)
            grads = torch.autograd.grad(
                value, chosen, scale, create_graph=is_recorded, allow_unused=True
            )
            pairs = zip(found, grads, strict=True)
            found = [g if f is None else f if g is None else f + g for f, g in pairs]
        return [torch.zeros_like(x) if f is None else f for x, f in zip(chosen, found, strict=True)]


def _ndim(inputs: Tensors, own: _InnerGradient, i: int) -> int:
    return inputs[i].ndim - sum(level.batched[i] for level in own.levels)


def _batching(level: Level, places: dict[int, torch.Tensor]) -> Level:
    flags: Flags = tuple(flag or i in places for i, flag in enumerate(level.batched))
    return level._replace(batched=flags)


def _tangent(dual: torch.Tensor) -> torch.Tensor | None:
    tangent: torch.Tensor | None = forward_ad.unpack_dual(dual).tangent  # type: ignore[no-untyped-call]
    return tangent
