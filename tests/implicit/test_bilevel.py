"""Bilevel loops: their steps are those of the papers, and lead where implicit derivatives do."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt_implicit import custom_root
from torchopt_implicit.bilevel import BilevelMethod, BilevelState, amigo, soba, stocbio
from torchopt_implicit.linear_solve import solve_lu

DOUBLE = torch.float64
ROOT = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, -0.2], [0.1, 0.0, 1.1]], dtype=DOUBLE)
CURVATURE = ROOT @ ROOT.mT  # eigenvalues from 0.5 to 1.5
MIX = torch.tensor([[0.5, -0.2], [0.1, 0.7], [0.3, 0.4]], dtype=DOUBLE)
TARGET = torch.tensor([1.0, -0.5, 0.3], dtype=DOUBLE)


def inner(x: Any, y: Any, batch: torch.Tensor | None) -> torch.Tensor:
    noise = 0.0 if batch is None else batch
    return 0.5 * y["w"] @ CURVATURE @ y["w"] - y["w"] @ (MIX @ x["a"] + noise)


def outer(x: Any, y: Any, batch: torch.Tensor | None) -> torch.Tensor:
    noise = 0.0 if batch is None else batch
    return 0.5 * (y["w"] - TARGET - noise).square().sum() + 0.05 * x["a"].square().sum()


START = {"a": torch.tensor([0.4, -0.6], dtype=DOUBLE)}, {"w": torch.zeros(3, dtype=DOUBLE)}
NEVER = itertools.repeat(None)


def solution(a: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(CURVATURE, MIX @ a)


def value(a: torch.Tensor) -> torch.Tensor:
    return outer({"a": a}, {"w": solution(a)}, None)


def best() -> torch.Tensor:
    J = torch.linalg.solve(CURVATURE, MIX)
    return torch.linalg.solve(J.mT @ J + 0.1 * torch.eye(2, dtype=DOUBLE), J.mT @ TARGET)


METHODS: dict[str, Callable[..., BilevelMethod]] = {
    "stocbio": lambda lr, **more: stocbio(
        inner,
        outer,
        inner_optimizer=torchopt.sgd(0.5),
        outer_optimizer=torchopt.sgd(lr),
        **({"neumann_lr": 0.5, "neumann_terms": 8, "inner_steps": 5} | more),
    ),
    "amigo": lambda lr, **more: amigo(
        inner,
        outer,
        inner_optimizer=torchopt.sgd(0.5),
        outer_optimizer=torchopt.sgd(lr),
        **({"linear_lr": 0.5, "linear_steps": 5, "inner_steps": 5} | more),
    ),
    "soba": lambda lr, **more: soba(
        inner,
        outer,
        inner_optimizer=torchopt.sgd(0.5),
        outer_optimizer=torchopt.sgd(lr),
        **({"linear_lr": 0.5} | more),
    ),
}
AT_REST = {
    "stocbio": METHODS["stocbio"](0.0, inner_steps=70, neumann_terms=60),
    "amigo": METHODS["amigo"](0.0, inner_steps=1, linear_steps=1),
    "soba": METHODS["soba"](0.0),
}
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_outer_variables_at_rest_get_the_implicit_hypergradient(name: str) -> None:
    state = AT_REST[name].run(*START, NEVER, NEVER, steps=2 if name == "stocbio" else 80)
    assert torch.equal(state.x["a"], START[0]["a"])
    torch.testing.assert_close(state.y["w"], solution(START[0]["a"]), atol=1e-8, rtol=0)

    @custom_root(torch.func.grad(lambda y, x: inner(x, y, None)), argnums=1, solve=solve_lu())
    def solve(init: Any, x: Any) -> Any:
        return {"w": solution(x["a"].detach())}

    x = {"a": START[0]["a"].clone().requires_grad_()}
    (expected,) = torch.autograd.grad(outer(x, solve(None, x), None), x["a"])
    torch.testing.assert_close(expected, torch.func.grad(value)(START[0]["a"]))
    torch.testing.assert_close(state.hypergradient["a"], expected, atol=1e-6, rtol=0)


#: learning rate, steps, how near
RUNS = {"stocbio": (0.4, 50, 2e-3), "amigo": (0.4, 80, 1e-4), "soba": (0.08, 300, 1e-3)}


@each_method
def test_without_noise_it_converges_to_the_solution(name: str) -> None:
    rate, steps, near = RUNS[name]
    more = {"neumann_terms": 30} if name == "stocbio" else {}
    state = METHODS[name](rate, **more).run(*START, NEVER, NEVER, steps=steps)
    assert state.iterations == steps
    torch.testing.assert_close(state.x["a"], best(), atol=near, rtol=0)


@each_method
def test_with_noise_and_decreasing_rates_it_comes_near_the_solution(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise() -> Any:
        while True:
            yield 0.1 * torch.randn(3, dtype=DOUBLE, generator=generator)

    first, steps, _ = RUNS[name]

    def rate(step: Any) -> Any:
        return first / (1 + step / steps)

    state = METHODS[name](rate).run(*START, noise(), noise(), steps=steps)
    away = value(START[0]["a"]) - value(best())
    assert value(state.x["a"]) - value(best()) < 0.05 * away


def test_soba_takes_the_steps_of_its_paper() -> None:
    method = METHODS["soba"](0.1)
    inner_noise, outer_noise = 0.1 * TARGET, -0.2 * TARGET
    state = method.init_state(*START)._replace(y={"w": TARGET.flip(0)}, v={"w": 0.3 * TARGET + 0.1})
    new = method.update(state, iter([inner_noise]), iter([outer_noise]))
    a, w, v = START[0]["a"], TARGET.flip(0), 0.3 * TARGET + 0.1
    by_y = w - TARGET - outer_noise
    torch.testing.assert_close(new.y["w"], w - 0.5 * (CURVATURE @ w - MIX @ a - inner_noise))
    torch.testing.assert_close(new.v["w"], v - 0.5 * (CURVATURE @ v + by_y))
    torch.testing.assert_close(new.x["a"], a - 0.1 * (0.1 * a - MIX.mT @ v))


def test_amigo_warm_starts_the_linear_system_where_stocbio_starts_anew() -> None:
    start = START[0], {"w": solution(START[0]["a"])}
    one = METHODS["amigo"](0.0, inner_steps=0, linear_steps=1)
    warm = one.run(*start, NEVER, NEVER, steps=70)
    anew = METHODS["stocbio"](0.0, inner_steps=0, neumann_terms=1).run(
        *start, NEVER, NEVER, steps=2
    )
    by_y = solution(START[0]["a"]) - TARGET
    exact = -torch.linalg.solve(CURVATURE, by_y)
    torch.testing.assert_close(warm.v["w"], exact, atol=1e-8, rtol=0)
    series = -0.5 * (2 * by_y - 0.5 * CURVATURE @ by_y)
    torch.testing.assert_close(anew.v["w"], series, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("name", "inner_count"), [("stocbio", 5 + 8 + 1), ("amigo", 5 + 5 + 1), ("soba", 1)]
)
def test_a_step_draws_the_batches_it_says(name: str, inner_count: int) -> None:
    inner_batches, outer_batches = iter([None] * (2 * inner_count + 1)), iter([None] * 5)
    state = METHODS[name](0.1).run(*START, inner_batches, outer_batches)
    complete = {1: 3}.get(inner_count, 2)
    assert state.iterations == complete


@each_method
def test_a_state_can_be_saved_and_gone_on_from(name: str) -> None:
    method = METHODS[name](0.2)
    whole = method.run(*START, NEVER, NEVER, steps=6)
    half = method.run(*START, NEVER, NEVER, steps=3)
    resumed: BilevelState = pickle.loads(pickle.dumps(half))
    for _ in range(3):
        resumed = method.update(resumed, NEVER, NEVER)
    assert resumed.iterations == 6
    assert torch.equal(resumed.x["a"], whole.x["a"])
    assert torch.equal(resumed.y["w"], whole.y["w"])


@each_method
def test_steps_record_nothing_and_write_to_nothing(name: str) -> None:
    x = {"a": START[0]["a"].clone().requires_grad_()}
    y = {"w": START[1]["w"].clone().requires_grad_()}
    method = METHODS[name](0.2)
    start = method.init_state(x, y)
    state = method.update(method.update(start, NEVER, NEVER), NEVER, NEVER)
    for leaf in (state.x["a"], state.y["w"], state.v["w"], state.hypergradient["a"]):
        assert not leaf.requires_grad
    assert torch.equal(x["a"], START[0]["a"])
    assert torch.equal(y["w"], START[1]["w"])
    assert torch.equal(start.x["a"], START[0]["a"])


@each_method
def test_adam_outside_and_a_module_inside(name: str) -> None:
    model = torch.nn.Linear(3, 1, dtype=DOUBLE)
    data = torch.randn(20, 3, dtype=DOUBLE)
    targets = data @ TARGET

    def fit(x: Any, y: Any, rows: torch.Tensor) -> torch.Tensor:
        predicted = torch.func.functional_call(model, y, (data[rows],))[:, 0]
        penalty = sum(leaf.square().sum() for leaf in y.values())
        return (predicted - targets[rows]).square().mean() + x.exp() * penalty

    def validate(x: Any, y: Any, rows: torch.Tensor) -> torch.Tensor:
        predicted = torch.func.functional_call(model, y, (data[rows],))[:, 0]
        return (predicted - targets[rows]).square().mean()

    build = {"stocbio": stocbio, "amigo": amigo, "soba": soba}[name]
    method: BilevelMethod = build(
        fit,
        validate,
        inner_optimizer=torchopt.sgd(0.1, momentum=0.5),
        outer_optimizer=torchopt.adam(0.1),
    )
    y = {key: parameter.detach() for key, parameter in model.named_parameters()}
    state = method.run(
        torch.tensor(0.0, dtype=DOUBLE),
        y,
        itertools.cycle(torch.arange(10).split(5)),
        itertools.cycle(torch.arange(10, 20).split(5)),
        steps=60,
    )
    rows = torch.arange(10, 20)
    assert state.x < -1.0  # a penalty that does not help is unlearned
    assert validate(state.x, state.y, rows) < 0.3 * validate(state.x, y, rows)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner": 3}, TypeError, r"`inner` must be callable as inner\(x, y, batch\), got int"),
        ({"outer_optimizer": 0.1}, TypeError, r"such as torchopt.sgd\(0.1\), got float"),
        ({"linear_steps": -1}, ValueError, "`linear_steps` must be a non-negative integer"),
        ({"inner_steps": 1.5}, ValueError, "`inner_steps` must be a non-negative integer"),
        ({"linear_lr": 0.0}, ValueError, "`linear_lr` must be positive, got 0.0"),
    ],
)
def test_wrong_options_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {
        "inner": inner,
        "outer": outer,
        "inner_optimizer": torchopt.sgd(0.1),
        "outer_optimizer": torchopt.sgd(0.1),
    }
    with pytest.raises(error, match=message):
        amigo(**(given | options))


def test_a_function_that_is_not_scalar_is_named() -> None:
    method = soba(
        lambda x, y, batch: y,
        lambda x, y, batch: y.sum(),
        inner_optimizer=torchopt.sgd(0.1),
        outer_optimizer=torchopt.sgd(0.1),
    )
    with pytest.raises(ValueError, match=r"`inner` must return a 0-dim tensor, got \(2,\)"):
        method.run(torch.zeros(2), torch.zeros(2), NEVER, NEVER, steps=1)
    with pytest.raises(ValueError, match="`steps` must be non-negative"):
        method.run(torch.zeros(2), torch.zeros(2), NEVER, NEVER, steps=-1)
