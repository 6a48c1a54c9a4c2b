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
    # networks: one hidden dimension of 40 (sinusoids), digits, and Conv-4 for five classes
    "MLP 1-40-40-1": [(40, 1), (40,), (40, 40), (40,), (1, 40), (1,)],
    "MLP 784-64-64-10": [(64, 784), (64,), (64, 64), (64,), (10, 64), (10,)],
    "Conv-4": [
        *[(64, 1, 3, 3), (64,), (64,), (64,)],
        *[(64, 64, 3, 3), (64,), (64,), (64,)] * 3,
        *[(5, 64), (5,)],
    ],
    "200 of 32x32": [(32, 32)] * 200,
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


#: Appended to a library's name: take its compiled steps.
COMPILED = "+compiled"


def build(task: str, library: str, optimizer: str, tensors: str) -> Case:
    """Return the work of ``library`` for a task of the table."""
    torch.manual_seed(0)
    tasks = {
        "step": _step,
        "functional": _functional,
        "meta": _meta,
        "episode": _episode,
        "floor": _floor,
        "traffic": _traffic,
    }
    return tasks[task](library, OPTIMIZERS[optimizer], SHAPES[tensors])


def _open(library: str) -> tuple[Any, bool]:
    """Return a library, and whether its compiled steps are to be taken."""
    name = library.removesuffix(COMPILED)
    return importlib.import_module(name), name != library


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
    elif library == "torch fused":
        optim = getattr(torch.optim, names.torch)(params, **names.hyperparameters, fused=True)
    else:
        torchopt, compiled = _open(library)
        make = getattr(torchopt, names.stateful)
        options = _supported(make, use_accelerated_op=compiled)
        optim = make(params, **names.hyperparameters, **options)

    def run() -> list[torch.Tensor]:
        optim.step()
        return params

    return run


def _functional(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """Five pure updates from zero state, and the gradient in parameters and gradients."""
    torchopt, compiled = _open(library)
    make = getattr(torchopt, names.functional)
    options = _supported(make, moment_requires_grad=True, use_accelerated_op=compiled)
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
    torchopt, compiled = _open(library)
    make = getattr(torchopt, f"Meta{names.stateful}")
    options = _supported(make, moment_requires_grad=True, use_accelerated_op=compiled)
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


def _network(shapes: list[tuple[int, ...]]) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    """Return the network of these shapes, and a loss on a batch of a few random examples."""
    if len(shapes) == 6:
        (width, inputs), _, _, _, (outputs, _), _ = shapes
        net: torch.nn.Module = torch.nn.Sequential(
            torch.nn.Linear(inputs, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, width),
            torch.nn.ReLU(),
            torch.nn.Linear(width, outputs),
        )
        x, y = torch.randn(10, inputs), torch.randn(10, outputs)
    else:
        blocks: list[torch.nn.Module] = []
        for channels in (1, 64, 64, 64):
            blocks += [
                torch.nn.Conv2d(channels, 64, 3, padding=1),
                torch.nn.BatchNorm2d(64, track_running_stats=False),
                torch.nn.ReLU(),
                torch.nn.MaxPool2d(2),
            ]
        net = torch.nn.Sequential(*blocks, torch.nn.Flatten(), torch.nn.Linear(64, 5))
        x, y = torch.randn(5, 1, 28, 28), torch.randn(5, 5)
    assert [tuple(p.shape) for p in net.parameters()] == shapes
    return net, lambda: torch.nn.functional.mse_loss(net(x), y)


def _episode(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """A task of MAML: five differentiable steps on a network, and the outer gradient."""
    net, loss_fn = _network(shapes)
    initial = list(net.parameters())
    episode = _module_steps(library, names, net, initial)

    def run() -> list[torch.Tensor]:
        step = episode()
        for _ in range(STEPS):
            step(loss_fn())
        return list(torch.autograd.grad(loss_fn(), initial))

    return run


def _floor(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """The same with bare differentiable gradient descent: what the network itself costs."""
    net, loss_fn = _network(shapes)
    initial = list(net.parameters())
    slots = _slots(net)

    def run() -> list[torch.Tensor]:
        params: list[torch.Tensor] = initial
        for _ in range(STEPS):
            grads = torch.autograd.grad(loss_fn(), params, create_graph=True)
            params = [p - 1e-3 * g for p, g in zip(params, grads, strict=True)]
            for (container, name), param in zip(slots, params, strict=True):
                container[name] = param
        result = list(torch.autograd.grad(loss_fn(), initial))
        for (container, name), param in zip(slots, initial, strict=True):
            container[name] = param
        return result

    return run


def _slots(net: torch.nn.Module) -> list[tuple[dict[str, Any], str]]:
    return [(m._parameters, name) for m in net.modules() for name in m._parameters]


def _module_steps(
    library: str, names: OptimizerNames, net: torch.nn.Module, initial: list[torch.Tensor]
) -> Callable[[], Callable[[torch.Tensor], Any]]:
    slots = _slots(net)
    torchopt, compiled = _open(library)
    make = getattr(torchopt, f"Meta{names.stateful}")
    options = _supported(make, use_accelerated_op=compiled)

    def episode() -> Callable[[torch.Tensor], Any]:
        for (container, name), param in zip(slots, initial, strict=True):
            container[name] = param
        step: Callable[[torch.Tensor], Any] = make(net, **names.hyperparameters, **options).step
        return step

    return episode


def _traffic(library: str, names: OptimizerNames, shapes: list[tuple[int, ...]]) -> Case:
    """A pass over memory: a copy, or the kernel of a step or of its backward pass."""
    streams = [_random(shapes, requires_grad=False) for _ in range(9)]
    if library == "copy":

        def copy() -> list[torch.Tensor]:
            torch._foreach_copy_(streams[0], streams[1])
            return streams[0]

        return copy

    from torchopt_accel import _native

    module = _native.load("cpu")
    for second_moment in streams[3]:
        second_moment.abs_()
    # sign, decay, alpha, beta, lifted; b1, b2, inside, slope, offset
    rows = [(1.0, 0.0, 1.0, -1e-3, 1.0, 0.9, 0.999, 0.0, 1.0, 1e-8)]
    grads, params, mu, nu, *cotangents = streams[:7]
    inputs: list[Any] = [grads, params, mu, nu]
    outputs: list[Any] = [streams[7], streams[8], cotangents[0]]
    operation = _native.FORWARD
    if library == "backward":
        inputs = [grads, None, mu, nu, *cotangents]
        outputs = [streams[7], None, streams[8], params]
        operation = _native.BACKWARD

    def run() -> list[torch.Tensor]:
        module.run(operation, module.RULES["adam"], rows, None, inputs, outputs, 1)
        return outputs[0]  # type: ignore[no-any-return]

    return run


def saved_per_step(library: str, optimizer: str, tensors: str) -> float:
    """Return how many tensors a step saves for its backward pass, for each parameter."""
    torchopt, compiled = _open(library)
    names, shapes = OPTIMIZERS[optimizer], SHAPES[tensors]
    make = getattr(torchopt, names.functional)
    options = _supported(make, moment_requires_grad=True, use_accelerated_op=compiled)
    optim = make(**names.hyperparameters, **options)
    params, grads = _random(shapes), _random(shapes)
    state = optim.init(params)
    count = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        updates, state = optim.update(grads, state, params=params, inplace=False)
        torchopt.apply_updates(params, updates, inplace=False)
    return count / len(shapes)
