"""The conformance table: one row for each optimizer and interesting choice of hyperparameters."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import pytest
import torch
from torch import nn

import torchopt

Tensors = list[torch.Tensor]


class Family(NamedTuple):
    """The three faces of an optimizer, and torch's own."""

    functional: Callable[..., torchopt.GradientTransformation]
    stateful: Callable[..., torchopt.Optimizer]
    meta: Callable[..., torchopt.MetaOptimizer]
    torch: Callable[..., torch.optim.Optimizer]


class Case(NamedTuple):
    """A row of the table."""

    name: str
    family: Family
    # the hyperparameters, but for the learning rate
    kwargs: dict[str, Any]
    # what the trajectories are held against
    reference: Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]
    lr: float

    def functional(self, **changes: Any) -> torchopt.GradientTransformation:
        return self.family.functional(**{"lr": self.lr, **self.kwargs, **changes})

    def stateful(self, params: Any, **changes: Any) -> torchopt.Optimizer:
        return self.family.stateful(params, **{"lr": self.lr, **self.kwargs, **changes})

    def meta(self, module: nn.Module, **changes: Any) -> torchopt.MetaOptimizer:
        return self.family.meta(module, **{"lr": self.lr, **self.kwargs, **changes})


def _real(x: torch.Tensor) -> torch.Tensor:
    """A complex tensor as a real one with two components, which is how torch.optim takes it."""
    return torch.view_as_real(x) if x.is_complex() else x


class TextbookAdam(torch.optim.Optimizer):
    """Adam with a term inside of the root, which torch's does not have, as its formula reads."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], **kwargs: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, **kwargs})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                x = _real(p)
                g = _real(p.grad) + group["weight_decay"] * x
                m, v, t = self.state.get(p, (0.0, 0.0, 0))
                m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, t + 1
                self.state[p] = m, v, t
                root = (v / (1 - b2**t) + group["eps_root"]) ** 0.5
                x -= group["lr"] * (m / (1 - b1**t)) / (root + group["eps"])


class TextbookRMSprop(torch.optim.Optimizer):
    """RMSprop with a start of the average and Nesterov momentum, as its formula reads."""

    def __init__(self, params: Any, lr: float, **kwargs: float) -> None:
        super().__init__(params, {"lr": lr, **kwargs})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            a, momentum = group["alpha"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                v, b = self.state.get(p, (group["initial_scale"], 0.0))
                g = _real(p.grad)
                v = a * v + (1 - a) * g**2
                d = g / (v**0.5 + group["eps"])
                b = momentum * b + d
                self.state[p] = v, b
                x = _real(p)
                x -= group["lr"] * (d + momentum * b)


def has_dimensions(params: Any) -> Any:
    """A mask: decay matrices and vectors, not scalars."""
    return optree.tree_map(lambda x: x is not None and x.ndim > 0, params, none_is_leaf=True)


def _masked_adamw(params: Sequence[torch.Tensor], **kwargs: Any) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in params if p.ndim > 0]},
        {"params": [p for p in params if p.ndim == 0], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, **kwargs)


SGD = Family(torchopt.sgd, torchopt.SGD, torchopt.MetaSGD, torch.optim.SGD)
ADAM = Family(torchopt.adam, torchopt.Adam, torchopt.MetaAdam, torch.optim.Adam)
ADAMW = Family(torchopt.adamw, torchopt.AdamW, torchopt.MetaAdamW, torch.optim.AdamW)
ADAGRAD = Family(torchopt.adagrad, torchopt.Adagrad, torchopt.MetaAdagrad, torch.optim.Adagrad)
ADADELTA = Family(torchopt.adadelta, torchopt.Adadelta, torchopt.MetaAdadelta, torch.optim.Adadelta)
ADAMAX = Family(torchopt.adamax, torchopt.Adamax, torchopt.MetaAdamax, torch.optim.Adamax)
RADAM = Family(torchopt.radam, torchopt.RAdam, torchopt.MetaRAdam, torch.optim.RAdam)
RMSPROP = Family(torchopt.rmsprop, torchopt.RMSprop, torchopt.MetaRMSprop, torch.optim.RMSprop)

FAMILIES = {
    "sgd": SGD,
    "adam": ADAM,
    "adamw": ADAMW,
    "adagrad": ADAGRAD,
    "adadelta": ADADELTA,
    "adamax": ADAMAX,
    "radam": RADAM,
    "rmsprop": RMSPROP,
}


def _row(
    name: str,
    family: Family,
    reference: Callable[..., torch.optim.Optimizer] | None = None,
    *,
    lr: float = 0.05,
    unknown_to_reference: Sequence[str] = (),
    **kwargs: Any,
) -> Case:
    known = {key: value for key, value in kwargs.items() if key not in unknown_to_reference}
    reference = functools.partial(reference or family.torch, lr=lr, **known)
    return Case(name, family, kwargs, reference, lr)


CASES = [
    _row("sgd", SGD),
    _row("sgd-momentum", SGD, momentum=0.9),
    _row("sgd-dampening", SGD, momentum=0.8, dampening=0.3, weight_decay=0.1),
    _row("sgd-nesterov", SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    _row("sgd-maximize", SGD, momentum=0.5, maximize=True, weight_decay=0.1),
    _row("adam", ADAM),
    _row("adam-decay", ADAM, betas=(0.7, 0.95), eps=1e-3, weight_decay=0.1),
    _row("adam-maximize", ADAM, maximize=True, weight_decay=0.1),
    _row("adam-no-memory", ADAM, betas=(0.0, 0.0), eps=0.1),
    _row(
        "adam-eps-root",
        ADAM,
        TextbookAdam,
        betas=(0.7, 0.95),
        eps=1e-2,
        eps_root=1e-1,
        weight_decay=0.1,
    ),
    _row("adamw", ADAMW),
    _row("adamw-maximize", ADAMW, betas=(0.7, 0.95), weight_decay=0.5, maximize=True),
    _row(
        "adamw-mask",
        ADAMW,
        _masked_adamw,
        weight_decay=0.5,
        mask=has_dimensions,
        unknown_to_reference=["mask"],
    ),
    _row("adagrad", ADAGRAD),
    _row(
        "adagrad-decay",
        ADAGRAD,
        lr_decay=0.1,
        weight_decay=0.1,
        initial_accumulator_value=0.5,
        eps=1e-3,
    ),
    _row("adagrad-maximize", ADAGRAD, lr_decay=0.1, weight_decay=0.1, maximize=True),
    _row("adadelta", ADADELTA, lr=1.0),
    _row("adadelta-decay", ADADELTA, lr=0.5, rho=0.7, eps=1e-2, weight_decay=0.1),
    _row("adadelta-maximize", ADADELTA, lr=0.5, weight_decay=0.1, maximize=True),
    _row("adamax", ADAMAX),
    _row("adamax-decay", ADAMAX, betas=(0.7, 0.95), eps=1e-2, weight_decay=0.1),
    _row("adamax-maximize", ADAMAX, weight_decay=0.1, maximize=True),
    _row("radam", RADAM),
    _row("radam-decay", RADAM, betas=(0.7, 0.8), eps=1e-2, weight_decay=0.1),
    _row("radam-maximize", RADAM, weight_decay=0.1, maximize=True),
    _row("rmsprop", RMSPROP),
    _row("rmsprop-centered", RMSPROP, alpha=0.8, eps=1e-3, centered=True, weight_decay=0.1),
    _row("rmsprop-momentum", RMSPROP, alpha=0.8, momentum=0.9, weight_decay=0.1),
    _row("rmsprop-all", RMSPROP, centered=True, momentum=0.5, weight_decay=0.1, maximize=True),
    _row(
        "rmsprop-nesterov",
        RMSPROP,
        TextbookRMSprop,
        alpha=0.8,
        eps=1e-3,
        momentum=0.9,
        nesterov=True,
        initial_scale=0.3,
        unknown_to_reference=["nesterov"],
    ),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


class Bag(nn.Module):
    """A module that holds the given parameters."""

    def __init__(self, params: Sequence[torch.Tensor]) -> None:
        super().__init__()
        for i, param in enumerate(params):
            self.register_parameter(f"p{i}", nn.Parameter(param))

    def tensors(self) -> Tensors:
        return list(self._parameters.values())

    def loss(self, grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """A scalar whose gradients are ``grads``."""
        pairs = zip(self.tensors(), grads, strict=True)
        return sum((g.conj() * p).sum().real for p, g in pairs if g is not None)


def make_params(dtype: torch.dtype = torch.float64, *, real: bool = False) -> Tensors:
    """Parameters of several kinds: 0-dim, empty, strided, complex."""
    params = [
        torch.randn(3, 2, dtype=dtype),
        torch.randn((), dtype=dtype),
        torch.randn(0, 3, dtype=dtype),
        torch.randn(2, 4, dtype=dtype).t(),
        torch.randn(6, dtype=dtype)[::2],
    ]
    if not real:
        params += [torch.randn(shape, dtype=dtype.to_complex()) for shape in ((), (2,), (2, 2))]
    return params


def make_grads(params: Sequence[torch.Tensor], steps: int) -> list[list[torch.Tensor | None]]:
    """Gradients for each step; some parameters have none in some steps."""
    return [
        [None if (t + i) % 4 == 3 else torch.randn_like(p) for i, p in enumerate(params)]
        for t in range(steps)
    ]


def run_torch(
    optimizer: torch.optim.Optimizer,
    params: Sequence[torch.Tensor],
    grads: Sequence[Sequence[torch.Tensor | None]],
) -> Tensors:
    """Step a ``torch.optim.Optimizer`` through given gradients."""
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad
        optimizer.step()
    return [param.detach() for param in params]


def run_functional(
    transformation: torchopt.GradientTransformation,
    params: Any,
    grads: Sequence[Any],
    *,
    inplace: bool = False,
) -> Any:
    """Step a transformation through given gradients."""
    state = transformation.init(params)
    for step in grads:
        updates, state = transformation.update(step, state, params=params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params


def leaves_of(params: Sequence[torch.Tensor]) -> Tensors:
    """Fresh leaves that require grad, with the same values and strides."""
    return [p.detach().clone().requires_grad_() for p in params]


def tensors_in(tree: Any) -> Tensors:
    """All tensors of a tree."""
    return [x for x in optree.tree_leaves(tree) if isinstance(x, torch.Tensor)]


def assert_same(actual: Any, expected: Any) -> None:
    """Assert bit for bit equality of two trees of tensors, NaN included."""
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0, equal_nan=True)


def assert_agree(actual: Any, expected: Any) -> None:
    """Assert equality up to rounding: the same formula, evaluated in another order.

    A few operations on each of some tens of steps, so some tens of units in the last place.
    """
    dtypes = {x.dtype for x in tensors_in(expected)}
    single = dtypes & {torch.float32, torch.complex64}
    rtol, atol = (1e-4, 1e-5) if single else (1e-10, 1e-12)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def regression() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    """Return a small network and its loss."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(16, 3), torch.randn(16, 1)
    return net, lambda net: nn.functional.mse_loss(net(x), y)


def train(
    net: nn.Module,
    loss_fn: Callable[[nn.Module], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int = 10,
) -> Tensors:
    """Train ``net`` and return copies of its parameters."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(net).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Save and load a state dict, trusting the file with nothing but data."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Copy everything that a step may change."""
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy((params, optimizer.state_dict()["state"]))
