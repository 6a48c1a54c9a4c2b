"""A module keeps its gradient when it holds other tensors by the time of the backward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import torchopt

X = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).view(4, 3)


class Exact(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, dtype=torch.float64)
        self.register_buffer("scale", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x).square().mean()


class Loss(Exact, torchopt.nn.ZeroOrderGradientModule, method="finite-difference", sigma=1e-4):
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randn(sample_shape)


def pair() -> tuple[Any, Any]:
    module, exact = Loss(), Exact()
    exact.load_state_dict(module.state_dict())
    return module, exact


def moved(module: nn.Module) -> dict[str, Tensor]:
    return {name: (p.detach() + 0.5).requires_grad_() for name, p in module.named_parameters()}


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_functional_call() -> None:
    module, exact = pair()
    given = moved(module)
    for frozen in ((), ("linear.bias",)):
        tensors = {n: p.detach() if n in frozen else p for n, p in given.items()}
        leaves = [p for p in tensors.values() if p.requires_grad]
        found = torch.autograd.grad(functional_call(module, tensors, (X,)), leaves)
        close(found, torch.autograd.grad(functional_call(exact, tensors, (X,)), leaves))
    assert all(p.grad is None for p in module.parameters())


def test_functional_call_under_transforms() -> None:
    module, exact = pair()
    given = {name: p.detach() for name, p in moved(module).items()}
    tangents = {name: torch.ones_like(p) for name, p in given.items()}
    batch = {name: torch.stack([p, 2 * p]) for name, p in given.items()}
    module_loss, exact_loss = (
        lambda tensors, one=one: functional_call(one, tensors, (X,)) for one in (module, exact)
    )
    close(torch.func.grad(module_loss)(given), torch.func.grad(exact_loss)(given))
    close(
        torch.func.jvp(module_loss, (given,), (tangents,)),
        torch.func.jvp(exact_loss, (given,), (tangents,)),
    )
    found = torch.func.vmap(torch.func.grad(module_loss), randomness="different")(batch)
    close(found, torch.func.vmap(torch.func.grad(exact_loss))(batch))


def test_a_recovered_state() -> None:
    slopes = []
    for module in pair():
        torch.manual_seed(0)
        module = copy.deepcopy(module)
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(0.5)
        start = [*module.parameters()]
        state = torchopt.extract_state_dict(module, by="reference")
        inner = torchopt.MetaSGD(module, lr=0.1)
        inner.step(sum(p.square().sum() for p in module.parameters()))
        loss = module(X)
        torchopt.recover_state_dict(module, state)
        slopes.append(torch.autograd.grad(loss, start))
    assert all(slope.abs().max() > 0.01 for slope in slopes[0])
    close(*slopes)


@pytest.mark.parametrize("place", ["state", "buffer", "submodule", "deleted"])
def test_what_is_assigned_in_between(place: str) -> None:
    module, exact = pair()
    start = [*module.parameters()]
    loss = module(X)
    other = nn.Linear(3, 2, dtype=torch.float64)
    if place == "state":
        module.load_state_dict(Loss().state_dict(), assign=True)
    elif place == "buffer":
        module.scale = torch.tensor(7.0, dtype=torch.float64)
    elif place == "submodule":
        module.linear = other
    else:
        del module.linear.bias
    now = dict(module.named_parameters()), dict(module.named_buffers())
    found = torch.autograd.grad(loss, start)
    close(found, torch.autograd.grad(exact(X), [*exact.parameters()]))
    after = dict(module.named_parameters()), dict(module.named_buffers())
    for before, kept in zip(now, after, strict=True):
        assert before.keys() == kept.keys()
        assert all(before[name] is kept[name] for name in before)


def test_a_buffer_that_the_module_assigns() -> None:
    class Counting(Loss, method="antithetic", num_samples=3):
        def forward(self, x: Tensor) -> Tensor:
            self.scale = self.scale + 1
            return self.scale * self.linear(x).mean()

    module = Counting()
    module(X).backward()
    assert module.scale == 3.0
    assert module.linear.weight.grad.any()
