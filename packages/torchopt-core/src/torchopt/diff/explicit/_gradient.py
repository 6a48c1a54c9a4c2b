"""The gradient that an inner step descends, and how it is differentiated itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchopt._context import is_transforming
from torchopt._types import Leaves
from torchopt.diff.explicit._captured import leaves_reached
from torchopt.diff.explicit._functorch import cut
from torchopt.optim._loss import check_loss

__all__ = ["Evaluate", "Evaluation", "Generators", "Gradient", "Inputs", "exact", "first_order"]


class Inputs(NamedTuple):
    """What the loss of a step depends on."""

    #: The parameters.
    leaves: Leaves
    #: The buffers.
    buffers: Leaves
    #: What else it may be differentiated in.
    shared: Leaves


class Evaluation(NamedTuple):
    """The loss of a step."""

    value: torch.Tensor
    #: For each parameter, None if the loss does not depend on it.
    grads: list[torch.Tensor | None]
    buffers: Leaves


#: From inputs to the loss, and the buffers after it.
Evaluate = Callable[[Inputs], tuple[torch.Tensor, Leaves]]
Generators = Sequence[torch.Generator]
#: How an inner gradient is taken; the generators are those that the loss uses.
Gradient = Callable[[Evaluate, Inputs, Generators], Evaluation]


def exact(evaluate: Evaluate, inputs: Inputs, generators: Generators = ()) -> Evaluation:
    """Return the gradient with a graph of its own, where a graph is recorded at all."""
    if is_transforming() or torch.compiler.is_compiling():
        return _transformed(evaluate, inputs)
    is_recorded = torch.is_grad_enabled()
    moved = _variables(inputs.leaves, is_recorded)
    with torch.enable_grad():
        value, buffers = evaluate(inputs._replace(leaves=moved))
        check_loss(value)
        if is_recorded and not any(p.requires_grad for p in inputs.leaves):
            # a graph that leads nowhere would only be kept
            is_recorded = next(leaves_reached([value], moved), None) is not None
        grads = torch.autograd.grad(value, moved, create_graph=is_recorded, allow_unused=True)
    if not is_recorded:
        value, buffers = cut(value), [cut(b) for b in buffers]
    return _checked(value, grads, buffers)


def first_order(evaluate: Evaluate, inputs: Inputs, generators: Generators = ()) -> Evaluation:
    """Return the gradient as a constant, and the loss with its graph."""
    if is_transforming() or torch.compiler.is_compiling():
        found = _transformed(evaluate, inputs)
        constants = [None if g is None else g.detach() for g in found.grads]
        return found._replace(grads=constants)
    is_recorded = torch.is_grad_enabled()
    moved = _variables(inputs.leaves, is_recorded)
    with torch.enable_grad():
        value, buffers = evaluate(inputs._replace(leaves=moved))
        check_loss(value)
        grads = torch.autograd.grad(value, moved, retain_graph=True, allow_unused=True)
    return _checked(value, [None if g is None else g.detach() for g in grads], buffers)


def _variables(leaves: Leaves, is_recorded: bool) -> Leaves:
    """Return the parameters as variables of the loss.

    They are others than the tensors given, which may be elsewhere in the loss as constants, as the
    initial parameters in a proximal term are.
    """
    return [
        p.view_as(p) if is_recorded and p.requires_grad else cut(p).requires_grad_() for p in leaves
    ]


def _checked(
    value: torch.Tensor, grads: Sequence[torch.Tensor | None], buffers: Leaves
) -> Evaluation:
    if not [g for g in grads if g is not None]:
        raise ValueError(
            "`loss` does not depend on any of `params`: compute it from the parameters that it is "
            "called with, not from others in its closure, and detach none of them"
        )
    return Evaluation(value.reshape(()), list(grads), buffers)


def _transformed(evaluate: Evaluate, inputs: Inputs) -> Evaluation:
    """Return the gradient by `torch.func`, within its transforms."""
    flags: list[bool] = []

    def function(*moved: torch.Tensor) -> tuple[torch.Tensor, Any]:
        leaves = list(moved)
        value, buffers = evaluate(inputs._replace(leaves=leaves))
        check_loss(value)
        reached = {id(x) for x in leaves_reached([value], [])}
        flags[:] = [id(x) in reached for x in leaves]
        value = value.reshape(())
        return value, (value, buffers)

    differentiate = torch.func.grad(function, tuple(range(len(inputs.leaves))), has_aux=True)
    grads, (value, buffers) = differentiate(*inputs.leaves)
    return _checked(value, [g if f else None for g, f in zip(grads, flags, strict=True)], buffers)
