"""Wrong use says which argument, what it was, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_zero import (
    GuidedES,
    LinearControl,
    LowRank,
    MeZO,
    NoiseReuseES,
    PersistentES,
    diagnose,
)

NORMAL = torch.distributions.Normal(0.0, 1.0)
zero_order = torchopt.diff.zero_order


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "`num_samples` must be at least 1, got 0"),
        ({"num_samples": 1.5}, TypeError, "`num_samples` must be an integer, got 1.5"),
        ({"num_samples": True}, TypeError, "`num_samples` must be an integer, got True"),
        ({"chunk_size": 0}, ValueError, "`chunk_size` must be at least 1, got 0"),
        ({"sigma": 0.0}, ValueError, r"`sigma` must be a positive number, got 0\.0"),
        ({"sigma": -1}, ValueError, "`sigma` must be a positive number, got -1"),
        ({"sigma": float("nan")}, ValueError, "`sigma` must be a positive number, got nan"),
        ({"method": "backward"}, ValueError, "`method` must be an Estimator or one of 'naive'"),
        ({"method": None}, ValueError, "`method` must be an Estimator or one of .*, got None"),
        ({"argnums": "x"}, TypeError, "`argnums` must be an integer or a tuple of integers"),
        ({"argnums": ()}, ValueError, "`argnums` must name at least one argument"),
        ({"argnums": (0, 0)}, ValueError, "`argnums` must name at least one argument, each once"),
        ({"on_non_finite": "skip"}, ValueError, "`on_non_finite` must be .*, got 'skip'"),
        ({"distribution": 3}, TypeError, "`distribution` must be a callable or an instance of"),
    ],
)
def test_decorating(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zero_order(**{"distribution": NORMAL, **options})


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x, r"`output` must be a scalar tensor.*shape \(3,\)"),
        (lambda x: x.sum().view(1), r"`output` must be a scalar tensor.*shape \(1,\)"),
        (lambda x: 1.0, "`output` must be a tensor.*float"),
        (lambda x: (x.sum(), 0), "`output` must be a tensor.*tuple"),
        (lambda x: x.sum() * 1j, "`output` must be a real tensor"),
    ],
)
def test_a_loss_that_is_no_scalar(output: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        zero_order(NORMAL)(output)(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_loss_whose_gradient_would_be_lost(dtype: torch.dtype) -> None:
    def count(x: Tensor) -> Tensor:
        return (x > 0).sum().to(dtype)

    x = torch.ones(3, requires_grad=True)
    message = f"`output` must be a floating-point tensor.* returned {dtype}; convert it"
    with pytest.raises(RuntimeError, match=message):
        zero_order(NORMAL)(count)(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(zero_order(NORMAL)(count))(x.detach())
    with pytest.raises(RuntimeError, match=message):
        PersistentES(lambda x, state: (state, count(x)), torch.zeros(1))(x)
    assert zero_order(NORMAL)(count)(x.detach()).dtype == dtype
    with torch.no_grad():
        assert zero_order(NORMAL)(count)(x).dtype == dtype
    MeZO([x]).step(lambda: count(x))


@pytest.mark.parametrize("argnums", [1, (0, 3), -2])
def test_argnums_out_of_range(argnums: Any) -> None:
    with pytest.raises(IndexError, match="`argnums` must be within the 1 positional arguments"):
        zero_order(NORMAL, argnums=argnums)(lambda x: x.sum())(torch.ones(3, requires_grad=True))


def test_argnums_naming_one_argument_twice() -> None:
    with pytest.raises(ValueError, match="`argnums` must name each argument once"):
        zero_order(NORMAL, argnums=(0, -1))(lambda x: x.sum())(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_cannot_be_perturbed(dtype: torch.dtype) -> None:
    function = zero_order(NORMAL)(lambda x: x[0].sum())
    with pytest.raises(TypeError, match=f"must hold floating-point tensors, got {dtype}"):
        function([torch.ones(3, requires_grad=True), torch.ones(3).to(dtype)])


def test_arguments_without_tensors() -> None:
    with pytest.raises(TypeError, match="must hold tensors, got list"):
        zero_order(NORMAL)(lambda x: torch.tensor(x[0]))([1.0])


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        (lambda shape: torch.randn(2), ValueError, r"sample the shape .*\(3,\), got \(2,\)"),
        (lambda shape: torch.randn(3, *shape), ValueError, r"\(3,\), got \(3, 3\)"),
        (torch.distributions.Normal(torch.zeros(3), torch.ones(3)), ValueError, r"got \(3, 3\)"),
        (lambda shape: torch.ones(shape, dtype=torch.int64), TypeError, "got torch.int64"),
        (lambda shape: torch.ones(shape, dtype=torch.float64), TypeError, "got torch.float64"),
        (lambda shape: torch.ones(shape, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (lambda shape: [1.0, 2.0, 3.0], TypeError, "must sample tensors, got list"),
    ],
)
def test_noise_of_a_wrong_kind(sample: Any, error: type[Exception], message: str) -> None:
    loss = zero_order(sample)(lambda x: x.sum())(torch.ones(3, requires_grad=True))
    with pytest.raises(error, match=message):
        loss.backward()


def partly_nan(x: Tensor) -> Tensor:
    return torch.where(x.sum() > 0.3, torch.nan, x.sum())


@pytest.mark.parametrize("method", ["naive", "forward", "antithetic", "rank-shaped"])
@pytest.mark.parametrize("vectorize", [None, False])
def test_values_that_are_not_finite(method: str, vectorize: bool | None) -> None:
    def gradient(on_non_finite: Any) -> Tensor:
        x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        decorate = zero_order(
            NORMAL,
            method,
            num_samples=200,
            sigma=0.2,
            generator=generator,
            vectorize=vectorize,
            chunk_size=32,
            on_non_finite=on_non_finite,
        )
        decorate(partly_nan)(x).backward()
        assert x.grad is not None
        return x.grad

    with pytest.raises(FloatingPointError, match=r"not finite at .* reduce `sigma`, now 0\.2"):
        gradient("raise")
    assert gradient("ignore").isfinite().all()
    if method != "rank-shaped":
        assert gradient("propagate").isnan().all()


def test_ignored_samples_do_not_count() -> None:
    x = torch.zeros((), dtype=torch.float64, requires_grad=True)
    noise = iter([1.0, 2.0, -1.0, -3.0])
    decorate = zero_order(
        lambda shape: torch.tensor(next(noise), dtype=torch.float64),
        num_samples=4,
        on_non_finite="ignore",
    )
    decorate(lambda x: torch.where(x > 1.5, torch.inf, 2 * x))(x).backward()
    assert x.grad == (2 * 1 + 2 * 1 + 2 * 9) / 3


def test_no_finite_value_at_all() -> None:
    loss = zero_order(NORMAL, on_non_finite="ignore")(lambda x: x.sum() * torch.nan)
    with pytest.raises(FloatingPointError, match="not finite at any sample"):
        loss(torch.ones(2, requires_grad=True)).backward()


def test_finite_differences_raise_where_asked() -> None:
    decorate = zero_order(NORMAL, "finite-difference", on_non_finite="raise")
    with pytest.raises(FloatingPointError, match="not finite at 2 of 2 samples"):
        decorate(lambda x: (x - 5).log().sum())(torch.ones(2, requires_grad=True)).backward()


def test_errors_of_the_function_itself_come_through() -> None:
    def function(x: Tensor) -> Tensor:
        if x.sum() != 0:
            raise KeyError("mine")
        return x.sum()

    with pytest.raises(KeyError, match="mine"):
        zero_order(NORMAL)(function)(torch.zeros(2, requires_grad=True)).backward()


def test_vectorize_true_does_not_fall_back() -> None:
    loss = zero_order(NORMAL, vectorize=True)(lambda x: torch.tensor(float(x.sum())))
    with pytest.raises(RuntimeError):
        loss(torch.zeros(2, requires_grad=True)).backward()


@pytest.mark.parametrize("power", [1, 2])
def test_second_derivatives_are_refused(power: int) -> None:
    x = torch.ones(2, requires_grad=True)
    loss = zero_order(NORMAL)(lambda x: x.sum())(x) ** power
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="detach the estimate"):
        slope.sum().backward()


def unroll(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return state, x.sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedES(k=0), "`k` must be at least 1, got 0"),
        (lambda: GuidedES(alpha=1.5), r"`alpha` must lie in \[0, 1\], got 1.5"),
        (lambda: GuidedES(beta=0.0), "`beta` must be positive, got 0.0"),
        (lambda: LowRank(0), "`rank` must be at least 1, got 0"),
        (lambda: MeZO([torch.ones(1)], lr=-1.0), "`lr` must be non-negative, got -1.0"),
        (lambda: MeZO([torch.ones(1)], sigma=0.0), "`sigma` must be positive, got 0.0"),
        (lambda: MeZO([torch.ones(1)], weight_decay=-1.0), "`weight_decay` must be non-neg"),
        (lambda: PersistentES(unroll, torch.ones(1), num_samples=0), "`num_samples` must be"),
        (lambda: PersistentES(unroll, torch.ones(1), sigma=0.0), "`sigma` must be positive"),
        (lambda: PersistentES(unroll, torch.ones(1), horizon=0), "`horizon` must be at least 1"),
        (lambda: diagnose(lambda x: x, torch.ones(1), repeats=1), "`repeats` must be at least 2"),
        (lambda: diagnose(lambda x: x, torch.ones(1)), "nothing in `args` requires a gradient"),
    ],
)
def test_hyperparameters_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_initial_states_and_counts_of_a_wrong_kind(kind: Any) -> None:
    leaf = torch.ones(2, requires_grad=True)
    for lost in (leaf, leaf * 1):
        message = r"`init` holds a tensor of shape \(2,\) that derivatives are asked for"
        with pytest.raises(RuntimeError, match=message):
            kind(unroll, {"a": [torch.ones(1), lost]})
        with pytest.raises(RuntimeError, match=message):
            torch.func.grad(lambda x: kind(unroll, x)(leaf))(lost.detach())
    with pytest.raises(TypeError, match="`init` must be a tree of tensors, got float"):
        kind(unroll, (torch.ones(1), 2.0))
    for name in ("num_samples", "horizon"):
        with pytest.raises(TypeError, match=f"`{name}` must be an integer, got 2.5"):
            kind(unroll, torch.ones(1), **{name: 2.5})
    kind(unroll, (torch.ones(1), None))(leaf).backward()


def test_trees_that_do_not_match() -> None:
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"`surrogate` must hold .* \[\(3,\)\], got \[\(2,\)\]"):
        zero_order(NORMAL, LinearControl(torch.ones(2)))(lambda x: x.sum())(x).backward()
    guided = GuidedES()
    guided.observe(torch.ones(2))
    with pytest.raises(ValueError, match=r"`gradient` must hold .* \[\(3,\)\], got \[\(2,\)\]"):
        zero_order(NORMAL, guided)(lambda x: x.sum())(x).backward()
    with pytest.raises(ValueError, match="`reference` must hold"):
        diagnose(zero_order(NORMAL)(lambda x: x.sum()), x, reference=torch.ones(2))


def test_methods_that_need_dense_noise() -> None:
    x = torch.ones(3, 3, requires_grad=True)
    with pytest.raises(TypeError, match="`spsa` needs noise with an entry per parameter"):
        zero_order(LowRank(), "spsa")(lambda x: x.sum())(x).backward()
    y = torch.ones(3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(TypeError, match=r"share one dtype and device, got .*float32.*float64"):
        zero_order(NORMAL, "guided", (0, 1))(lambda x, y: x.sum() + y.sum())(x, y).backward()
