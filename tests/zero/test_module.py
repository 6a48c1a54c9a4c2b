"""A module's parameters get an estimated gradient of its loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_zero import enable_zero_order_gradients

Base = torchopt.nn.ZeroOrderGradientModule
X = torch.linspace(-1.0, 1.0, 12).view(4, 3)


class Loss(Base, method="finite-difference", sigma=0.1):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return scale * self.net(x).square().mean()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randn(sample_shape)


def exact(module: Any) -> list[Tensor]:
    return [*torch.autograd.grad(module.net(X).square().mean(), [*module.net.parameters()])]


def test_gradients_reach_the_parameters() -> None:
    module = Loss()
    loss = module(X, scale=2.0)
    torch.testing.assert_close(loss, 2 * module.net(X).square().mean())
    loss.backward()
    found = [parameter.grad for parameter in module.parameters()]
    torch.testing.assert_close(found, [2 * g for g in exact(module)], rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic", "spsa"])
def test_class_arguments_choose_the_estimate(method: str) -> None:
    shapes = []

    class Sampled(Loss, method=method, num_samples=7, sigma=0.05, vectorize=False):
        forward = Loss.forward.__wrapped__

        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            shapes.append(sample_shape)
            return torch.randn(sample_shape)

    module = Sampled()
    module(X).backward()
    wanted = [parameter.shape for parameter in module.parameters()]
    assert shapes == wanted * 7
    assert all(parameter.grad.any() for parameter in module.parameters())


def test_the_parameters_are_put_back_whatever_happens() -> None:
    class Failing(Loss, num_samples=3):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise RuntimeError("mine")
            return self.net(x).mean()

    module = Failing()
    before = dict(module.named_parameters())
    loss = module(X)
    with pytest.raises(RuntimeError, match="mine"):
        loss.backward()
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_frozen_parameters_are_not_perturbed() -> None:
    module = Loss()
    module.net[0].requires_grad_(False)
    module(X).backward()
    assert module.net[0].weight.grad is None
    weight = module.net[2].weight
    torch.testing.assert_close(weight.grad, exact_for(module, weight), rtol=2e-2, atol=2e-3)
    module.requires_grad_(False)
    assert not module(X).requires_grad


def exact_for(module: Any, weight: Tensor) -> Tensor:
    return torch.autograd.grad(module.net(X).square().mean(), weight)[0]


def test_tied_parameters_move_together() -> None:
    class Tied(Loss, method="finite-difference", sigma=0.1):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
            self.net[2].weight = self.net[0].weight

        forward = Loss.forward.__wrapped__

    module = Tied()
    module(X).backward()
    weight = module.net[0].weight
    torch.testing.assert_close(weight.grad, exact_for(module, weight), rtol=2e-2, atol=2e-3)


def test_batch_norm_runs() -> None:
    class Normed(Loss, method="antithetic", num_samples=4):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))

        forward = Loss.forward.__wrapped__

    module = Normed()
    module(X).backward()
    assert module.net[0].weight.grad is not None


def test_a_module_without_parameters() -> None:
    class Empty(Base):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.randn(sample_shape)

    with pytest.raises(RuntimeError, match=r"^The module has no parameters\.$"):
        Empty()(X)


def test_abstract_methods_have_to_be_defined() -> None:
    class NoSample(Base):
        def forward(self) -> Tensor:
            return torch.zeros(())

    class NoForward(Base):
        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.randn(sample_shape)

    for cls, name in ((Base, "forward"), (NoSample, "sample"), (NoForward, "forward")):
        with pytest.raises(TypeError, match=f"abstract.*{name}"):
            cls()


def test_enabling_twice() -> None:
    message = "Zero-order gradient estimation is already enabled for the `forward` method"
    with pytest.raises(TypeError, match=message):

        class Again(Loss, method="naive"):
            pass

    with pytest.raises(TypeError, match=message):
        enable_zero_order_gradients(Loss)


def test_a_loss_that_is_no_scalar() -> None:
    class Vector(Loss):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(RuntimeError, match="`output` must be a scalar tensor"):
        Vector()(X)


@pytest.mark.parametrize(
    "options", [{"num_samples": 0}, {"sigma": 0.0}, {"method": "none"}, {"chunk_size": -1}]
)
def test_class_arguments_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` must be"):
        type("Bad", (Loss,), {"forward": Loss.forward.__wrapped__}, **options)


def test_a_module_trains() -> None:
    class Classifier(Base, method="antithetic", num_samples=64, sigma=0.5):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 1)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return ((self.linear(x)[:, 0] > 0) != labels).float().mean()  # the error rate itself

        def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
            return torch.randn(sample_shape)

    x = torch.randn(200, 2)
    labels = x[:, 0] > 0.3 * x[:, 1] + 0.2
    module = Classifier()
    nn.init.zeros_(module.linear.weight)
    optimizer = torchopt.Adam(module.parameters(), lr=0.1)
    assert module(x, labels) > 0.3
    for _ in range(60):
        optimizer.zero_grad()
        module(x, labels).backward()
        optimizer.step()
    assert module(x, labels) < 0.05
