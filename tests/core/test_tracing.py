"""The functional path under the transforms of ``torch.func``, forward mode, and a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import (
    CASES,
    FAMILIES,
    Case,
    assert_agree,
    assert_same,
    every_case,
    every_family,
    run_functional,
)
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchopt
from torchopt import transform

Tree = dict[str, torch.Tensor]


def inner_loss(params: Tree, x: torch.Tensor) -> torch.Tensor:
    return ((params["w"] @ x).tanh() + params["b"]).square().sum()


def adapt(
    transformation: torchopt.GradientTransformation, params: Tree, x: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    """The loss on other data after two steps, all of it functional."""
    state = transformation.init(params)
    for _ in range(2):
        grads = grad(inner_loss)(params, x)
        updates, state = transformation.update(grads, state, params=params, **kwargs)
        params = torchopt.apply_updates(params, updates, **kwargs)
    return inner_loss(params, x.flip(0))


@pytest.fixture
def problem(float64: None) -> tuple[Tree, torch.Tensor]:
    return {"w": torch.randn(3, 2), "b": torch.randn(3)}, torch.randn(2)


def unrolled_loss(case: Case, params: Tree, x: torch.Tensor) -> torch.Tensor:
    """The same, recorded by ``torch.autograd``."""
    params = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
    transformation = case.functional()
    state = transformation.init(params)
    for _ in range(2):
        leaves, spec = optree.tree_flatten(params)
        found = torch.autograd.grad(inner_loss(params, x), leaves, create_graph=True)
        grads = optree.tree_unflatten(spec, found)
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return inner_loss(params, x.flip(0))


def unrolled_gradient(case: Case, params: Tree, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(unrolled_loss(case, params, x), x)[0]


# under a transform nothing is overwritten, whatever `inplace` says
@pytest.mark.parametrize("kwargs", [{}, {"inplace": False}], ids=["default", "functional"])
@every_case
def test_grad_and_jvp_and_jacobians(case: Case, problem: Any, kwargs: Any) -> None:
    params, x = problem

    def meta_loss(x: torch.Tensor) -> torch.Tensor:
        return adapt(case.functional(), params, x, **kwargs)

    kept = optree.tree_map(torch.clone, params)
    expected = unrolled_gradient(case, params, x)
    tangent = torch.tensor([0.3, -0.7])
    assert_agree(grad(meta_loss)(x), expected)
    assert_agree(jacrev(meta_loss)(x), expected)
    assert_agree(jacfwd(meta_loss)(x), expected)
    assert_agree(jvp(meta_loss, (x,), (tangent,))[1], expected @ tangent)
    (cotangent,) = vjp(meta_loss, x)[1](torch.tensor(2.0))
    assert_agree(cotangent, 2.0 * expected)
    assert_same(params, kept)


@every_case
def test_hessian(case: Case, problem: Any) -> None:
    params, x = problem
    expected = torch.autograd.functional.hessian(lambda x: unrolled_loss(case, params, x), x)
    assert_agree(hessian(lambda x: adapt(case.functional(), params, x))(x), expected)


@every_case
def test_vmap_over_tasks_of_meta_gradients(case: Case, problem: Any) -> None:
    params, _ = problem
    xs = torch.randn(3, 2)
    actual = vmap(grad(lambda x: adapt(case.functional(), params, x)))(xs)
    assert_agree(actual, torch.stack([unrolled_gradient(case, params, x) for x in xs]))


@every_family
def test_vmap_over_learned_hyperparameters(family: Any, problem: Any) -> None:
    params, x = problem
    rates = torch.tensor([0.01, 0.1, 0.3])

    def meta_loss(lr: torch.Tensor) -> torch.Tensor:
        return adapt(family.functional(lr), params, x, inplace=False)

    assert_agree(vmap(meta_loss)(rates), torch.stack([meta_loss(lr) for lr in rates]))
    slopes = vmap(grad(meta_loss))(rates)
    assert slopes.isfinite().all()
    assert (slopes != 0).all()


@every_family
def test_gradients_are_finite_at_zero_under_transforms(family: Any) -> None:
    def final(g: torch.Tensor) -> torch.Tensor:
        return run_functional(family.functional(), torch.zeros(2), [g, g]).sum()

    zero = torch.zeros(2)
    assert grad(final)(zero).isfinite().all()
    assert jvp(final, (zero,), (torch.ones(2),))[1].isfinite()
    assert hessian(final)(zero).isfinite().all()
    assert vmap(grad(final))(torch.zeros(3, 2)).isfinite().all()


@every_case
def test_forward_mode_equals_reverse_mode(case: Case, problem: Any) -> None:
    params, _ = problem
    grads = {"w": torch.randn(3, 2), "b": torch.randn(3)}
    tangents = {"w": torch.randn(3, 2), "b": torch.randn(3)}

    def final(scale: torch.Tensor) -> Tree:
        moved = {name: g + scale * tangents[name] for name, g in grads.items()}
        return run_functional(case.functional(), params, [moved, moved])

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.tensor(0.0), torch.tensor(1.0))
        forward = {name: forward_ad.unpack_dual(p).tangent for name, p in final(dual).items()}
    scale = torch.tensor(0.0, requires_grad=True)
    for name, p in final(scale).items():
        weights = torch.randn_like(p)
        (reverse,) = torch.autograd.grad((p * weights).sum(), scale, retain_graph=True)
        assert_agree((forward[name] * weights).sum(), reverse)


def compile_counting(function: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    torch._dynamo.reset()
    counter = CompileCounter()
    return torch.compile(function, fullgraph=True, backend=counter), counter


COMPOSED = {
    "clipped": torchopt.chain(torchopt.clip_grad_norm(0.1), torchopt.adam(0.1)),
    "clipped by value": torchopt.chain(torchopt.clip_by_value(0.1), torchopt.sgd(0.1)),
    "schedule": torchopt.adam(lr=torchopt.schedule.polynomial_schedule(0.1, 0.01, 2, 4)),
    "scaled by schedule": torchopt.chain(
        transform.scale_by_adam(),
        transform.scale_by_schedule(torchopt.schedule.exponential_decay(-0.1, 0.5)),
    ),
    "masked": transform.masked(torchopt.adam(0.1), {"w": True, "b": False}),
    "masked decay": torchopt.adamw(0.1, weight_decay=0.1, mask={"w": True, "b": False}),
    "rates as a tree": torchopt.adam({"w": torch.full((3, 2), 0.1), "b": torch.tensor(0.2)}),
    "learned rate": torchopt.adam(torch.tensor(0.1)),
    "nan to num": torchopt.chain(torchopt.nan_to_num(), torchopt.sgd(0.1, momentum=0.9)),
}


def check_compiles_once(transformation: torchopt.GradientTransformation) -> None:
    params = {"w": torch.randn(3, 2), "b": torch.randn(3)}

    def step(params: Tree, state: Any, x: torch.Tensor) -> Any:
        grads = grad(inner_loss)(params, x)
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    compiled, counter = compile_counting(step)
    actual = expected = (params, transformation.init(params))
    for x in torch.randn(6, 2):
        actual, expected = compiled(*actual, x), step(*expected, x)
    assert counter.frame_count == 1
    assert_agree(actual, expected)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case.name in FAMILIES else pytest.mark.slow, id=case.name)
        for case in CASES
    ],
)
@pytest.mark.compile
def test_compiles_once_to_the_same_step(case: Case) -> None:
    check_compiles_once(case.functional())


@pytest.mark.parametrize("transformation", COMPOSED.values(), ids=COMPOSED)
@pytest.mark.compile
def test_compositions_compile_once_to_the_same_step(
    transformation: torchopt.GradientTransformation,
) -> None:
    check_compiles_once(transformation)


@pytest.mark.compile
def test_compiles_with_none_leaves() -> None:
    transformation = torchopt.adam(0.1)
    params = {"w": torch.randn(3), "frozen": torch.randn(2), "none": None}

    def step(grads: Any, state: Any) -> Any:
        return transformation.update(grads, state, inplace=False)

    compiled, counter = compile_counting(step)
    actual = expected = transformation.init(params)
    for g in torch.randn(4, 3):
        grads = {"w": g, "frozen": None, "none": None}
        updates, actual = compiled(grads, actual)
        reference, expected = step(grads, expected)
        assert_agree(updates["w"], reference["w"])
        assert updates["frozen"] is None
    assert counter.frame_count == 1


@pytest.mark.compile
def test_compiles_a_whole_meta_step() -> None:
    """Inner loop, outer gradient and outer step in one graph."""
    inner, outer = torchopt.sgd(0.1, momentum=0.9), torchopt.adam(0.01)

    def meta_step(params: Tree, state: Any, x: torch.Tensor) -> Any:
        grads = grad(lambda params: adapt(inner, params, x, inplace=False))(params)
        updates, state = outer.update(grads, state, params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    compiled, counter = compile_counting(meta_step)
    params = {"w": torch.randn(3, 2), "b": torch.randn(3)}
    actual = expected = (params, outer.init(params))
    for x in torch.randn(3, 2):
        actual, expected = compiled(*actual, x), meta_step(*expected, x)
    assert counter.frame_count == 1
    assert_agree(actual, expected)


@pytest.mark.compile
def test_functional_call_of_a_module_compiles_and_trains() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    transformation = torchopt.adam(0.05)
    x, y = torch.randn(16, 2), torch.randn(16, 1)

    def loss_fn(params: Tree) -> torch.Tensor:
        return (functional_call(net, params, x) - y).square().mean()

    def step(params: Tree, state: Any) -> Any:
        updates, state = transformation.update(grad(loss_fn)(params), state, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), state

    compiled, counter = compile_counting(step)
    params = {name: p.detach() for name, p in net.named_parameters()}
    before, state = loss_fn(params), transformation.init(params)
    for _ in range(30):
        params, state = compiled(params, state)
    assert counter.frame_count == 1
    assert loss_fn(params) < 0.7 * before


@pytest.mark.compile
@pytest.mark.parametrize("name", ["sgd", "adam", "lion", "chain"])
def test_transformations_may_be_made_where_they_are_compiled(name: str) -> None:
    def train(lr: torch.Tensor) -> torch.Tensor:
        if name == "chain":
            impl = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(lr))
        else:
            impl = getattr(torchopt, name)(lr)
        params = {"w": torch.ones(2)}
        updates, _ = impl.update(params, impl.init(params), params=params, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False)["w"]

    compiled = torch.compile(train, fullgraph=True, backend="eager")
    assert_agree(compiled(torch.tensor(0.1)), train(torch.tensor(0.1)))
