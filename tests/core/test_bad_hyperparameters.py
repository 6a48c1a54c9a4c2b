"""Unusable hyperparameters get an error that names the argument, the value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _table import FAMILIES, Family
from torch import nn

import torchopt
from torchopt import transform

NUMBERS = [
    (name, parameter)
    for name, family in FAMILIES.items()
    for parameter, value in family.functional().hyperparameters.items()
    if isinstance(value, float)
]
BAD_NUMBERS = [-0.1, math.nan, math.inf, -math.inf]


def faces(family: Family) -> dict[str, Callable[..., Any]]:
    return {
        "functional": family.functional,
        "stateful": lambda **kwargs: family.stateful([torch.ones(1)], **kwargs),
        "meta": lambda **kwargs: family.meta(nn.Linear(1, 1), **kwargs),
    }


# one check for all faces, so that one number shows that each of these comes to it
@pytest.mark.parametrize(
    ("face", "value"),
    [*(("functional", value) for value in BAD_NUMBERS), ("stateful", -0.1), ("meta", math.nan)],
)
@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_negative_and_non_finite_hyperparameters(
    name: str, parameter: str, face: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"`{parameter}` must be .*, got {value}"):
        faces(FAMILIES[name])[face](**{parameter: value})


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, math.nan)])
@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "radam"])
def test_betas_outside_of_the_unit_interval(name: str, betas: tuple[float, float]) -> None:
    bad = next(i for i, b in enumerate(betas) if not 0 <= b < 1)
    with pytest.raises(
        ValueError, match=rf"`betas\[{bad}\]` must be in \[0, 1\), got {betas[bad]}"
    ):
        FAMILIES[name].functional(betas=betas)


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), None])
@pytest.mark.parametrize("name", ["adam", "adamw", "adamax", "radam"])
def test_betas_that_are_no_pair(name: str, betas: Any) -> None:
    with pytest.raises(ValueError, match="`betas` must be a pair"):
        FAMILIES[name].functional(betas=betas)


@pytest.mark.parametrize("value", [1.0, 1.5])
@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (torchopt.adadelta, "rho"),
        (torchopt.rmsprop, "alpha"),
        (transform.scale_by_adam, "b1"),
        (transform.scale_by_adam, "b2"),
        (transform.scale_by_rms, "alpha"),
        (transform.scale_by_stddev, "alpha"),
        (transform.scale_by_adadelta, "rho"),
    ],
)
def test_decays_of_one_and_more(make: Any, parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\), got {value}"):
        make(**{parameter: value})


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (torchopt.clip_grad_norm, "max_norm"),
        (torchopt.clip_by_global_norm, "max_norm"),
        (torchopt.clip_by_value, "clip_value"),
        (transform.add_decayed_weights, "weight_decay"),
        (transform.trace, "momentum"),
        (transform.trace, "dampening"),
        (transform.scale_by_adam, "eps"),
        (transform.scale_by_adam, "eps_root"),
        (transform.scale_by_adamax, "eps"),
        (transform.scale_by_radam, "eps"),
        (transform.scale_by_rms, "initial_scale"),
        (transform.scale_by_stddev, "eps"),
        (transform.scale_by_rss, "initial_accumulator_value"),
    ],
)
def test_negative_and_non_finite_numbers_of_transformations(
    make: Any, parameter: str, value: float
) -> None:
    with pytest.raises(ValueError, match=rf"`{parameter}` must be .*, got {value}"):
        make(**{parameter: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_factors_that_are_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match=f"`step_size` must be finite, got {value}"):
        transform.scale(value)


@pytest.mark.parametrize("value", ["0.1", None, [], True])
@pytest.mark.parametrize("parameter", ["eps", "weight_decay"])
def test_hyperparameters_that_are_no_numbers(parameter: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`{parameter}` must be a number or a 0-dim tensor"):
        torchopt.adam(**{parameter: value})


@pytest.mark.parametrize("value", ["0.1", None, {"w": "0.1"}, [0.1], object()])
def test_learning_rates_that_are_none_of_the_kinds(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="`lr` must be"):
        torchopt.adam(lr=value)


@pytest.mark.parametrize("value", [torch.ones(2), torch.tensor(1)], ids=["vector", "integer"])
def test_learned_hyperparameters_are_0_dim_and_floating_point(value: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"`eps` must be .*0-dim floating point"):
        torchopt.adam(eps=value)


@pytest.mark.parametrize("kwargs", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
@pytest.mark.parametrize("make", [torchopt.sgd, transform.trace])
def test_nesterov_needs_momentum_and_no_dampening(make: Any, kwargs: Any) -> None:
    with pytest.raises(ValueError, match=r"Nesterov .* requires a momentum and zero dampening"):
        make(nesterov=True, **kwargs)


@pytest.mark.parametrize("norm_type", [0.0, -1.0, math.nan])
def test_order_of_the_norm_is_positive(norm_type: float) -> None:
    with pytest.raises(ValueError, match="`norm_type` must be positive"):
        torchopt.clip_grad_norm(1.0, norm_type)


def takes(parameter: str) -> list[str]:
    return [name for name, f in FAMILIES.items() if parameter in f.functional().hyperparameters]


@pytest.mark.parametrize("mask", [3, "all", [True, 1], {"a": "b"}], ids=repr)
@pytest.mark.parametrize("name", takes("mask"))
def test_masks_that_are_no_tree_of_bools(name: str, mask: Any) -> None:
    with pytest.raises(TypeError, match=r"`mask` must be a tree of bools, .* got"):
        FAMILIES[name].functional(mask=mask)


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: transform.masked(torchopt.sgd(0.1), mask),
        lambda mask: transform.add_decayed_weights(0.1, mask),
    ],
)
def test_masks_of_transformations_that_are_no_tree_of_bools(make: Any) -> None:
    with pytest.raises(TypeError, match=r"`mask` must be a tree of bools, .* got 3"):
        make(3)


@pytest.mark.parametrize("value", ["x", "False", 2, None], ids=repr)
@pytest.mark.parametrize("name", takes("maximize"))
def test_flags_that_are_no_bools(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match="`maximize` must be a bool, got"):
        FAMILIES[name].functional(maximize=value)


@pytest.mark.parametrize("value", ["x", 2, None], ids=repr)
def test_whether_the_norm_is_differentiated_is_a_bool(value: Any) -> None:
    with pytest.raises(TypeError, match="`norm_requires_grad` must be a bool, got"):
        torchopt.clip_grad_norm(1.0, norm_requires_grad=value)
