"""What lies between the forward and the backward pass does not change an estimate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_zero import MeZO, NoiseReuseES

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


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_samples_run_under_the_autocast_of_the_forward_pass(enabled: bool, vectorize: bool) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        product = x @ torch.ones(3, 1)
        seen.append(product.dtype)
        return product.sum()

    x = torch.ones(2, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled):
        loss = zero_order(NORMAL, "antithetic", num_samples=3, vectorize=vectorize)(function)(x)
    with torch.autocast("cpu", torch.bfloat16, not enabled):
        loss.backward()
    assert set(seen) == {torch.bfloat16 if enabled else torch.float32}
    assert len(seen) > 1
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("place", ["argument", "keyword", "closure", "module", "numpy"])
def test_data_changed_in_between_is_noticed(place: str) -> None:
    data = torch.ones(3)
    net = nn.Linear(3, 1, bias=False).requires_grad_(False)
    net.weight.copy_(data)
    x = torch.zeros(3, requires_grad=True)
    decorate = zero_order(NORMAL, "finite-difference")
    calls: dict[str, Any] = {
        "argument": lambda: decorate(lambda x, data: x @ data)(x, data),
        "keyword": lambda: decorate(lambda x, *, data: x @ data)(x, data=data),
        "closure": lambda: decorate(lambda x: x @ data)(x),
        "module": lambda: decorate(lambda x: net(x).sum())(x),
        "numpy": lambda: decorate(lambda x: torch.tensor(float(data.numpy() @ x.numpy())))(x),
    }
    torch.testing.assert_close(torch.autograd.grad(calls[place](), x)[0], torch.ones(3))
    loss = calls[place]()
    with torch.no_grad():
        net.weight.zero_() if place == "module" else data.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_the_function_writes_itself_may_change() -> None:
    norm = nn.BatchNorm1d(3)
    x = torch.randn(5, 3, requires_grad=True)
    decorated = zero_order(NORMAL, "antithetic")(lambda x: norm(x).square().sum())
    first, second = decorated(x), decorated(x)
    (first + second).backward()
    assert x.grad.isfinite().all()


def test_names_bound_anew_do_not_matter() -> None:
    data = torch.ones(3)
    x = torch.zeros(3, requires_grad=True)
    loss = zero_order(NORMAL, "finite-difference")(lambda x, data: x @ data)(x, data)
    data = torch.zeros(3)
    loss.backward()
    torch.testing.assert_close(x.grad, torch.ones(3) + data)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_device_does_not_matter(method: str) -> None:
    x, w = (torch.ones(3, device="cpu", requires_grad=True) for _ in range(2))
    with torch.device("meta"):
        zero_order(NORMAL, method, num_samples=3)(lambda x: x.exp().sum())(x).backward()
        MeZO([w]).step(lambda: w.sum())
        state = torch.zeros(3, device="cpu")
        NoiseReuseES(lambda x, s: (s + x, (s * x).sum()), state)(x).backward()
    assert x.grad.isfinite().all()


def test_samples_have_the_default_device_of_the_forward_pass() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(torch.empty(()).device.type)
        return x.sum()

    x = torch.ones(3, requires_grad=True)
    with torch.device("meta"):
        loss = zero_order(NORMAL, "antithetic", vectorize=False)(function)(x)
    loss.backward()
    assert seen == ["meta"] * 3


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch's compiler
def test_a_compiler_steps_around() -> None:
    decorated = zero_order(NORMAL, "finite-difference", sigma=0.1)(lambda x: x.square().sum())
    compiled = torch.compile(lambda x: 3 * decorated(x), backend="eager")
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    loss = compiled(x)
    loss.backward()
    assert loss == 15
    torch.testing.assert_close(x.grad, 6 * x.detach())


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # read by torch's compiler
def test_a_compiled_function_is_sampled() -> None:
    compiled = torch.compile(lambda x: x.square().sum(), backend="eager")
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    zero_order(NORMAL, "finite-difference", sigma=0.1)(compiled)(x).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def only_moved(x: Tensor) -> Tensor:
    return torch.where(x.abs().sum() == 0, torch.nan, x.sum())


@pytest.mark.parametrize("on_non_finite", ["ignore", "raise"])
def test_a_baseline_that_is_not_finite(on_non_finite: Any) -> None:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    decorate = zero_order(NORMAL, "forward", num_samples=5, on_non_finite=on_non_finite)
    with pytest.raises(FloatingPointError, match="is nan at the unperturbed arguments"):
        decorate(only_moved)(x).backward()
    for method in ("naive", "antithetic", "leave-one-out"):
        decorate = zero_order(NORMAL, method, num_samples=5, on_non_finite=on_non_finite)
        assert torch.autograd.grad(decorate(only_moved)(x), x)[0].isfinite().all()
    single = zero_order(NORMAL, "leave-one-out", on_non_finite=on_non_finite)
    with pytest.raises(FloatingPointError, match="is nan at the unperturbed arguments"):
        single(only_moved)(x).backward()


def test_a_difference_cannot_be_left_out() -> None:
    x = torch.tensor([1.0, 0.1], requires_grad=True)
    decorate = zero_order(NORMAL, "finite-difference", sigma=0.5, on_non_finite="ignore")
    with pytest.raises(FloatingPointError, match="which 'finite-difference' cannot leave out"):
        decorate(lambda x: x.log().sum())(x).backward()
