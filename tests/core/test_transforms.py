"""Each gradient transformation, against a formula written here or a function of torch."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from _table import (
    assert_agree,
    assert_same,
    has_dimensions,
    tensors_in,
    textbook_adabelief,
    textbook_adan,
    textbook_laprop,
    textbook_signum,
    textbook_yogi,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import torchopt
from torchopt import transform

pytestmark = pytest.mark.usefixtures("float64")
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


class Formula(NamedTuple):
    """A transformation, and its formula from all gradients so far to the last updates."""

    name: str
    transformation: torchopt.GradientTransformation
    formula: Callable[[list[torch.Tensor]], torch.Tensor]


def average(gs: list[torch.Tensor], decay: float, start: float = 0.0) -> torch.Tensor:
    """The moving average, written out as a sum."""
    n = len(gs)
    weighted = sum((1 - decay) * decay ** (n - 1 - i) * g for i, g in enumerate(gs))
    return decay**n * start + weighted


def squares(gs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [g**2 for g in gs]


def adam(gs: list[torch.Tensor]) -> torch.Tensor:
    m = average(gs, 0.7) / (1 - 0.7 ** len(gs))
    v = average(squares(gs), 0.9) / (1 - 0.9 ** len(gs))
    return m / ((v + 0.04).sqrt() + 0.1)


def adamax(gs: list[torch.Tensor]) -> torch.Tensor:
    n = len(gs)
    u = torch.stack([0.9 ** (n - 1 - i) * (g.abs() + 0.1) for i, g in enumerate(gs)]).amax(0)
    return average(gs, 0.7) / (1 - 0.7**n) / u


def radam(gs: list[torch.Tensor]) -> torch.Tensor:
    t, b2 = len(gs), 0.9
    m = average(gs, 0.7) / (1 - 0.7**t)
    limit = 2 / (1 - b2) - 1
    rho = limit - 2 * t * b2**t / (1 - b2**t)
    if rho <= 5:
        return m
    rectifier = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
    v = average(squares(gs), b2)
    return m * math.sqrt(rectifier) * math.sqrt(1 - b2**t) / (v.sqrt() + 0.1)


def adadelta(gs: list[torch.Tensor]) -> torch.Tensor:
    updates: list[torch.Tensor] = []
    for t in range(1, len(gs) + 1):
        v = average(squares(gs[:t]), 0.8)
        s = average(squares(updates), 0.8) if updates else torch.zeros_like(v)
        updates.append(((s + 0.1) / (v + 0.1)).sqrt() * gs[t - 1])
    return updates[-1]


def momentum(gs: list[torch.Tensor], dampening: float = 0.0) -> torch.Tensor:
    n = len(gs)
    return sum(0.9 ** (n - 1 - i) * g * (1 if i == 0 else 1 - dampening) for i, g in enumerate(gs))


def stddev(gs: list[torch.Tensor]) -> torch.Tensor:
    variance = average(squares(gs), 0.8, start=0.5) - average(gs, 0.8) ** 2
    return gs[-1] / (variance.sqrt() + 0.1)


def direction(formula: Any, **options: Any) -> Any:
    """The direction of an optimizer's textbook formula, from all gradients so far."""

    def last(gs: list[torch.Tensor]) -> torch.Tensor:
        state: Any = collections.defaultdict(float)
        at = torch.zeros(3)
        for t, g in enumerate(gs, start=1):
            found = -formula(at, g, state, t, lr=1.0, weight_decay=0.0, **options)
        return found

    return last


def nadam_of_torch(gs: list[torch.Tensor]) -> torch.Tensor:
    p = torch.zeros(3)
    optimizer = torch.optim.NAdam([p], 1.0, (0.7, 0.9), 0.1, momentum_decay=0.2)
    for g in gs:
        p.zero_()
        p.grad = g
        optimizer.step()
    return -p


FORMULAS = [
    Formula("identity", torchopt.identity(), lambda gs: gs[-1]),
    Formula("scale", transform.scale(-0.5), lambda gs: -0.5 * gs[-1]),
    Formula(
        "scale_by_schedule",
        transform.scale_by_schedule(lambda count: 2.0**count),
        lambda gs: 2.0 ** (len(gs) - 1) * gs[-1],
    ),
    Formula("trace", transform.trace(0.9), momentum),
    Formula("trace, dampened", transform.trace(0.9, 0.3), lambda gs: momentum(gs, 0.3)),
    Formula(
        "trace, Nesterov",
        transform.trace(0.9, nesterov=True),
        lambda gs: gs[-1] + 0.9 * momentum(gs),
    ),
    Formula("scale_by_adam", transform.scale_by_adam(0.7, 0.9, 0.1, 0.04), adam),
    Formula("scale_by_adamax", transform.scale_by_adamax(0.7, 0.9, 0.1), adamax),
    Formula("scale_by_radam", transform.scale_by_radam(0.7, 0.9, 0.1), radam),
    Formula("scale_by_adadelta", transform.scale_by_adadelta(0.8, 0.1), adadelta),
    Formula(
        "scale_by_rms",
        transform.scale_by_rms(0.8, 0.1, initial_scale=0.5),
        lambda gs: gs[-1] / (average(squares(gs), 0.8, start=0.5).sqrt() + 0.1),
    ),
    Formula("scale_by_stddev", transform.scale_by_stddev(0.8, 0.1, initial_scale=0.5), stddev),
    Formula(
        "scale_by_rss",
        transform.scale_by_rss(0.5, 0.1),
        lambda gs: gs[-1] / ((0.5 + sum(squares(gs))).sqrt() + 0.1),
    ),
    Formula("clip_by_value", transform.clip_by_value(0.5), lambda gs: gs[-1].clamp(-0.5, 0.5)),
    Formula(
        "clip_by_global_norm",
        transform.clip_by_global_norm(0.5),
        lambda gs: gs[-1] * min(1.0, 0.5 / gs[-1].norm().item()),
    ),
    Formula("nan_to_num", transform.nan_to_num(), lambda gs: gs[-1]),
    Formula(
        "scale_by_lion",
        transform.scale_by_lion(0.7, 0.9),
        lambda gs: (0.7 * average(gs[:-1], 0.9) + 0.3 * gs[-1]).sign() if gs[1:] else gs[-1].sign(),
    ),
    Formula(
        "scale_by_signum", transform.scale_by_signum(0.7), direction(textbook_signum, momentum=0.7)
    ),
    Formula(
        "scale_by_belief",
        transform.scale_by_belief(0.7, 0.9, 0.1),
        direction(textbook_adabelief, betas=(0.7, 0.9), eps=0.1),
    ),
    Formula(
        "scale_by_yogi",
        transform.scale_by_yogi(0.7, 0.9, 0.1),
        direction(textbook_yogi, betas=(0.7, 0.9), eps=0.1),
    ),
    Formula(
        "scale_by_laprop",
        transform.scale_by_laprop(0.7, 0.9, 0.1),
        direction(textbook_laprop, betas=(0.7, 0.9), eps=0.1),
    ),
    Formula(
        "scale_by_adan",
        transform.scale_by_adan(0.7, 0.8, 0.9, 0.1),
        direction(textbook_adan, betas=(0.7, 0.8, 0.9), eps=0.1),
    ),
    Formula("scale_by_nadam", transform.scale_by_nadam(0.7, 0.9, 0.1, 0.2), nadam_of_torch),
    Formula("partition", transform.partition({0: transform.scale(2.0)}, 0), lambda gs: 2 * gs[-1]),
    Formula("masked", transform.masked(transform.scale(2.0), True), lambda gs: 2.0 * gs[-1]),
]
every_formula = pytest.mark.parametrize("row", FORMULAS, ids=lambda row: row.name)


@every_mode
@every_formula
def test_follows_its_formula(row: Formula, inplace: bool) -> None:
    gs = list(torch.randn(8, 3))
    state = row.transformation.init(torch.zeros(3))
    for t, g in enumerate(gs):
        kept = g.clone()
        updates, state = row.transformation.update(g, state, inplace=inplace)
        assert_agree(updates, row.formula(gs[: t + 1]))
        assert_same(g, kept)


@every_formula
def test_in_place_updates_may_be_overwritten(row: Formula) -> None:
    """They share memory neither with the gradients nor with the state."""
    gs = torch.randn(4, 3)
    state = row.transformation.init(torch.zeros(3))
    for t, g in enumerate(gs):
        kept = g.clone()
        updates, state = row.transformation.update(g, state)
        assert_agree(updates, row.formula(list(gs[: t + 1])))
        updates.fill_(math.nan)
        assert_same(g, kept)


@every_formula
def test_is_differentiable_in_the_gradients(row: Formula) -> None:
    def run(*gs: torch.Tensor) -> torch.Tensor:
        state = row.transformation.init(torch.zeros(2))
        for g in gs:
            updates, state = row.transformation.update(g, state, inplace=False)
        return updates

    gs = [x.requires_grad_() for x in (torch.randn(3, 2) + 2.0).unbind()]
    assert gradcheck(run, gs)
    assert gradgradcheck(run, gs)


@every_formula
def test_takes_any_tree_and_none(row: Formula) -> None:
    """Leaf by leaf, but for the joint norm, which is that of one vector."""
    grads = {"a": torch.randn(2), "none": None, "b": (torch.randn(()), [torch.randn(1, 2)])}
    updates, _ = row.transformation.update(grads, row.transformation.init(grads))
    assert updates["none"] is None
    flat = torch.cat([g.flatten() for g in tensors_in(grads)])
    expected, _ = row.transformation.update(flat, row.transformation.init(flat))
    assert_agree(torch.cat([u.flatten() for u in tensors_in(updates)]), expected)


@every_mode
def test_trust_ratios_are_those_of_whole_leaves(inplace: bool) -> None:
    params = [torch.tensor([3.0, 4.0]), torch.tensor([1.0 + 1.0j, 1.0 - 1.0j]), torch.zeros(2)]
    grads = [torch.tensor([0.0, 2.0]), torch.tensor([0.0, 4.0j]), torch.ones(2)]
    trust = transform.scale_by_trust_ratio(0.5, eps=1.0)
    updates, _ = trust.update(grads, trust.init(params), params=params, inplace=inplace)
    expected = [grads[0] * 0.5 * 5 / 3, grads[1] * 0.5 * 2 / 5, grads[2]]
    assert_agree(updates, expected)
    with pytest.raises(ValueError, match="pass `params=` to `update`"):
        trust.update(grads, trust.init(params))


def test_every_transformation_is_tested() -> None:
    tested = {row.name.split(",")[0] for row in FORMULAS}
    elsewhere = {"add_decayed_weights", "clip_grad_norm", "register_hook", "scale_by_trust_ratio"}
    assert set(transform.__all__) == (tested - {"identity"}) | elsewhere


@every_mode
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clip_grad_norm_is_that_of_torch(max_norm: float, norm_type: float, inplace: bool) -> None:
    shapes = [(3, 2), (), (4,)]
    if norm_type != math.inf:  # an empty tensor has no largest entry, in torch
        shapes.append((0, 2))
    params = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    params.append(torch.zeros(2, dtype=torch.cdouble, requires_grad=True))
    grads = [torch.randn_like(p) for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(params, max_norm, norm_type)
    clip = torchopt.clip_grad_norm(max_norm, norm_type)
    updates, _ = clip.update(grads, clip.init(params), inplace=inplace)
    assert_agree(updates, [p.grad for p in params])


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clip_grad_norm_may_take_the_norm_as_constant(max_norm: float, norm_type: float) -> None:
    grads = torch.tensor([3.0, -4.0], requires_grad=True)
    bound = torch.tensor(max_norm, requires_grad=True)
    clip = torchopt.clip_grad_norm(bound, norm_type, norm_requires_grad=False)
    direction = torch.tensor([0.3, 0.7])

    def clipped(grads: torch.Tensor) -> torch.Tensor:
        return clip.update(grads, clip.init(grads), inplace=False)[0]

    norm = torch.linalg.vector_norm(grads.detach(), norm_type) + 1e-6
    factor = (bound.detach() / norm).clamp_max(1.0)
    updates = clipped(grads)
    assert_agree(updates.detach(), factor * grads.detach())
    found, of_bound = torch.autograd.grad(updates @ direction, [grads, bound])
    assert_agree(found, factor * direction)
    expected = direction @ grads.detach() / norm if factor < 1 else torch.tensor(0.0)
    assert_agree(of_bound, expected)
    assert_agree(torch.func.jacrev(clipped)(grads.detach()).detach(), factor * torch.eye(2))
    assert_agree(torch.func.jacfwd(clipped)(grads.detach()).detach(), factor * torch.eye(2))


def test_clip_by_global_norm_meets_the_bound_exactly() -> None:
    grads = {"a": torch.randn(3), "b": torch.randn(2)}
    clip = torchopt.clip_by_global_norm(0.5)
    updates, _ = clip.update(grads, clip.init(grads))
    norm = torch.cat([updates["a"], updates["b"]]).norm()
    torch.testing.assert_close(norm, torch.tensor(0.5))


@pytest.mark.parametrize(
    "clip",
    [torchopt.clip_grad_norm(1.0), torchopt.clip_by_global_norm(1.0)],
    ids=["clip_grad_norm", "clip_by_global_norm"],
)
def test_clipping_zero_gradients_gives_zeros_with_finite_derivatives(clip: Any) -> None:
    grads = torch.zeros(3, requires_grad=True)
    updates, _ = clip.update(grads, clip.init(grads), inplace=False)
    assert_same(updates.detach(), torch.zeros(3))
    (found,) = torch.autograd.grad(updates.sum(), grads, create_graph=True)
    assert_same(found.detach(), torch.ones(3))
    (second,) = torch.autograd.grad(found.sum(), grads, materialize_grads=True)
    assert second.isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        torchopt.clip_grad_norm,
        torchopt.clip_by_global_norm,
        torchopt.clip_by_value,
        transform.scale,
        transform.add_decayed_weights,
    ],
    ids=lambda make: make.__name__,
)
def test_its_number_may_be_learned(make: Any) -> None:
    params, grads = torch.randn(3), torch.tensor([0.9, -2.0, 0.1])

    def run(value: torch.Tensor) -> torch.Tensor:
        transformation = make(value)
        return transformation.update(grads, transformation.init(params), params=params)[0]

    value = torch.tensor(0.5, requires_grad=True)
    assert gradcheck(run, (value,))
    assert gradgradcheck(run, (value,))


@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6),
    bound=st.floats(1e-3, 1e3),
)
def test_clipping_twice_is_clipping_once(values: list[float], bound: float) -> None:
    grads = torch.tensor(values, dtype=torch.float64)
    for clip in (torchopt.clip_by_value(bound), torchopt.clip_by_global_norm(bound)):
        once, _ = clip.update(grads, clip.init(grads))
        twice, _ = clip.update(once, clip.init(grads))
        assert_agree(twice, once)


@every_mode
def test_scale_by_a_tree(inplace: bool) -> None:
    factors = {"a": torch.rand(3, requires_grad=True), "b": torch.tensor(2.0, requires_grad=True)}
    grads = {"a": torch.randn(3), "b": torch.randn(())}
    scale = transform.scale(factors)
    updates, _ = scale.update(grads, scale.init(grads), inplace=inplace)
    assert_agree(updates, {name: factors[name] * grads[name] for name in grads})
    found = torch.autograd.grad(sum(u.sum() for u in updates.values()), list(factors.values()))
    assert_same(found, tuple(grads.values()))


every_mask = pytest.mark.parametrize(
    ("mask", "selected"),
    [
        (None, "abc"),
        (True, "abc"),
        ({"a": True, "nested": {"b": False, "c": True}}, "ac"),
        ({"a": False, "nested": True}, "bc"),
        (has_dimensions, "ac"),
        (lambda params: {"a": True, "nested": False}, "a"),
        (False, ""),
    ],
    ids=["none", "True", "tree", "prefix", "function", "function to prefix", "False"],
)


def maskable(a: float, b: float, c: float) -> dict[str, Any]:
    """A tree filled with these values."""
    return {
        "a": torch.full((2,), a),
        "nested": {"b": torch.tensor(b), "c": torch.full((1, 2), c)},
    }


@every_mode
@every_mask
def test_add_decayed_weights(mask: Any, selected: str, inplace: bool) -> None:
    params, grads = maskable(2.0, 3.0, 4.0), maskable(1.0, 1.0, 1.0)
    decay = transform.add_decayed_weights(0.1, mask)
    updates, _ = decay.update(grads, decay.init(params), params=params, inplace=inplace)
    expected = {"a": 1.2, "b": 1.3, "c": 1.4}
    assert_agree(updates, maskable(*(expected[k] if k in selected else 1.0 for k in "abc")))


@every_mode
@every_mask
def test_masked(mask: Any, selected: str, inplace: bool) -> None:
    params = grads = maskable(2.0, 3.0, 4.0)
    double = transform.masked(transform.scale(2.0), mask)
    updates, _ = double.update(grads, double.init(params), params=params, inplace=inplace)
    values = zip("abc", (2.0, 3.0, 4.0), strict=True)
    assert_agree(updates, maskable(*(2 * x if k in selected else x for k, x in values)))


@every_mask
def test_masked_out_leaves_have_no_state(mask: Any, selected: str) -> None:
    state = transform.masked(transform.trace(0.9), mask).init(maskable(1.0, 1.0, 1.0))
    assert len(tensors_in(state)) == len(selected)


@every_mode
@every_mask
def test_masked_keeps_state_through_steps(mask: Any, selected: str, inplace: bool) -> None:
    params = grads = maskable(1.0, 1.0, 1.0)
    momentum = transform.masked(transform.trace(0.5), mask)
    state = momentum.init(params)
    for _ in range(3):
        updates, state = momentum.update(grads, state, params=params, inplace=inplace)
    assert_agree(updates, maskable(*(1.75 if k in selected else 1.0 for k in "abc")))


@every_mode
@every_mask
def test_mask_of_adamw(mask: Any, selected: str, inplace: bool) -> None:
    params, grads = maskable(2.0, 3.0, 4.0), maskable(1.0, 1.0, 1.0)
    adamw = torchopt.adamw(0.1, eps=0.0, weight_decay=0.5, mask=mask)
    updates, _ = adamw.update(grads, adamw.init(params), params=params, inplace=inplace)
    expected = {"a": -0.2, "b": -0.25, "c": -0.3}
    assert_agree(updates, maskable(*(expected[k] if k in selected else -0.1 for k in "abc")))


@every_mode
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda mask: transform.add_decayed_weights(0.1, mask), 1.1),
        (lambda mask: transform.masked(transform.scale(2.0), mask), 2.0),
        (lambda mask: torchopt.adamw(0.1, eps=0.0, weight_decay=0.5, mask=mask), -0.15),
    ],
    ids=["add_decayed_weights", "masked", "adamw"],
)
def test_function_as_mask_need_not_know_of_none_gradients(
    make: Any, expected: float, inplace: bool
) -> None:
    """The usual one, ``p.ndim > 0`` for each tensor, when a parameter has no gradient."""
    params = {"a": torch.ones(2), "frozen": torch.ones(2), "none": None}
    grads = {"a": torch.ones(2), "frozen": None, "none": None}
    transformation = make(lambda params: torchopt.pytree.tree_map(lambda p: p.ndim > 0, params))
    updates, _ = transformation.update(
        grads, transformation.init(params), params=params, inplace=inplace
    )
    assert_agree(updates["a"], torch.full((2,), expected))
    assert updates["frozen"] is None


@every_mode
def test_masked_with_none_gradients(inplace: bool) -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)}
    momentum = transform.masked(transform.trace(0.5), {"a": True, "b": True, "c": False})
    state = momentum.init(params)
    ones = torch.ones(2)
    for grads in (
        {"a": ones, "b": None, "c": ones},
        {"a": None, "b": ones, "c": None},
        {"a": ones, "b": ones, "c": ones},
    ):
        updates, state = momentum.update(grads, state, inplace=inplace)
        assert [k for k, u in updates.items() if u is None] == [
            k for k, g in grads.items() if g is None
        ]
    expected = {"a": 1.5 * ones, "b": 1.5 * ones, "c": ones}
    assert_agree(updates, expected)


@every_mode
def test_masked_optimizer_freezes_the_others(inplace: bool) -> None:
    """Two masked optimizers share a tree, each with its part."""
    params = {"fast": torch.ones(2), "slow": torch.ones(2)}
    grads = {"fast": torch.ones(2), "slow": torch.ones(2)}
    both = torchopt.chain(
        transform.masked(torchopt.sgd(1.0), {"fast": True, "slow": False}),
        transform.masked(torchopt.sgd(0.1), {"fast": False, "slow": True}),
    )
    updates, _ = both.update(grads, both.init(params), params=params, inplace=inplace)
    assert_agree(updates, {"fast": -torch.ones(2), "slow": -0.1 * torch.ones(2)})


@every_mode
def test_nan_to_num_replaces_as_torch_does(inplace: bool) -> None:
    grads = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    for kwargs in ({}, {"nan": 2.0}, {"posinf": 3.0, "neginf": -4.0}):
        clean = transform.nan_to_num(**kwargs)
        updates, _ = clean.update(grads, clean.init(grads), inplace=inplace)
        assert_same(updates, torch.nan_to_num(grads, **{"nan": 0.0, **kwargs}))


def test_schedule_is_called_with_an_integer_tensor_that_counts_updates() -> None:
    seen: list[torch.Tensor] = []

    def schedule(count: torch.Tensor) -> float:
        seen.append(count)
        return 1.0

    scaled = transform.scale_by_schedule(schedule)
    state = scaled.init(torch.ones(2))
    for _ in range(3):
        _, state = scaled.update(torch.ones(2), state)
    assert [x.item() for x in seen] == [0, 1, 2]
    assert all(x.dtype == torch.int64 and x.ndim == 0 for x in seen)


@pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
def test_schedule_of_the_optimizer_equals_scaling_by_it(inplace: bool) -> None:
    schedule = torchopt.schedule.linear_schedule(0.5, 0.1, 4)
    one = torchopt.sgd(lr=schedule)
    other = transform.scale_by_schedule(lambda count: -schedule(count))
    grads = torch.randn(6, 3)
    states = one.init(grads[0]), other.init(grads[0])
    for g in grads:
        u, first = one.update(g, states[0], inplace=inplace)
        v, second = other.update(g, states[1], inplace=inplace)
        states = first, second
        assert_agree(u, v)


def test_register_hook_sees_the_gradient_that_flows_back() -> None:
    seen: list[torch.Tensor] = []
    hooked = torchopt.register_hook(lambda g: seen.append(g))
    x = torch.ones(2, requires_grad=True)
    updates, _ = hooked.update({"a": x * 1.0, "none": None}, hooked.init(x), inplace=False)
    (updates["a"] * torch.tensor([3.0, 4.0])).sum().backward()
    assert_same(seen, [torch.tensor([3.0, 4.0])])


@pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
def test_register_hook_leaves_the_gradients_of_the_caller_alone(inplace: bool) -> None:
    """Only what flows through the updates is seen, not what flows elsewhere."""
    seen: list[torch.Tensor] = []
    hooked = torchopt.register_hook(lambda g: seen.append(g))
    x = torch.ones(2, requires_grad=True)
    hooked.update(x, hooked.init(x), inplace=inplace)
    x.sum().backward()
    assert seen == []


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (torchopt.hook.zero_nan_hook, [1.0, 0.0, math.inf]),
        (torchopt.hook.nan_to_num_hook(posinf=9.0), [1.0, 0.0, 9.0]),
        (torchopt.hook.nan_to_num_hook(nan=5.0, posinf=9.0), [1.0, 5.0, 9.0]),
    ],
    ids=["zero_nan", "nan_to_num", "nan_to_num with a value"],
)
def test_hooks_replace(hook: Any, expected: list[float]) -> None:
    x = torch.ones(3, requires_grad=True)
    hooked = torchopt.register_hook(hook)
    updates, _ = hooked.update(x * 1.0, hooked.init(x), inplace=False)
    updates.backward(torch.tensor([1.0, math.nan, math.inf]))
    assert_same(x.grad, torch.tensor(expected))


def test_moments_require_grad_on_request() -> None:
    params = {"w": torch.ones(2), "none": None}
    for make in (
        transform.trace,
        transform.scale_by_adam,
        transform.scale_by_adamax,
        transform.scale_by_adadelta,
        transform.scale_by_radam,
    ):
        for wanted in (True, False):
            state = make(moment_requires_grad=wanted).init(params)
            floating = [x for x in tensors_in(state) if x.is_floating_point()]
            assert floating
            assert all(x.requires_grad is wanted for x in floating)
            assert optree.tree_structure(state.mu if "mu" in state._fields else state.trace)
