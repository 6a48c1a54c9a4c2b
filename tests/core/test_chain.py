"""Composition: chains are flat, have a unit, compare, pickle, and take transformations of users."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import optree
import pytest
import torch
from _table import FAMILIES, assert_agree, assert_same, tensors_in
from hypothesis import given
from hypothesis import strategies as st

import torchopt
from torchopt import transform
from torchopt.base import ChainedGradientTransformation, EmptyState

CLIP, ADAM, DECAY = torchopt.clip_grad_norm(1.0), torchopt.adam(0.1), transform.scale(0.5)
LINKS = [
    torchopt.identity(),
    CLIP,
    ADAM,
    DECAY,
    transform.trace(0.9, dampening=0.1),
    transform.masked(transform.scale_by_rms(), True),
    transform.scale_by_schedule(torchopt.schedule.constant_schedule(0.3)),
    transform.add_decayed_weights(0.1),
]
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


def run(transformation: Any, grads: Any, params: Any, inplace: bool = False) -> Any:
    state = transformation.init(params)
    for g in grads:
        updates, state = transformation.update(g, state, params=params, inplace=inplace)
    return updates, state


@every_mode
def test_applies_the_links_in_order(inplace: bool) -> None:
    params, grads = torch.randn(3), torch.randn(4, 3)
    links = LINKS[1:]
    states = [link.init(params) for link in links]
    for g in grads:
        expected = g
        for i, link in enumerate(links):
            expected, states[i] = link.update(expected, states[i], params=params, inplace=False)
    actual, state = run(torchopt.chain(*links), grads, params, inplace)
    assert_agree(actual, expected)
    assert_agree(tensors_in(state), tensors_in(states))


@given(parts=st.recursive(st.sampled_from(range(len(LINKS))), st.lists, max_leaves=8))
def test_nesting_does_not_matter(parts: Any) -> None:
    def nested(part: Any) -> torchopt.GradientTransformation:
        return LINKS[part] if isinstance(part, int) else torchopt.chain(*map(nested, part))

    flat = torchopt.chain(*(LINKS[i] for i in optree.tree_leaves(parts)))
    assert nested(parts) == flat
    params, grads = torch.randn(3), torch.randn(2, 3)
    assert_same(run(nested(parts), grads, params), run(flat, grads, params))


def test_identity_is_the_unit() -> None:
    unit = torchopt.identity()
    assert torchopt.chain() == unit
    assert torchopt.chain(unit, unit) == unit
    assert torchopt.chain(ADAM) is ADAM
    assert torchopt.chain(unit, ADAM) is ADAM
    assert torchopt.chain(ADAM, unit) is ADAM
    assert torchopt.chain(CLIP, unit, ADAM) == torchopt.chain(CLIP, ADAM)


def test_method_is_the_function() -> None:
    assert CLIP.chain(ADAM, DECAY) == torchopt.chain(CLIP, ADAM, DECAY)
    assert torchopt.identity().chain(ADAM) == ADAM


def test_chains_of_chains_are_flat() -> None:
    nested = torchopt.chain(torchopt.chain(CLIP, ADAM), torchopt.chain(DECAY, CLIP))
    assert isinstance(nested, ChainedGradientTransformation)
    assert nested.transformations == (CLIP, ADAM, DECAY, CLIP)
    assert len(nested.init(torch.ones(2))) == 4


def test_order_and_hyperparameters_matter() -> None:
    assert torchopt.chain(CLIP, ADAM) != torchopt.chain(ADAM, CLIP)
    assert torchopt.chain(CLIP, ADAM) != torchopt.chain(CLIP, torchopt.adam(0.2))
    assert torchopt.chain(CLIP, ADAM) != torchopt.chain(CLIP, ADAM, DECAY)
    assert torchopt.chain(CLIP, ADAM) != ADAM
    assert torchopt.clip_by_global_norm(1.0) != CLIP
    assert torchopt.adam(torch.tensor(0.1)) == torchopt.adam(torch.tensor(0.1))
    assert torchopt.adam(torch.tensor(0.1)) != torchopt.adam(torch.tensor(0.2))
    assert torchopt.adam([torch.ones(2)]) == torchopt.adam([torch.ones(2)])
    assert torchopt.adam([torch.ones(2)]) != torchopt.adam([torch.ones(3)])
    assert transform.scale({"a": torch.ones(2)}) == transform.scale({"a": torch.ones(2)})


@pytest.mark.parametrize("link", LINKS, ids=repr)
def test_links_and_chains_pickle(link: torchopt.GradientTransformation) -> None:
    params, grads = torch.randn(3), torch.randn(2, 3)
    for transformation in (link, torchopt.chain(CLIP, link, ADAM)):
        for copied in (pickle.loads(pickle.dumps(transformation)), copy.deepcopy(transformation)):
            assert copied == transformation
            assert type(copied) is type(transformation)
            assert repr(copied) == repr(transformation)
            assert_same(run(copied, grads, params), run(transformation, grads, params))


def test_repr_shows_the_links() -> None:
    text = repr(torchopt.chain(CLIP, ADAM))
    assert "lr=0.1" in text
    assert "max_norm=1.0" in text


@every_mode
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_clipping_before_an_optimizer(family: Any, inplace: bool) -> None:
    params = [torch.randn(3, dtype=torch.float64), torch.randn((), dtype=torch.float64)]
    leaves = [p.clone().requires_grad_() for p in params]
    optimizer = family.torch(leaves, lr=0.1)
    chained = torchopt.chain(torchopt.clip_grad_norm(0.3), family.functional(lr=0.1))
    state = chained.init(params)
    for _ in range(4):
        grads = [torch.randn_like(p) for p in params]
        for leaf, g in zip(leaves, grads, strict=True):
            leaf.grad = g.clone()
        torch.nn.utils.clip_grad_norm_(leaves, 0.3)
        optimizer.step()
        updates, state = chained.update(grads, state, params=params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=False)
    assert_agree(params, [leaf.detach() for leaf in leaves])


@every_mode
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torchopt.sgd([torch.tensor([2.0, 3.0])]), torchopt.sgd([torch.tensor([5.0, 7.0])])),
        (torchopt.sgd([torch.tensor([2.0, 3.0])]), torchopt.sgd(torch.tensor(5.0))),
        (torchopt.sgd(torch.tensor(2.0)), torchopt.sgd([torch.tensor([5.0, 7.0])])),
        (torchopt.sgd([torch.tensor([2.0, 3.0])]), transform.trace(0.9, dampening=0.5)),
        (transform.trace(0.9, dampening=0.5), torchopt.sgd([torch.tensor([2.0, 3.0])])),
        (torchopt.adam([torch.tensor([2.0, 3.0])]), transform.trace(0.9, dampening=0.5)),
        (torchopt.sgd([torch.tensor([2.0, 3.0])]), transform.scale([torch.tensor([5.0, 7.0])])),
        (torchopt.adam(0.0), torchopt.sgd(1.0)),
        (torchopt.adam(0.1), transform.trace(0.9, nesterov=True)),
        (torchopt.radam(0.1), transform.trace(0.9, nesterov=True)),
        (torchopt.adagrad(0.1, lr_decay=0.1), transform.trace(0.9, nesterov=True)),
    ],
)
def test_factors_of_every_kind_combine(first: Any, second: Any, inplace: bool) -> None:
    """Numbers, 0-dim tensors, trees, and one number for each leaf, kept as factors by the chain."""
    params, grads = [torch.randn(2)], torch.randn(3, 2)
    states = [first.init(params), second.init(params)]
    for g in grads:
        expected, states[0] = first.update([g], states[0], inplace=False)
        expected, states[1] = second.update(expected, states[1], inplace=False)
    chained = torchopt.chain(first, second)
    actual, _ = run(chained, [[g] for g in grads], params, inplace)
    assert_agree(actual, expected)


class CountState(NamedTuple):
    count: int


def count_init(params: Any) -> CountState:
    return CountState(0)


def double_and_count(
    updates: Any, state: CountState, *, params: Any = None, inplace: bool = True
) -> Any:
    def double(g: torch.Tensor | None) -> torch.Tensor | None:
        if g is None:
            return None
        return g.mul_(2.0) if inplace else g * 2.0

    return optree.tree_map(double, updates, none_is_leaf=True), CountState(state.count + 1)


USER = torchopt.GradientTransformation(count_init, double_and_count)


@every_mode
@pytest.mark.parametrize("position", ["first", "last", "between"])
def test_user_written_links(position: str, inplace: bool) -> None:
    """Even one that overwrites the updates it is given in place."""
    params = {"a": torch.randn(3), "none": None, "b": torch.randn(())}
    grads = [{"a": torch.randn(3), "none": None, "b": torch.randn(())} for _ in range(3)]
    kept = optree.tree_map(torch.clone, grads)
    doubled = transform.scale(2.0)
    before, after = {
        "first": ([], [ADAM]),
        "last": ([ADAM], []),
        "between": ([CLIP], [ADAM]),
    }[position]
    actual, state = run(torchopt.chain(*before, USER, *after), grads, params, inplace)
    expected, _ = run(torchopt.chain(*before, doubled, *after), grads, params, inplace)
    assert_agree(actual, expected)
    assert_same(grads, kept)
    assert CountState(3) in state


def test_user_written_links_see_the_parameters_as_they_are() -> None:
    """Trees, with None and complex leaves, not lists of real numbers."""
    seen: list[Any] = []

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        seen.append((updates, params))
        return updates, state

    spy = torchopt.GradientTransformation(lambda params: EmptyState(), update)
    params = {"z": torch.randn(2, dtype=torch.cfloat), "w": torch.randn(2), "none": torch.ones(1)}
    grads = {"z": torch.randn(2, dtype=torch.cfloat), "w": torch.randn(2), "none": None}
    chained = torchopt.chain(torchopt.identity(), spy, torchopt.sgd(1.0))
    updates, _ = chained.update(grads, chained.init(params), params=params)
    assert_same(seen[0][0]["z"], grads["z"])
    assert_same(seen[0][1]["z"], params["z"])
    assert seen[0][0]["none"] is None
    assert_same(updates["z"], -grads["z"])


def test_user_written_links_compare_and_pickle() -> None:
    chained = torchopt.chain(CLIP, USER)
    assert torchopt.chain(CLIP, USER) == chained
    assert torchopt.chain(torchopt.identity(), USER) == USER
    copied = pickle.loads(pickle.dumps(chained))
    assert copied == chained
    assert pickle.loads(pickle.dumps(USER)) == USER


def test_user_written_links_are_differentiable() -> None:
    x = torch.randn(2, requires_grad=True)
    chained = torchopt.chain(USER, torchopt.sgd(0.5))
    updates, _ = chained.update(x * 3.0, chained.init(x), inplace=False)
    assert_same(torch.autograd.grad(updates.sum(), x)[0], torch.full((2,), -3.0))
