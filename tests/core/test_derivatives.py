"""Derivatives: of every optimizer, in everything that can be learned, against finite differences.

Points are drawn away from kinks (the maximum of Adamax, the bounds of clipping), so that central
differences converge. Zero gradients and zero moments, where they do not, are held against
analytic values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from _table import (
    ADADELTA,
    ADAGRAD,
    ADAM,
    ADAMAX,
    ADAMW,
    RADAM,
    RMSPROP,
    SGD,
    Case,
    Family,
    assert_agree,
    every_case,
    has_dimensions,
    run_functional,
    tensors_in,
)
from torch.autograd import gradcheck, gradgradcheck

import torchopt

pytestmark = pytest.mark.usefixtures("float64")


class Learned(NamedTuple):
    """An optimizer, and values for all of its hyperparameters that can be learned."""

    name: str
    family: Family
    learned: dict[str, Any]
    fixed: dict[str, Any] = {}  # noqa: RUF012

    def transformation(self, values: dict[str, Any]) -> torchopt.GradientTransformation:
        return self.family.functional(**values, **self.fixed)


LEARNED = [
    Learned("sgd", SGD, {"lr": 0.3, "weight_decay": 0.2}),
    Learned(
        "sgd-momentum", SGD, {"lr": 0.3, "momentum": 0.8, "dampening": 0.4, "weight_decay": 0.2}
    ),
    Learned(
        "sgd-nesterov",
        SGD,
        {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.2},
        {"nesterov": True, "maximize": True},
    ),
    Learned(
        "adam",
        ADAM,
        {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.1, "eps_root": 0.05, "weight_decay": 0.2},
    ),
    Learned(
        "adam-maximize",
        ADAM,
        {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.1, "weight_decay": 0.2},
        {"maximize": True},
    ),
    Learned(
        "adamw",
        ADAMW,
        {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.1, "eps_root": 0.05, "weight_decay": 0.2},
    ),
    Learned(
        "adamw-mask",
        ADAMW,
        {"lr": 0.3, "betas": (0.7, 0.9), "weight_decay": 0.2},
        {"mask": has_dimensions, "maximize": True},
    ),
    Learned(
        "adagrad",
        ADAGRAD,
        {
            "lr": 0.3,
            "lr_decay": 0.4,
            "weight_decay": 0.2,
            "initial_accumulator_value": 0.5,
            "eps": 0.1,
        },
    ),
    Learned("adadelta", ADADELTA, {"lr": 0.3, "rho": 0.7, "eps": 0.1, "weight_decay": 0.2}),
    Learned("adamax", ADAMAX, {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.1, "weight_decay": 0.2}),
    Learned("radam", RADAM, {"lr": 0.3, "betas": (0.7, 0.9), "eps": 0.1, "weight_decay": 0.2}),
    Learned("rmsprop", RMSPROP, {"lr": 0.3, "alpha": 0.7, "eps": 0.1, "initial_scale": 0.4}),
    Learned(
        "rmsprop-centered",
        RMSPROP,
        {"lr": 0.3, "alpha": 0.7, "eps": 0.1, "weight_decay": 0.2, "initial_scale": 0.4},
        {"centered": True},
    ),
    Learned(
        "rmsprop-momentum",
        RMSPROP,
        {"lr": 0.3, "alpha": 0.7, "eps": 0.1, "momentum": 0.8, "weight_decay": 0.2},
        {"maximize": True},
    ),
    Learned(
        "rmsprop-nesterov",
        RMSPROP,
        {"lr": 0.3, "alpha": 0.7, "eps": 0.1, "momentum": 0.8, "initial_scale": 0.4},
        {"nesterov": True, "centered": True},
    ),
]
every_learned = pytest.mark.parametrize("row", LEARNED, ids=lambda row: row.name)


def test_every_float_hyperparameter_is_among_the_learned() -> None:
    """So that a new hyperparameter cannot be forgotten here."""
    for family in (SGD, ADAM, ADAMW, ADAGRAD, ADADELTA, ADAMAX, RADAM, RMSPROP):
        defaults = family.functional().hyperparameters
        floats = {name for name, value in defaults.items() if isinstance(value, (float, tuple))}
        checked = {name for row in LEARNED if row.family is family for name in row.learned}
        assert floats == checked


def draw_state(state: Any, count: int) -> Any:
    """Return a state in the middle of a run: positive squares, a count."""
    accessors, leaves, spec = optree.tree_flatten_with_accessor(state)
    drawn = []
    for accessor, leaf in zip(accessors, leaves, strict=True):
        field = accessor.codify("")
        if "count" in field:
            drawn.append(torch.full_like(leaf, count))
        elif "mu" in field or "trace" in field:
            # also a positive moving average in Adadelta; small beside the root of the second moment
            drawn.append(0.2 + 0.3 * torch.rand_like(leaf))
        else:
            drawn.append(1.0 + torch.rand_like(leaf))
    return optree.tree_unflatten(spec, drawn)


def differentiable_inputs(*trees: Any) -> tuple[list[torch.Tensor], Callable[..., Any]]:
    """Return the floating point leaves, that require grad, and the way back to the trees."""
    leaves, spec = optree.tree_flatten(trees)
    chosen = [i for i, x in enumerate(leaves) if x.is_floating_point()]

    def rebuild(inputs: Any) -> Any:
        merged = list(leaves)
        for i, x in zip(chosen, inputs, strict=True):
            merged[i] = x
        return optree.tree_unflatten(spec, merged)

    return [leaves[i].detach().clone().requires_grad_() for i in chosen], rebuild


def step_from_a_state(row: Learned, count: int) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """One step as a function of gradients, parameters, state tensors, hyperparameters."""
    values = optree.tree_map(torch.tensor, row.learned)
    params = {"w": torch.randn(2), "b": torch.randn(())}
    grads = {"w": torch.tensor([0.7, -1.3]), "b": torch.tensor(0.9)}
    state = draw_state(row.transformation(row.learned).init(params), count)
    inputs, rebuild = differentiable_inputs(values, params, grads, state)

    def step(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, params, grads, state = rebuild(inputs)
        transformation = row.transformation(values)
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
        return tuple(x for x in tensors_in((params, state)) if x.is_floating_point())

    return step, inputs


def steps_from_the_start(row: Learned) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """Two steps from ``init`` as a function of gradients, parameters, hyperparameters."""
    values = optree.tree_map(torch.tensor, row.learned)
    params = {"w": torch.randn(2), "b": torch.randn(())}
    grads = [
        {"w": torch.tensor([0.7, -1.3]), "b": torch.tensor(0.9)},
        {"w": torch.tensor([-1.1, 0.6]), "b": torch.tensor(1.7)},
    ]
    inputs, rebuild = differentiable_inputs(values, params, grads)

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, params, grads = rebuild(inputs)
        return tuple(tensors_in(run_functional(row.transformation(values), params, grads)))

    return run, inputs


@pytest.mark.parametrize("count", [0, 9])
@every_learned
def test_first_derivatives_of_one_step(row: Learned, count: int) -> None:
    step, inputs = step_from_a_state(row, count)
    assert gradcheck(step, inputs, check_forward_ad=True)


@pytest.mark.parametrize("count", [0, 9])
@every_learned
def test_second_derivatives_of_one_step(row: Learned, count: int) -> None:
    step, inputs = step_from_a_state(row, count)
    assert gradgradcheck(step, inputs)


@every_learned
def test_first_derivatives_of_two_steps(row: Learned) -> None:
    run, inputs = steps_from_the_start(row)
    assert gradcheck(run, inputs, check_forward_ad=True)


@every_learned
def test_second_derivatives_of_two_steps(row: Learned) -> None:
    run, inputs = steps_from_the_start(row)
    assert gradgradcheck(run, inputs)


@every_learned
def test_learning_rate_may_be_a_tree_of_tensors(row: Learned) -> None:
    params = {"w": torch.randn(2), "b": torch.randn(())}
    grads = [{"w": torch.tensor([0.7, -1.3]), "b": torch.tensor(0.9)}] * 2
    rates = {"w": torch.tensor([0.1, 0.4]), "b": torch.tensor(0.2)}
    others = {name: value for name, value in row.learned.items() if name != "lr"}
    inputs, rebuild = differentiable_inputs(rates)

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (rates,) = rebuild(inputs)
        after = run_functional(row.transformation({"lr": rates, **others}), params, grads)
        return tuple(tensors_in(after))

    assert gradcheck(run, inputs, check_forward_ad=True)
    assert gradgradcheck(run, inputs)
    # each entry has a learning rate of its own
    after = dict(zip(("b", "w"), run(*inputs), strict=True))
    for rate, name, index in ((0.1, "w", 0), (0.4, "w", 1), (0.2, "b", ())):
        alone = run_functional(row.transformation({"lr": rate, **others}), params, grads)
        assert_agree(after[name][index], alone[name][index])


@every_learned
def test_learning_rate_may_be_a_schedule_with_learned_values(row: Learned) -> None:
    params = {"w": torch.randn(2), "b": torch.randn(())}
    grads = [{"w": torch.tensor([0.7, -1.3]), "b": torch.tensor(0.9)}] * 3
    others = {name: value for name, value in row.learned.items() if name != "lr"}

    def run(init_value: torch.Tensor, decay_rate: torch.Tensor) -> tuple[torch.Tensor, ...]:
        schedule = torchopt.schedule.exponential_decay(init_value, decay_rate)
        after = run_functional(row.transformation({"lr": schedule, **others}), params, grads)
        return tuple(tensors_in(after))

    inputs = [torch.tensor(x, requires_grad=True) for x in (0.3, 0.6)]
    assert gradcheck(run, inputs)
    assert gradgradcheck(run, inputs)


@every_learned
def test_every_learned_hyperparameter_receives_a_gradient_through_each_face(row: Learned) -> None:
    """The differentiable face, and both modes of the functional one, give the same gradient."""
    start = torch.tensor([0.4, -0.8])
    grads = torch.randn(8, 2).unbind()  # enough steps for RAdam to rectify
    leaves, spec = optree.tree_flatten(row.learned)
    values = [torch.tensor(x, requires_grad=True) for x in leaves]
    transformation = row.transformation(optree.tree_unflatten(spec, values))
    target = torch.tensor([1.0, 2.0])

    module = torch.nn.Module()
    module.w = torch.nn.Parameter(start)
    meta = torchopt.MetaOptimizer(module, transformation)
    for grad in grads:
        meta.step((module.w * grad).sum())

    found = []
    for inplace in (True, False):
        params, state = start, transformation.init(start)
        for grad in grads:
            updates, state = transformation.update(grad, state, params=params, inplace=inplace)
            params = torchopt.apply_updates(params, updates, inplace=False)
        found.append(torch.autograd.grad(params @ target, values))
    found.append(torch.autograd.grad(module.w @ target, values))
    assert all(x != 0 for x in found[0])
    assert_agree(found[1], found[0])
    assert_agree(found[2], found[0])


class AtZero(NamedTuple):
    """The derivative of the direction in the gradient, where gradient and moments are zero."""

    name: str
    transformation: torchopt.GradientTransformation
    slope: float


AT_ZERO = [
    AtZero("sgd", torchopt.transform.trace(0.9), 1.0),
    AtZero("adam", torchopt.transform.scale_by_adam(), 1 / 1e-8),
    AtZero("adam-eps-root", torchopt.transform.scale_by_adam(eps_root=1e-4), 1 / (1e-2 + 1e-8)),
    AtZero("adagrad", torchopt.transform.scale_by_rss(), 1 / 1e-10),
    AtZero("adadelta", torchopt.transform.scale_by_adadelta(), 1.0),
    AtZero("adamax", torchopt.transform.scale_by_adamax(), 1 / 1e-6),
    AtZero("radam", torchopt.transform.scale_by_radam(), 1.0),
    AtZero("rms", torchopt.transform.scale_by_rms(), 1 / 1e-8),
    AtZero("stddev", torchopt.transform.scale_by_stddev(), 1 / 1e-8),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("row", AT_ZERO, ids=lambda row: row.name)
def test_slope_at_zero_is_the_analytic_one(row: AtZero, dtype: torch.dtype) -> None:
    grad = torch.zeros(3, dtype=dtype, requires_grad=True)
    updates, _ = row.transformation.update(grad, row.transformation.init(grad), inplace=False)
    assert torch.equal(updates, torch.zeros(3, dtype=dtype))
    (slope,) = torch.autograd.grad(updates.sum(), grad)
    torch.testing.assert_close(slope, torch.full_like(slope, row.slope), rtol=1e-6, atol=0.0)


def test_slope_of_adam_at_zero_in_a_later_step_is_the_analytic_one() -> None:
    adam = torchopt.adam(lr=0.1, betas=(0.8, 0.9), eps=1e-4)
    grad = torch.zeros(3, requires_grad=True)
    state = adam.init(grad)
    for _ in range(2):
        _, state = adam.update(torch.zeros(3), state)
    updates, _ = adam.update(grad, state, inplace=False)
    (slope,) = torch.autograd.grad(updates.sum(), grad)
    expected = -0.1 * (1 - 0.8) / (1 - 0.8**3) / 1e-4
    torch.testing.assert_close(slope, torch.full_like(slope, expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_case
def test_three_derivatives_are_finite_at_zero(case: Case, dtype: torch.dtype) -> None:
    """Zero gradients, zero parameters, zero moments, in two steps from the start."""
    grads = [torch.zeros(2, dtype=dtype, requires_grad=True) for _ in range(2)]
    params = torch.zeros(2, dtype=dtype, requires_grad=True)
    rate = torch.tensor(case.lr, dtype=dtype, requires_grad=True)
    inputs = [rate, params, *grads]
    after = run_functional(case.functional(lr=rate), params, grads)
    found = [after]
    for _ in range(3):
        found = torch.autograd.grad(
            sum(x.sum() for x in found), inputs, create_graph=True, materialize_grads=True
        )
        assert all(x.isfinite().all() for x in found)
        if not any(x.requires_grad for x in found):
            break


@every_learned
def test_hyperparameters_have_finite_derivatives_at_zero(row: Learned) -> None:
    leaves, spec = optree.tree_flatten(row.learned)
    values = [torch.tensor(x, requires_grad=True) for x in leaves]
    params = torch.zeros(2, requires_grad=True)
    grads = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    transformation = row.transformation(optree.tree_unflatten(spec, values))
    found = [run_functional(transformation, params, grads)]
    for _ in range(3):
        found = torch.autograd.grad(
            sum(x.sum() for x in found),
            [*values, params, *grads],
            create_graph=True,
            materialize_grads=True,
        )
        assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_derivatives_of_adam_at_tiny_gradients(dtype: torch.dtype) -> None:
    """The first step is g / (|g| + eps), whatever the size of the gradient."""
    eps = 1e-8
    smallest = -45 if dtype == torch.float32 else -320
    sizes = torch.logspace(smallest, 1, 200, dtype=torch.float64).to(dtype)
    grad = sizes.clone().requires_grad_()
    adam = torchopt.adam(lr=1.0, eps=eps)
    updates, _ = adam.update(grad, adam.init(grad), inplace=False)
    (first,) = torch.autograd.grad(updates.sum(), grad, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), grad)
    expected = -eps / (sizes + eps) ** 2
    # the two terms of the derivative, which cancel up to eps, are of size 1 / (g + eps)
    error = 8 * torch.finfo(dtype).eps / (sizes + eps)
    assert ((first - expected).abs() <= error).all()
    assert second.isfinite().all()


@pytest.mark.parametrize(
    "transformation",
    [torchopt.transform.scale_by_stddev(alpha=0.5), torchopt.rmsprop(centered=True, alpha=0.5)],
    ids=["scale_by_stddev", "rmsprop"],
)
@pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
def test_constant_gradients_have_no_negative_variance(
    transformation: torchopt.GradientTransformation, inplace: bool
) -> None:
    """Rounding makes the estimated variance of a constant negative; its root is not NaN."""
    grads = torch.linspace(0.1, 3.0, 100, dtype=torch.float32)
    state = transformation.init(grads)
    for _ in range(200):
        updates, state = transformation.update(grads, state, inplace=inplace)
    assert updates.isfinite().all()
