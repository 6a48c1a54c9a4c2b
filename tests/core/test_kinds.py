"""Optimizers of every kind: their derivatives, and what was found wrong with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _table import assert_agree, assert_same, bowl_at
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import torchopt
from torchopt import pytree, rules

Make = Callable[..., torchopt.GradientTransformation]
LEARNED: dict[str, tuple[Make, dict[str, float]]] = {
    "amsgrad": (
        lambda lr, b1, b2: torchopt.adam(lr, (b1, b2), 0.1, amsgrad=True),
        {"lr": 0.3, "b1": 0.7, "b2": 0.9},
    ),
    "lion": (
        lambda lr, decay: torchopt.lion(lr, weight_decay=decay),
        {"lr": 0.3, "decay": 0.2},
    ),
    "muon": (
        lambda lr, momentum, decay: torchopt.muon(
            lr, decay, momentum, ns_steps=2, ns_dtype=None, adjust_lr_fn="match_rms_adamw"
        ),
        {"lr": 0.3, "momentum": 0.8, "decay": 0.2},
    ),
    "adafactor": (
        lambda lr, tau, eps2, d, decay: torchopt.adafactor(lr, tau, (1e-3, eps2), d, decay),
        {"lr": 0.3, "tau": -0.5, "eps2": 0.1, "d": 1.2, "decay": 0.2},
    ),
    "prodigy": (
        lambda lr, b1, b2, eps, decay: torchopt.prodigy(
            lr, (b1, b2), eps=eps, weight_decay=decay, d0=0.1, use_bias_correction=True
        ),
        {"lr": 0.7, "b1": 0.7, "b2": 0.9, "eps": 0.1, "decay": 0.2},
    ),
    "prodigy, bounded": (
        lambda lr, d_coef: torchopt.prodigy(lr, d0=0.1, d_coef=d_coef, eps=0.1, growth_rate=1.1),
        {"lr": 0.7, "d_coef": 0.8},
    ),
    "schedule_free": (
        lambda lr, momentum, power: torchopt.schedule_free(
            torchopt.sgd(lr), momentum, weight_lr_power=power
        ),
        {"lr": 0.3, "momentum": 0.8, "power": 1.5},
    ),
    "lookahead": (
        lambda lr, alpha: torchopt.lookahead(torchopt.sgd(lr, momentum=0.9), k=2, alpha=alpha),
        {"lr": 0.3, "alpha": 0.4},
    ),
    "sam": (
        lambda lr, rho: torchopt.sam(torchopt.sgd(lr, momentum=0.9), rho),
        {"lr": 0.3, "rho": 0.4},
    ),
    "sam, adaptive": (
        lambda lr, rho: torchopt.sam(torchopt.adam(lr, eps=0.1), rho, adaptive=True),
        {"lr": 0.3, "rho": 0.4},
    ),
    "lbfgs": (lambda lr: torchopt.lbfgs(lr, max_iter=2), {"lr": 0.3}),
    "lbfgs, strong Wolfe": (
        lambda lr: torchopt.lbfgs(lr, max_iter=2, line_search_fn="strong_wolfe"),
        {"lr": 0.3},
    ),
    "partition": (
        lambda lr, momentum: torchopt.partition(
            {0: torchopt.adam(lr, eps=0.1), 1: torchopt.sgd(lr, momentum)}, [0, 1]
        ),
        {"lr": 0.3, "momentum": 0.8},
    ),
}
every_learned = pytest.mark.parametrize("name", LEARNED)


def three_steps(name: str) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """Three steps as a function of hyperparameters, parameters and gradients."""
    torch.manual_seed(1)
    make, learned = LEARNED[name]
    keys = list(learned)
    shapes = [(2, 3), (3, 2)]
    inputs = [torch.tensor(x, dtype=torch.float64) for x in learned.values()]
    inputs += [torch.randn(s, dtype=torch.float64) for s in shapes]
    inputs += [torch.randn(s, dtype=torch.float64) for _ in range(3) for s in shapes]

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(zip(keys, inputs, strict=False))
        rest = list(inputs[len(keys) :])
        transformation = make(**values)
        params, grads = rest[:2], [rest[2:4], rest[4:6], rest[6:8]]
        state = transformation.init(params)
        at = [torch.zeros_like(p) for p in params]  # what the loss is curved around
        for step in grads:
            updates, state = transformation.update(
                [g + (p - x) / 2 for g, p, x in zip(step, params, at, strict=True)],
                state,
                params=params,
                inplace=False,
                value=bowl_at(params, step, at)[0],
                value_and_grad=lambda moved, step=step: bowl_at(moved, step, at),
            )
            params = torchopt.apply_updates(params, updates, inplace=False)
        return tuple(params)

    return run, [x.requires_grad_() for x in inputs]


@every_learned
def test_first_derivatives_in_both_modes(name: str) -> None:
    run, inputs = three_steps(name)
    checked = inputs if "sam" not in name and "lbfgs" not in name else inputs[:4]
    fixed = inputs[len(checked) :]
    forward = name != "muon"  # torch has no forward derivative of the norm of matrices twice
    assert gradcheck(lambda *xs: run(*xs, *fixed), checked, check_forward_ad=forward)


@every_learned
def test_second_derivatives(name: str) -> None:
    run, inputs = three_steps(name)
    chosen = inputs[: len(LEARNED[name][1]) + 1]
    fixed = inputs[len(chosen) :]
    assert gradgradcheck(lambda *xs: run(*xs, *fixed), chosen)


def test_derivatives_of_prodigy_are_finite_without_a_bound_of_its_growth() -> None:
    def run(w: torch.Tensor) -> torch.Tensor:
        prodigy = torchopt.prodigy(d0=0.1)
        state = prodigy.init(w)
        for _ in range(3):
            updates, state = prodigy.update(2 * w, state, params=w, inplace=False)
            w = torchopt.apply_updates(w, updates, inplace=False)
        return w

    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, w)


def test_forward_mode_through_lbfgs_is_reverse_mode() -> None:
    def loss(w: torch.Tensor) -> torch.Tensor:
        return w.sin().square().sum() + w.sum() ** 2

    def gradient(w: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(loss)(w)

    for options in ({"max_iter": 1}, {"max_iter": 2, "line_search_fn": "strong_wolfe"}):
        lbfgs = torchopt.lbfgs(0.1, **options)

        def run(w: torch.Tensor, lbfgs: Any = lbfgs) -> torch.Tensor:
            updates, _ = lbfgs.update(
                gradient(w),
                lbfgs.init(w),
                params=w,
                inplace=False,
                value_and_grad=lambda q: (loss(q), gradient(q)),
            )
            return torchopt.apply_updates(w, updates, inplace=False)

        w = torch.tensor([0.3, -0.7], dtype=torch.float64)
        assert_agree(torch.func.jacfwd(run)(w), torch.func.jacrev(run)(w))


def test_lbfgs_says_that_it_cannot_be_batched() -> None:
    lbfgs = torchopt.lbfgs()

    def run(w: torch.Tensor) -> Any:
        return lbfgs.update(
            2 * w, lbfgs.init(w), params=w, value_and_grad=lambda q: (q.square().sum(), 2 * q)
        )[0]

    with pytest.raises(RuntimeError, match=r"`lbfgs` decides by values"):
        torch.vmap(run)(torch.randn(3, 2))


def normed() -> torchopt.GradientTransformation:
    """A user's: sums of gradients over the norm of all of them."""

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        sums = [m if g is None else m + g for m, g in zip(state["m"], updates, strict=True)]
        norm = torch.sqrt(sum(x.square().sum() for x in sums if x is not None))
        pairs = zip(sums, updates, strict=True)
        return [None if g is None else x / norm for x, g in pairs], {"m": sums}

    return torchopt.GradientTransformation(
        lambda params: {"m": pytree.tree_map(torch.zeros_like, params)}, update
    )


def test_parts_of_a_partition_see_the_state_of_their_own_leaves() -> None:
    part = torchopt.chain(normed(), torchopt.sgd(0.1))
    impl = torchopt.partition({"m": part, "o": part}, ["m", "o"])
    params = [torch.ones(2, 2), torch.ones(2)]
    leaves = [p.clone().requires_grad_() for p in params]
    optimizer, state = torchopt.Optimizer(leaves, impl), impl.init(params)
    for _ in range(3):
        updates, state = impl.update([torch.ones_like(p) for p in params], state, params=params)
        params = torchopt.apply_updates(params, updates, inplace=False)
        for leaf in leaves:
            leaf.grad = torch.ones_like(leaf)
        optimizer.step()
    assert_agree([leaf.detach() for leaf in leaves], params)


def test_options_of_wrappers_have_names_of_their_own() -> None:
    def make(momentum: float, inner: float) -> torchopt.Optimizer:
        param = torch.ones(1, requires_grad=True)
        sgd = torchopt.sgd(0.1, momentum=inner)
        return torchopt.ScheduleFree([param], sgd, momentum=momentum)

    one, other = make(0.8, 0.6), make(0.3, 0.5)
    assert one.param_groups[0]["momentum"] == 0.6
    assert one.param_groups[0]["schedule_free_momentum"] == 0.8
    other.load_state_dict(one.state_dict())
    results = []
    for optimizer in (one, other):
        (param,) = optimizer.param_groups[0]["params"]
        for _ in range(5):
            param.grad = 2 * param.detach()
            optimizer.step()
        results.append(param.detach())
    assert_same(*results)


def test_a_rate_that_would_reach_nobody_is_refused() -> None:
    inner = torchopt.partition({0: torchopt.sgd(0.1), 1: torchopt.sgd(0.2)}, lambda params: 0)
    impl = torchopt.partition({"a": inner, "b": torchopt.sgd(0.3)}, ["a", "b"])
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = torchopt.Optimizer(params, impl)
    assert [group.get("lr") for group in optimizer.param_groups] == [None, 0.3]
    with pytest.raises(ValueError, match="several optimizers"):
        torchopt.Optimizer([{"params": params, "lr": 0.001}], impl)
    frozen = torchopt.partition(
        {"a": torchopt.transform.scale(0.0), "b": torchopt.sgd()}, ["a", "b"]
    )
    assert [group["lr"] for group in torchopt.Optimizer(params, frozen).param_groups] == [0.0, 1e-3]


def test_parameters_to_evaluate_at_are_found_within_lookahead() -> None:
    impl = torchopt.lookahead(torchopt.schedule_free(torchopt.sgd(0.1), 0.8), k=3)
    params = torch.tensor([1.0, 2.0])
    state = impl.init(params)
    for _ in range(2):
        updates, state = impl.update(2 * params, state, params=params)
        params = torchopt.apply_updates(params, updates)
    assert not torch.equal(torchopt.eval_params(impl, params, state), params)


@pytest.mark.compile
def test_lookahead_compiles() -> None:
    impl = torchopt.lookahead(torchopt.sgd(0.1), k=3)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = impl.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    actual = expected = (torch.ones(3), impl.init(torch.ones(3)))
    for grads in torch.randn(4, 3):
        actual, expected = compiled(*actual, grads), step(*expected, grads)
    assert_agree(actual[0], expected[0])


def test_prodigy_refuses_what_it_cannot_do_and_steps_on_meta() -> None:
    param = torch.ones(1, dtype=torch.float16, requires_grad=True)
    optimizer = torchopt.Prodigy([param])
    param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="float16"):
        optimizer.step()
    with pytest.raises(TypeError, match="`d0` must be a number"):
        torchopt.prodigy(d0=torch.tensor(0.1))
    weight = nn.Parameter(torch.ones(3, device="meta"))
    optimizer = torchopt.Prodigy([weight])
    weight.grad = torch.ones(3, device="meta")
    optimizer.step()


@dataclasses.dataclass(frozen=True, eq=False)
class NewMoments(rules.Rule):
    """Momentum that never overwrites its state."""

    state_type = torchopt.optim.sgd.TraceState

    def init(self, params: Any, context: Any) -> Any:
        return torchopt.optim.sgd.TraceState(rules.zeros_like(params))

    def update(self, updates: Any, state: Any, context: Any) -> Any:
        pairs = zip(state.trace, updates.materialize(context), strict=True)
        moments = [0.9 * m + g for m, g in pairs]
        return rules.FactoredUpdates(moments), torchopt.optim.sgd.TraceState(moments)


STEPPED: dict[str, Callable[..., torchopt.GradientTransformation]] = {
    "adam": lambda: torchopt.adam(0.1, weight_decay=0.1, use_accelerated_op=False),
    "adamw": lambda: torchopt.adamw(0.1, use_accelerated_op=False),
    "sgd": lambda: torchopt.sgd(0.1, momentum=0.9, use_accelerated_op=False),
    "lion": lambda: torchopt.lion(0.1, weight_decay=0.1, maximize=True),
    "a rule that overwrites nothing": rules.optimizer(
        lambda: rules.GradientStep(NewMoments(), lr=0.1)
    ),
}


@pytest.mark.parametrize("make", STEPPED.values(), ids=STEPPED)
def test_large_leaves_are_stepped_one_after_the_other_with_the_same_result(make: Any) -> None:
    shapes = [(400, 400), (3,), (2, 100, 1000), (), (50, 50)]
    start = [torch.randn(s) for s in shapes]
    together = [p.clone().requires_grad_() for p in start]
    alone = [p.clone().requires_grad_() for p in start]
    optimizers = [torchopt.Optimizer(together, make())]
    optimizers += [torchopt.Optimizer([p], make()) for p in alone]
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert_same([p.detach() for p in together], [q.detach() for q in alone])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torchopt.adafactor(eps=1e-3), "`eps` must be a pair"),
        (lambda: torchopt.adafactor(d=None), "`d` must be a number"),
        (lambda: torchopt.muon(ns_steps=2.5), "`ns_steps` must be an int"),
        (lambda: torchopt.muon(ns_coefficients=3), "three numbers"),
        (lambda: torchopt.muon(ns_dtype=torch.int32), "`ns_dtype` must be a floating point"),
        (lambda: torchopt.muon(ns_dtype="bf16"), "`ns_dtype` must be a floating point"),
        (lambda: torchopt.lbfgs(max_iter=2.5), "`max_iter` must be an int"),
        (lambda: torchopt.lbfgs(max_eval=0), "`max_eval` must be an int"),
        (lambda: torchopt.lbfgs(line_search_fn="exact"), "only 'strong_wolfe'"),
        (lambda: torchopt.lookahead(torchopt.adam(), k=0), "`k` must be a whole number"),
        (lambda: torchopt.schedule_free(torchopt.sgd(), 1.0), "`momentum` must be in"),
        (lambda: torchopt.sam(torchopt.sgd(), -1.0), "`rho` must be non-negative"),
        (lambda: torchopt.sam(torchopt.sgd), "did you mean to call it"),
        (lambda: torchopt.partition({}, "a"), "must be a dict from labels"),
        (lambda: torchopt.rules.transformation(lambda: 3)(), "must return a Rule, got int"),
    ],
)
def test_mistakes_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_labels_that_do_not_fit_are_named() -> None:
    for labels, message in ((["a"], "is a prefix"), (["a", "c"], "has 'c', but")):
        impl = torchopt.partition({"a": torchopt.sgd()}, labels)
        with pytest.raises(ValueError, match=message):
            impl.init([torch.ones(1), torch.ones(1)])


@pytest.mark.parametrize("inplace", [True, False])
def test_the_loss_is_evaluated_with_gradients(inplace: bool) -> None:
    def value_and_grad(p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        p = p.detach().requires_grad_()
        loss = p.square().sum()
        return loss, torch.autograd.grad(loss, p)[0]

    w = torch.ones(2)
    sam = torchopt.sam(torchopt.sgd(0.1), rho=0.5)
    options: Any = {"params": w, "value_and_grad": value_and_grad, "inplace": inplace}
    updates, _ = sam.update(2 * w, sam.init(w), **options)
    # the gradient a distance of rho away, along the gradient
    torch.testing.assert_close(updates, -0.2 * (w + 0.5 / 2**0.5))


@pytest.mark.parametrize("name", ["adafactor", "clip", "adam", "sgd"])
def test_tangents_are_those_of_the_functional_step(name: str) -> None:
    make: Any = {
        "adafactor": lambda: torchopt.adafactor(0.1),
        "clip": lambda: torchopt.clip_grad_norm(0.5),
        "adam": lambda: torchopt.adam(0.1),
        "sgd": lambda: torchopt.sgd(0.1, momentum=0.9),
    }[name]
    p, t, g, h = (torch.randn(3, 2, dtype=torch.float64) for _ in range(4))
    tangents = []
    for inplace in (True, False):
        transformation = make()
        with forward_ad.dual_level():
            params = forward_ad.make_dual(p.clone(), t.clone())
            grads = forward_ad.make_dual(g.clone(), h.clone())
            state = transformation.init(p)
            updates, _ = transformation.update(grads, state, params=params, inplace=inplace)
            tangents.append(forward_ad.unpack_dual(updates).tangent)
    torch.testing.assert_close(*tangents)


def test_transformations_are_hashable_as_they_compare() -> None:
    assert hash(torchopt.adam(0.1)) == hash(torchopt.adam(0.1))
    chained = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam())
    assert {chained: 1}[torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam())] == 1
