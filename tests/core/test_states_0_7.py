"""States that TorchOpt 0.7 saved are taken by every face, which goes on with the numbers of 0.7.

The checkpoints in ``data/torchopt_0_7`` were made by 0.7.3, with ``make.py`` there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from _cases_0_7 import (
    AFTER,
    BEFORE,
    CASES,
    loss_fn,
    make_module,
    step_functional,
    step_meta,
    step_stateful,
)
from _table import assert_agree, assert_same, tensors_in
from torch import nn

import torchopt
from torchopt import pytree, transform
from torchopt.base import EmptyState
from torchopt.transform import ScaleByAdamState, ScaleByRmsState, TraceState

REST = range(BEFORE, BEFORE + AFTER)
FOLDER = Path(__file__).resolve().parent / "data" / "torchopt_0_7"
#: Where 0.7 had the classes of its states.
every_case = pytest.mark.parametrize("name", CASES)


def load(name: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(FOLDER / f"{name}.pt", weights_only=False)
    return checkpoint


def filled_module(params: dict[str, torch.Tensor]) -> nn.Linear:
    module = make_module()
    module.load_state_dict(params)
    return module


def params_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: p.detach() for key, p in module.named_parameters()}


def test_every_checkpoint_is_a_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.pt")} == set(CASES)


@every_case
def test_update_goes_on(name: str) -> None:
    saved = load(name)
    params, _ = step_functional(name, CASES[name](), saved["params"], saved["functional"], REST)
    assert_agree(params, saved["expected"])


@every_case
def test_update_in_place_goes_on(name: str) -> None:
    saved = load(name)
    transformation, params, state = CASES[name](), saved["params"], saved["functional"]
    for step in REST:
        leaves = {key: p.requires_grad_() for key, p in params.items()}
        found = torch.autograd.grad(
            loss_fn(**leaves, step=step, name=name), list(leaves.values()), allow_unused=True
        )
        params = {key: p.detach() for key, p in leaves.items()}
        grads = dict(zip(leaves, found, strict=True))
        updates, state = transformation.update(grads, state, params=params)
        torchopt.apply_updates(params, updates)
    assert_agree(params, saved["expected"])


@every_case
def test_functional_optimizer_goes_on(name: str) -> None:
    saved = load(name)
    optimizer = torchopt.FuncOptimizer(CASES[name]())
    optimizer.load_state_dict(saved["functional"])
    params = {key: p.requires_grad_() for key, p in saved["params"].items()}
    for step in REST:
        params = optimizer.step(loss_fn(**params, step=step, name=name), params)
    assert_agree(pytree.tree_map(torch.Tensor.detach, params), saved["expected"])


@every_case
def test_stateful_optimizer_goes_on(name: str) -> None:
    saved = load(name)
    module = filled_module(saved["params"])
    optimizer = torchopt.Optimizer(module.parameters(), CASES[name]())
    optimizer.load_state_dict(saved["stateful"])
    step_stateful(name, optimizer, module, REST)
    assert_agree(params_of(module), saved["expected"])


@every_case
def test_meta_optimizer_goes_on(name: str) -> None:
    saved = load(name)
    module = filled_module(saved["params"])
    optimizer = torchopt.MetaOptimizer(module, CASES[name]())
    torchopt.recover_state_dict(optimizer, saved["meta"])
    step_meta(name, optimizer, module, REST)
    assert_agree(params_of(module), saved["expected"])


@every_case
def test_converted_states_are_like_those_of_init(name: str) -> None:
    saved = load(name)
    transformation = CASES[name]()
    fresh = transformation.init(saved["params"])
    state = torchopt.utils.convert_state(transformation, saved["functional"], saved["params"])
    assert pytree.tree_structure(state) == pytree.tree_structure(fresh)
    kinds = [[(x.shape, x.dtype) for x in tensors_in(tree)] for tree in (state, fresh)]
    assert kinds[0] == kinds[1]
    assert torchopt.utils.convert_state(transformation, state, saved["params"]) is state
    params, _ = step_functional(name, transformation, saved["params"], state, REST)
    assert_agree(params, saved["expected"])


@every_case
@pytest.mark.parametrize("target", ["module", "list"])
def test_states_of_modules_and_lists_are_converted(name: str, target: str) -> None:
    saved = load(name)
    module = filled_module(saved["params"])
    transformation = CASES[name]()
    if target == "module":
        (state,) = saved["meta"]
        state = torchopt.utils.convert_state(transformation, state, module)
    else:
        (state,) = saved["stateful"]
        state = torchopt.utils.convert_state(transformation, state, list(module.parameters()))
    optimizer = torchopt.MetaOptimizer(module, transformation)
    optimizer.load_state_dict((state,))
    step_meta(name, optimizer, module, REST)
    assert_agree(params_of(module), saved["expected"])


def test_a_step_count_is_that_of_its_leaf() -> None:
    saved = load("adam_without_some")
    state = torchopt.utils.convert_state(
        torchopt.adam(), saved["functional"], {"params": saved["params"]}
    )
    assert pytree.tree_get(state, "count", param="params.weight") == BEFORE
    assert pytree.tree_get(state, "count", param="params.bias") == BEFORE - 1


def test_schedules_tell_the_steps_that_were_not_counted() -> None:
    saved = load("adagrad_schedule")
    transformation = CASES["adagrad_schedule"]()
    state = torchopt.utils.convert_state(transformation, saved["functional"], saved["params"])
    assert state[1].count == BEFORE
    assert state[0].count == dict.fromkeys(saved["params"], torch.tensor(BEFORE))


def test_what_is_lost_is_as_before_the_first_step() -> None:
    """In 0.7 a leaf without a gradient loses its buffer; a frozen one never had any."""
    params = {"b": torch.ones(2), "frozen": None, "w": torch.ones(3)}
    saved = (TraceState([None, None, torch.full((3,), 2.0)]), EmptyState())
    grads = {"b": torch.ones(2), "frozen": None, "w": torch.ones(3)}
    updates, state = torchopt.sgd(1.0, momentum=0.5).update(grads, saved, params=params)
    expected = {"b": torch.full((2,), -1.0), "frozen": None, "w": torch.full((3,), -2.0)}
    assert_same(updates, expected)
    assert state[0].trace["frozen"] is None


def test_a_leaf_without_a_gradient_keeps_its_state_where_the_parameters_are_not_given() -> None:
    moments = [torch.ones(1), torch.full((2,), 2.0)]
    saved = (ScaleByAdamState(moments, moments, [torch.tensor(3), torch.tensor(4)]), EmptyState())
    _, state = torchopt.adam().update({"a": None, "b": torch.ones(2)}, saved, inplace=False)
    assert_same(state[0].mu["a"], torch.ones(1))
    assert [int(x) for x in pytree.tree_leaves(state[0].count)] == [3, 5]


def test_dampening_is_told_a_first_step_by_an_empty_buffer() -> None:
    begun = (TraceState([torch.zeros(1), torch.ones(1)]), EmptyState())
    params = [torch.zeros(1), torch.zeros(1)]
    state = torchopt.utils.convert_state(torchopt.sgd(1.0, 0.9, 0.5), begun, params)
    assert [int(x) for x in state[0].count] == [0, 1]


def test_derivatives_reach_the_state() -> None:
    buffer = torch.ones(2, requires_grad=True)
    saved = (TraceState([buffer]), EmptyState())
    grads = {"w": torch.ones(2)}
    updates, _ = torchopt.sgd(0.1, momentum=0.5).update(grads, saved, inplace=False)
    (found,) = torch.autograd.grad(updates["w"].sum(), buffer)
    assert_same(found, torch.full((2,), -0.05))


def test_runs_under_vmap() -> None:
    moments = torch.rand(4, 2)
    count = torch.arange(4)
    grads = torch.rand(4, 2)

    def update(mu: Any, nu: Any, count: Any, grad: Any, saved: bool) -> Any:
        if saved:
            state: Any = (ScaleByAdamState([mu], [nu], [count]), EmptyState())
        else:
            state = torchopt.adam().init({"w": grad})
            mu, nu = {"w": mu}, {"w": nu}
            state = pytree.tree_set(state, mu=mu, nu=nu, count={"w": count})
        return torchopt.adam().update({"w": grad}, state, inplace=False)[0]["w"]

    results = [
        torch.func.vmap(update, in_dims=(0, 0, 0, 0, None))(moments, moments, count, grads, saved)
        for saved in (True, False)
    ]
    assert_same(*results)


def own_momentum() -> torchopt.GradientTransformation:
    """A transformation of a user's own, whose state is a tree like the parameters."""

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        state = pytree.tree_map(lambda b, g: b + g, state, updates)
        return state, state

    return torchopt.GradientTransformation(
        lambda params: pytree.tree_map(torch.zeros_like, params), update
    )


@pytest.mark.parametrize("face", ["functional", "stateful", "meta"])
def test_state_of_a_users_own_transformation(face: str) -> None:
    weight, bias = torch.ones(3, 2), torch.full((3,), 2.0)
    impl = torchopt.chain(own_momentum(), torchopt.sgd(0.1))
    module = nn.Linear(2, 3)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    if face == "functional":
        grads = {"weight": module.weight.grad, "bias": module.bias.grad}
        state = ({"weight": weight, "bias": bias}, (EmptyState(),))
        updates, _ = impl.update(grads, state)
        assert_same(updates, {"weight": weight * -0.1, "bias": bias * -0.1})
        return
    if face == "stateful":
        stateful = torchopt.Optimizer(module.parameters(), impl)
        stateful.load_state_dict((((weight, bias), (EmptyState(),)),))
        stateful.step()
    else:
        meta = torchopt.MetaOptimizer(module, impl)
        # 0.7 had them by name, beside today's torch; shapes alone would not tell
        state = torchopt.utils.convert_state(
            impl, ((bias, weight), (EmptyState(),)), module, names_sorted=True
        )
        meta.load_state_dict((state,))
        meta.step(sum(p.sum() * 0.0 for p in module.parameters()))
    assert_same(params_of(module), {"weight": weight * -0.1, "bias": bias * -0.1})


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("sgd_nesterov", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adam_decay", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop_centered", torch.optim.RMSprop),
        ("adagrad", torch.optim.Adagrad),
        ("radam", torch.optim.RAdam),
    ],
)
def test_states_go_on_to_torch(name: str, theirs: Any) -> None:
    saved = load(name)
    module = filled_module(saved["params"])
    optimizer = theirs(module.parameters())
    optimizer.load_state_dict(
        torchopt.utils.to_torch_state_dict(CASES[name](), saved["functional"], saved["params"])
    )
    step_stateful(name, optimizer, module, REST)
    assert_agree(params_of(module), saved["expected"])


class Scaled(nn.Module):
    """Parameters of one shape, registered in another order than that of their names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.bias = nn.Parameter(torch.zeros(2))


def test_an_order_that_shapes_do_not_tell_is_asked_for() -> None:
    first, second = torch.ones(2), torch.full((2,), 2.0)
    saved = ((TraceState([first, second]), EmptyState()),)
    module = Scaled()
    impl = torchopt.sgd(0.1, momentum=0.9)
    meta = torchopt.MetaOptimizer(module, impl)
    with pytest.raises(ValueError, match="names_sorted"):
        meta.load_state_dict(saved)
    by_name = torchopt.utils.convert_state(impl, saved[0], module, names_sorted=True)
    assert_same(by_name[0].trace, [second, first])
    as_registered = torchopt.utils.convert_state(impl, saved[0], module, names_sorted=False)
    assert_same(as_registered[0].trace, [first, second])
    meta.load_state_dict((by_name,))
    same = ((TraceState([first, first]), EmptyState()),)  # either way
    meta.load_state_dict(same)
    assert_same(meta.state_dict()[0][0].trace, [first, first])


def test_parameters_in_order_of_registration_are_told_by_their_shapes() -> None:
    """As torch kept them in the time of 0.7."""
    module = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    moments = [torch.full(p.shape, float(k)) for k, p in enumerate(module.parameters())]
    saved = ((TraceState(moments), EmptyState()),)
    meta = torchopt.MetaOptimizer(module, torchopt.sgd(0.1, momentum=0.9))
    meta.load_state_dict(saved)
    assert_same(meta.state_dict()[0][0].trace, moments)


def test_shared_parameters_are_listed_once_for_each_place_in_0_7() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), nn.Linear(2, 2))
    module[2].weight = module[0].weight
    shapes = [(2, 2), (2,), (2, 2), (2,), (2, 2)]  # by name: weight; bias, weight; bias, weight
    moments = [torch.full(shape, float(k)) for k, shape in enumerate(shapes)]
    saved = ((TraceState(moments), EmptyState()),)
    meta = torchopt.MetaOptimizer(module, torchopt.sgd(0.1, momentum=0.9))
    meta.load_state_dict(saved)
    assert_same(meta.state_dict()[0][0].trace, [moments[k] for k in (0, 2, 1, 3)])


def adam_state(*shapes: tuple[int, ...]) -> Any:
    moments = [torch.zeros(shape) for shape in shapes]
    return (ScaleByAdamState(moments, moments, [torch.tensor(1) for _ in shapes]), EmptyState())


@pytest.mark.parametrize(
    ("impl", "state", "message"),
    [
        (torchopt.sgd(0.1, momentum=0.9), adam_state((2,), (3,)), "has no `trace`"),
        (torchopt.sgd(0.1), adam_state((2,), (3,)), "this one has no ScaleByAdamState"),
        (torchopt.adam(amsgrad=True), adam_state((2,), (3,)), "has no `nu_max`"),
        (torchopt.adam(), (ScaleByRmsState([torch.zeros(2)]), EmptyState()), "has no `mu`"),
        (torchopt.adam(), adam_state((2,), (3,), (4,)), "`mu` has 3 entries, for 2 parameters"),
        (torchopt.adam(), adam_state((3,), (2,)), "has shape"),
        (torchopt.adam(), (EmptyState(),), "has no `mu`"),
        (torchopt.adam(lambda count: 0.1), adam_state((2,), (3,)), "has no `count`"),
        (torchopt.chain(torchopt.adam(), torchopt.sgd(0.1, 0.9)), adam_state((2,), (3,)), "links"),
        (transform.masked(torchopt.adam()), adam_state((2,), (3,)), "expected MaskedState"),
    ],
)
def test_states_that_do_not_fit_are_refused(impl: Any, state: Any, message: str) -> None:
    params = [torch.zeros(2), torch.zeros(3)]
    with pytest.raises(ValueError, match=message):
        torchopt.utils.convert_state(impl, state, params)
    with pytest.raises(ValueError, match=message):
        impl.update(params, state, params=params)
    leaves = [p.requires_grad_() for p in params]
    optimizer = torchopt.Optimizer(leaves, impl)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict((state,))
    assert not optimizer.state


def test_stateful_load_wants_a_state_for_each_group() -> None:
    optimizer = torchopt.Adam([torch.zeros(2, requires_grad=True)])
    with pytest.raises(ValueError, match="it has 2, the optimizer 1"):
        optimizer.load_state_dict((adam_state((2,)), adam_state((2,))))


def test_names_sorted_is_for_modules() -> None:
    with pytest.raises(ValueError, match="for a module"):
        torchopt.utils.convert_state(
            torchopt.adam(), adam_state((2,)), [torch.zeros(2)], names_sorted=True
        )


def test_states_before_the_first_step_load() -> None:
    optimizer = torchopt.Adam([torch.zeros(2, requires_grad=True)])
    optimizer.load_state_dict((torchopt.base.UninitializedState(),))
    assert not optimizer.state
    assert optimizer.state_groups == (torchopt.base.UninitializedState(),)


def test_the_stateful_face_shows_its_state_as_the_functional_one_has_it() -> None:
    name = "clip_adam"
    module, other = make_module(), make_module()
    optimizer = torchopt.Optimizer(module.parameters(), CASES[name]())
    step_stateful(name, optimizer, module, range(BEFORE))
    (state,) = optimizer.state_groups
    assert state[2][0].mu[0] is optimizer.state[module.weight]["exp_avg"]
    copied = pytree.tree_map(torch.clone, optimizer.state_groups)
    other.load_state_dict(module.state_dict())
    again = torchopt.Optimizer(other.parameters(), CASES[name]())
    again.load_state_dict(copied)
    for one, its in ((optimizer, module), (again, other)):
        step_stateful(name, one, its, REST)
    assert_same(params_of(other), params_of(module))
