"""The functional optimizer that keeps its own state."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from _table import (
    Case,
    assert_agree,
    assert_same,
    every_case,
    leaves_of,
    run_functional,
    tensors_in,
)
from torch.autograd import gradcheck

import torchopt


def loss_fn(params: Any, x: torch.Tensor) -> torch.Tensor:
    return (params["w"] @ x + params["b"]).tanh().square().sum()


def make_params() -> dict[str, torch.Tensor]:
    return {
        "w": torch.randn(3, 2, requires_grad=True),
        "b": torch.randn(3, requires_grad=True),
    }


@pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
@every_case
def test_steps_like_the_transformation(case: Case, inplace: bool) -> None:
    params, x = make_params(), torch.randn(2)
    own = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    optimizer = torchopt.FuncOptimizer(case.functional(), inplace=inplace)
    grads = []
    for _ in range(3):
        loss = loss_fn(own, x)
        leaves = optree.tree_leaves(own)
        found = torch.autograd.grad(loss, leaves, retain_graph=True)
        grads.append(optree.tree_unflatten(optree.tree_structure(own), found))
        own = optimizer.step(loss, own)
    expected = run_functional(case.functional(), params, grads)
    assert_agree(*(optree.tree_map(torch.Tensor.detach, tree) for tree in (own, expected)))


def test_inplace_overwrites_and_functional_does_not() -> None:
    params, x = make_params(), torch.randn(2)
    kept = [p.detach().clone() for p in params.values()]
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
    new = optimizer.step(loss_fn(params, x), params)
    assert_same([p.detach() for p in params.values()], kept)
    assert all(new[name] is not p for name, p in params.items())
    new = optimizer.step(loss_fn(params, x), params, inplace=True)
    assert all(new[name] is p for name, p in params.items())
    assert not any(torch.equal(p.detach(), q) for p, q in zip(params.values(), kept, strict=True))


@pytest.mark.usefixtures("float64")
@every_case
def test_steps_are_differentiable(case: Case) -> None:
    x = torch.randn(2, requires_grad=True)
    params = make_params()

    def meta_loss(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        optimizer = torchopt.FuncOptimizer(case.functional())
        tree: Any = {"w": w, "b": b}
        for _ in range(2):
            tree = optimizer.step(loss_fn(tree, x), tree)
        return loss_fn(tree, x.flip(0))

    assert gradcheck(meta_loss, (x, params["w"], params["b"]))


def test_state_can_be_taken_and_given_back() -> None:
    params, x = make_params(), torch.randn(2)
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
    params = optimizer.step(loss_fn(params, x), params)
    state = optimizer.state_dict()
    first = optimizer.step(loss_fn(params, x), params)
    optimizer.load_state_dict(state)
    again = optimizer.step(loss_fn(params, x), params)
    assert_same(again, first)


def test_parameters_the_loss_does_not_reach_and_none_stay() -> None:
    params = {"w": torch.randn(2, requires_grad=True), "other": torch.ones(2), "none": None}
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(0.1))
    new = optimizer.step(params["w"].sum(), params)
    assert new["none"] is None
    assert new["other"] is params["other"]
    assert_agree(new["w"].detach(), params["w"].detach() - 0.1)


def test_in_place_steps_record_no_graph() -> None:
    params = leaves_of([torch.randn(2)])
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1), inplace=True)
    for _ in range(2):
        params = optimizer.step(params[0].square().sum(), params)
    assert params[0].is_leaf
    assert not any(x.requires_grad for x in tensors_in(optimizer.state_dict()))
