"""Trees go together whatever kinds of sequences and dicts they are made of."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from _table import assert_agree, assert_same

import torchopt
from torchopt import pytree


class Pair(NamedTuple):
    w: Any
    b: Any


class Other(NamedTuple):
    w: Any
    b: Any


#: Trees of two leaves, by the kind of what holds them.
SEQUENCES: dict[str, Callable[[Any, Any], Any]] = {
    "list": lambda w, b: [w, b],
    "tuple": lambda w, b: (w, b),
    "named tuple": Pair,
    "deque": lambda w, b: deque([w, b]),
}
DICTS: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda w, b: {"w": w, "b": b},
    "OrderedDict": lambda w, b: OrderedDict(w=w, b=b),
    "OrderedDict, in another order": lambda w, b: OrderedDict(b=b, w=w),
    "defaultdict": lambda w, b: defaultdict(list, w=w, b=b),
}
PAIRS = [
    (f"{a} and {b}", kinds[a], kinds[b])
    for kinds in (SEQUENCES, DICTS)
    for a in kinds
    for b in kinds
    if a not in (b, "deque")  # masks are no deques
] + [("a list in a dict and a tuple in one", lambda w, b: {0: [w, b]}, lambda w, b: {0: (w, b)})]
every_pair = pytest.mark.parametrize(
    ("params_kind", "grads_kind"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS]
)
TRANSFORMATIONS: dict[str, Callable[[], torchopt.GradientTransformation]] = {
    "sgd": lambda: torchopt.sgd(0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda: torchopt.adam(0.1),
    "chain": lambda: torchopt.chain(
        torchopt.clip_grad_norm(1.0), torchopt.adamw(0.1), torchopt.transform.scale(0.5)
    ),
    "masked": lambda: torchopt.transform.masked(
        torchopt.adam(0.1), lambda tree: pytree.tree_map(lambda x: x.ndim > 1, tree)
    ),
    "adafactor": lambda: torchopt.adafactor(),
    "sam": lambda: torchopt.sam(torchopt.sgd(0.1)),
}
every_transformation = pytest.mark.parametrize(
    "make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS
)
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
Kind = Callable[[Any, Any], Any]


def leaves() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, generator=generator), torch.randn(3, generator=generator)


def entries(tree: Any) -> list[Any]:
    """Return both leaves, the matrix first."""
    found = optree.tree_leaves(tree, none_is_leaf=True)
    return sorted(found, key=lambda x: 0 if x is None else -x.ndim)


def two_steps(
    impl: torchopt.GradientTransformation, params: Any, gradients: Kind, inplace: bool
) -> tuple[Any, Any, Any]:
    """Return updates, parameters and state after two steps."""
    state = impl.init(params)

    def value_and_grad(moved: Any) -> tuple[torch.Tensor, Any]:
        w, b = entries(moved)
        return w.square().sum() + b.square().sum(), gradients(2 * w, 2 * b)

    for _ in range(2):
        value, grads = value_and_grad(params)
        updates, state = impl.update(
            grads, state, params=params, inplace=inplace, value_and_grad=value_and_grad, value=value
        )
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return updates, params, state


@every_pair
@every_transformation
@every_mode
def test_gradients_may_be_of_another_kind_than_parameters_and_state(
    make: Callable[[], torchopt.GradientTransformation],
    params_kind: Kind,
    grads_kind: Kind,
    inplace: bool,
) -> None:
    impl = make()
    expected = two_steps(impl, params_kind(*leaves()), params_kind, inplace)
    actual = two_steps(impl, params_kind(*leaves()), grads_kind, inplace)
    assert optree.tree_structure(actual[0]) == optree.tree_structure(grads_kind(*leaves()))
    assert_agree(entries(actual[0]), entries(expected[0]))
    assert optree.tree_structure(actual[1:]) == optree.tree_structure(expected[1:])
    assert_agree(optree.tree_leaves(actual[1:]), optree.tree_leaves(expected[1:]))


@every_mode
def test_gradients_of_autograd_go_with_a_list_of_parameters(inplace: bool) -> None:
    params = [x.requires_grad_() for x in leaves()]
    impl = torchopt.adam(0.1)
    state = impl.init(params)
    loss = params[0].square().sum() + params[1].square().sum()
    grads = torch.autograd.grad(loss, params, create_graph=not inplace)
    updates, state = impl.update(grads, state, params=params, inplace=inplace)
    assert isinstance(updates, tuple)
    assert isinstance(state[0].mu, list)
    stepped = torchopt.apply_updates(params, updates, inplace=inplace)
    assert isinstance(stepped, list)
    if inplace:
        assert all(x is p for x, p in zip(stepped, params, strict=True))
    else:
        total = sum(x.square().sum() for x in stepped)
        assert all(g.abs().sum() > 0 for g in torch.autograd.grad(total, params))


@every_mode
def test_leaves_without_a_gradient_keep_their_place(inplace: bool) -> None:
    w, b = leaves()
    impl = torchopt.sam(torchopt.sgd(0.1, momentum=0.9))
    # sorted by key in a dict, and not in an OrderedDict
    params = OrderedDict(w=w.clone(), b=b.clone())
    seen = []

    def value_and_grad(moved: Any) -> tuple[torch.Tensor, Any]:
        seen.append({name: x.shape for name, x in moved.items()})
        return moved["w"].sum(), {"w": moved["w"], "b": None}

    state = impl.init(params)
    updates, state = impl.update(
        {"w": w, "b": None}, state, params=params, inplace=inplace, value_and_grad=value_and_grad
    )
    assert seen == [{"b": b.shape, "w": w.shape}]
    assert updates["b"] is None
    stepped = torchopt.apply_updates(params, updates, inplace=inplace)
    assert list(stepped) == ["w", "b"]
    assert_same(stepped["b"], b)
    assert not torch.equal(stepped["w"], w)


def test_a_functional_optimizer_goes_on_from_a_state_of_another_kind() -> None:
    params = [x.requires_grad_() for x in leaves()]
    runs = []
    for kind in (list, tuple):
        optim = torchopt.FuncOptimizer(torchopt.adam(0.1))
        optim.load_state_dict(optim.impl.init(kind(params)))
        stepped = optim.step(sum(x.square().sum() for x in params), params)
        assert isinstance(stepped, list)
        assert isinstance(optim.state_dict()[0].mu, kind)
        runs.append(stepped)
    assert_same(*runs)


def test_rates_may_be_of_another_kind() -> None:
    rates = (torch.tensor(0.1), torch.tensor(0.2))
    impl, params = torchopt.sgd(rates), list(leaves())
    updates, _ = impl.update(params, impl.init(params), inplace=False)
    assert_same(updates, [-r * p for r, p in zip(rates, params, strict=True)])


@every_pair
def test_arithmetic_of_trees_mixes_kinds(params_kind: Kind, grads_kind: Kind) -> None:
    w, b = leaves()
    found = pytree.tree_add(params_kind(w, b), grads_kind(2 * w, 2 * b))
    assert optree.tree_structure(found) == optree.tree_structure(params_kind(w, b))
    assert_same(entries(found), [w + 2 * w, b + 2 * b])


UNLIKE: dict[str, Any] = {
    "a sequence of another length": lambda w, b: (w, b, None),
    "a dict with the positions as keys": lambda w, b: {0: w, 1: b},
    "a tree in a leaf's place": lambda w, b: ((w,), b),
    "one leaf": lambda w, b: w,
    "a named tuple of another type": lambda w, b: Other(w, b),
}


@every_mode
@pytest.mark.parametrize("unlike", UNLIKE.values(), ids=UNLIKE)
def test_other_structures_are_refused(unlike: Kind, inplace: bool) -> None:
    params, impl = Pair(*leaves()), torchopt.adam(0.1)
    state = impl.init(params)
    grads = unlike(*leaves())
    with pytest.raises(ValueError, match=r"the structure of `state\.\w+` differs"):
        impl.update(grads, state, inplace=inplace)
    with pytest.raises(ValueError, match="the structure of `params` differs"):
        torchopt.apply_updates(params, grads, inplace=inplace)
    with pytest.raises(ValueError, match="needs trees of one structure"):
        pytree.tree_add(params, grads)


@pytest.mark.compile
def test_a_compiler_takes_mixed_kinds() -> None:
    impl = torchopt.adam(0.1)
    params = list(leaves())

    def step(grads: Any, state: Any) -> Any:
        updates, state = impl.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    state = impl.init(params)
    assert_agree(compiled(tuple(params), state), step(tuple(params), state))
