"""A decorated function has the value of the original and a gradient that composes with autograd."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
import torchopt_zero
from torchopt_zero import Estimator

NORMAL = torch.distributions.Normal(0.0, 1.0)
zero_order = torchopt.diff.zero_order
METHODS = [
    "naive",
    "forward",
    "antithetic",
    "spsa",
    "finite-difference",
    "rank-shaped",
    "leave-one-out",
    "guided",
]


def test_the_module_is_the_decorator() -> None:
    assert torchopt.diff.zero_order is torchopt_zero
    assert torchopt.nn.ZeroOrderGradientModule is torchopt_zero.ZeroOrderGradientModule
    parameters = inspect.signature(torchopt.diff.zero_order.zero_order).parameters
    assert list(parameters)[:5] == ["distribution", "method", "argnums", "num_samples", "sigma"]
    defaults = [parameters[name].default for name in list(parameters)[1:5]]
    assert defaults == ["naive", (0,), 1, 1.0]

    @zero_order(NORMAL, "naive", (0,), 1, 1.0)
    def function(x: Tensor) -> Tensor:
        """Mine."""
        return x.sum()

    assert (function.__name__, function.__doc__) == ("function", "Mine.")
    x = torch.ones(2, requires_grad=True)
    torchopt.diff.zero_order.zero_order(NORMAL)(function.__wrapped__)(x).backward()
    assert x.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_the_value_is_that_of_the_function(method: str) -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    value = zero_order(NORMAL, method)(lambda x, y, *, z: (x * y).sum() + z)(x, 3.0, z=1.0)
    assert value == -2.0
    assert value.requires_grad
    assert value.grad_fn is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("vectorize", [None, True, False])
def test_the_estimate_multiplies_the_cotangent(method: str, vectorize: bool | None) -> None:
    def gradient(after: Any) -> Tensor:
        x = torch.tensor([0.5, -2.0], requires_grad=True)
        decorate = zero_order(
            NORMAL,
            method,
            num_samples=4,
            generator=torch.Generator().manual_seed(2),
            vectorize=vectorize,
        )
        after(decorate(lambda x: x.exp().sum())(x)).backward()
        assert x.grad is not None
        return x.grad

    plain = gradient(lambda loss: loss)
    torch.testing.assert_close(gradient(lambda loss: -2.5 * loss), -2.5 * plain)


def test_autograd_goes_on_before_the_function() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    decorate = zero_order(NORMAL, "finite-difference", sigma=0.1)
    (3 * decorate(lambda x: (x * torch.tensor([1.0, -1.0])).sum())(w.square())).backward()
    torch.testing.assert_close(w.grad, torch.tensor([6.0, -12.0]), rtol=1e-4, atol=1e-4)


def test_a_function_of_a_gradient_differentiates_in_the_cotangent() -> None:
    x = torch.ones(2, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    loss = scale * zero_order(NORMAL, "finite-difference")(lambda x: 3 * x.sum())(x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (found,) = torch.autograd.grad(slope.sum(), scale)
    assert found == pytest.approx(6.0)


@pytest.mark.parametrize("argnums", [1, (1,), (0, 1), -1, (1, 0), (-2, -1)])
def test_argnums_choose_arguments(argnums: Any) -> None:
    both = not isinstance(argnums, int) and len(argnums) == 2
    x, y = torch.ones(2, requires_grad=both), torch.ones(2, requires_grad=True)
    decorate = zero_order(NORMAL, "finite-difference", argnums)
    decorate(lambda x, y: 2 * x.sum() + 3 * y.sum())(x, y).backward()
    torch.testing.assert_close(y.grad, torch.full((2,), 3.0))
    if both:
        torch.testing.assert_close(x.grad, torch.full((2,), 2.0))


def test_arguments_are_trees() -> None:
    tree = {
        "a": [torch.ones(2, requires_grad=True), None],
        "b": (torch.tensor(3.0, requires_grad=True), "name", 4.0),
        "frozen": torch.ones(2),
        "empty": torch.ones(0, 3, requires_grad=True),
    }

    def function(tree: Any) -> Tensor:
        assert tree["a"][1] is None
        assert tree["b"][1:] == ("name", 4.0)
        assert torch.equal(tree["frozen"], torch.ones(2))
        return tree["a"][0].sum() * 2 + tree["b"][0] * tree["b"][2] + tree["frozen"].sum()

    zero_order(NORMAL, "finite-difference", sigma=0.5)(function)(tree).backward()
    torch.testing.assert_close(tree["a"][0].grad, torch.full((2,), 2.0))
    torch.testing.assert_close(tree["b"][0].grad, torch.tensor(4.0))
    assert tree["frozen"].grad is None
    for method in METHODS:
        zero_order(NORMAL, method)(function)(tree).backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distribution", [NORMAL, torch.distributions.Laplace(0.0, 1.0)])
def test_gradients_have_the_dtype_of_the_arguments(
    dtype: torch.dtype, distribution: torch.distributions.Distribution
) -> None:
    x = torch.ones(3, dtype=dtype, requires_grad=True)
    seen = set()

    def function(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return x.sum().float()

    zero_order(distribution, "antithetic", num_samples=4)(function)(x).backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert seen == {dtype}


def black_box(x: Tensor) -> Tensor:
    return torch.tensor(float(x.numpy().sum()))


def branching(x: Tensor) -> Tensor:
    return x.sum() if x.sum() > 0 else 2 * x.sum()


def inner_training(x: Tensor) -> Tensor:
    with torch.enable_grad():
        w = torch.zeros(3, requires_grad=True)
        ((w - x) ** 2).sum().backward()
    return w.grad.square().sum()


@pytest.mark.parametrize("function", [black_box, branching, inner_training])
def test_what_vmap_cannot_do_runs_in_a_loop(function: Any) -> None:
    x = torch.ones(3, requires_grad=True)
    decorated = zero_order(NORMAL, "antithetic", num_samples=300, sigma=0.01)(function)
    decorated(x).backward()
    slope = {black_box: 1.0, branching: 1.0, inner_training: 8.0}[function]
    torch.testing.assert_close(x.grad, torch.full((3,), slope), rtol=0.5, atol=0.0)


def test_vmap_is_tried_once_and_its_failure_remembered() -> None:
    calls = []

    def function(x: Tensor) -> Tensor:
        calls.append(0)
        return torch.tensor(float(x))

    decorated = zero_order(NORMAL, num_samples=3, chunk_size=1)(function)
    counts = []
    for _ in range(2):
        calls.clear()
        decorated(torch.ones((), requires_grad=True)).backward()
        counts.append(len(calls))
    assert counts == [1 + 1 + 3, 1 + 3]


def test_samples_share_one_call() -> None:
    shapes = []

    def function(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x.sum()

    x = torch.ones(4, requires_grad=True)
    zero_order(NORMAL, "antithetic", num_samples=100)(function)(x).backward()
    assert shapes == [x.shape] * 2
    shapes.clear()
    zero_order(NORMAL, "antithetic", num_samples=100, chunk_size=30)(function)(x).backward()
    assert len(shapes) == 1 + 4


def test_a_function_may_draw_its_own_randomness() -> None:
    def function(x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5).sum()

    x = torch.ones(8, requires_grad=True)
    zero_order(NORMAL, "antithetic", num_samples=5, vectorize=True)(function)(x).backward()
    assert x.grad is not None


def test_nothing_is_sampled_without_gradients() -> None:
    def sample(shape: torch.Size) -> Tensor:
        raise AssertionError("sampled")

    function = zero_order(sample)(lambda x: x.sum())
    assert not function(torch.ones(3)).requires_grad
    with torch.no_grad():
        assert not function(torch.ones(3, requires_grad=True)).requires_grad


def test_arguments_changed_before_the_backward_are_noticed() -> None:
    w = torch.ones(3, requires_grad=True)
    x = w * 1
    loss = zero_order(NORMAL)(lambda x: x.sum())(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_output_is_freed_with_its_last_reference() -> None:
    x = torch.ones(3, requires_grad=True)
    loss = zero_order(NORMAL)(lambda x: x.sum())(x)
    reference = weakref.ref(loss)
    gc.disable()
    try:
        del loss
        assert reference() is None
    finally:
        gc.enable()


def test_methods_can_be_decorated() -> None:
    class Model:
        scale = 2.0

        @zero_order(NORMAL, "finite-difference", argnums=1)
        def loss(self, x: Tensor) -> Tensor:
            return self.scale * x.sum()

    x = torch.ones(3, requires_grad=True)
    Model().loss(x).backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 2.0))


def test_an_estimator_of_ones_own() -> None:
    class Zero(Estimator):
        def estimate(self, problem: Any) -> list[Tensor]:
            return [torch.zeros_like(leaf) for leaf in problem.leaves]

    x = torch.ones(3, requires_grad=True)
    zero_order(NORMAL, Zero())(lambda x: x.sum())(x).backward()
    assert not x.grad.any()


def test_a_program_of_the_predecessor_trains() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = (x @ torch.tensor([1.0, -1.0, 2.0, 0.5])).unsqueeze(1)
    net = nn.Linear(4, 1)
    params = tuple(net.parameters())

    @torchopt.diff.zero_order(
        distribution=torch.distributions.Normal(loc=0, scale=1),
        method="antithetic",
        argnums=0,
        num_samples=50,
        sigma=0.01,
    )
    def loss_fn(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(nn.functional.linear(x, *params), y)

    optimizer = torchopt.Adam(params, lr=0.1)
    first = float(loss_fn(params, x, y).detach())
    for _ in range(60):
        loss = loss_fn(params, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first / 50
