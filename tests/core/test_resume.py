"""Saving and resuming the stateful optimizers; what does not fit is refused and changes nothing."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _table import (
    Case,
    Family,
    assert_same,
    every_family,
    every_row,
    has_dimensions,
    leaves_of,
    make_grads,
    make_params,
    regression,
    run_torch,
    snapshot,
    through_a_file,
    train,
)

import torchopt
from torchopt import schedule, transform


def check_resumes(
    make: Callable[[Any], torchopt.Optimizer],
    params: list[torch.Tensor],
    steps: int,
    bowl: bool = False,
) -> None:
    """Assert that half a run, a file, and the other half give the same bits as one run."""
    grads = make_grads(params, steps)
    half = steps // 2
    leaves = leaves_of(params)
    optimizer = make(leaves)
    run_torch(optimizer, leaves, grads[:half], bowl=bowl)
    packed = through_a_file(optimizer.state_dict())
    resumed = leaves_of(leaves)
    expected = run_torch(optimizer, leaves, grads[half:], bowl=bowl)

    other = make(resumed)
    other.load_state_dict(packed)
    assert_same(run_torch(other, resumed, grads[half:], bowl=bowl), expected)
    assert_same(other.state_dict()["state"], optimizer.state_dict()["state"])


def masked_transformation(params: Any) -> torchopt.Optimizer:
    inner = transform.masked(transform.scale_by_adam(), has_dimensions)
    return torchopt.Optimizer(params, torchopt.chain(inner, torchopt.sgd(0.1, momentum=0.9)))


def chained(params: Any) -> torchopt.Optimizer:
    links = (
        torchopt.clip_grad_norm(0.5),
        torchopt.adam(0.1),
        transform.scale_by_schedule(lambda count: 0.5**count),
    )
    return torchopt.Optimizer(params, torchopt.chain(*links))


def two_groups(params: Any) -> torchopt.Optimizer:
    groups = [{"params": params[:1], "lr": 0.2}, {"params": params[1:]}]
    return torchopt.RAdam(groups, lr=0.1)


COMPOSED: dict[str, Callable[[list[torch.Tensor]], torchopt.Optimizer]] = {
    "schedule": lambda params: torchopt.Adam(params, lr=schedule.linear_schedule(0.1, 0.0, 8)),
    "rate as a tensor": lambda params: torchopt.Adam(params, lr=torch.tensor(0.1)),
    "rates as a tree": lambda params: torchopt.Adam(
        params, lr=[torch.tensor(0.1 * (i + 1)) for i, _ in enumerate(params)]
    ),
    "masked transformation": masked_transformation,
    "chain": chained,
    "two groups": two_groups,
    "named parameters": lambda params: torchopt.Adam(
        [(f"p{i}", p) for i, p in enumerate(params)], lr=0.1
    ),
}


@every_row
def test_resumes_from_a_file_bit_for_bit(case: Case) -> None:
    check_resumes(case.stateful, case.make_params(torch.float32), 8, case.bowl)


@pytest.mark.parametrize("make", COMPOSED.values(), ids=COMPOSED)
def test_resumes_however_it_is_composed(
    make: Callable[[list[torch.Tensor]], torchopt.Optimizer],
) -> None:
    check_resumes(make, make_params(torch.float32), 8)


@every_family
def test_resumes_bfloat16_after_more_steps_than_it_can_count(family: Family) -> None:
    params = [torch.randn(3, dtype=torch.bfloat16), torch.randn((), dtype=torch.bfloat16)]
    check_resumes(functools.partial(family.stateful, lr=0.01), params, 600)


def test_counts_past_what_bfloat16_can_count() -> None:
    param = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    optimizer = torchopt.Adam([param])
    for _ in range(300):
        param.grad = torch.ones_like(param)
        optimizer.step()
    assert optimizer.state[param]["step"].item() == 300


def test_state_dict_is_plain_data_that_names_its_tensors() -> None:
    net, loss_fn = regression()
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    train(net, loss_fn, optimizer, 1)
    packed = optimizer.state_dict()
    assert packed["param_groups"][0]["lr"] == 0.1
    assert packed["param_groups"][0]["params"] == [0, 1, 2, 3]
    for i, param in enumerate(net.parameters()):
        shapes = {name: x.shape for name, x in packed["state"][i].items()}
        assert shapes == {"exp_avg": param.shape, "exp_avg_sq": param.shape, "step": torch.Size()}


def test_loading_restores_hyperparameters_and_keeps_what_cannot_be_saved() -> None:
    rates = schedule.constant_schedule(0.1)
    params = [torch.ones(2, requires_grad=True)]
    saved = torchopt.Adam(params, lr=rates, eps=0.3, weight_decay=0.2).state_dict()
    optimizer = torchopt.Adam(params, lr=rates)
    optimizer.load_state_dict(through_a_file(saved))
    assert optimizer.param_groups[0]["eps"] == 0.3
    assert optimizer.param_groups[0]["weight_decay"] == 0.2
    assert optimizer.param_groups[0]["lr"] is rates


def test_loading_copies() -> None:
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    one, other = (torchopt.SGD([param], 0.1, momentum=0.9) for _ in range(2))
    one.step()
    other.load_state_dict(one.state_dict())
    kept = snapshot(one)[1]
    other.step()
    assert_same(snapshot(one)[1], kept)


def test_user_written_state_is_saved_and_resumed() -> None:
    def init(params: Any) -> Any:
        return {"seen": torchopt.pytree.tree_map(torch.zeros_like, params), "steps": 0}

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        seen = torchopt.pytree.tree_add(state["seen"], updates)
        return updates, {"seen": seen, "steps": state["steps"] + 1}

    params = [torch.zeros(2, requires_grad=True), torch.zeros((), requires_grad=True)]
    impl = torchopt.GradientTransformation(init, update)
    optimizer, other = torchopt.Optimizer(params, impl), torchopt.Optimizer(params, impl)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(snapshot(other), snapshot(optimizer))
    assert_same(other.state[params[0]]["seen"], torch.full((2,), 3.0))
    assert [row.get("steps") for row in other.state.values()] == [3, None]


def test_copies_and_pickles_go_on_alike() -> None:
    net, loss_fn = regression()
    optimizer = torchopt.Optimizer(
        net.parameters(), torchopt.chain(torchopt.clip_grad_norm(0.5), torchopt.adam(0.05))
    )
    train(net, loss_fn, optimizer, 3)
    copies = [
        copy.deepcopy((net, optimizer)),
        pickle.loads(pickle.dumps((net, optimizer))),
    ]
    expected = train(net, loss_fn, optimizer, 3)
    for copied_net, copied in copies:
        assert copied.impl == optimizer.impl
        assert_same(train(copied_net, loss_fn, copied, 3), expected)


def stepped(
    make: Callable[..., torch.optim.Optimizer], *shapes: tuple[int, ...], **kwargs: Any
) -> torch.optim.Optimizer:
    """Return an optimizer of parameters of these shapes after a step."""
    params = [torch.ones(shape, requires_grad=True) for shape in shapes]
    optimizer = make(params, **kwargs)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def momentum_after_adam(params: Any) -> torchopt.Optimizer:
    return torchopt.Optimizer(params, torchopt.chain(torchopt.adam(), transform.trace(0.9)))


def one_group_each(params: Any) -> torchopt.Optimizer:
    return torchopt.Adam([{"params": [p]} for p in params])


SHAPES = ((2,), (3,))
# from an optimizer that is not Adam for parameters of these shapes
MISFITS: dict[str, tuple[Callable[[], torch.optim.Optimizer], str]] = {
    "RMSprop": (lambda: stepped(torchopt.RMSprop, *SHAPES), "another optimizer"),
    "RAdam, whose state has the same names": (
        lambda: stepped(torchopt.RAdam, *SHAPES),
        "another optimizer",
    ),
    "AdamW, whose state has the same names": (
        lambda: stepped(torchopt.AdamW, *SHAPES),
        "another optimizer",
    ),
    "torch's RMSprop": (lambda: stepped(torch.optim.RMSprop, *SHAPES), "another optimizer"),
    "a chain": (lambda: stepped(momentum_after_adam, *SHAPES), "another optimizer"),
    "other shapes": (lambda: stepped(torchopt.Adam, (2,), (4,)), r"shape \(4,\).*\(3,\)"),
    "fewer parameters": (lambda: stepped(torchopt.Adam, (2,)), r"sizes \[1\].*\[2\]"),
    "more groups": (lambda: stepped(one_group_each, *SHAPES), r"sizes \[1, 1\].*\[2\]"),
}


def check_refused(packed: dict[str, Any], message: str) -> None:
    optimizer = stepped(torchopt.Adam, *SHAPES, lr=0.123)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(packed)
    after = optimizer.state_dict()
    assert_same(after["state"], before["state"])
    assert after["param_groups"] == before["param_groups"]


@pytest.mark.parametrize(("make", "message"), MISFITS.values(), ids=MISFITS)
def test_state_of_something_else_is_refused_and_changes_nothing(
    make: Callable[[], torch.optim.Optimizer], message: str
) -> None:
    check_refused(through_a_file(make().state_dict()), message)


@pytest.mark.parametrize("value", [None, 1.0], ids=str)
def test_damaged_state_is_refused_and_changes_nothing(value: Any) -> None:
    packed = stepped(torchopt.Adam, *SHAPES).state_dict()
    name = next(name for name in packed["state"][1] if name == "exp_avg_sq")
    packed["state"][1] = {**packed["state"][1], name: value}
    check_refused(packed, "exp_avg_sq")


def test_a_parameter_without_state_in_a_state_dict_starts_fresh() -> None:
    """As one does that has not been stepped before it was saved; so in torch."""
    packed = stepped(torchopt.Adam, *SHAPES).state_dict()
    del packed["state"][1]
    optimizer = stepped(torchopt.Adam, *SHAPES)
    optimizer.load_state_dict(packed)
    first, second = optimizer.param_groups[0]["params"]
    assert first in optimizer.state
    assert second not in optimizer.state
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in (first, second)] == [2, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_adagrad_that_has_not_stepped_resumes_in_torch_and_here(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, -2.0], dtype=dtype)
    first = torchopt.Adagrad([x.clone().requires_grad_()], initial_accumulator_value=0.5)
    reference = torch.optim.Adagrad([x.clone().requires_grad_()], initial_accumulator_value=0.5)
    assert_same(first.state_dict()["state"][0]["sum"], reference.state_dict()["state"][0]["sum"])
    for kind in (torch.optim.Adagrad, torchopt.Adagrad):
        expected, found = x.clone().requires_grad_(), x.clone().requires_grad_()
        resumed = kind([found])
        resumed.load_state_dict(first.state_dict())
        for leaf, optimizer in (
            (expected, torch.optim.Adagrad([expected], initial_accumulator_value=0.5)),
            (found, resumed),
        ):
            leaf.grad = torch.ones_like(x)
            optimizer.step()
        torch.testing.assert_close(found, expected)


def test_unusable_hyperparameters_are_refused_and_change_nothing() -> None:
    packed = stepped(torchopt.Adam, *SHAPES).state_dict()
    packed["param_groups"][0]["lr"] = -1.0
    check_refused(packed, "`lr` must be non-negative")


def test_state_of_radam_is_refused_by_adamax_whose_hyperparameters_and_state_have_its_names() -> (
    None
):
    packed = stepped(torchopt.RAdam, *SHAPES).state_dict()
    with pytest.raises(ValueError, match="another optimizer"):
        stepped(torchopt.Adamax, *SHAPES).load_state_dict(packed)
