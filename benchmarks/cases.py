"""What is timed: one piece of work, built alike for every library.

This file and ``worker.py`` run under the Python of each library, so they import it by name only
and share nothing else with it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

__all__ = ["OPTIMIZERS", "SHAPES", "STEPS", "Case", "build"]

#: A piece of work that can be repeated; returns its results.
Case = Callable[[], list[torch.Tensor]]

#: Inner steps of a differentiable episode.
STEPS = 5

#: Shapes by the name that the table shows.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "6 small": [(32, 32), (32,)] * 3,
    "18 small": [(32, 32), (32,)] * 9,
    "200 small": [(32, 32), (32,)] * 100,
    "12 x 1M": [(1000, 1000)] * 12,
}


class OptimizerNames(NamedTuple):
    """One optimizer: its names, and hyperparameters, stated where libraries' defaults differ."""

    functional: str
    stateful: str
    torch: str
    hyperparameters: dict[str, Any]


#: Optimizers by the name that the table shows.
OPTIMIZERS = {
    "sgd": OptimizerNames("sgd", "SGD", "SGD", {"lr": 1e-3}),
    "sgd, momentum": OptimizerNames("sgd", "SGD", "SGD", {"lr": 1e-3, "momentum": 0.9}),
    "adam": OptimizerNames("adam", "Adam", "Adam", {"lr": 1e-3, "eps": 1e-8}),
    "adamw": OptimizerNames("adamw", "AdamW", "AdamW", {"lr": 1e-3, "eps": 1e-8}),
    "adagrad": OptimizerNames("adagrad", "AdaGrad", "Adagrad", {"lr": 1e-2, "eps": 1e-10}),
    "adadelta": OptimizerNames("adadelta", "AdaDelta", "Adadelta", {"lr": 1.0, "eps": 1e-6}),
    "adamax": OptimizerNames("adamax", "AdaMax", "Adamax", {"lr": 2e-3, "eps": 1e-8}),
    "radam": OptimizerNames("radam", "RAdam", "RAdam", {"lr": 1e-3, "eps": 1e-8}),
    "rmsprop": OptimizerNames("rmsprop", "RMSProp", "RMSprop", {"lr": 1e-2, "eps": 1e-8}),
}


def build(task: str, library: str, optimizer: str, tensors: str) -> Case:
    """Return the work of ``library`` for a task of the table."""
    torch.manual_seed(0)
    tasks = {"step": _step, "functional": _functional, "meta": _meta}
    return tasks[task](library, OPTIMIZERS[optimizer], SHAPES[tensors])


def _random(shapes: list[tuple[int, ...]], requires_grad: bool = True) -> list[torch.Tensor]:
    return [torch.randn(shape).requires_grad_(requires_grad) for shape in shapes]


def _supported(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Return the options that ``function`` has a parameter for."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}


def _step(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """One in-place step of a stateful optimizer."""
    # of the size of an update, so that results show whether updates agree
    params = [(1e-3 * torch.randn(shape)).requires_grad_() for shape in shapes]
    for param, grad in zip(params, _random(shapes, requires_grad=False), strict=True):
        param.grad = grad
    if library == "torch":
        optim = getattr(torch.optim, names.torch)(params, **names.hyperparameters, foreach=True)
    else:
        make = getattr(importlib.import_module(library), names.stateful)
        options = _supported(make, use_accelerated_op=False)
        optim = make(params, **names.hyperparameters, **options)

    def run() -> list[torch.Tensor]:
        optim.step()
        return params

    return run


def _functional(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """Five pure updates from zero state, and the gradient in parameters and gradients."""
    torchopt = importlib.import_module(library)
    make = getattr(torchopt, names.functional)
    options = _supported(make, moment_requires_grad=True, use_accelerated_op=False)
    optim = make(**names.hyperparameters, **options)
    initial = _random(shapes)
    every_grads = [_random(shapes) for _ in range(STEPS)]
    cotangents = _random(shapes, requires_grad=False)
    inputs = [*initial, *(grad for grads in every_grads for grad in grads)]

    def run() -> list[torch.Tensor]:
        params, state = initial, optim.init(initial)
        for grads in every_grads:
            updates, state = optim.update(grads, state, params=params, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return [*params, *torch.autograd.grad(params, inputs, cotangents)]

    return run


class _FreeLoss(torch.autograd.Function):
    """A loss that costs nothing: its gradients are given."""

    @staticmethod
    def forward(ctx: Any, grads: list[torch.Tensor], *params: torch.Tensor) -> torch.Tensor:
        ctx.grads = grads
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        return None, *ctx.grads


def _meta(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """The same through a differentiable optimizer on a module, with a loss that costs nothing."""
    initial = _random(shapes)
    every_grads = [_random(shapes) for _ in range(STEPS)]
    cotangents = _random(shapes, requires_grad=False)
    inputs = [*initial, *(grad for grads in every_grads for grad in grads)]
    free_loss: Any = _FreeLoss.apply
    if library == "higher":
        episode = _higher_episode(names, initial)
    else:
        episode = _module_episode(library, names, initial)

    def run() -> list[torch.Tensor]:
        params = initial
        step = episode()
        for grads in every_grads:
            params = step(free_loss(grads, *params), params)
        return [*params, *torch.autograd.grad(params, inputs, cotangents)]

    return run


_Step = Callable[[torch.Tensor, list[torch.Tensor]], list[torch.Tensor]]


def _module_episode(
    library: str, names: OptimizerNames, initial: list[torch.Tensor]
) -> Callable[[], _Step]:
    make = getattr(importlib.import_module(library), f"Meta{names.stateful}")
    options = _supported(make, moment_requires_grad=True, use_accelerated_op=False)
    module = torch.nn.Module()
    parameters: dict[str, Any] = module._parameters
    slots = [str(i) for i in range(len(initial))]

    def episode() -> _Step:
        parameters.update(zip(slots, initial, strict=True))
        optim = make(module, **names.hyperparameters, **options)

        def step(loss: torch.Tensor, params: list[torch.Tensor]) -> list[torch.Tensor]:
            optim.step(loss)
            return [parameters[slot] for slot in slots]

        return step

    return episode


def _higher_episode(names: OptimizerNames, initial: list[torch.Tensor]) -> Callable[[], _Step]:
    higher = importlib.import_module("higher")
    optim = getattr(torch.optim, names.torch)(initial, **names.hyperparameters)

    def episode() -> _Step:
        inner = higher.get_diff_optim(optim, initial)

        def step(loss: torch.Tensor, params: list[torch.Tensor]) -> list[torch.Tensor]:
            return list(inner.step(loss, params=params))

        return step

    return episode
