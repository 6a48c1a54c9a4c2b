"""Published programs run as they were printed, in the style of their time and in today's."""

from __future__ import annotations

from typing import Any

import functorch
import pytest
import torch
from _table import assert_agree, assert_same
from torch import nn
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils import data

import torchopt

uses_functorch = pytest.mark.filterwarnings(
    r"ignore:[\s\S]*`functorch\.\w+` is deprecated:FutureWarning"
)


class Net(nn.Module):
    def __init__(self, dim: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 8)
        self.fc2 = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def make_loader(batches: int = 8) -> data.DataLoader[Any]:
    """Points with the label that a random linear map gives them."""
    xs = torch.randn(16 * batches, 4)
    return data.DataLoader(data.TensorDataset(xs, (xs @ torch.randn(4, 3)).argmax(1)), 16)


def trained_by_torch(net: nn.Module, loader: data.DataLoader[Any], **kwargs: Any) -> Any:
    optimizer = torch.optim.Adam(net.parameters(), **kwargs)
    for xs, ys in loader:
        optimizer.zero_grad()
        F.cross_entropy(net(xs), ys).backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def cloned(net: Net) -> Net:
    other = Net()
    other.load_state_dict(net.state_dict())
    return other


@uses_functorch
def test_functional_loop_with_make_functional() -> None:
    net = Net()  # init
    loader = make_loader()
    expected = trained_by_torch(cloned(net), loader)
    optimizer = torchopt.adam()
    func, params = functorch.make_functional(net)  # use functorch extract network parameters
    opt_state = optimizer.init(params)  # init optimizer
    for xs, ys in loader:  # get data
        pred = func(params, xs)  # forward
        loss = F.cross_entropy(pred, ys)  # compute loss
        grad = torch.autograd.grad(loss, params)  # compute gradients
        updates, opt_state = optimizer.update(grad, opt_state)  # get updates
        params = torchopt.apply_updates(params, updates)  # update network parameters
    assert_agree([p.detach() for p in params], expected)


def test_functional_loop_with_functional_call() -> None:
    net = Net()
    loader = make_loader()
    expected = trained_by_torch(cloned(net), loader)
    optimizer = torchopt.adam()
    params = {name: p.detach() for name, p in net.named_parameters()}
    opt_state = optimizer.init(params)
    for xs, ys in loader:

        def loss_fn(params: Any, xs: torch.Tensor = xs, ys: torch.Tensor = ys) -> torch.Tensor:
            return F.cross_entropy(functional_call(net, params, xs), ys)

        grads = torch.func.grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    assert_agree(list(params.values()), expected)


@uses_functorch
def test_functional_loop_with_buffers_and_a_transformed_gradient() -> None:
    """``functorch.grad`` and ``functorch.vmap`` around ``make_functional_with_buffers``."""
    net = Net()
    loader = make_loader()
    expected = trained_by_torch(cloned(net), loader, lr=0.01)
    func, params, buffers = functorch.make_functional_with_buffers(net)

    def loss_fn(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(func(params, buffers, x.unsqueeze(0)), y.unsqueeze(0))

    optimizer = torchopt.adam(lr=0.01)
    opt_state = optimizer.init(params)
    for xs, ys in loader:
        grads = functorch.vmap(functorch.grad(loss_fn), in_dims=(None, 0, 0))(params, xs, ys)
        grads = torchopt.pytree.tree_map(lambda g: g.mean(0), grads)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = torchopt.apply_updates(params, updates)
    assert_agree([p.detach() for p in params], expected)


def test_stateful_loop() -> None:
    net = Net()  # init
    loader = make_loader()
    expected = trained_by_torch(cloned(net), loader)
    optimizer = torchopt.Adam(net.parameters())
    for xs, ys in loader:  # get data
        pred = net(xs)  # forward
        loss = F.cross_entropy(pred, ys)  # compute loss
        optimizer.zero_grad()  # zero gradients
        loss.backward()  # backward
        optimizer.step()  # step updates
    assert_agree([p.detach() for p in net.parameters()], expected)


@uses_functorch
@pytest.mark.usefixtures("float64")
def test_differentiable_functional_loop() -> None:
    """The inner loss is weighted by the meta-parameters, the outer one is not."""
    torch.manual_seed(0)
    fmodel, initial = functorch.make_functional(nn.Linear(2, 1))
    xs, ys = torch.randn(6, 2), torch.randn(6, 1)

    def outer_loss_after_adaptation(meta_params: torch.Tensor) -> torch.Tensor:
        params = tuple(p.detach().clone().requires_grad_() for p in initial)
        opt = torchopt.adam(lr=0.1)
        state = opt.init(params)
        for _ in range(3):
            loss = (meta_params * (fmodel(params, xs) - ys).square()).mean()
            grads = torch.autograd.grad(loss, params, create_graph=True)
            # Apply non-inplace parameter update
            updates, state = opt.update(grads, state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return (fmodel(params, xs.flip(0)) - ys).square().mean()

    assert gradcheck(outer_loss_after_adaptation, torch.rand(6, 1, requires_grad=True))


@uses_functorch
def test_differentiable_functional_loop_with_the_defaults_as_printed() -> None:
    """``apply_updates`` is in place by default: only the direct dependence is differentiated."""
    fmodel, params = functorch.make_functional(nn.Linear(2, 1))
    meta_params = torch.ones(3, requires_grad=True)
    xs, ys = torch.randn(3, 2), torch.randn(3, 1)
    opt = torchopt.adam()
    # Initialize optimizer state
    state = opt.init(params)
    for _ in range(3):
        loss = (meta_params * (fmodel(params, xs) - ys).square().squeeze()).mean()
        grads = torch.autograd.grad(loss, params)
        # Apply non-inplace parameter update
        updates, state = opt.update(grads, state, inplace=False)
        params = torchopt.apply_updates(params, updates)
    residuals = (fmodel(params, xs) - ys).square().squeeze()
    loss = (meta_params * residuals).mean()
    (meta_grads,) = torch.autograd.grad(loss, meta_params)
    assert_agree(meta_grads, residuals.detach() / 3)


@pytest.mark.usefixtures("float64")
def test_differentiable_loop_with_a_meta_optimizer() -> None:
    model = nn.Linear(2, 1)
    net_state = torchopt.extract_state_dict(model)
    xs, ys = torch.randn(6, 2), torch.randn(6, 1)

    def outer_loss_after_adaptation(meta_params: torch.Tensor) -> torch.Tensor:
        torchopt.recover_state_dict(model, net_state)
        # Define differentiable optimizer
        opt = torchopt.MetaAdam(model)
        for _ in range(3):
            # Perform the inner update
            loss = (meta_params * (model(xs) - ys).square()).mean()
            opt.step(loss)
        return (meta_params.mean() * (model(xs.flip(0)) - ys).square()).mean()

    assert gradcheck(outer_loss_after_adaptation, torch.rand(6, 1, requires_grad=True))


def test_low_level_and_high_level_meta_optimizers_are_the_same() -> None:
    net, loader = Net(), make_loader(3)
    net_state = torchopt.extract_state_dict(net)
    results = []
    for make in (
        # Low-level API
        lambda: torchopt.MetaOptimizer(net, torchopt.sgd(lr=1.0)),
        # High-level API
        lambda: torchopt.MetaSGD(net, lr=1.0),
    ):
        optim = make()
        for xs, ys in loader:
            optim.step(F.cross_entropy(net(xs), ys))
        results.append(net(torch.ones(1, 4)).detach())
        torchopt.recover_state_dict(net, net_state)
    assert_same(results[0], results[1])


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_saving_and_reconducting_an_inner_loop(by: Any) -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a * (x**2)

    net = Scalar()
    x = nn.Parameter(torch.tensor(2.0), requires_grad=True)
    optim = torchopt.MetaAdam(net, lr=1.0)
    init_net_state = torchopt.extract_state_dict(net, by=by)
    init_optim_state = torchopt.extract_state_dict(optim, by=by)
    values = []
    for _ in range(2):
        # Conduct 2 inner-loop optimization
        for _ in range(2):
            inner_loss = net(x)
            optim.step(inner_loss)
        values.append(net.a.detach())
        # Recover and reconduct 2 inner-loop optimization
        torchopt.recover_state_dict(net, init_net_state)
        torchopt.recover_state_dict(optim, init_optim_state)
    # a constant gradient: each step of Adam is one of -lr
    torch.testing.assert_close(values[0], torch.tensor(-1.0))
    assert_same(values[0], values[1])


def test_maml_loop() -> None:
    """Regression on lines through the origin: after meta-training one step adapts better."""
    net = nn.Linear(1, 1)  # init
    # the constructor `MetaOptimizer` takes as input the network
    inner_optim = torchopt.MetaAdam(net, lr=0.1)
    outer_optim = torchopt.Adam(net.parameters(), lr=0.1)
    initial = list(net.parameters())
    tasks, train_iters, inner_iters = 4, 80, 2
    slopes = 3.0 + 0.1 * torch.randn(tasks)
    losses = []

    for _ in range(train_iters):
        outer_loss: Any = 0
        for task in range(tasks):
            # store states at the initial points
            net_state = torchopt.extract_state_dict(net)  # extract state
            optim_state = torchopt.extract_state_dict(inner_optim)
            for _ in range(inner_iters):
                # compute inner loss and perform inner update
                xs = torch.randn(8, 1)
                pred = net(xs)
                inner_loss = F.mse_loss(pred, slopes[task] * xs)
                inner_optim.step(inner_loss)
            # compute outer loss and back-propagate
            xs = torch.randn(8, 1)
            pred = net(xs)
            outer_loss += F.mse_loss(pred, slopes[task] * xs)
            # recover network and optimizer states at the initial point for the next task
            torchopt.recover_state_dict(inner_optim, optim_state)
            torchopt.recover_state_dict(net, net_state)

        outer_loss /= tasks  # task average
        outer_optim.zero_grad()
        outer_loss.backward()
        outer_optim.step()
        losses.append(outer_loss.item())

        # stop gradient if necessary
        torchopt.stop_gradient(net)
        torchopt.stop_gradient(inner_optim)

    assert list(net.parameters()) == initial
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    torch.testing.assert_close(net.weight.item(), slopes.mean().item(), rtol=0.2, atol=0.0)


class Rollout:
    """A chain of ten states, whose even rewards are noise and whose odd ones are not."""

    @staticmethod
    def get() -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty(5, 2)
        out[:, 0] = torch.randn(5)
        out[:, 1] = 0.1 * torch.ones(5)
        label = torch.arange(0, 10)
        return out.view(10, 1), F.one_hot(label, 10)

    @staticmethod
    def rollout(trajectory: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        out = [trajectory[-1]]
        for i in reversed(range(9)):
            out.append(trajectory[i] + gamma[i] * out[-1].clone().detach_())
        out.reverse()
        return torch.hstack(out).view(10, 1)


class ValueNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


@pytest.mark.usefixtures("float64")
def test_meta_gradient_of_discount_learning_equals_finite_differences() -> None:
    """With the bootstrapped values held, as the program does by cutting the graph there."""
    net = ValueNetwork()
    net_state = torchopt.extract_state_dict(net)
    (inner, state), (outer, _) = Rollout.get(), Rollout.get()
    target = Rollout.rollout(outer, torch.ones(9))

    def meta_loss(backup: torch.Tensor) -> torch.Tensor:
        torchopt.recover_state_dict(net, net_state)
        inner_optimizer = torchopt.MetaSGD(net, lr=5e-1)
        inner_optimizer.step(F.mse_loss(net(state.double()), backup))
        return F.mse_loss(net(state.double()), target)

    gamma = torch.randn(9, requires_grad=True)
    held = Rollout.rollout(inner, torch.sigmoid(gamma.detach()))

    def of_held_values(gamma: torch.Tensor) -> torch.Tensor:
        backup = inner[:9] + torch.sigmoid(gamma).unsqueeze(1) * held[1:]
        return meta_loss(torch.cat([backup, inner[9:]]))

    actual = meta_loss(Rollout.rollout(inner, torch.sigmoid(gamma)))
    assert_agree(actual, of_held_values(gamma))
    (actual_grad,) = torch.autograd.grad(actual, gamma)
    with torch.no_grad():
        step = 1e-5
        around = [gamma + e for e in step * torch.cat([torch.eye(9), -torch.eye(9)])]
    losses = torch.stack([of_held_values(point).detach() for point in around])
    expected = (losses[:9] - losses[9:]) / (2 * step)
    torch.testing.assert_close(actual_grad, expected, rtol=1e-6, atol=1e-9)
