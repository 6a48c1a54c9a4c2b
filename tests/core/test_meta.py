"""The differentiable optimizers: parameters in modules become functions of what made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import (
    Bag,
    Case,
    assert_agree,
    assert_same,
    every_case,
    every_family,
    run_functional,
    tensors_in,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import torchopt


class Quadratic(nn.Module):
    """The loss sum(scale * (w - x) ** 2) / 2, whose gradient is scale * (w - x)."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | float = 1.0) -> torch.Tensor:
        return 0.5 * (scale * (self.w - x) ** 2).sum()


@pytest.mark.usefixtures("float64")
def test_gradient_and_hessian_through_sgd_equal_the_unrolled_formula() -> None:
    start, x = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    rate, scale, steps = 0.3, 0.8, 4

    def unrolled(start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        w = start
        for _ in range(steps):
            w = w - rate * scale * (w - x)
        return w.pow(3).sum()

    net = Quadratic(start.detach())
    net._parameters["w"] = start
    optimizer = torchopt.MetaSGD(net, lr=rate)
    for _ in range(steps):
        optimizer.step(net(x, scale))
    actual, expected = net.w.pow(3).sum(), unrolled(start, x)
    assert_agree(actual, expected)
    for _ in range(2):
        actual_grads = torch.autograd.grad(actual, (start, x), create_graph=True)
        expected_grads = torch.autograd.grad(expected, (start, x), create_graph=True)
        assert_agree(actual_grads, expected_grads)
        actual, expected = (
            sum(g.square().sum() for g in gs) for gs in (actual_grads, expected_grads)
        )


@pytest.mark.usefixtures("float64")
def test_gradient_and_hessian_through_adam_equal_the_unrolled_formula() -> None:
    b1, b2, eps, rate = 0.7, 0.9, 1e-3, 0.1
    start, x = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)

    def unrolled(start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        w, m, v = start, 0.0, 0.0
        for t in range(1, 4):
            g = w - x
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
        return w.pow(3).sum()

    net = Quadratic(start.detach())
    net._parameters["w"] = start
    optimizer = torchopt.MetaAdam(net, lr=rate, betas=(b1, b2), eps=eps)
    for _ in range(3):
        optimizer.step(net(x))
    actual, expected = net.w.pow(3).sum(), unrolled(start, x)
    assert_agree(actual, expected)
    for _ in range(2):
        actual_grads = torch.autograd.grad(actual, (start, x), create_graph=True)
        expected_grads = torch.autograd.grad(expected, (start, x), create_graph=True)
        assert_agree(actual_grads, expected_grads)
        actual, expected = (
            sum(g.square().sum() for g in gs) for gs in (actual_grads, expected_grads)
        )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


@pytest.mark.usefixtures("float64")
@every_case
def test_meta_gradients_equal_finite_differences(case: Case) -> None:
    """Of a validation loss after two steps, in the initial parameters and the data."""
    net = network()
    initial = [p.detach().clone().requires_grad_() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    x, y, x_val = torch.randn(5, 2), torch.randn(5, 1), torch.randn(4, 2)

    def meta_loss(x: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:
        module = network()
        for name, param in zip(names, params, strict=True):
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._parameters[leaf] = param
        optimizer = case.meta(module)
        for _ in range(2):
            optimizer.step((module(x) - y).square().mean())
        return module(x_val).square().mean()

    inputs = [x.requires_grad_(), *initial]
    assert gradcheck(meta_loss, inputs)


@pytest.mark.usefixtures("float64")
@every_family
def test_meta_hessians_equal_finite_differences(family: Any) -> None:
    start = torch.tensor([0.5, -1.2], requires_grad=True)
    x = torch.tensor([1.5, 0.3], requires_grad=True)

    def meta_loss(start: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        net = Quadratic(torch.zeros(2))
        net._parameters["w"] = start
        optimizer = family.meta(net, lr=0.1)
        for _ in range(2):
            optimizer.step(net(x) + net(x.flip(0)) * net.w.sum().cos())
        return net.w.pow(3).sum()

    assert gradgradcheck(meta_loss, (start, x))


def test_parameters_become_non_leaf_tensors_that_reach_the_initial_ones() -> None:
    net = network()
    initial = list(net.parameters())
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    optimizer.step(net(torch.ones(1, 2)).sum())
    for name, leaf in (("0", "weight"), ("0", "bias"), ("2", "weight"), ("2", "bias")):
        assert not getattr(net.get_submodule(name), leaf).is_leaf
    grads = torch.autograd.grad(net(torch.ones(1, 2)).sum(), initial)
    assert all(g is not None for g in grads)


def test_initial_parameters_are_not_written_to() -> None:
    net = network()
    initial = list(net.parameters())
    kept = [p.detach().clone() for p in initial]
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    for _ in range(3):
        optimizer.step(net(torch.ones(1, 2)).sum())
    assert_same([p.detach() for p in initial], kept)
    assert all(p.grad is None for p in initial)


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x).tanh())


@every_family
def test_tied_parameters_stay_tied_and_step_once(family: Any) -> None:
    module, reference = TiedAutoencoder(), TiedAutoencoder()
    reference.load_state_dict(module.state_dict())
    x = torch.randn(4, 3)
    meta = family.meta(module, lr=0.1)
    optimizer = family.torch(reference.parameters(), lr=0.1)
    for _ in range(3):
        meta.step(module(x).square().sum())
        optimizer.zero_grad()
        reference(x).square().sum().backward()
        optimizer.step()
    assert module.decoder.weight is module.encoder.weight
    assert_agree(module.encoder.weight.detach(), reference.encoder.weight.detach())


def test_several_modules() -> None:
    one, other = network(1), network(2)
    together = nn.ModuleList([network(1), network(2)])
    x = torch.randn(4, 2)
    optimizer = torchopt.MetaAdam(one, lr=0.1)
    optimizer.add_param_group(other)
    joint = torchopt.MetaAdam(together, lr=0.1)
    for _ in range(2):
        optimizer.step((one(x) * other(x)).sum())
        joint.step((together[0](x) * together[1](x)).sum())
    actual = [*one[0]._parameters.values(), *other[0]._parameters.values()]
    expected = [*together[0][0]._parameters.values(), *together[1][0]._parameters.values()]
    assert_agree([p.detach() for p in actual], [p.detach() for p in expected])
    assert len(optimizer.state_dict()) == 2


def test_a_module_the_loss_does_not_reach_stays() -> None:
    one, other = network(1), network(2)
    optimizer = torchopt.MetaAdam(one, lr=0.1)
    optimizer.add_param_group(other)
    kept = list(other.parameters())
    optimizer.step(one(torch.ones(1, 2)).sum())
    assert all(p is q for p, q in zip(other.parameters(), kept, strict=True))
    optimizer.step(other(torch.ones(1, 2)).sum())
    assert not other[0].weight.is_leaf


def test_frozen_and_absent_parameters_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    net[1].bias.requires_grad_(False)
    frozen = net[1].bias
    optimizer = torchopt.MetaAdamW(net, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.step(net(torch.ones(1, 2)).sum())
    assert net[1].bias is frozen
    assert net[0].bias is None
    assert not net[0].weight.is_leaf


@pytest.mark.parametrize(
    "rates",
    [
        lambda values: dict(zip(("0.weight", "0.bias", "2.weight", "2.bias"), values, strict=True)),
        lambda values: list(values),
    ],
    ids=["by name", "in order"],
)
def test_learning_rates_for_each_parameter(rates: Callable[[Any], Any]) -> None:
    net, x = network(), torch.randn(4, 2)
    initial = list(net.parameters())
    values = [torch.rand_like(p).requires_grad_() for p in initial]
    optimizer = torchopt.MetaSGD(net, lr=rates(values))
    grads = torch.autograd.grad(net(x).square().sum(), initial)
    optimizer.step(net(x).square().sum())
    after = [net[0].weight, net[0].bias, net[2].weight, net[2].bias]
    expected = [p - lr * g for p, lr, g in zip(initial, values, grads, strict=True)]
    assert_agree([p.detach() for p in after], [p.detach() for p in expected])
    found = torch.autograd.grad(sum(p.sum() for p in after), values)
    assert_agree(found, tuple(-g for g in grads))


def test_learned_rate_lowers_the_meta_loss() -> None:
    """Gradient descent on the learning rate finds the one that solves a quadratic in one step."""
    rate = torch.tensor(0.1, requires_grad=True)
    outer = torchopt.SGD([rate], lr=0.05)
    x = torch.tensor([1.0, -2.0])
    for _ in range(50):
        net = Quadratic(torch.zeros(2))
        torchopt.MetaSGD(net, lr=rate).step(net(x))
        outer.zero_grad()
        net(x).backward()
        outer.step()
    torch.testing.assert_close(rate.detach(), torch.tensor(1.0), rtol=1e-3, atol=0.0)


@every_case
def test_state_is_returned_by_reference_and_recovered(case: Case) -> None:
    module = Bag([torch.randn(3), torch.randn(())])
    optimizer = case.meta(module)
    grads = [torch.randn(3), torch.randn(())]
    optimizer.step(module.loss(grads))
    params, state = torchopt.extract_state_dict(module), torchopt.extract_state_dict(optimizer)
    assert all(
        x is y for x, y in zip(tensors_in(state), tensors_in(optimizer.state_dict()), strict=True)
    )
    runs = []
    for _ in range(2):
        for _ in range(2):
            optimizer.step(module.loss(grads))
        runs.append([p.detach() for p in module.tensors()])
        torchopt.recover_state_dict(module, params)
        torchopt.recover_state_dict(optimizer, state)
    assert_same(runs[1], runs[0])


@every_case
def test_state_stays_in_the_graph(case: Case) -> None:
    """The second step depends on the first gradient through the parameters and the moments."""
    module = Bag([torch.randn(3)])
    first, second = torch.randn(3, requires_grad=True), torch.randn(3)
    optimizer = case.meta(module)
    optimizer.step(module.loss([first]))
    state = optimizer.state_dict()
    # what depends on the count of steps alone is in double precision
    floating = [x for x in tensors_in(state) if x.dtype == torch.float32]
    optimizer.step(module.loss([second]))
    torch.autograd.grad(module.tensors()[0].sum(), first)
    for x in floating if "signs" not in case.kind else []:
        assert x.grad_fn is not None


def test_state_before_the_first_step_can_be_recovered() -> None:
    net, x = network(), torch.ones(1, 2)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    params, state = torchopt.extract_state_dict(net), torchopt.extract_state_dict(optimizer)
    results = []
    for _ in range(2):
        optimizer.step(net(x).sum())
        results.append(net[0].weight.detach())
        torchopt.recover_state_dict(net, params)
        torchopt.recover_state_dict(optimizer, state)
    assert_same(results[1], results[0])


def test_gradients_accumulate_over_tasks_in_the_initial_parameters() -> None:
    net, tasks = network(), torch.randn(3, 4, 2)
    initial = list(net.parameters())
    inner = torchopt.MetaAdam(net, lr=0.1)
    params, state = torchopt.extract_state_dict(net), torchopt.extract_state_dict(inner)
    expected = [torch.zeros_like(p) for p in initial]
    for x in tasks:
        inner.step(net(x).square().mean())
        loss = net(x).square().mean()
        for total, g in zip(
            expected, torch.autograd.grad(loss, initial, retain_graph=True), strict=True
        ):
            total += g
        loss.backward()
        torchopt.recover_state_dict(net, params)
        torchopt.recover_state_dict(inner, state)
    assert_agree([p.grad for p in initial], expected)


@pytest.mark.parametrize(
    "hook",
    [torchopt.hook.zero_nan_hook, torchopt.hook.nan_to_num_hook(nan=0.0)],
    ids=["zero_nan_hook", "nan_to_num_hook"],
)
@pytest.mark.parametrize("before", [True, False], ids=["before sgd", "after sgd"])
def test_hooks_stop_a_nan_meta_gradient(hook: Any, before: bool) -> None:
    x = torch.ones(2, requires_grad=True)

    def meta_gradient(*links: torchopt.GradientTransformation) -> torch.Tensor:
        net = Quadratic(torch.zeros(2))
        torchopt.MetaOptimizer(net, torchopt.chain(*links)).step(net(x))
        # the root's derivative at zero is infinite, and zero times it is NaN
        return torch.autograd.grad((0.0 * net.w).sqrt().sum(), x)[0]

    sgd, stop = torchopt.sgd(0.1), torchopt.register_hook(hook)
    assert meta_gradient(sgd).isnan().all()
    assert_same(meta_gradient(*((stop, sgd) if before else (sgd, stop))), torch.zeros(2))


@every_case
def test_meta_classes_are_the_meta_optimizer_of_the_functional_form(case: Case) -> None:
    start, grads = torch.randn(3), [[torch.randn(3)] for _ in range(3)]
    module = Bag([start])
    optimizer = torchopt.MetaOptimizer(module, case.functional())
    for step in grads:
        optimizer.step(module.loss(step))
    expected = run_functional(case.functional(), [start], grads)
    assert_agree([p.detach() for p in module.tensors()], expected)
    assert isinstance(case.meta(Bag([start])), torchopt.MetaOptimizer)


@pytest.mark.parametrize("by", ["reference", "copy", "deepcopy"])
def test_stop_gradient_cuts_parameters_and_state(by: str) -> None:
    net = network()
    initial = list(net.parameters())
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    optimizer.step(net(torch.ones(1, 2)).sum())
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(optimizer)
    torchopt.recover_state_dict(optimizer, torchopt.extract_state_dict(optimizer, by=by))
    optimizer.step(net(torch.ones(1, 2)).sum())
    grads = torch.autograd.grad(net(torch.ones(1, 2)).sum(), initial, allow_unused=True)
    assert all(g is None for g in grads)
    assert optree.tree_leaves(optimizer.state_dict())


def test_parameters_that_were_untied_are_stepped_by_themselves() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    inner = torchopt.MetaSGD(net, lr=0.0)
    own = torch.randn(2, 2, requires_grad=True)
    second._parameters["weight"] = own  # type: ignore[assignment]
    inner.step(net(torch.ones(1, 2)).sum())
    torch.testing.assert_close(second.weight, own)
    assert first.weight is not second.weight
    assert torch.autograd.grad(second.weight.sum(), own)[0].sum() == 4
