"""Schedules follow the formulas of optax, for numbers and for tensors."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from torchopt import schedule
from torchopt.schedule import (
    constant_schedule,
    cosine_decay_schedule,
    exponential_decay,
    join_schedules,
    linear_schedule,
    piecewise_constant_schedule,
    polynomial_schedule,
    warmup_cosine_decay_schedule,
)


def polynomial(t: Any, start: float, end: float, power: float, steps: int, begin: int) -> Any:
    return (start - end) * (1 - np.clip(t - begin, 0, steps) / steps) ** power + end


def exponential(t: Any, start: float, rate: float, begin: int, steps: int) -> Any:
    return np.where(t <= begin, start, start * rate ** ((t - begin) / steps))


def cosine(t: Any, start: float, steps: int, alpha: float, power: float) -> Any:
    wave = 0.5 * (1 + np.cos(np.pi * np.minimum(t, steps) / steps))
    return start * ((1 - alpha) * wave**power + alpha)


class Case(NamedTuple):
    # makes the schedule from its values
    make: Callable[..., Any]
    values: tuple[float, ...]
    # the formula, for a numpy array of steps
    formula: Callable[[Any], Any]
    # what optax 0.2.8 returns at SAMPLED, in float64
    optax: list[float]


SAMPLED = [0, 2, 3, 5, 8, 13, 20]
STEPS = np.arange(25)
CASES = {
    "constant": Case(
        constant_schedule,
        (0.3,),
        lambda t: np.full(t.shape, 0.3),
        [0.3] * 7,
    ),
    "linear": Case(
        lambda start, end: linear_schedule(start, end, 7, 1),
        (0.1, 1.3),
        lambda t: np.interp(t, [1, 8], [0.1, 1.3]),
        [
            0.10000000000000009,
            0.27142857142857135,
            0.44285714285714295,
            0.7857142857142857,
            1.3,
            1.3,
            1.3,
        ],
    ),
    "polynomial": Case(
        lambda start, end, power: polynomial_schedule(start, end, power, 10, transition_begin=2),
        (0.3, 0.02, 2.5),
        lambda t: polynomial(t, 0.3, 0.02, 2.5, 10, 2),
        [0.3, 0.3, 0.2351613719978565, 0.13478975564047513, 0.04833400783510868, 0.02, 0.02],
    ),
    "exponential": Case(
        lambda start, rate: exponential_decay(start, rate, transition_begin=2, transition_steps=3),
        (0.5, 0.7),
        lambda t: exponential(t, 0.5, 0.7, 2, 3),
        [
            0.5,
            0.5,
            0.4439520008713003,
            0.35,
            0.24499999999999997,
            0.13520605804725488,
            0.05882449999999998,
        ],
    ),
    "exponential staircase with a lower bound": Case(
        lambda start, rate, end: exponential_decay(start, rate, 1, 3, True, end),
        (0.5, 0.7, 0.2),
        lambda t: np.maximum(0.5 * 0.7 ** (np.maximum(t - 1, 0) // 3), 0.2),
        [0.5, 0.5, 0.5, 0.35, 0.24499999999999997, 0.2, 0.2],
    ),
    "exponential growth with an upper bound": Case(
        lambda start, rate, end: exponential_decay(start, rate, transition_steps=4, end_value=end),
        (0.5, 1.5, 2.0),
        lambda t: np.minimum(exponential(t, 0.5, 1.5, 0, 4), 2.0),
        [
            0.5,
            0.6123724356957945,
            0.6777015027073836,
            0.8300114397752412,
            1.125,
            1.8675257394942928,
            2.0,
        ],
    ),
    "cosine": Case(
        lambda start, alpha, power: cosine_decay_schedule(start, 11, alpha, power),
        (0.4, 0.1, 1.5),
        lambda t: cosine(t, 0.4, 11, 0.1, 1.5),
        [
            0.4,
            0.35800056893098997,
            0.3109565688614487,
            0.19539471150464593,
            0.06580768588520458,
            0.04000000000000001,
            0.04000000000000001,
        ],
    ),
    "warm-up and cosine": Case(
        lambda start, peak, end, power: warmup_cosine_decay_schedule(
            start, peak, 4, 15, end, power
        ),
        (0.05, 0.8, 0.01, 2.0),
        lambda t: np.where(
            t < 4,
            polynomial(t, 0.05, 0.8, 1.0, 4, 0),
            cosine(np.maximum(t - 4, 0), 0.8, 11, 0.01 / 0.8, 2.0),
        ),
        [
            0.050000000000000044,
            0.42500000000000004,
            0.6125,
            0.7683235109448058,
            0.4056714326586483,
            0.014977087065619727,
            0.01,
        ],
    ),
    "cosine without a warm-up": Case(
        lambda peak, end: warmup_cosine_decay_schedule(0.05, peak, 0, 15, end),
        (0.8, 0.01),
        lambda t: cosine(t, 0.8, 15, 0.01 / 0.8, 1.0),
        [
            0.8,
            0.7658504557688274,
            0.7245617127781043,
            0.6025,
            0.363711257009277,
            0.044149544231172615,
            0.01,
        ],
    ),
    "piecewise constant": Case(
        lambda start, first, second: piecewise_constant_schedule(start, {8: second, 3: first}),
        (0.9, 0.5, 0.1),
        lambda t: 0.9 * np.where(t >= 3, 0.5, 1) * np.where(t >= 8, 0.1, 1),
        [0.9, 0.9, 0.45, 0.45, 0.045000000000000005, 0.045000000000000005, 0.045000000000000005],
    ),
    "joined": Case(
        lambda start, end, rate, last: join_schedules(
            [
                linear_schedule(start, end, 3),
                exponential_decay(1.0, rate, transition_steps=2),
                constant_schedule(last),
            ],
            [4, 13],
        ),
        (0.0, 1.0, 0.5, 0.07),
        lambda t: np.where(
            t < 4,
            np.interp(t, [0, 3], [0, 1]),
            np.where(t < 13, exponential(t, 1.0, 0.5, 4, 2), 0.07),
        ),
        [0.0, 0.6666666666666666, 1.0, 0.7071067811865476, 0.25, 0.07, 0.07],
    ),
}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# Both sides round a handful of float64 operations differently.
ROUNDING = {"rtol": 1e-14, "atol": 1e-16}


def tensors(case: Case, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in case.values]


@cases
class TestEverySchedule:
    def test_follows_its_formula(self, case: Case) -> None:
        of = case.make(*case.values)
        np.testing.assert_allclose([of(t) for t in STEPS.tolist()], case.formula(STEPS), **ROUNDING)

    def test_returns_what_optax_returns(self, case: Case) -> None:
        of = case.make(*case.values)
        np.testing.assert_allclose([of(t) for t in SAMPLED], case.optax, **ROUNDING)

    def test_gives_a_python_float_for_a_python_int(self, case: Case) -> None:
        of = case.make(*case.values)
        assert all(type(of(t)) is float for t in STEPS.tolist())

    def test_gives_the_same_for_tensors_of_steps_of_any_shape(self, case: Case) -> None:
        of = case.make(*case.values)
        expected = torch.tensor([of(t) for t in STEPS.tolist()], dtype=torch.float64)
        for dtype in (torch.int64, torch.int32, torch.uint8):
            steps = torch.from_numpy(STEPS).to(dtype)
            torch.testing.assert_close(of(steps), expected, **ROUNDING)
        torch.testing.assert_close(of(steps.view(5, 5)), expected.view(5, 5), **ROUNDING)
        for step, value in zip(steps, expected, strict=True):
            torch.testing.assert_close(of(step), value, **ROUNDING)

    def test_does_not_promote_what_it_scales(self, case: Case) -> None:
        rate = case.make(*case.values)(torch.tensor(3))
        assert (rate * torch.ones(2)).dtype == torch.float32

    @pytest.mark.parametrize("step", [0, 3, 13])
    def test_sends_gradients_to_its_values(self, case: Case, step: int) -> None:
        def at(step: Any) -> Callable[..., torch.Tensor]:
            return lambda *values: torch.as_tensor(case.make(*values)(step), dtype=torch.float64)

        assert gradcheck(at(step), tensors(case))
        assert gradcheck(at(torch.tensor(step)), tensors(case))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_has_the_dtype_of_its_values(self, case: Case, dtype: torch.dtype) -> None:
        of = case.make(*tensors(case, dtype))
        assert of(3).dtype == of(torch.tensor(3)).dtype == of(torch.arange(3)).dtype == dtype

    def test_compiles_without_graph_breaks_and_once_for_all_steps(self, case: Case) -> None:
        torch.compiler.reset()
        of = case.make(*case.values)
        graphs = []

        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
            graphs.append(graph)
            return graph

        compiled = torch.compile(lambda step: of(step) * 2, fullgraph=True, backend=backend)
        for t in SAMPLED:
            torch.testing.assert_close(compiled(torch.tensor(t)), of(torch.tensor(t)) * 2)
        assert len(graphs) == 1

    def test_runs_under_vmap_over_steps_and_values(self, case: Case) -> None:
        steps = torch.tensor(SAMPLED)
        of = case.make(*case.values)
        torch.testing.assert_close(torch.vmap(of)(steps), of(steps))
        values = [torch.stack([value, 1.1 * value]) for value in tensors(case)]
        batched = torch.vmap(lambda *values: case.make(*values)(steps))(*values)
        for i in range(2):
            torch.testing.assert_close(
                batched[i], case.make(*(value[i] for value in values))(steps)
            )

    def test_pickles_and_compares_by_value(self, case: Case) -> None:
        of = case.make(*case.values)
        for other in (pickle.loads(pickle.dumps(of)), copy.deepcopy(of), case.make(*case.values)):
            assert other == of
            assert hash(other) == hash(of)
            assert repr(other) == repr(of)
        changed = list(case.values)
        changed[-1] += 0.5
        assert case.make(*changed) != of
        assert of != "schedule"
        assert case.make(*tensors(case)) == case.make(*tensors(case))

    def test_shows_its_values(self, case: Case) -> None:
        assert str(case.values[0]) in repr(case.make(*case.values))


def test_the_cases_cover_every_public_schedule() -> None:
    used = {name for case in CASES.values() for name in case.make.__code__.co_names}
    used.add(CASES["constant"].make.__name__)
    assert used >= set(schedule.__all__)


@pytest.mark.parametrize(
    ("of", "start", "end"),
    [
        (linear_schedule(0.1, 0.001, 7), 0.1, 0.001),
        (polynomial_schedule(0.1, 0.3, 3, 7), 0.1, 0.3),
        (warmup_cosine_decay_schedule(0.1, 0.7, 3, 7, 0.003), 0.1, 0.003),
    ],
)
def test_both_ends_are_met_exactly(of: Any, start: float, end: float) -> None:
    assert of(0) == of(torch.tensor(0)) == start
    assert of(7) == of(torch.tensor(7)) == of(10**9) == end


def test_large_counts_keep_their_precision() -> None:
    step = 2**24 + 1  # not a float32
    of = linear_schedule(0.0, 1.0, 2**25)
    assert of(torch.tensor(step, dtype=torch.int32)).item() == of(step) == step / 2**25


def test_growth_past_the_largest_float_is_bounded() -> None:
    bounded = exponential_decay(1.0, 2.0, end_value=10.0)
    unbounded = exponential_decay(1.0, 2.0)
    assert bounded(5000) == bounded(torch.tensor(5000)) == 10.0
    assert unbounded(5000) == unbounded(torch.tensor(5000)) == math.inf


class TestJoin:
    def test_a_python_int_evaluates_one_schedule(self) -> None:
        calls = []

        def recorded(step: int) -> float:
            calls.append(step)
            return 0.0

        of = join_schedules([constant_schedule(1.0), recorded, constant_schedule(2.0)], [3, 6])
        assert [of(t) for t in (0, 2, 6)] == [1.0, 1.0, 2.0]
        assert calls == []
        assert of(4) == 0.0
        assert calls == [1]

    def test_functions_of_the_step_can_be_joined(self) -> None:
        of = join_schedules([lambda step: 0.5, lambda step: 0.1 / (step + 1)], [2])
        expected = torch.tensor([0.5, 0.5, 0.1, 0.05], dtype=torch.float64)
        torch.testing.assert_close(of(torch.arange(4)), expected, check_dtype=False)

    def test_a_schedule_that_is_not_running_cannot_spoil_gradients(self) -> None:
        rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        inverse_root = lambda step: rate / (step - 4).abs().sqrt()  # noqa: E731 - infinite at 4
        of = join_schedules([inverse_root, constant_schedule(rate)], [3])
        of(torch.tensor(4)).backward()
        assert rate.grad == 1.0

    def test_joins_of_joins_count_from_their_own_beginning(self) -> None:
        inner = join_schedules([constant_schedule(1.0), constant_schedule(2.0)], [2])
        of = join_schedules([constant_schedule(0.0), inner], [3])
        assert [of(t) for t in range(7)] == [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
        assert of(torch.arange(7)).tolist() == [0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0]


nan = float("nan")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: constant_schedule(nan), ValueError, "`value` must be finite, got nan"),
        (lambda: constant_schedule("0.1s"), TypeError, "`value` must be a number.*got '0.1s'"),
        (lambda: constant_schedule(torch.ones(2)), ValueError, r"`value` must.*shape \(2,\)"),
        (lambda: constant_schedule(torch.tensor(1)), ValueError, r"`value` must.*torch.int64"),
        (lambda: linear_schedule(0, 1, 0), ValueError, "`transition_steps` must.*1, got 0"),
        (lambda: linear_schedule(0, 1, -2), ValueError, "`transition_steps` must.*1, got -2"),
        (lambda: linear_schedule(0, 1, 2.5), TypeError, "`transition_steps` must be an int.*2.5"),
        (lambda: linear_schedule(0, 1, 2, -1), ValueError, "`transition_begin` must.*0, got -1"),
        (lambda: linear_schedule(0, math.inf, 2), ValueError, "`end_value` must be finite"),
        (lambda: linear_schedule(None, 1, 2), TypeError, "`init_value` must be a number.*None"),
        (lambda: polynomial_schedule(0, 1, -1, 2), ValueError, "`power` must be non-neg.*-1"),
        (lambda: exponential_decay(1, 0), ValueError, "`decay_rate` must be positive, got 0"),
        (lambda: exponential_decay(1, -0.5), ValueError, "`decay_rate` must.*got -0.5"),
        (lambda: exponential_decay(1, 1, -1), ValueError, "`transition_begin`"),
        (lambda: exponential_decay(1, 1, 0, 0), ValueError, "`transition_steps`"),
        (lambda: exponential_decay(1, 1, end_value=nan), ValueError, "`end_value`"),
        (lambda: cosine_decay_schedule(1, 0), ValueError, "`decay_steps` must.*1, got 0"),
        (lambda: cosine_decay_schedule(1, 2, exponent=0), ValueError, "`exponent` must.*got 0"),
        (lambda: cosine_decay_schedule(1, 2, alpha=nan), ValueError, "`alpha`"),
        (
            lambda: warmup_cosine_decay_schedule(0, 1, 5, 5),
            ValueError,
            r"`decay_steps` counts the warm-up in.*`warmup_steps` \(5\), got 5",
        ),
        (lambda: warmup_cosine_decay_schedule(0, 1, -1, 5), ValueError, "`warmup_steps`"),
        (lambda: warmup_cosine_decay_schedule(0, nan, 1, 5), ValueError, "`peak_value`"),
        (
            lambda: piecewise_constant_schedule(1, {3: -0.1}),
            ValueError,
            r"`boundaries_and_scales\[3\]` must be non-negative, got -0.1",
        ),
        (lambda: piecewise_constant_schedule(1, {-3: 1}), ValueError, "boundaries_and.*got -3"),
        (lambda: piecewise_constant_schedule(1, {0.5: 1}), TypeError, "boundaries_and.*got 0.5"),
        (lambda: join_schedules([], []), ValueError, "`boundaries` must be one fewer.*0 for 0"),
        (lambda: join_schedules([abs], [1]), ValueError, "`boundaries` must.*1 for 1"),
        (lambda: join_schedules([abs] * 3, [4, 4]), ValueError, r"must increase, got \(4, 4\)"),
        (lambda: join_schedules([abs, 0.1], [4]), TypeError, "functions of the step, got 0.1"),
        (lambda: join_schedules([abs, abs], [0.5]), TypeError, "`boundaries` must be an int"),
    ],
)
def test_mistakes_name_the_argument(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
