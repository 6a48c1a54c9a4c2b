"""Any optimizer walks, exactly as it would in a loop written by hand."""

from __future__ import annotations

import functools
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_viz import NonFiniteStepWarning, TestFunction, run_trajectory, test_functions

TORCH_OPTIMIZERS = sorted(
    (
        value
        for value in vars(torch.optim).values()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        # the base class, and one that takes sparse gradients only
        and value not in (torch.optim.Optimizer, torch.optim.SparseAdam)
    ),
    key=lambda cls: cls.__name__,
)
OPTIONS: dict[str, dict[str, Any]] = {
    "LBFGS": {"line_search_fn": "strong_wolfe"},
    "SGD": {"lr": 1e-3, "momentum": 0.9},
}
SHAPES = {"Muon": (1, 2)}


@pytest.mark.parametrize("cls", TORCH_OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_torch_optimizers_walk_as_in_a_loop_by_hand(cls: Any) -> None:
    options = OPTIONS.get(cls.__name__, {})
    shape = SHAPES.get(cls.__name__, (2,))
    himmelblau = test_functions["himmelblau"]
    found = run_trajectory(cls, himmelblau, 25, options, parameter_shape=shape)

    point = torch.tensor(himmelblau.start, dtype=torch.float64).reshape(shape).requires_grad_()
    optimizer = cls([point], **options)
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        x, y = point.reshape(2)
        loss = himmelblau(x, y)
        loss.backward()
        return loss

    points = [point.detach().clone()]
    for _ in range(25):
        optimizer.step(closure)
        points.append(point.detach().clone())
    expected = torch.stack(points).reshape(26, 2)
    torch.testing.assert_close(found.points, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.values, himmelblau(*expected.T), rtol=1e-12, atol=1e-12)
    assert found.evaluations == evaluations
    assert found.values[-1] < found.values[0]
    assert found.non_finite is None


FACES: dict[str, tuple[Any, dict[str, Any]]] = {
    "functional": (torchopt.adam, {"lr": 0.1}),
    "transformation": (torchopt.adam(0.1), {}),
    "chain": (torchopt.chain(torchopt.clip_by_value(1e9), torchopt.adam(0.1)), {}),
    "stateful": (torchopt.Adam, {"lr": 0.1}),
    "stateful from a transformation": (torchopt.Optimizer, {"impl": torchopt.adam(0.1)}),
    "differentiable": (torchopt.MetaAdam, {"lr": 0.1}),
    "differentiable from a transformation": (torchopt.MetaOptimizer, {"impl": torchopt.adam(0.1)}),
    "partial class": (functools.partial(torch.optim.Adam, lr=0.1), {}),
    "partial differentiable class": (functools.partial(torchopt.MetaAdam, lr=0.1), {}),
    "partial functional": (functools.partial(torchopt.adam, lr=0.1), {}),
    "function of parameters": (lambda params, lr: torch.optim.Adam(params, lr), {"lr": 0.1}),
    "function of hyperparameters": (lambda rate: torchopt.adam(rate), {"rate": 0.1}),
}


@pytest.mark.parametrize(("optimizer", "options"), FACES.values(), ids=FACES.keys())
def test_every_kind_of_optimizer_walks_like_torch(optimizer: Any, options: dict[str, Any]) -> None:
    found = run_trajectory(optimizer, "beale", 40, options)
    expected = run_trajectory(torch.optim.Adam, "beale", 40, {"lr": 0.1})
    torch.testing.assert_close(found.points, expected.points, rtol=1e-10, atol=1e-10)
    assert found.evaluations == expected.evaluations == 40


class Newton(torch.optim.Optimizer):
    """A second-order method: needs gradients with a graph."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        loss = closure()
        (p,) = self.param_groups[0]["params"]
        rows = [torch.autograd.grad(g, p, retain_graph=True)[0] for g in p.grad]
        with torch.no_grad():
            p -= torch.linalg.solve(torch.stack(rows), p.grad)
        return loss


def test_second_order_methods_get_gradients_with_a_graph() -> None:
    found = run_trajectory(Newton, "booth", 1)
    torch.testing.assert_close(found.points[1], torch.tensor([1.0, 3.0], dtype=torch.float64))


class Plain(torch.optim.Optimizer):
    """A step by hand, without a closure."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


def test_a_step_may_come_without_closure() -> None:
    found = run_trajectory(Plain, "sphere", 5, {"lr": 0.25})
    start = torch.tensor(test_functions["sphere"].start, dtype=torch.float64)
    torch.testing.assert_close(found.points, start * 0.5 ** torch.arange(6.0)[:, None])


def test_lbfgs_evaluates_several_times_a_step() -> None:
    found = run_trajectory(torch.optim.LBFGS, "rosenbrock", 20, {"line_search_fn": "strong_wolfe"})
    assert found.evaluations > 40
    assert found.values[-1] < 1e-8


def test_nothing_of_a_walk_stays_in_memory() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        seen.append(weakref.ref(params[0]))
        return torch.optim.LBFGS(params)

    run_trajectory(make, "himmelblau", 5)
    gc.collect()
    assert seen[0]() is None


class TestAdamWOnTheFlower:
    """From (20, 20), as published; R's weight decay and torch's give the same picture."""

    @staticmethod
    def walk(lr: float, weight_decay: float) -> tuple[Tensor, Tensor]:
        options = {"lr": lr, "weight_decay": weight_decay}
        points = run_trajectory(torchopt.AdamW, "flower", 200, options).points
        assert points[0].tolist() == [20.0, 20.0]
        return points, points.norm(dim=1)

    @pytest.mark.parametrize("weight_decay", [1e-6, 1e-2])
    def test_with_lr_001_it_has_not_entered_the_region(self, weight_decay: float) -> None:
        points, distance = self.walk(0.01, weight_decay)
        assert (points > 3).all()
        assert distance[-1] > 20

    @pytest.mark.parametrize("weight_decay", [1e-6, 1e-2])
    def test_with_lr_01_it_has_reached_the_neighbourhood_of_the_centre(
        self, weight_decay: float
    ) -> None:
        _, distance = self.walk(0.1, weight_decay)
        assert distance.min() < 0.15
        assert distance[-1] < (0.2 if weight_decay == 1e-6 else 1.5)

    @pytest.mark.parametrize("weight_decay", [1e-6, 1e-2])
    def test_with_lr_07_it_oscillates(self, weight_decay: float) -> None:
        points, distance = self.walk(0.7, weight_decay)
        assert (points.sign().diff(dim=0) != 0).sum() >= 10
        near, far = distance < 0.5, distance > 1
        arrivals = (near & far.cumsum(0).bool()).int().diff().clamp(min=0).sum()
        assert arrivals >= 4
        assert far[100:].any()


def bowl(x: Tensor, y: Tensor) -> Tensor:
    return (x - 1).square() + 3 * (y + 2).square()


def test_functions_of_your_own() -> None:
    found = run_trajectory(torchopt.adam, bowl, 300, {"lr": 0.1}, start=(4, 4))
    torch.testing.assert_close(
        found.points[-1], torch.tensor([1.0, -2.0]).double(), atol=1e-3, rtol=0
    )
    record = TestFunction("bowl", bowl, (-5, 5, -5, 5), (4, 4))
    again = run_trajectory(torchopt.adam, record, 300, {"lr": 0.1})
    assert torch.equal(again.points, found.points)
    assert math.isnan(record.minimum)


def test_a_function_may_use_one_coordinate_only_or_return_one_element() -> None:
    found = run_trajectory(torchopt.sgd, lambda x, y: x.square(), 3, {"lr": 0.5}, start=(1, 1))
    assert found.points[-1].tolist() == [0, 1]
    run_trajectory(torchopt.sgd, lambda x, y: (x + y).square().reshape(1, 1), 3, start=(1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [torchopt.adam, torch.optim.Adam, torchopt.MetaAdam])
def test_points_have_the_asked_dtype(optimizer: Any, dtype: torch.dtype) -> None:
    found = run_trajectory(optimizer, "sphere", 3, dtype=dtype)
    assert found.points.dtype == found.values.dtype == dtype
    assert found.points.shape == (4, 2)
    assert found.values.shape == (4,)


def test_start_and_label_can_be_chosen() -> None:
    found = run_trajectory(torchopt.sgd, "flower", 1, start=(1, 2), label="mine")
    assert found.points[0].tolist() == [1, 2]
    assert found.label == "mine"


@pytest.mark.parametrize(
    ("optimizer", "options", "label"),
    [
        (torchopt.AdamW, {"lr": 0.1}, "AdamW(lr=0.1)"),
        (torchopt.adam, {}, "adam"),
        (torchopt.adam(0.1), {}, "adam(lr=0.1)"),
        (
            functools.partial(torch.optim.SGD, lr=1e-5),
            {"momentum": 0.9},
            "SGD(lr=1e-05, momentum=0.9)",
        ),
        (torch.optim.LBFGS, {"max_iter": 3, "line_search_fn": "strong_wolfe"}, None),
        (lambda params: torch.optim.SGD(params), {}, "optimizer"),
    ],
)
def test_labels_name_optimizer_and_hyperparameters(
    optimizer: Any, options: dict[str, Any], label: str | None
) -> None:
    expected = label or "LBFGS(max_iter=3, line_search_fn=strong_wolfe)"
    assert run_trajectory(optimizer, "sphere", 1, options).label == expected


def test_a_walk_that_diverges_is_reported_and_kept() -> None:
    message = r"SGD\(lr=1\) on rosenbrock: after step \d+ the point is .* and the value (inf|nan)"
    with pytest.warns(NonFiniteStepWarning, match=message) as caught:
        found = run_trajectory(torch.optim.SGD, "rosenbrock", 20, {"lr": 1.0})
    assert caught[0].filename == __file__
    step = found.non_finite
    assert step is not None
    assert 0 < step < 20
    assert found.points.shape == (21, 2)
    before = torch.cat([found.points[:step].reshape(-1), found.values[:step]])
    assert before.isfinite().all()
    assert not torch.cat([found.points[step], found.values[step : step + 1]]).isfinite().all()
    assert found.points[-1].isnan().all()


def test_a_start_without_a_value_is_reported() -> None:
    with pytest.warns(
        NonFiniteStepWarning, match=r"at the start the point is \(-1, 0\) and .* nan"
    ):
        found = run_trajectory(torchopt.sgd, lambda x, y: x.log() + y, 2, start=(-1, 0))
    assert found.non_finite == 0


def test_a_walk_goes_on_after_a_step_that_is_not_finite() -> None:
    steady = torchopt.chain(torchopt.nan_to_num(0.0), torchopt.sgd(0.1))
    with pytest.warns(NonFiniteStepWarning):
        found = run_trajectory(steady, lambda x, y: x.log() + y, 3, start=(-1, 0))
    assert found.points.isfinite().all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: run_trajectory(torchopt.sgd, "bealle"),
            ValueError,
            r"`function` must be one of ackley, beale, .*, flower, or a function, got 'bealle'",
        ),
        (lambda: run_trajectory(torchopt.sgd, 3), TypeError, "`function` must be a name"),
        (
            lambda: run_trajectory(torchopt.sgd, bowl),
            ValueError,
            r"a function of your own needs `start`=\(x0, y0\)",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, bowl, start=(1, 2, 3)),
            ValueError,
            r"`start` must be 2 finite numbers, got \(1, 2, 3\)",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, bowl, start=(1, math.inf)),
            ValueError,
            "`start` must be 2 finite numbers",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, steps=0),
            ValueError,
            "`steps` must be a positive integer, got 0",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, steps=2.5),  # type: ignore[arg-type]
            ValueError,
            r"`steps` must be a positive integer, got 2\.5",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, dtype=torch.int64),
            ValueError,
            r"`dtype` must be a floating point dtype, got torch\.int64",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, parameter_shape=(3,)),
            ValueError,
            r"`parameter_shape` must hold two numbers, .* got \(3,\)",
        ),
        (
            lambda: run_trajectory("adam"),  # type: ignore[arg-type]
            TypeError,
            "`optimizer` must be a class such as .* got 'adam'",
        ),
        (
            lambda: run_trajectory(torch.optim.SGD([torch.ones(2, requires_grad=True)])),  # type: ignore[arg-type]
            TypeError,
            r"got an optimizer of other parameters \(SGD\): pass its class",
        ),
        (
            lambda: run_trajectory(torchopt.adam(), "beale", 3, {"lr": 0.1}),
            ValueError,
            r"`hyperparameters` must be empty for a transf.*got \{'lr': 0\.1\}.*torchopt\.adam",
        ),
        (
            lambda: run_trajectory(lambda: 3),
            TypeError,
            "`optimizer` must make a torch.optim.Optimizer .*, but optimizer made 3",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, lambda x, y: 3.0, start=(0, 0)),
            TypeError,
            "`function` must return a tensor, got float",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, lambda x, y: torch.stack((x, y)), start=(0, 0)),
            TypeError,
            r"`function` must return one real number .* got torch\.float64 of shape \(2,\)",
        ),
        (
            lambda: run_trajectory(torchopt.sgd, lambda x, y: x.detach(), start=(0, 0)),
            ValueError,
            "the value has no gradient: don't detach",
        ),
        (
            lambda: run_trajectory(torchopt.adam, "beale", 3, {"lr": -1.0}),
            ValueError,
            "`lr` must be",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
