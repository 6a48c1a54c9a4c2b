"""Every optimizer keeps every promise: one body for each promise, over the conformance table."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import numpy as np
import optree
import pytest
import torch
from _table import (
    CASES,
    Case,
    Family,
    assert_agree,
    assert_same,
    every_case,
    every_family,
    every_row,
    leaves_of,
    make_grads,
    make_params,
    run_functional,
    tensors_in,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import torchopt

STEPS = 12
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


@every_dtype
@every_row
def test_follows_the_reference_trajectory(case: Case, dtype: torch.dtype) -> None:
    params = case.make_params(dtype)
    grads = case.make_grads(params, case.steps(STEPS, dtype))
    mine, theirs = leaves_of(params), leaves_of(params)
    expected = case.run_reference(theirs, grads)
    assert_agree(case.run_stateful(mine, grads), expected)


@every_dtype
@every_row
def test_three_faces_agree(case: Case, dtype: torch.dtype) -> None:
    params = case.make_params(dtype)
    grads = case.make_grads(params, case.steps(STEPS, dtype))
    leaves = leaves_of(params)
    stateful = case.run_stateful(leaves, grads)

    assert_agree(case.run(params, grads), stateful)
    assert_agree(case.run_meta(params, grads), stateful)


@every_dtype
@every_row
def test_in_place_equals_functional(case: Case, dtype: torch.dtype) -> None:
    params = case.make_params(dtype)
    grads = case.make_grads(params, case.steps(STEPS, dtype))
    expected = case.run(params, grads, inplace=False)
    own = leaves_of(params)
    in_place = case.run(own, grads, inplace=True)
    assert all(x is y for x, y in zip(in_place, own, strict=True))
    assert_agree([x.detach() for x in in_place], expected)


@every_dtype
@every_case
def test_half_a_trajectory_in_each_mode_is_one_trajectory(case: Case, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    grads = make_grads(params, STEPS)
    expected = run_functional(case.functional(), params, grads)
    transformation = case.functional()
    state = transformation.init(params)
    for t, step in enumerate(grads):
        mode = t % 2 == 0
        updates, state = transformation.update(step, state, params=params, inplace=mode)
        params = torchopt.apply_updates(params, updates, inplace=False)
    assert_agree(params, expected)


@every_mode
@every_row
def test_gradients_are_never_written_to(case: Case, inplace: bool) -> None:
    params = case.make_params()
    grads = case.make_grads(params, 3)
    kept = optree.tree_map(torch.clone, grads)
    case.run(leaves_of(params), grads, inplace=inplace)
    assert_same(grads, kept)
    versions = [x._version for x in tensors_in(grads)]
    leaves = leaves_of(params)
    case.run_stateful(leaves, grads)
    assert_same(grads, kept)
    assert versions == [x._version for x in tensors_in(grads)]


@every_case
def test_functional_update_writes_to_no_input(case: Case) -> None:
    params = make_params()
    first, second = make_grads(params, 2)
    transformation = case.functional()
    _, state = transformation.update(first, transformation.init(params), params=params)
    inputs = (second, state, params)
    kept = optree.tree_map(lambda x: x.clone(), inputs)
    versions = [x._version for x in tensors_in(inputs)]
    transformation.update(second, state, params=params, inplace=False)
    assert_same(inputs, kept)
    assert versions == [x._version for x in tensors_in(inputs)]


@every_case
def test_in_place_update_hands_out_tensors_of_its_own(case: Case) -> None:
    params = make_params()
    first, second = make_grads(params, 2)
    transformation = case.functional()
    updates, state = transformation.update(first, transformation.init(params), params=params)
    kept = optree.tree_map(lambda x: x.clone(), updates)
    transformation.update(second, state, params=params)
    assert_same(updates, kept)


@every_mode
@every_row
def test_none_leaves_pass_through(case: Case, inplace: bool) -> None:
    trained = case.make_params()
    grads = case.make_grads(trained, 3)
    other = case.make_params()[0]
    params = {"a": leaves_of(trained), "none": None, "b": (None, other.clone())}
    trees = [{"a": step, "none": None, "b": (None, None)} for step in grads]
    after = case.run(params, trees, inplace=inplace)
    assert after["none"] is None
    assert_same(after["b"], (None, other))
    assert_agree([x.detach() for x in after["a"]], case.run(trained, grads))


def per_parameter(state: Any) -> list[Any]:
    """The trees in a state of parameters that are a list."""
    found: list[Any] = optree.tree_leaves(state, is_leaf=lambda node: isinstance(node, list))
    return found


@every_case
def test_a_leaf_without_gradient_keeps_value_and_state(case: Case) -> None:
    params = [torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)]
    transformation = case.functional()
    state = transformation.init(params)
    grads = [torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
    _, state = transformation.update(grads, state, params=params)
    second = [tree[1] for tree in per_parameter(state)]
    kept = optree.tree_map(lambda x: x.clone(), second)
    updates, state = transformation.update([grads[0], None], state, params=params)
    assert updates[1] is None
    assert_same([tree[1] for tree in per_parameter(state)], kept)


@every_case
def test_updates_with_no_gradient_at_all_change_nothing(case: Case) -> None:
    params = make_params()
    transformation = case.functional()
    state = transformation.init(params)
    nothing = [None] * len(params)
    updates, after = transformation.update(nothing, state, params=params)
    assert updates == nothing
    assert_same(after, state)


@every_case
def test_vmap_equals_loop(case: Case) -> None:
    batch, steps = 3, 2
    params = {"w": torch.randn(batch, 2, 3), "b": torch.randn(batch)}
    grads = [{k: torch.randn_like(x) for k, x in params.items()} for _ in range(steps)]

    def run(params: Any, *grads: Any) -> Any:
        return run_functional(case.functional(), params, grads)

    looped = [run(*optree.tree_map(lambda x, i=i: x[i], (params, *grads))) for i in range(batch)]
    expected = optree.tree_map(lambda *xs: torch.stack(xs), *looped)
    assert_agree(torch.vmap(run)(params, *grads), expected)


@every_row
def test_vmap_equals_loop_for_every_kind(case: Case) -> None:
    if case.kind & {"branches", "rough"}:
        pytest.skip("it computes in bfloat16, or branches on values, which a batch has many of")
    batch = 3
    stacked = [case.make_params() for _ in range(batch)]
    grads = [[[torch.randn_like(p) for p in params] for _ in range(2)] for params in stacked]
    looped = [case.run(params, g) for params, g in zip(stacked, grads, strict=True)]
    expected = optree.tree_map(lambda *xs: torch.stack(xs), *looped)
    params = optree.tree_map(lambda *xs: torch.stack(xs), *stacked)
    steps = optree.tree_map(lambda *xs: torch.stack(xs), *grads)
    assert_agree(torch.vmap(case.run)(params, steps), expected)


@every_case
def test_vmap_over_the_state_equals_loop(case: Case) -> None:
    batch = 3
    params = torch.randn(batch, 2)
    grads = torch.randn(2, batch, 2)
    transformation = case.functional()

    def step(params: Any, grads: Any, state: Any) -> Any:
        return transformation.update(grads, state, params=params)

    states = torch.vmap(transformation.init)(params)
    _, states = torch.vmap(step)(params, grads[0], states)
    actual, _ = torch.vmap(step)(params, grads[1], states)
    for i in range(batch):
        state = transformation.init(params[i])
        _, state = step(params[i], grads[0, i], state)
        expected, _ = step(params[i], grads[1, i], state)
        assert_agree(actual[i], expected)


@every_row
def test_pickles_copies_and_compares(case: Case) -> None:
    transformation = case.functional()
    for copied in (
        pickle.loads(pickle.dumps(transformation)),
        copy.deepcopy(transformation),
        case.functional(),
    ):
        assert copied == transformation
        params = case.make_params()
        grads = case.make_grads(params, 2)
        assert_same(run_functional(copied, params, grads, bowl=case.bowl), case.run(params, grads))
    assert case.functional(lr=0.123) != transformation


def test_different_rows_are_different_transformations() -> None:
    for i, one in enumerate(CASES):
        for other in CASES[i + 1 :]:
            assert one.functional(lr=0.1) != other.functional(lr=0.1), (one.name, other.name)


@every_case
def test_repr_shows_how_it_was_made(case: Case) -> None:
    text = repr(case.functional())
    assert text.startswith(f"{case.family.functional.__name__}(lr={case.lr}")
    for name, value in case.kwargs.items():
        assert f"{name}={value!r}" in text


@every_case
def test_state_is_an_immutable_record_of_trees_like_the_parameters(case: Case) -> None:
    params = {"w": torch.ones(2, 3), "b": {"x": torch.ones(())}}
    state = case.functional().init(params)
    spec = optree.tree_structure(params)
    for tree in optree.tree_leaves(state, is_leaf=lambda x: isinstance(x, dict)):
        assert optree.tree_structure(tree) == spec
    for record in state:
        assert isinstance(record, tuple)


@every_dtype
@every_row
def test_updates_keep_the_dtype_of_the_parameters(case: Case, dtype: torch.dtype) -> None:
    params = case.make_params(dtype)
    after = case.run(params, case.make_grads(params, 2))
    assert [x.dtype for x in after] == [x.dtype for x in params]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_mode
@every_case
def test_low_precision_step_is_the_double_precision_step_rounded(
    case: Case, inplace: bool, dtype: torch.dtype
) -> None:
    params = [torch.randn(50, dtype=torch.float64)]
    first, *rest = make_grads(params, 3)
    transformation = case.functional()
    state = transformation.init(params)
    _, state = transformation.update(first, state, params=params)
    # rounded once, so that both start from the same numbers
    low = optree.tree_map(
        lambda x: x.to(dtype) if x.is_floating_point() else x.clone(), (rest[0], state, params)
    )
    double = optree.tree_map(lambda x: x.double() if x.is_floating_point() else x.clone(), low)
    expected = transformation.update(*double[:2], params=double[2])
    actual = transformation.update(*low[:2], params=low[2], inplace=inplace)
    # some five roundings, of intermediate results that may be larger than the last one, or so
    # small that they are multiples of the smallest subnormal number
    info = torch.finfo(dtype)
    rtol = 8 * info.eps
    for x, y in zip(tensors_in(actual), tensors_in(expected), strict=True):
        atol = max(rtol * y.abs().max().item(), info.tiny * info.eps)
        torch.testing.assert_close(x.to(y.dtype), y, rtol=rtol, atol=atol)


@every_mode
@every_case
def test_a_tree_of_learning_rates_is_a_rate_for_each_entry(case: Case, inplace: bool) -> None:
    """Real ones also for complex parameters, and one for all entries of a parameter."""
    if "one rate" in case.kind:
        pytest.skip("all elements of a leaf share the rate")
    params = make_params()
    grads = make_grads(params, 3)
    rates = [torch.rand(p.shape, dtype=torch.float64) for p in params]
    rates[3] = torch.tensor(0.3, dtype=torch.float64)
    own = leaves_of(params)
    after = run_functional(case.functional(lr=rates), own, grads, inplace=inplace)
    for i, (param, rate) in enumerate(zip(params, rates, strict=True)):
        for index in np.ndindex(param.shape):
            lr = rate.expand(param.shape)[index].item()
            alone = run_functional(case.functional(lr=lr), [param], [[step[i]] for step in grads])
            assert_agree(after[i].detach()[index], alone[0][index])


@every_mode
@every_family
def test_hyperparameters_of_higher_precision_do_not_promote(family: Family, inplace: bool) -> None:
    params = [torch.randn(2, dtype=torch.bfloat16), torch.randn(()), torch.randn(2)]
    grads = [[torch.randn_like(p) for p in params] for _ in range(2)]
    double = functools.partial(torch.tensor, dtype=torch.float64)
    for lr in (double(0.1), [double(0.1), double(0.1), double([0.1, 0.2])]):
        transformation = family.functional(lr=lr, weight_decay=double(0.1))
        after = run_functional(transformation, leaves_of(params), grads, inplace=inplace)
        assert [x.dtype for x in after] == [x.dtype for x in params]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AdaGrad", "Adagrad"),
        ("AdaDelta", "Adadelta"),
        ("AdaMax", "Adamax"),
        ("RMSProp", "RMSprop"),
        ("MetaAdaGrad", "MetaAdagrad"),
        ("MetaAdaDelta", "MetaAdadelta"),
        ("MetaAdaMax", "MetaAdamax"),
        ("MetaRMSProp", "MetaRMSprop"),
    ],
)
def test_spelling_variants_are_the_same_object(one: str, other: str) -> None:
    assert getattr(torchopt, one) is getattr(torchopt, other)
    assert getattr(torchopt.optim, one, None) is getattr(torchopt.optim, other, None)


@every_family
def test_defaults_are_those_of_torch(family: Family) -> None:
    params = [torch.randn(3, requires_grad=True)]
    mine = family.stateful(params).defaults
    theirs = family.torch(params).defaults
    shared = mine.keys() & theirs.keys()
    assert {"lr", "weight_decay"} <= shared
    assert {name: mine[name] for name in shared} == {name: theirs[name] for name in shared}


def trees() -> st.SearchStrategy[Any]:
    """Trees of small tensors, with ``None`` here and there."""
    shapes = st.lists(st.integers(0, 3), max_size=2).map(tuple)
    leaves = st.none() | st.builds(lambda shape: torch.randn(shape, dtype=torch.float64), shapes)
    return st.recursive(
        leaves,
        lambda children: (
            st.lists(children, max_size=3)
            | st.tuples(children, children)
            | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
        ),
        max_leaves=6,
    )


@every_family
@settings(max_examples=15)
@given(tree=trees())
def test_updating_commutes_with_flattening(family: Family, tree: Any) -> None:
    transformation = family.functional(lr=0.1, weight_decay=0.1)
    leaves, spec = optree.tree_flatten(tree, none_is_leaf=True)
    flat_grads = [[None if x is None else torch.randn_like(x) for x in leaves] for _ in range(2)]
    tree_grads = [optree.tree_unflatten(spec, grads) for grads in flat_grads]
    flat = run_functional(transformation, leaves, flat_grads)
    whole = run_functional(transformation, tree, tree_grads)
    assert optree.tree_structure(whole, none_is_leaf=True) == spec
    assert_same(optree.tree_leaves(whole, none_is_leaf=True), flat)
