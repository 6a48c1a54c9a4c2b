"""What the checkpoints of TorchOpt 0.7 were made of; runs with 0.7 and with this version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import torchopt
from torchopt import pytree, schedule, transform

#: Steps before the checkpoint, and after it.
BEFORE, AFTER = 5, 5


def is_matrix(tree: Any) -> Any:
    """A mask: True for the leaves with more than one dimension."""
    return pytree.tree_map(lambda p: p.ndim > 1, tree)


def falling() -> Callable[[Any], Any]:
    return schedule.linear_schedule(0.2, 0.02, transition_steps=8, transition_begin=1)


#: By name, what makes the transformation.
CASES: dict[str, Callable[[], Any]] = {
    "sgd": lambda: torchopt.sgd(0.1),
    "sgd_decay": lambda: torchopt.sgd(0.1, weight_decay=0.1),
    "sgd_schedule": lambda: torchopt.sgd(falling()),
    "sgd_momentum": lambda: torchopt.sgd(0.1, momentum=0.9),
    "sgd_momentum_schedule": lambda: torchopt.sgd(falling(), momentum=0.9),
    "sgd_dampening": lambda: torchopt.sgd(0.1, momentum=0.9, dampening=0.3),
    "sgd_nesterov": lambda: torchopt.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda: torchopt.adam(0.1),
    "adam_decay": lambda: torchopt.adam(0.1, weight_decay=0.1),
    "adam_maximize": lambda: torchopt.adam(0.1, eps_root=1e-3, maximize=True),
    "adam_schedule": lambda: torchopt.adam(falling()),
    "adam_without_some": lambda: torchopt.adam(0.1),
    "adamw": lambda: torchopt.adamw(0.1, weight_decay=0.1),
    "adamax": lambda: torchopt.adamax(0.1, eps=1e-6),
    "adamax_decay": lambda: torchopt.adamax(0.1, eps=1e-6, weight_decay=0.1),
    "adadelta": lambda: torchopt.adadelta(1.0, eps=1e-6),
    "adagrad": lambda: torchopt.adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.1),
    "adagrad_schedule": lambda: torchopt.adagrad(falling(), lr_decay=0.1),
    "radam": lambda: torchopt.radam(0.1, betas=(0.8, 0.9), eps=1e-6),
    "rmsprop": lambda: torchopt.rmsprop(0.1),
    "rmsprop_schedule": lambda: torchopt.rmsprop(falling(), initial_scale=0.1),
    "rmsprop_momentum": lambda: torchopt.rmsprop(0.1, momentum=0.9, nesterov=True),
    "rmsprop_centered": lambda: torchopt.rmsprop(
        0.1, momentum=0.5, centered=True, initial_scale=1.0, weight_decay=0.1
    ),
    "clip_adam": lambda: torchopt.chain(
        torchopt.clip_grad_norm(0.5), torchopt.nan_to_num(), torchopt.adam(0.1)
    ),
    "chain": lambda: torchopt.chain(
        transform.add_decayed_weights(0.1),
        transform.trace(momentum=0.5),
        transform.scale_by_adam(),
        transform.scale_by_schedule(falling()),
        transform.scale(-1.0),
    ),
    "masked": lambda: torchopt.chain(
        transform.masked(transform.scale_by_adam(), is_matrix), torchopt.sgd(0.1, momentum=0.9)
    ),
    "masked_adam": lambda: transform.masked(torchopt.adam(0.1), is_matrix),
}


def loss_fn(weight: torch.Tensor, bias: torch.Tensor, step: int, name: str) -> torch.Tensor:
    """A loss that needs no random numbers; in one case, one step leaves the bias out."""
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
    y = torch.linspace(-2, 1, 15, dtype=torch.float64).reshape(5, 3).cos()
    if name == "adam_without_some" and step == 1:
        bias = bias.detach()
    return ((x @ weight.T + bias).tanh() - y).square().mean() * (1 + 0.1 * step)


def make_module() -> torch.nn.Linear:
    """A module whose parameters are registered in another order than that of their names."""
    module = torch.nn.Linear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(-1, 1, 6).reshape(3, 2))
        module.bias.copy_(torch.linspace(0, 1, 3))
    return module


def step_functional(name: str, transformation: Any, params: Any, state: Any, steps: range) -> Any:
    """Return parameters and state after some functional steps."""
    for step in steps:
        leaves = {key: p.detach().requires_grad_() for key, p in params.items()}
        loss = loss_fn(**leaves, step=step, name=name)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = dict(zip(leaves, found, strict=True))
        params = {key: p.detach() for key, p in leaves.items()}
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params, state


def step_stateful(name: str, optimizer: Any, module: torch.nn.Linear, steps: range) -> None:
    """Step a stateful optimizer."""
    for step in steps:
        for p in module.parameters():
            p.grad = None
        loss_fn(module.weight, module.bias, step, name).backward()
        optimizer.step()


def step_meta(name: str, optimizer: Any, module: torch.nn.Linear, steps: range) -> None:
    """Step a meta-optimizer."""
    for step in steps:
        optimizer.step(loss_fn(module.weight, module.bias, step, name))
