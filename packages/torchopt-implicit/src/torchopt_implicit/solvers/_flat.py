"""A user's functions of trees as functions of vectors, with their derivatives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from torchopt_implicit._functorch import is_transforming
from torchopt_implicit._tree import Layout

__all__ = [
    "Objective",
    "ValueAndGrad",
    "ValueAndJacobian",
    "flat_function",
    "flat_value_and_grad",
    "gradient_of",
    "square_value",
    "value_and_jacobian",
]

#: so many passes cost less than to set up a batch of them
FEW_ROWS = 4

#: ``(solution, *args) -> 0-dim tensor``
Objective = Callable[..., torch.Tensor]
#: of a vector: the value and the gradient
ValueAndGrad = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: of a vector: the value and its dense Jacobian
ValueAndJacobian = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def flat_function(
    function: Callable[..., Any], layout: Layout, args: tuple[Any, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of trees as one from vectors to vectors."""

    def flat(vector: torch.Tensor) -> torch.Tensor:
        out = function(layout.unravel(vector), *args)
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            return out.reshape(-1).to(vector)
        value = Layout.of(out, "the function's result").ravel(out, "the function's result")
        return value.to(vector.dtype)

    return flat


def flat_value_and_grad(
    objective: Objective, layout: Layout, args: tuple[Any, ...]
) -> ValueAndGrad:
    """Return the value and the gradient of an objective as a function of a vector."""

    value_of = _flat_objective(objective, layout, args)
    transformed = torch.func.grad_and_value(value_of)

    def value_and_grad(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if _is_differentiated():
            gradient, value = transformed(vector)
            return value, gradient
        # in a third of the time
        with torch.enable_grad():
            point = vector.detach().requires_grad_()
            value = value_of(point)
            if not value.requires_grad:
                return value, torch.zeros_like(vector)
            (gradient,) = torch.autograd.grad(value, point, materialize_grads=True)
        return value.detach(), gradient

    return value_and_grad


def gradient_of(objective: Objective) -> Callable[..., Any]:
    """Return the gradient of an objective, between trees of the kind that solvers take.

    `torch.func.grad` knows other ones: not those with ``None`` in them, and not optree's.
    """

    @functools.wraps(objective)
    def gradient(x: Any, *args: Any) -> Any:
        layout = Layout.of(x, "the solution")
        value_of = _flat_objective(objective, layout, args)
        return layout.unravel(torch.func.grad(value_of)(layout.ravel(x, "the solution")))

    return gradient


def _flat_objective(
    objective: Objective, layout: Layout, args: tuple[Any, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    def value_of(vector: torch.Tensor) -> torch.Tensor:
        out = objective(layout.unravel(vector), *args)
        if not isinstance(out, torch.Tensor) or out.shape != ():
            got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out)
            raise ValueError(
                f"`objective` must return a 0-dim tensor, got {got}; sum or average it, and use "
                "torch.vmap(solver) for a batch of problems"
            )
        return out.to(vector.dtype)

    return value_of


def square_value(
    function: Callable[[torch.Tensor], torch.Tensor], vector: torch.Tensor
) -> torch.Tensor:
    """Return the value of a function that must have as many values as there are unknowns.

    Raises:
        ValueError: If it has not.
    """
    value = function(vector)
    if value.shape != vector.shape:
        raise ValueError(
            f"`function` must return as many values as there are unknowns, got "
            f"{value.numel()} values for {vector.numel()} unknowns; for least squares use "
            "levenberg_marquardt"
        )
    return value


def value_and_jacobian(
    function: Callable[[torch.Tensor], torch.Tensor], *, square: bool = False
) -> ValueAndJacobian:
    """Return the value and the dense Jacobian of a function as a function of a vector.

    With ``square`` there must be as many values as unknowns.
    """

    def checked(vector: torch.Tensor) -> torch.Tensor:
        return square_value(function, vector) if square else function(vector)

    def twice(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = checked(vector)
        return value, value

    transformed = torch.func.jacrev(twice, has_aux=True)

    def both(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if vector.numel() == 0:
            value = checked(vector)
            return value, value.new_zeros(value.numel(), 0)
        if _is_differentiated():
            matrix, value = transformed(vector)
            return value, matrix
        with torch.enable_grad():
            point = vector.detach().requires_grad_()
            value = checked(point)
            if not value.requires_grad or value.numel() == 0:
                return value.detach(), value.new_zeros(value.numel(), vector.numel())
            matrix = _rows(value, point)
        return value.detach(), matrix

    return both


def _rows(value: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Return the Jacobian of a value from its graph: one batched pass, or a few that cost less."""
    rows = torch.eye(value.numel(), dtype=value.dtype, device=value.device)
    if len(rows) <= FEW_ROWS:
        return torch.stack(
            [
                torch.autograd.grad(value, point, row, retain_graph=True, materialize_grads=True)[0]
                for row in rows.unbind()
            ]
        )
    return torch.autograd.grad(value, point, rows, is_grads_batched=True, materialize_grads=True)[0]


def _is_differentiated() -> bool:
    """Return whether derivatives have to be differentiable, or seen by a transform."""
    return torch.is_grad_enabled() or is_transforming() or torch.is_inference_mode_enabled()
