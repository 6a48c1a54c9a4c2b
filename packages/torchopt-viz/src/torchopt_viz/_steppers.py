"""Every kind of optimizer as the same thing: an endless walk of a point over a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz._described import described
from torchopt_viz._functions import Function

Optimizer = Callable[..., Any] | torchopt.GradientTransformation


class Objective:
    """A function of a point, which counts its evaluations.

    Args:
        function: The function of two coordinates.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.evaluations = 0

    @torch.enable_grad()
    def value(self, point: Tensor) -> Tensor:
        """Return the value at a point, with its graph."""
        self.evaluations += 1
        x, y = point.reshape(2).unbind()
        value = check_scalar(self.function(x, y))
        if not value.requires_grad:
            raise ValueError(
                "`function` must compute its value from both tensors it is given by torch "
                "operations, but the value has no gradient: don't detach them or convert them to "
                "numbers"
            )
        return value

    @torch.enable_grad()
    def value_and_grad(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Return the value and the gradient, which second-order methods differentiate again."""
        value = self.value(point)
        return value, torch.autograd.grad(value, point, create_graph=True)[0]


def check_scalar(value: Any) -> Tensor:
    """Return the value of a function of two 0-dim tensors, as one.

    Raises:
        TypeError: If it is no real tensor with one element.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`function` must return a tensor, got {type(value).__name__}: compute with torch"
        )
    if value.numel() != 1 or value.is_complex():
        raise TypeError(
            f"`function` must return one real number for two 0-dim tensors, got {value.dtype} of "
            f"shape {tuple(value.shape)}"
        )
    return value.reshape(())


def walk(
    optimizer: Optimizer, hyperparameters: Mapping[str, Any], start: Tensor, objective: Objective
) -> Iterator[Tensor]:
    """Yield the point after each step, each a tensor of its own.

    Args:
        optimizer: What :func:`~torchopt_viz.run_trajectory` takes.
        hyperparameters: Keyword arguments to it.
        start: The first point, in the shape that the optimizer is to see.
        objective: What to minimize.
    """
    if is_transformation(optimizer):
        if hyperparameters:
            raise ValueError(
                f"`hyperparameters` must be empty for a transformation, which has its own, got "
                f"{dict(hyperparameters)}: pass the function that makes it, such as torchopt.adam"
            )
        return _functional(optimizer, start, objective)
    if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"`optimizer` must be a class such as torch.optim.Adam, a function such as "
            f"torchopt.adam, or a GradientTransformation, got {_describe(optimizer)}"
        )
    made_of = _unwrapped(optimizer)
    if isinstance(made_of, type) and issubclass(made_of, torchopt.MetaOptimizer):
        return _differentiable(optimizer, hyperparameters, start, objective)
    if not _needs_params(optimizer, hyperparameters):
        made = optimizer(**hyperparameters)
        if is_transformation(made):
            return _functional(made, start, objective)
    else:
        point = start.clone().requires_grad_()
        made = optimizer([point], **hyperparameters)
        if isinstance(made, torch.optim.Optimizer):
            return _stateful(made, point, objective)
    raise TypeError(
        f"`optimizer` must make a torch.optim.Optimizer from parameters, or a "
        f"GradientTransformation from hyperparameters, but {label_of(optimizer)} made "
        f"{_describe(made)}"
    )


def is_transformation(optimizer: Any) -> TypeGuard[torchopt.GradientTransformation]:
    """Return whether an optimizer is a transformation, not what makes one."""
    return isinstance(optimizer, tuple) and hasattr(optimizer, "init")


def label_of(optimizer: Optimizer, hyperparameters: Mapping[str, Any] | None = None) -> str:
    """Return the name of an optimizer for people, such as ``AdamW(lr=0.1)``."""
    if is_transformation(optimizer):
        return described(optimizer)
    arguments = dict(hyperparameters or {})
    if isinstance(optimizer, functools.partial):
        arguments = {**optimizer.keywords, **arguments}
    name = getattr(_unwrapped(optimizer), "__name__", "optimizer").replace("<lambda>", "optimizer")
    listed = ", ".join(f"{key}={_brief(value)}" for key, value in arguments.items())
    return f"{name}({listed})" if listed else name


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _describe(value: Any) -> str:
    """Return what an error says of a wrong optimizer."""
    if isinstance(value, torch.optim.Optimizer):
        return f"an optimizer of other parameters ({type(value).__name__}): pass its class"
    return repr(value)


def _unwrapped(optimizer: Any) -> Any:
    while isinstance(optimizer, functools.partial):
        optimizer = optimizer.func
    return optimizer


def _needs_params(optimizer: Callable[..., Any], hyperparameters: Mapping[str, Any]) -> bool:
    """Return whether an argument is still missing: the parameters, then."""
    return any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and name not in hyperparameters
        for name, parameter in inspect.signature(optimizer).parameters.items()
    )


def _stateful(
    optimizer: torch.optim.Optimizer, point: Tensor, objective: Objective
) -> Iterator[Tensor]:
    def closure() -> Any:  # a tensor, as for every closure, though torch says float
        value, point.grad = objective.value_and_grad(point)
        return value

    takes_closure = bool(inspect.signature(optimizer.step).parameters)
    while True:
        if takes_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        point.grad = None  # its graph leads to the point: a cycle
        yield point.detach().clone()


def _functional(
    transformation: torchopt.GradientTransformation, point: Tensor, objective: Objective
) -> Iterator[Tensor]:
    state = transformation.init(point)
    while True:
        _, grad = objective.value_and_grad(point.detach().requires_grad_())
        with torch.no_grad():
            updates, state = transformation.update(grad.detach(), state, params=point)
            point = torchopt.apply_updates(point, updates, inplace=False)
        yield point


class _Point(nn.Module):
    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(start.clone())


def _differentiable(
    optimizer: Callable[..., Any],
    hyperparameters: Mapping[str, Any],
    start: Tensor,
    objective: Objective,
) -> Iterator[Tensor]:
    module = _Point(start)
    inner = optimizer(module, **hyperparameters)
    while True:
        inner.step(objective.value(module.point))
        torchopt.stop_gradient([module, inner])  # the walk is looked at, not differentiated
        yield module.point.detach().clone()
