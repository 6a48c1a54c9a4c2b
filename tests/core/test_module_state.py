"""Saving, restoring, cutting and copying the state of modules and meta-optimizers."""

from __future__ import annotations

import collections
import copy
import functools
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchopt
from torchopt.utils import ModuleState

REFERENCE, COPY, DEEPCOPY = ["reference", "ref"], ["copy", "clone"], ["deepcopy", "deepclone"]
EVERY_BY = [*REFERENCE, *COPY, *DEEPCOPY]


class Tied(nn.Module):
    """Two layers share a weight; a third module is used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        self.norm = self.again = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.decoder(self.norm(self.encoder(x)).tanh()))


class Sparse(nn.Module):
    """Has an absent parameter, a frozen one, an absent buffer and one outside the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_parameter("absent", None)
        self.register_buffer("nothing", None)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale + self.shift


class Recurrent(nn.Module):
    """A recurrent layer, which keeps a second list of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


class Complex(nn.Module):
    """Has a complex parameter, which a step replaces by a view."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.phase).abs()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


NETS = [mlp, Tied, Sparse, Recurrent, Complex]
INPUT = torch.linspace(-1, 1, 12).reshape(4, 3)

every_net = pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)


def loss_of(net: nn.Module) -> torch.Tensor:
    return net(INPUT).square().mean()


def stepped(make: Callable[[], nn.Module], steps: int = 1) -> tuple[nn.Module, Any]:
    net = make()
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    for _ in range(steps):
        optimizer.step(loss_of(net))
    return net, optimizer


def tensors(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict(
        [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
    )


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(net).items()}


def assert_values(net: nn.Module, expected: dict[str, torch.Tensor]) -> None:
    assert tensors(net).keys() == expected.keys()
    for name, tensor in tensors(net).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


def flat(state: ModuleState) -> list[torch.Tensor]:
    return [tensor for entries in (*state.params, *state.buffers) for tensor in entries.values()]


def leaves(tree: Any) -> Iterator[torch.Tensor]:
    for leaf in torchopt.pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            yield leaf


def test_a_state_has_one_dict_for_each_submodule_that_holds_tensors() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3)), Sparse())
    state = torchopt.extract_state_dict(net)
    assert isinstance(state, ModuleState)
    assert [list(entries) for entries in state.params] == [
        ["weight", "bias"],
        ["weight", "bias"],
        ["scale"],
        ["weight"],
    ]
    assert [list(entries) for entries in state.buffers] == [
        ["running_mean", "running_var", "num_batches_tracked"],
        ["shift"],
    ]
    assert state.visual_contents is None
    assert state.detach_buffers is False


@every_net
@pytest.mark.parametrize("by", REFERENCE)
def test_a_reference_is_the_tensors_themselves(make: Callable[[], nn.Module], by: Any) -> None:
    net = make()
    state = torchopt.extract_state_dict(net, by=by)
    assert {id(x) for x in flat(state)} == {id(x) for x in tensors(net).values()}


@every_net
@pytest.mark.parametrize("by", COPY)
def test_a_copy_stays_connected(make: Callable[[], nn.Module], by: Any) -> None:
    net = make()
    trained = [p for p in net.parameters() if p.requires_grad]
    state = torchopt.extract_state_dict(net, by=by)
    own = {x.data_ptr() for x in tensors(net).values()}
    assert own.isdisjoint(x.data_ptr() for x in flat(state))
    expected = torch.autograd.grad(loss_of(net), trained)
    other = make()
    torchopt.recover_state_dict(other, state)
    torch.testing.assert_close(torch.autograd.grad(loss_of(other), trained), expected)


@every_net
@pytest.mark.parametrize("by", DEEPCOPY)
def test_a_deepcopy_is_detached_and_otherwise_the_same(
    make: Callable[[], nn.Module], by: Any
) -> None:
    net = make()
    own = tensors(net)
    state = torchopt.extract_state_dict(net, by=by)
    other = make()
    torchopt.recover_state_dict(other, state)
    for name, tensor in tensors(other).items():
        assert tensor.is_leaf
        assert tensor.data_ptr() != own[name].data_ptr()
        assert tensor.requires_grad == own[name].requires_grad
        assert type(tensor) is type(own[name])
    assert_values(other, values(net))


@every_net
@pytest.mark.parametrize("by", EVERY_BY)
@pytest.mark.parametrize("with_buffers", [True, False])
def test_recovering_brings_the_values_back_every_time(
    make: Callable[[], nn.Module], by: Any, with_buffers: bool
) -> None:
    net, optimizer = stepped(make)
    state = torchopt.extract_state_dict(
        net, by=by, with_buffers=with_buffers, detach_buffers=with_buffers
    )
    saved = values(net)
    for _ in range(3):
        optimizer.step(loss_of(net))
        now = values(net)
        assert not all(torch.equal(now[name], saved[name]) for name, _ in net.named_parameters())
        torchopt.recover_state_dict(net, state)
        names = dict(net.named_buffers(remove_duplicate=False))
        buffers = {} if with_buffers else {name: now[name] for name in names}
        assert_values(net, saved | buffers)


@pytest.mark.parametrize("by", [*COPY, *DEEPCOPY])
def test_recovered_copies_of_buffers_are_not_the_saved_ones(by: Any) -> None:
    net = mlp()
    state = torchopt.extract_state_dict(net, by=by)
    saved = values(net)
    for _ in range(2):
        torchopt.recover_state_dict(net, state)
        assert_values(net, saved)
        loss_of(net)
        assert not torch.equal(net[1].running_mean, saved["1.running_mean"])


@pytest.mark.parametrize("by", EVERY_BY)
def test_detached_buffers_are_copies(by: Any) -> None:
    net = mlp()
    state = torchopt.extract_state_dict(net, by=by, detach_buffers=True)
    assert state.detach_buffers is True
    for name, buffer in state.buffers[0].items():
        assert buffer is not net[1]._buffers[name]
        assert not buffer.requires_grad
    assert torchopt.extract_state_dict(net, by=by, with_buffers=False).buffers == ()


def test_buffers_by_reference_follow_the_module() -> None:
    net = mlp()
    state = torchopt.extract_state_dict(net)
    running_mean = net[1].running_mean
    loss_of(net)
    torchopt.recover_state_dict(net, state)
    assert net[1].running_mean is running_mean
    assert running_mean.count_nonzero()


def test_ties_survive_in_copies() -> None:
    for by in EVERY_BY:
        net = Tied()
        torchopt.recover_state_dict(net, torchopt.extract_state_dict(Tied(), by=by))
        assert net.encoder.weight is net.decoder.weight


@pytest.mark.parametrize("by", EVERY_BY)
def test_a_state_moves_to_a_device(by: Any) -> None:
    net = mlp()
    state = torchopt.extract_state_dict(net, by=by, device="meta")
    assert {x.device.type for x in flat(state)} == {"meta"}
    assert isinstance(state.params[0]["weight"], nn.Parameter) == (by in DEEPCOPY)
    stays = torchopt.extract_state_dict(net, by=by, device="cpu")
    assert (stays.params[0]["weight"] is net[0].weight) == (by in REFERENCE)


@pytest.mark.parametrize("by", EVERY_BY)
def test_pictures_get_the_names_of_the_extracted_tensors(by: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3)))
    state = torchopt.extract_state_dict(net, by=by, enable_visual=True, visual_prefix="step0.")
    assert state.visual_contents is not None
    assert list(state.visual_contents.values()) == [f"step0.{name}" for name in tensors(net)]
    assert state.visual_contents[state.params[0]["weight"]] == "step0.0.weight"


def test_module_states_pickle() -> None:
    source, net = mlp(), mlp()
    state = torchopt.extract_state_dict(source, by="deepcopy")
    torchopt.recover_state_dict(net, pickle.loads(pickle.dumps(state)))
    assert_values(net, values(source))


@every_net
@pytest.mark.parametrize("by", EVERY_BY)
def test_meta_optimizers_resume_from_their_state(make: Callable[[], nn.Module], by: Any) -> None:
    net, optimizer = stepped(make)
    net_state = torchopt.extract_state_dict(net, detach_buffers=True)
    optimizer_state = torchopt.extract_state_dict(optimizer, by=by)
    runs = []
    for _ in range(2):
        for _ in range(2):
            optimizer.step(loss_of(net))
        runs.append(values(net))
        torchopt.recover_state_dict(net, net_state)
        torchopt.recover_state_dict(optimizer, optimizer_state)
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_meta_optimizer_states_are_taken_like_module_states() -> None:
    _, optimizer = stepped(mlp)
    state = optimizer.state_dict()
    extract = torchopt.extract_state_dict
    same, clones, detached = (
        list(leaves(extract(optimizer, by=b))) for b in ("ref", "copy", "deepcopy")
    )
    originals = list(leaves(state))
    assert any(x.requires_grad for x in originals)
    for original, reference, clone, copied in zip(originals, same, clones, detached, strict=True):
        assert reference is original
        assert clone is not original
        assert (clone.grad_fn is None) == (original.grad_fn is None)
        assert copied.is_leaf
        assert copied.requires_grad == original.requires_grad
    assert {x.device.type for x in leaves(extract(optimizer, device="meta"))} == {"meta"}


@pytest.mark.parametrize("kind", [list, collections.deque])
def test_a_meta_optimizer_takes_its_states_in_any_sequence(kind: Callable[..., Any]) -> None:
    net, optimizer = stepped(mlp)
    state = torchopt.extract_state_dict(optimizer, by="deepcopy")
    optimizer.step(loss_of(net))
    torchopt.recover_state_dict(optimizer, kind(state))
    assert [id(x) for x in leaves(optimizer.state_dict())] == [id(x) for x in leaves(state)]


def test_a_meta_optimizer_goes_back_to_before_its_first_step() -> None:
    net = mlp()
    optimizer = torchopt.MetaAdam(net)
    state = torchopt.extract_state_dict(optimizer)
    optimizer.step(loss_of(net))
    torchopt.recover_state_dict(optimizer, state)
    assert isinstance(optimizer.state_dict()[0], torchopt.base.UninitializedState)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm_survives_a_meta_episode(training: bool) -> None:
    net = mlp()
    loss_of(net)
    net.train(training)
    inner = torchopt.MetaSGD(net, lr=0.1)
    outer = torchopt.Adam(net.parameters(), lr=0.01)
    before = values(net)
    state = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
    inner_state = torchopt.extract_state_dict(inner)
    losses = []
    for _ in range(3):
        for _ in range(2):
            inner.step(loss_of(net))
        losses.append(loss_of(net))
        torchopt.recover_state_dict(net, state)
        torchopt.recover_state_dict(inner, inner_state)
        assert_values(net, before)
    assert len({loss.item() for loss in losses}) == 1
    outer.zero_grad()
    torch.stack(losses).mean().backward()
    assert all(param.grad is not None for param in net.parameters())
    outer.step()
    assert not torch.equal(net[0].weight, before["0.weight"])


@every_net
def test_stop_gradient_cuts_modules_and_keeps_their_values(make: Callable[[], nn.Module]) -> None:
    net, optimizer = stepped(make, steps=2)
    before = values(net)
    requires_grad = {name: x.requires_grad for name, x in tensors(net).items()}
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(optimizer)
    assert_values(net, before)
    assert {name: x.requires_grad for name, x in tensors(net).items()} == requires_grad
    held = [*tensors(net).values(), *leaves(optimizer.state_dict())]
    assert all(x.is_leaf for x in held)
    start = list(net.parameters())
    optimizer.step(loss_of(net))
    grads = torch.autograd.grad(loss_of(net), [p for p in start if p.requires_grad])
    assert all(grad.isfinite().all() for grad in grads)


def test_stop_gradient_cuts_states_extracted_by_reference() -> None:
    net, optimizer = stepped(mlp)
    state, optimizer_state = map(torchopt.extract_state_dict, (net, optimizer))
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(optimizer)
    assert all(x.is_leaf for x in [*flat(state), *leaves(optimizer_state)])


@every_net
@pytest.mark.parametrize("by", ["reference", "copy"])
def test_stop_gradient_cuts_states(make: Callable[[], nn.Module], by: Any) -> None:
    net, _ = stepped(make)
    state = torchopt.extract_state_dict(net, by=by, enable_visual=True)
    torchopt.stop_gradient([state])
    assert all(x.is_leaf for x in flat(state))
    torchopt.recover_state_dict(net, state)
    assert all(p.is_leaf for p in net.parameters())


def test_stop_gradient_cuts_trees() -> None:
    x = torch.ones(2, requires_grad=True)
    net, optimizer = stepped(mlp)
    tree = {"a": (x * 2, None, 3), "b": [x * 3, x, torch.ones(2)], "net": net, "o": optimizer}
    torchopt.stop_gradient(tree)
    assert [t.requires_grad for t in (tree["a"][0], *tree["b"])] == [True, True, True, False]
    held = [tree["a"][0], *tree["b"], *net.parameters(), *leaves(optimizer.state_dict())]
    assert all(t.is_leaf for t in held)
    for nothing in ((), {}, None, (torchopt.base.EmptyState(),)):
        torchopt.stop_gradient(nothing)


def test_stop_gradient_refuses_views_that_it_cannot_replace() -> None:
    x = torch.ones(2, requires_grad=True)
    tree = [x * 2, (x * 2)[:1]]
    with pytest.raises(ValueError, match=r"view.*detach\(\)"):
        torchopt.stop_gradient(tree)
    assert not tree[0].is_leaf


def test_module_detach_returns_its_argument() -> None:
    net, _ = stepped(mlp)
    assert torchopt.module_detach_(net) is net
    assert all(p.is_leaf and p.requires_grad for p in net.parameters())


@every_net
@pytest.mark.parametrize("by", EVERY_BY)
@pytest.mark.parametrize("steps", [0, 1], ids=["leaves", "non-leaves"])
def test_clones_compute_the_same(make: Callable[[], nn.Module], by: Any, steps: int) -> None:
    net, _ = stepped(make, steps)
    before = values(net)
    clone = torchopt.module_clone(net, by=by, detach_buffers=True)
    assert type(clone) is type(net)
    assert_values(clone, before)
    torch.testing.assert_close(clone(INPUT), net(INPUT), rtol=0, atol=0)
    own = tensors(net)
    for name, param in clone.named_parameters(remove_duplicate=False):
        assert (param is own[name]) == (by in REFERENCE)
        if by in COPY:
            assert (param.grad_fn is not None) == own[name].requires_grad
        elif by in DEEPCOPY:
            assert param.is_leaf
            assert param.requires_grad == own[name].requires_grad
            assert isinstance(param, nn.Parameter) == isinstance(own[name], nn.Parameter)


def test_clones_have_their_own_slots() -> None:
    net = mlp()
    weight = net[0].weight
    clone = torchopt.module_clone(net)
    torchopt.MetaSGD(clone, lr=0.1).step(loss_of(clone))
    assert net[0].weight is weight
    (grad,) = torch.autograd.grad(clone[0].weight.sum(), weight)
    assert grad.count_nonzero()


@pytest.mark.parametrize("by", EVERY_BY)
@pytest.mark.parametrize("detach_buffers", [True, False])
def test_clones_share_buffers_by_reference_only(by: Any, detach_buffers: bool) -> None:
    net = mlp()
    clone = torchopt.module_clone(net, by=by, detach_buffers=detach_buffers)
    shared = clone[1].running_mean is net[1].running_mean
    assert shared == (by in REFERENCE and not detach_buffers)


@pytest.mark.parametrize("by", EVERY_BY)
def test_clones_keep_ties_and_shared_modules(by: Any) -> None:
    clone = torchopt.module_clone(Tied(), by=by)
    assert clone.encoder.weight is clone.decoder.weight
    assert clone.norm is clone.again


def test_clones_move_to_a_device() -> None:
    clone = torchopt.module_clone(mlp(), device="meta")
    assert {x.device.type for x in tensors(clone).values()} == {"meta"}


def test_clones_take_tensors_that_are_plain_attributes_along() -> None:
    net, _ = stepped(mlp)
    net.cache = {"output": [net(INPUT)]}
    clone = torchopt.module_clone(net, by="copy")
    assert clone.cache["output"][0].grad_fn is not None
    assert clone.cache["output"][0] is not net.cache["output"][0]


@pytest.mark.parametrize("by", EVERY_BY)
def test_a_module_and_its_meta_optimizer_are_cloned_together(by: Any) -> None:
    net, optimizer = stepped(mlp)
    clone, clone_optimizer = torchopt.module_clone((net, optimizer), by=by, detach_buffers=True)
    for one, its in ((net, optimizer), (clone, clone_optimizer)):
        its.step(loss_of(one))
    assert_values(clone, values(net))
    assert clone[0].weight is not net[0].weight
    assert clone_optimizer.impl is optimizer.impl


def test_trees_of_tensors_are_cloned() -> None:
    x = torch.ones(2, requires_grad=True) * 2
    clone = torchopt.module_clone({"a": x, "b": [x]}, by="copy")
    assert clone["a"] is clone["b"][0] is not x
    assert clone["a"].grad_fn is not None


@pytest.mark.parametrize("by", EVERY_BY)
def test_clones_of_meta_gradient_modules_share_the_meta_part(by: Any) -> None:
    class Inner(torchopt.nn.MetaGradientModule):
        def __init__(self, prior: nn.Module, strength: torch.Tensor) -> None:
            super().__init__()
            self.prior = prior
            self.strength = strength
            self.net = copy.deepcopy(prior)

    prior = nn.Linear(2, 2)
    inner = Inner(prior, torch.ones((), requires_grad=True) * 2)
    clone = torchopt.module_clone(inner, by=by)
    assert clone.prior is prior
    assert clone.strength is inner.strength
    assert clone.net is not inner.net
    assert list(clone.state_dict()) == list(inner.state_dict())
    both = torchopt.module_clone((prior, inner), by=by)
    assert both[0] is both[1].prior is not prior


OTHERS = {
    "a different shape": (nn.Linear(2, 3), nn.Linear(3, 3), r"\(3, 2\).*\(3, 3\)"),
    "different names": (nn.Linear(2, 3), nn.Linear(2, 3, bias=False), r"bias.*\{'weight'"),
    "fewer modules": (mlp(), nn.Linear(2, 3), r"Linear '0'.*by 1 of the state"),
    "other buffers": (nn.BatchNorm1d(2), nn.BatchNorm1d(3), r"\(2,\).*\(3,\)"),
    "no such buffers": (
        nn.InstanceNorm1d(3),
        nn.InstanceNorm1d(3, track_running_stats=True),
        r"buffers .* \(none\) and by 1 of the state",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_state_of_another_module_is_refused_and_changes_nothing(case: str) -> None:
    target, source, message = OTHERS[case]
    before = {name: id(x) for name, x in tensors(target).items()}
    state = torchopt.extract_state_dict(source)
    with pytest.raises(ValueError, match=f"not a state of this {type(target).__name__}.*{message}"):
        torchopt.recover_state_dict(target, state)
    assert {name: id(x) for name, x in tensors(target).items()} == before


def test_a_state_that_fits_in_part_changes_nothing() -> None:
    target = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 3))
    before = {name: id(x) for name, x in tensors(target).items()}
    with pytest.raises(ValueError, match=r"Linear '2'"):
        torchopt.recover_state_dict(target, torchopt.extract_state_dict(source))
    assert {name: id(x) for name, x in tensors(target).items()} == before


def test_the_state_of_another_meta_optimizer_is_refused() -> None:
    _, adam = stepped(mlp)
    sgd = torchopt.MetaSGD(mlp(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="another optimizer"):
        torchopt.recover_state_dict(sgd, torchopt.extract_state_dict(adam))
    assert isinstance(sgd.state_dict()[0], torchopt.base.UninitializedState)


WRONG_TYPES = {
    "extract: a number": (lambda: torchopt.extract_state_dict(3), "int"),
    "extract: another optimizer": (
        lambda: torchopt.extract_state_dict(torch.optim.SGD([torch.ones(1)])),
        r"SGD; for that, use its own state_dict\(\)",
    ),
    "recover: a number": (
        lambda: torchopt.recover_state_dict(3, torchopt.extract_state_dict(mlp())),
        "int",
    ),
    "recover: not a module's state": (
        lambda: torchopt.recover_state_dict(mlp(), ({}, {})),
        "must be the ModuleState .* got tuple",
    ),
    "recover: not a meta-optimizer's state": (
        lambda: torchopt.recover_state_dict(
            torchopt.MetaSGD(mlp(), lr=0.1), torchopt.extract_state_dict(mlp())
        ),
        "must be the tuple .* got ModuleState",
    ),
    "stop_gradient: another optimizer": (
        lambda: torchopt.stop_gradient(torch.optim.SGD([torch.ones(1)])),
        "SGD",
    ),
    "module_clone: a number": (lambda: torchopt.module_clone(3), "int"),
}


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_wrong_types_are_named(case: str) -> None:
    call, message = WRONG_TYPES[case]
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("function", [torchopt.extract_state_dict, torchopt.module_clone])
def test_unknown_ways_to_copy_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"`by` must be .*, got 'shallow'"):
        function(mlp(), by="shallow")


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def hook(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * self.weight


def scaled(weight: torch.Tensor, module: nn.Module, args: Any, output: torch.Tensor) -> Any:
    return output * weight


HOOKS: dict[str, Callable[[Gate], Any]] = {
    "bound method": lambda gate: gate.hook,
    "partial of a module": lambda gate: functools.partial(Gate.hook, gate),
    "partial of a parameter": lambda gate: functools.partial(scaled, gate.weight),
}


@pytest.mark.parametrize("by", ["reference", "copy"])
@pytest.mark.parametrize(
    ("name", "stepped"),
    # a hook keeps the parameter itself as it was before a step
    [*((name, False) for name in HOOKS), ("bound method", True), ("partial of a module", True)],
)
def test_clones_keep_what_hooks_refer_to(name: str, stepped: bool, by: Any) -> None:
    first, gate = nn.Linear(2, 2), Gate()
    net = nn.ModuleList([first, gate])
    first.register_forward_hook(HOOKS[name](gate))
    if stepped:
        torchopt.MetaSGD(net, lr=0.1).step(first(torch.ones(1, 2)).sum())
    clone = torchopt.module_clone(net, by=by)
    loss = clone[0](torch.ones(1, 2)).sum()
    (expected,) = torch.autograd.grad(first(torch.ones(1, 2)).sum(), gate.weight)
    (grad,) = torch.autograd.grad(loss, gate.weight)
    torch.testing.assert_close(grad, expected)


def test_clones_keep_plain_tensors_and_arrays() -> None:
    net = nn.Linear(2, 2)
    net.mean, net.table, net.later = torch.zeros(3), np.ones(2), deque([net.weight])
    clone = torchopt.module_clone(net, by="copy")
    assert clone.mean is not net.mean
    assert clone.later[0] is clone.weight
    torchopt.module_clone(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))


def test_states_with_empty_dicts_are_recovered() -> None:
    """As 0.7 made them for submodules whose parameters or buffers are all None."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    state = torchopt.extract_state_dict(net)
    before = net[0].weight
    net[0]._parameters["weight"] = torch.zeros(2, 2)
    torchopt.recover_state_dict(net, state._replace(buffers=({},)))
    assert net[0].weight is before
