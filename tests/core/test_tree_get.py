"""Fields of a state are found by name, in whatever it is composed of."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from _table import Case, assert_same, every_row, leaves_of, run_torch
from torch import nn

import torchopt
from torchopt import pytree, transform
from torchopt.base import EmptyState


def make_params() -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.ones(2, 3), "layer.bias": torch.ones(3), "nu": torch.ones(())}


COMPOSED = {
    "alone": torchopt.adam(),
    "transformation": transform.scale_by_adam(),
    "chain": torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(), torchopt.nan_to_num()),
    "mask": transform.masked(torchopt.adam(), lambda tree: pytree.tree_map(lambda p: True, tree)),
    "partition": torchopt.partition(
        {"a": torchopt.adam(), "b": torchopt.sgd(0.1, momentum=0.9)},
        {"layer.weight": "a", "layer.bias": "a", "nu": "b"},
    ),
    "lookahead": torchopt.lookahead(torchopt.adam()),
    "all": torchopt.chain(
        torchopt.lookahead(transform.masked(torchopt.chain(torchopt.adam(), torchopt.sgd(0.1))))
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_finds_a_field_in_any_composite(name: str) -> None:
    params = make_params()
    state = COMPOSED[name].init(params)
    found = pytree.tree_get(state, "nu")
    assert found["layer.weight"].shape == (2, 3)
    assert pytree.tree_get(state, "nu", param="layer.weight") is found["layer.weight"]
    ((path, value),) = pytree.tree_get_all_with_path(state, "nu")
    assert value is found
    node: Any = state
    for step in path:
        node = getattr(node, step) if hasattr(node, "_fields") else node[step]
    assert node is found
    marker = pytree.tree_map(torch.ones_like, found)
    changed = pytree.tree_set(state, nu=marker)
    assert pytree.tree_get(changed, "nu") is marker
    assert pytree.tree_get(state, "nu") is found
    assert type(changed) is type(state)


@every_row
def test_finds_the_moments_of_every_optimizer(case: Case) -> None:
    """By the names in the records, as many as a step of the stateful face keeps."""
    params = leaves_of(case.make_params())
    optimizer = case.stateful(params)
    run_torch(optimizer, params, case.make_grads(params, 1), bowl=case.bowl)
    (state,) = optimizer.state_groups
    row = optimizer.state[params[0]]
    fields = [
        value[0]
        for name in _names(state)
        for _, value in pytree.tree_get_all_with_path(state, name)
        if isinstance(value, list) and len(value) == len(params)
    ]
    kept = [x for x in row.values() if isinstance(x, torch.Tensor) and x.shape == params[0].shape]
    assert all(any(x is y for y in fields) for x in kept)


def _names(state: Any) -> set[str]:
    """The names of all fields of a state."""
    found: set[str] = set()
    if hasattr(state, "_fields"):
        found.update(state._fields)
    children = state.values() if isinstance(state, dict) else state
    if isinstance(state, (tuple, list, dict)):
        for child in children:
            found |= _names(child)
    return found


def test_parameters_are_found_by_their_place_in_the_tree() -> None:
    class Layer(NamedTuple):
        weight: torch.Tensor
        bias: torch.Tensor

    params = {"net": [Layer(torch.ones(1), torch.ones(2)), {"a.b": torch.ones(3)}]}
    state = torchopt.adam().init(params)
    for param, size in [
        ("net.0.weight", 1),
        ("net.0.bias", 2),
        ("net.1.a.b", 3),
        (("net", 1, "a.b"), 3),
    ]:
        assert pytree.tree_get(state, "mu", param=param).shape == (size,)
    with pytest.raises(KeyError, match=r"no `mu` of the parameter 'net\.0\.scale'"):
        pytree.tree_get(state, "mu", param="net.0.scale")
    assert pytree.tree_get(state, "mu", None, param="net.7") is None


def test_a_parameter_tells_which_part_is_meant() -> None:
    parts = {"slow": torchopt.adam(1e-3), "fast": torchopt.adam(1e-1)}
    optim = torchopt.partition(parts, {"body": "slow", "head": "fast"})
    state = optim.init({"body": torch.ones(1), "head": torch.ones(2)})
    with pytest.raises(KeyError, match=r"several places.*'slow', 0, 'nu'.*choose by `filtering`"):
        pytree.tree_get(state, "nu")
    assert pytree.tree_get(state, "nu", param="head").shape == (2,)
    found = pytree.tree_get(state, "nu", filtering=lambda path, value: "slow" in path)
    assert found["body"].shape == (1,)
    changed = pytree.tree_set(state, lambda path, value: "slow" in path, nu=None)
    assert [x is None for _, x in pytree.tree_get_all_with_path(changed, "nu")] == [True, False]


def test_what_is_not_there() -> None:
    state = torchopt.adam().init(make_params())
    with pytest.raises(KeyError, match="no `trace`; its fields are count, mu, nu"):
        pytree.tree_get(state, "trace")
    assert pytree.tree_get(state, "trace", None) is None
    assert pytree.tree_get(state, "trace", default=1) == 1
    assert pytree.tree_get_all_with_path(state, "trace") == []
    with pytest.raises(KeyError, match="no `trace` to be replaced"):
        pytree.tree_set(state, trace=None)
    with pytest.raises(KeyError, match="its fields are none"):
        pytree.tree_get(EmptyState(), "mu")


def test_states_of_a_users_own_are_looked_into() -> None:
    class Own(NamedTuple):
        ema: Any
        inner: Any

    def init(params: Any) -> Own:
        return Own({"w": 1.0}, torchopt.adam().init(params))

    own = torchopt.GradientTransformation(init, lambda updates, state, **_: (updates, state))
    state = torchopt.chain(own, torchopt.sgd(0.1, momentum=0.9)).init({"w": torch.ones(1)})
    assert pytree.tree_get(state, "ema", param="w") == 1.0
    assert_same(pytree.tree_get(state, "mu"), {"w": torch.zeros(1)})
    assert_same(pytree.tree_get(state, "trace"), {"w": torch.zeros(1)})


def test_states_of_the_other_faces() -> None:
    net = nn.Linear(2, 1)
    stateful = torchopt.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    stateful.step()
    assert (
        pytree.tree_get(stateful.state_groups, "nu", param=1)
        is (stateful.state[net.bias]["exp_avg_sq"])
    )
    meta = torchopt.MetaAdam(net)
    meta.step(net(torch.ones(1, 2)).sum())
    assert pytree.tree_get(meta.state_groups, "nu", param=0).shape == (1, 2)
    func = torchopt.FuncOptimizer(torchopt.adam())
    params = {"w": torch.ones(2, requires_grad=True)}
    func.step(params["w"].sum(), params)
    assert pytree.tree_get(func.optim_state, "nu", param="w").shape == (2,)


def test_flat_lists_in_sorted_order_as_in_0_7() -> None:
    params = {"w": torch.ones(2), "b": torch.ones(1), "none": None}
    state = torchopt.adam().init(params)
    leaves = pytree.tree_leaves(pytree.tree_get(state, "nu"), none_is_leaf=True)
    assert [None if x is None else x.shape[0] for x in leaves] == [1, None, 2]


def test_states_stay_usable_after_a_field_is_replaced() -> None:
    params = [torch.ones(2)]
    optim = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(1.0, momentum=0.5))
    state = pytree.tree_set(optim.init(params), trace=[torch.ones(2)])
    updates, _ = optim.update([torch.zeros(2)], state)
    assert_same(updates, [torch.full((2,), -0.5)])
