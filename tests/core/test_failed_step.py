"""A step that fails leaves parameters and state as they were, bit for bit, in every face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import Bag, Family, assert_same, every_family, snapshot, tensors_in

import torchopt
from torchopt import transform


def _raise(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a user's transformation failed")


FAILING = torchopt.GradientTransformation(lambda params: (), _raise)


class FailsLater:
    """A schedule that fails when it is called the fourth time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, count: torch.Tensor) -> float:
        self.calls += 1
        if self.calls >= 4:
            raise RuntimeError("a user's schedule failed")
        return 0.1


@every_family
@pytest.mark.parametrize("position", ["first group", "second group"])
def test_step_refused_for_nan_leaves_everything_as_it_was(family: Family, position: str) -> None:
    params = [torch.randn(3, requires_grad=True) for _ in range(2)]
    impl = torchopt.chain(
        torchopt.clip_grad_norm(1.0, error_if_nonfinite=True), family.functional(lr=0.1)
    )
    optimizer = torchopt.Optimizer([{"params": [p]} for p in params], impl)
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    params[0 if position == "first group" else 1].grad = torch.tensor([1.0, torch.nan, 1.0])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"norm .* nan"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


NONFINITE = torchopt.clip_grad_norm(1.0, error_if_nonfinite=True)
ADAM = torchopt.adam(0.1)
# each fails by the fourth step, in which gradients are NaN, and after the optimizer's own part;
# schedules fail for the second of two groups
LATE: dict[str, Callable[[], torchopt.GradientTransformation]] = {
    "a transformation": lambda: torchopt.chain(ADAM, FAILING),
    "a masked transformation": lambda: transform.masked(torchopt.chain(ADAM, FAILING)),
    "clipping": lambda: torchopt.chain(ADAM, NONFINITE),
    "a learning rate schedule": lambda: torchopt.adam(lr=FailsLater()),
    "a schedule": lambda: torchopt.chain(ADAM, transform.scale_by_schedule(FailsLater())),
    "a mask": lambda: torchopt.chain(ADAM, transform.add_decayed_weights(0.1, mask=_raise)),
    "a mask of another structure": lambda: torchopt.chain(
        ADAM, transform.add_decayed_weights(0.1, mask=[True] * 9)
    ),
    "AdamW with a mask of another structure": lambda: torchopt.adamw(0.1, mask=[True] * 9),
    "learning rates of another shape": lambda: torchopt.adam(lr=[torch.ones(7)]),
    "learning rates that broadcast to another shape": lambda: torchopt.adam(lr=[torch.ones(2, 3)]),
    "learning rates of another structure": lambda: torchopt.adam(lr=[torch.ones(3), torch.ones(3)]),
    "factors of another shape": lambda: torchopt.chain(ADAM, transform.scale([torch.ones(7)])),
}
every_late = pytest.mark.parametrize("make", LATE.values(), ids=LATE)
MakeImpl = Callable[[], torchopt.GradientTransformation]


@every_late
def test_step_that_fails_late_leaves_everything_as_it_was(make: MakeImpl) -> None:
    params = [torch.randn(3, requires_grad=True) for _ in range(2)]
    optimizer = torchopt.Optimizer([{"params": [p]} for p in params], make())
    failed = False
    for t in range(4):
        for p in params:
            p.grad = torch.full((3,), torch.nan if t == 3 else 1.0)
        before = snapshot(optimizer)
        try:
            optimizer.step()
        except (RuntimeError, ValueError):
            failed = True
            assert_same(snapshot(optimizer), before)
            break
    assert failed


@every_late
def test_meta_step_that_fails_late_leaves_everything_as_it_was(make: MakeImpl) -> None:
    one, other = Bag([torch.randn(3)]), Bag([torch.randn(3)])
    optimizer = torchopt.MetaOptimizer(one, make())
    optimizer.add_param_group(other)
    failed = False
    for t in range(4):
        params, state = [*one.tensors(), *other.tensors()], optimizer.state_dict()
        kept = optree.tree_map(torch.clone, (params, tensors_in(state)))
        grads = [torch.full((3,), torch.nan if t == 3 else 1.0)]
        try:
            optimizer.step(one.loss(grads) + other.loss(grads))
        except (RuntimeError, ValueError):
            failed = True
            after = [*one.tensors(), *other.tensors()]
            assert all(x is y for x, y in zip(after, params, strict=True))
            assert_same((params, tensors_in(optimizer.state_dict())), kept)
            break
    assert failed


@pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
@every_late
def test_functional_step_that_fails_late_leaves_everything_as_it_was(
    make: MakeImpl, inplace: bool
) -> None:
    params = [torch.randn(3, requires_grad=True)]
    optimizer = torchopt.FuncOptimizer(make(), inplace=inplace)
    failed = False
    for t in range(4):
        kept = optree.tree_map(torch.clone, (params, tensors_in(optimizer.state_dict())))
        loss = (params[0] * (torch.nan if t == 3 else 1.0)).sum()
        try:
            params = optimizer.step(loss, params)
        except (RuntimeError, ValueError):
            failed = True
            assert_same((params, tensors_in(optimizer.state_dict())), kept)
            break
    assert failed


def test_unusable_hyperparameter_in_the_second_group_stops_the_step_before_the_first() -> None:
    params = [torch.randn(3, requires_grad=True) for _ in range(2)]
    optimizer = torchopt.Adam([{"params": [p]} for p in params], lr=0.1)
    optimizer.param_groups[1]["lr"] = -1.0
    for p in params:
        p.grad = torch.ones(3)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="`lr` must be non-negative"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize(
    "change", [lambda p: torch.ones(4), lambda p: p.double()], ids=["shape", "dtype"]
)
def test_step_after_a_parameter_changed_leaves_everything_as_it_was(change: Any) -> None:
    """Such as by ``net.double()``: the state of the second group no longer fits."""
    params = [torch.randn(3, requires_grad=True) for _ in range(2)]
    optimizer = torchopt.Adam([{"params": [p]} for p in params], lr=0.1)
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    params[1].grad = None
    params[1].data = change(params[1].data)
    params[1].grad = torch.ones_like(params[1])
    before = snapshot(optimizer)
    with pytest.raises((ValueError, RuntimeError), match=r"shape|dtype"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_closure_that_fails_leaves_everything_as_it_was() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = torchopt.Adam([param], lr=0.1)
    param.grad = torch.ones(3)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="user's transformation"):
        optimizer.step(_raise)
    assert_same(snapshot(optimizer), before)


def test_group_that_is_refused_is_not_added() -> None:
    net = torch.nn.Linear(2, 1)
    optimizer = torchopt.Adam([net.weight])
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [net.bias], "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_apply_updates_that_fails_leaves_the_parameters_as_they_were() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(3)}
    with pytest.raises(ValueError, match="shape"):
        torchopt.apply_updates(params, {"a": torch.ones(2), "b": torch.ones(4)})
    assert_same(params, {"a": torch.ones(2), "b": torch.ones(3)})
