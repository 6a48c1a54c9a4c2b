"""The stateful optimizers are ``torch.optim.Optimizer``s, to everything that drives one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _table import (
    ADAM,
    SGD,
    Family,
    assert_agree,
    assert_same,
    every_family,
    regression,
    tensors_in,
    through_a_file,
    train,
)
from torch import nn
from torch.optim import lr_scheduler

import torchopt


@every_family
def test_is_an_optimizer_of_torch(family: Family) -> None:
    optimizer = family.stateful([torch.ones(2, requires_grad=True)])
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer, torchopt.Optimizer)
    assert type(optimizer).__name__ in repr(optimizer)
    assert "lr:" in repr(optimizer)


@every_family
def test_trains_a_network_like_torch(family: Family) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    actual = train(net, loss_fn, family.stateful(net.parameters(), lr=0.02))
    expected = train(other, loss_fn, family.torch(other.parameters(), lr=0.02))
    assert_agree(actual, expected)


@every_family
def test_parameter_groups_have_hyperparameters_of_their_own(family: Family) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)

    def groups(net: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": net[0].parameters(), "lr": 0.01, "weight_decay": 0.3},
            {"params": [net[2].weight], "maximize": True},
            {"params": [net[2].bias]},
        ]

    optimizer = family.stateful(groups(net), lr=0.03)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.03, 0.03]
    actual = train(net, loss_fn, optimizer)
    expected = train(other, loss_fn, family.torch(groups(other), lr=0.03))
    assert_agree(actual, expected)


@every_family
def test_hyperparameters_may_be_changed_between_steps(family: Family) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    mine = family.stateful(net.parameters(), lr=0.02)
    theirs = family.torch(other.parameters(), lr=0.02)
    for lr, decay in ((0.02, 0.0), (0.05, 0.1), (0.01, 0.1)):
        for optimizer in (mine, theirs):
            optimizer.param_groups[0].update(lr=lr, weight_decay=decay)
        actual, expected = train(net, loss_fn, mine, 3), train(other, loss_fn, theirs, 3)
    assert_agree(actual, expected)


@pytest.mark.parametrize(
    "changes",
    [
        [{}, {"momentum": 0.9}],
        [{"momentum": 0.9}, {"momentum": 0.0}, {"momentum": 0.5}],
        [{"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}],
        [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}],
    ],
    ids=["momentum", "no momentum", "dampening", "nesterov"],
)
def test_momentum_may_begin_and_end_between_steps(changes: list[dict[str, Any]]) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    mine = torchopt.SGD(net.parameters(), lr=0.02, **changes[0])
    theirs = torch.optim.SGD(other.parameters(), lr=0.02, **changes[0])
    for change in changes:
        for optimizer in (mine, theirs):
            optimizer.param_groups[0].update(change)
        actual, expected = train(net, loss_fn, mine, 3), train(other, loss_fn, theirs, 3)
    assert_agree(actual, expected)


def test_a_rate_given_as_a_tensor_may_be_changed_in_place() -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    rate = torch.tensor(0.02)
    mine, theirs = torchopt.Adam(net.parameters(), lr=rate), torch.optim.Adam(other.parameters())
    for lr in (0.02, 0.05):
        rate.fill_(lr)
        theirs.param_groups[0]["lr"] = lr
        actual, expected = train(net, loss_fn, mine, 3), train(other, loss_fn, theirs, 3)
    assert_agree(actual, expected)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "step": functools.partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
    "lambda": functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda t: 1 / (1 + t)),
    "cosine": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=10),
    "warm restarts": functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4),
    "one cycle": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=12),
    "cyclic": functools.partial(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=3, cycle_momentum=True
    ),
    "linear, then exponential": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[4],
    ),
    "plateau": functools.partial(lr_scheduler.ReduceLROnPlateau, patience=1, factor=0.5),
}
every_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)


def train_scheduled(
    net: nn.Module,
    loss_fn: Callable[[nn.Module], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    steps: int,
    clip: float | None = None,
) -> tuple[list[torch.Tensor], list[float]]:
    rates = []
    for t in range(steps):
        optimizer.zero_grad()
        loss_fn(net).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        on_plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([1.0 if t > 2 else -t] if on_plateau else []))
    return [p.detach().clone() for p in net.parameters()], rates


@every_scheduler
@pytest.mark.parametrize(
    ("family", "kwargs"),
    [(SGD, {"lr": 0.05}), (SGD, {"lr": 0.05, "momentum": 0.9}), (ADAM, {"lr": 0.05})],
    ids=["sgd", "sgd with momentum", "adam"],
)
def test_schedulers_of_torch_drive_it(
    family: Family, kwargs: dict[str, float], scheduler: Callable[..., Any]
) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    mine, theirs = (
        family.stateful(net.parameters(), **kwargs),
        family.torch(other.parameters(), **kwargs),
    )
    actual = train_scheduled(net, loss_fn, mine, scheduler(mine), 10)
    expected = train_scheduled(other, loss_fn, theirs, scheduler(theirs), 10)
    assert len(set(expected[1])) > 1
    assert actual[1] == expected[1]
    assert_agree(actual[0], expected[0])


@every_scheduler
def test_schedulers_of_torch_drive_the_optimizer_in_a_chain(scheduler: Callable[..., Any]) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    impl = torchopt.chain(torchopt.clip_grad_norm(0.05), torchopt.adam(0.05))
    mine = torchopt.Optimizer(net.parameters(), impl)
    theirs = torch.optim.Adam(other.parameters(), 0.05)
    actual = train_scheduled(net, loss_fn, mine, scheduler(mine), 10)
    expected = train_scheduled(other, loss_fn, theirs, scheduler(theirs), 10, clip=0.05)
    assert actual[1] == expected[1]
    assert_agree(actual[0], expected[0])


@every_scheduler
def test_scheduled_training_resumes_from_a_file_bit_for_bit(scheduler: Callable[..., Any]) -> None:
    net, loss_fn = regression()
    optimizer = torchopt.Adam(net.parameters(), lr=0.05)
    schedule = scheduler(optimizer)
    train_scheduled(net, loss_fn, optimizer, schedule, 4)
    resumed = copy.deepcopy(net)
    packed = through_a_file(optimizer.state_dict())
    # a scheduler's own state may hold functions, which a file would need to be trusted for
    packed_schedule = schedule.state_dict()
    expected = train_scheduled(net, loss_fn, optimizer, schedule, 4)

    optimizer = torchopt.Adam(resumed.parameters(), lr=0.05)
    schedule = scheduler(optimizer)
    optimizer.load_state_dict(packed)
    schedule.load_state_dict(packed_schedule)
    assert_same(train_scheduled(resumed, loss_fn, optimizer, schedule, 4), expected)


@pytest.mark.parametrize("bad", [False, True], ids=["finite", "overflow"])
def test_grad_scaler(bad: bool) -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    results = []
    for module, make in ((net, torchopt.Adam), (other, torch.optim.Adam)):
        optimizer = make(module.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for t in range(4):
            optimizer.zero_grad()
            scaler.scale(loss_fn(module)).backward()
            if bad and t == 2:
                next(module.parameters()).grad.fill_(torch.inf)
                before = [p.detach().clone() for p in module.parameters()]
            scaler.step(optimizer)
            if bad and t == 2:
                assert_same([p.detach() for p in module.parameters()], before)
            scaler.update()
        results.append(([p.detach() for p in module.parameters()], scaler.get_scale()))
    assert results[0][1] == results[1][1]
    assert_agree(results[0][0], results[1][0])


def test_grad_scaler_unscales_before_clipping() -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    impl = torchopt.chain(torchopt.clip_grad_norm(0.01), torchopt.sgd(1.0))
    optimizer = torchopt.Optimizer(net.parameters(), impl)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_fn(net)).backward()
    scaler.step(optimizer)
    train(other, loss_fn, torchopt.Optimizer(other.parameters(), impl), 1)
    assert_agree([p.detach() for p in net.parameters()], [p.detach() for p in other.parameters()])


def test_closure_is_evaluated_with_grad_and_its_loss_returned() -> None:
    net, loss_fn = regression()
    optimizer = torchopt.SGD(net.parameters(), lr=0.1)
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_fn(net)
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]
    assert loss_fn(net) < losses[0]


def test_step_without_closure_returns_none() -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    assert torchopt.SGD([param], lr=0.1).step() is None


def test_step_hooks_run() -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = torchopt.SGD([param], lr=0.1)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(param.detach().clone()))
    handle = optimizer.register_step_post_hook(lambda *_: seen.append(param.detach().clone()))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert_same(seen, [torch.full((2,), x) for x in (1.0, 0.9, 0.9)])


def test_state_dict_hooks_run() -> None:
    optimizer = torchopt.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
    optimizer.register_state_dict_post_hook(lambda _, packed: {**packed, "note": "kept"})
    packed = optimizer.state_dict()
    assert packed["note"] == "kept"
    seen: list[Any] = []

    def check(_: Any, packed: dict[str, Any]) -> None:
        seen.append(packed["note"])

    other = torchopt.SGD([torch.ones(2, requires_grad=True)], lr=0.2)
    other.register_load_state_dict_pre_hook(check)
    other.load_state_dict(packed)
    assert seen == ["kept"]
    assert other.param_groups[0]["lr"] == 0.1


def test_groups_may_be_added_in_training() -> None:
    net, loss_fn = regression()
    other = copy.deepcopy(net)
    results = []
    for module, make in ((net, torchopt.Adam), (other, torch.optim.Adam)):
        optimizer = make(module[0].parameters(), lr=0.05)
        train(module, loss_fn, optimizer, 3)
        optimizer.add_param_group({"params": module[2].parameters(), "lr": 0.01})
        results.append(train(module, loss_fn, optimizer, 3))
    assert_agree(*results)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Muon"])
def test_parameters_by_themselves_are_a_group_like_the_first(name: str) -> None:
    first, *others = [torch.ones(1, 1, requires_grad=True) for _ in range(4)]
    optimizer = getattr(torchopt, name)([first], lr=0.25)
    optimizer.add_param_group(others[:1])
    optimizer.add_param_group(iter(others[1:2]))
    optimizer.add_param_group(others[2])
    expected = [{**optimizer.param_groups[0], "params": [p]} for p in (first, *others)]
    assert optimizer.param_groups == expected
    before = [p.detach().clone() for p in others]
    sum(p.square().sum() for p in others).backward()
    optimizer.step()
    assert all((p < q).all() for p, q in zip(others, before, strict=True))
    with pytest.raises(TypeError, match="param_group must be a dict, but got <class 'float'>"):
        optimizer.add_param_group(0.25)
    assert len(optimizer.param_groups) == 4


def test_named_parameters_keep_their_names() -> None:
    net, loss_fn = regression()
    optimizer = torchopt.Adam(net.named_parameters(), lr=0.05)
    train(net, loss_fn, optimizer, 1)
    names = [name for name, _ in net.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    other = torchopt.Adam(net.named_parameters(), lr=0.05)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.param_groups[0]["param_names"] == names


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    torchopt.SGD([param], lr=0.1).zero_grad(set_to_none)
    assert param.grad is None if set_to_none else torch.equal(param.grad, torch.zeros(2))


@every_family
def test_parameters_without_gradient_stay(family: Family) -> None:
    frozen, trained = torch.ones(2), torch.ones(2, requires_grad=True)
    optimizer = family.stateful([frozen, trained], weight_decay=0.5)
    trained.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(2))
    assert not torch.equal(trained, torch.ones(2))


def after_a_differentiable_step() -> tuple[nn.Module, list[torch.Tensor], torch.Tensor]:
    """Return a module whose parameters are results, those that it began with, and an input."""
    torch.manual_seed(0)
    net, x = nn.Linear(2, 1), torch.ones(3, 2)
    initial = list(net.parameters())
    torchopt.MetaSGD(net, lr=0.1).step(net(x).square().mean())
    return net, initial, x


@every_family
def test_results_that_retain_their_gradient_are_optimized_like_leaves(family: Family) -> None:
    net, initial, x = after_a_differentiable_step()
    results = list(net.parameters())
    leaves = [p.detach().clone().requires_grad_() for p in results]
    optimizer, expected = family.stateful(results), family.stateful(leaves)
    for p in results:
        p.retain_grad()
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward(retain_graph=True)
        for p, leaf in zip(results, leaves, strict=True):
            leaf.grad = p.grad.clone()
        optimizer.step()
        expected.step()
    assert_same(list(net.parameters()), leaves)
    assert all(p is q for p, q in zip(net.parameters(), results, strict=True))
    assert not any(p.is_leaf for p in results)
    assert all(p.grad is not None for p in initial)
    assert not any(x.requires_grad for p in results for x in tensors_in(dict(optimizer.state[p])))


def test_results_that_lose_their_gradient_stay_and_the_step_says_so() -> None:
    net, initial, x = after_a_differentiable_step()
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torchopt.Adam([net.weight, leaf, net.bias], lr=0.1)
    before = [p.detach().clone() for p in net.parameters()]
    (net(x) + leaf).square().mean().backward()
    with pytest.warns(UserWarning, match=r"no gradient at parameters \[0, 2\]") as record:
        optimizer.step()
    (warning,) = record
    assert warning.filename == __file__
    assert_same([p.detach() for p in net.parameters()], before)
    assert leaf.item() != 0
    assert all(p.grad is not None for p in initial)


def test_results_may_be_made_leaves_after_they_were_given() -> None:
    net, initial, x = after_a_differentiable_step()
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    torchopt.stop_gradient(net)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert all(p.grad is None for p in initial)
    copy.deepcopy(optimizer).step()


@every_family
def test_a_step_records_no_graph(family: Family) -> None:
    param = torch.ones(2, requires_grad=True)
    rate = torch.tensor(0.1, requires_grad=True)
    optimizer = family.stateful([param], lr=rate)
    param.grad = torch.ones(2)
    optimizer.step()
    assert param.is_leaf
    assert param.requires_grad
    assert not any(x.requires_grad for x in tensors_in(dict(optimizer.state[param])))


def test_user_written_transformation() -> None:
    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        signs = torchopt.pytree.tree_map(torch.sign, updates)
        return signs, {"seen": torchopt.pytree.tree_map(torch.add, state["seen"], signs)}

    sign = torchopt.GradientTransformation(
        lambda params: {"seen": torchopt.pytree.tree_map(torch.zeros_like, params)}, update
    )
    param = torch.zeros(2, requires_grad=True)
    optimizer = torchopt.Optimizer([param], torchopt.chain(sign, torchopt.transform.scale(-0.5)))
    for _ in range(3):
        param.grad = torch.tensor([0.1, -7.0])
        optimizer.step()
    assert_same(param.detach(), torch.tensor([-1.5, 1.5]))
    other = torchopt.Optimizer([param], optimizer.impl)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    (seen,) = other.state[param].values()
    assert_same(seen, torch.tensor([3.0, -3.0]))


def test_a_transformation_alone_is_an_optimizer_without_hyperparameters() -> None:
    param = torch.zeros(2, requires_grad=True)
    optimizer = torchopt.Optimizer([param], torchopt.transform.scale(-0.5))
    param.grad = torch.ones(2)
    optimizer.step()
    assert_same(param.detach(), torch.full((2,), -0.5))
    assert set(optimizer.param_groups[0]) == {"params"}


def leaves(n: int) -> list[torch.Tensor]:
    return [torch.ones(1, requires_grad=True) for _ in range(n)]


NESTED: dict[str, Callable[[list[torch.Tensor]], Any]] = {
    "pairs": lambda x: [(x[0], x[1]), (x[2],)],
    "lists": lambda x: [[x[0]], [x[1], x[2]]],
    "dicts": lambda x: [(x[0],), {"a": x[1], "b": [x[2]]}],
    "a dict": lambda x: {"a": x[0], "b": (x[1], x[2])},
    "groups": lambda x: [{"params": [(x[0], x[1])]}, {"params": {"c": x[2]}}],
}


@pytest.mark.parametrize("make", NESTED.values(), ids=NESTED)
def test_trees_of_parameters_are_optimized_leaf_by_leaf(make: Any) -> None:
    """As in 0.7, where they were trees."""
    params = leaves(3)
    optimizer = torchopt.SGD(make(params), lr=0.1)
    sum(params).backward()
    optimizer.step()
    assert [p.item() for p in params] == pytest.approx([0.9] * 3)


def test_a_group_may_be_a_tree_of_parameters() -> None:
    params = leaves(3)
    optimizer = torchopt.SGD(params[:1], lr=0.1)
    optimizer.add_param_group({"a": params[1], "b": (params[2],)})
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_schedulers_find_what_all_parts_of_a_partition_have() -> None:
    parts = {"a": torchopt.adam(0.1), "b": torchopt.adamw(0.1)}
    optimizer = torchopt.Optimizer(leaves(2), torchopt.partition(parts, ["a", "b"]))
    torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.2], total_steps=5)
    assert [group["betas"][0] for group in optimizer.param_groups] == [0.95, 0.95]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_learning_rates_may_be_tensors_of_one_element(name: str) -> None:
    mine, theirs = leaves(2)
    pairs = ((torchopt, mine), (torch.optim, theirs))
    for library, p in pairs:
        optimizer = getattr(library, name)([p], lr=torch.tensor([0.1]))
        p.grad = torch.full_like(p, 2.0)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.tensor([0.2])
        optimizer.step()
    torch.testing.assert_close(mine, theirs)


def test_gradients_with_the_conjugate_bit_are_taken() -> None:
    results = []
    for make in (torchopt.SGD, torch.optim.SGD):
        w = torch.ones(2, dtype=torch.complex64, requires_grad=True)
        (w.conj() * 1j).sum().abs().square().backward()
        assert w.grad is not None
        assert w.grad.is_conj()
        make([w], lr=0.1).step()
        results.append(w.detach())
    torch.testing.assert_close(*results)
