"""Estimates are those of the gradient of the smoothed objective, with the variance theory says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_zero import SPSA, Antithetic, LinearControl, LowRank, Naive, Rademacher, diagnose

SLOPE = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).view(2, 3)
CURVATURE = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).view(2, 3)
AT = torch.linspace(1.0, -1.0, 6, dtype=torch.float64).view(2, 3)


def linear(x: Tensor) -> Tensor:
    return (SLOPE * x).sum() + 0.5


def quadratic(x: Tensor) -> Tensor:
    return (CURVATURE * x * x).sum() / 2 + (SLOPE * x).sum()


# the gradient at AT, also of the smoothed function, since their third derivatives vanish
OBJECTIVES = {"linear": (linear, SLOPE), "quadratic": (quadratic, CURVATURE * AT + SLOPE)}
DISTRIBUTIONS: dict[str, Any] = {
    "Normal": torch.distributions.Normal(0.0, 1.0),
    "Laplace": torch.distributions.Laplace(0.0, math.sqrt(0.5)),
    "Uniform": torch.distributions.Uniform(-math.sqrt(3.0), math.sqrt(3.0)),
    "function": lambda shape: torch.randn(shape, dtype=torch.float64),
    "Rademacher": Rademacher(),
    "LowRank(1)": LowRank(rank=1),
    "LowRank(3)": LowRank(rank=3),
}
METHODS = ["naive", "forward", "antithetic", "leave-one-out", "spsa"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    ("method", "distribution"),
    [
        (method, distribution)
        for method in METHODS
        for distribution in DISTRIBUTIONS
        if method != "spsa" or not distribution.startswith("LowRank")  # has no sign per entry
    ],
)
def test_mean_over_seeds_is_the_gradient(method: str, distribution: str, objective: str) -> None:
    function, gradient = OBJECTIVES[objective]
    decorate = torchopt.diff.zero_order(
        DISTRIBUTIONS[distribution], method, num_samples=20, sigma=0.7
    )
    found = diagnose(decorate(function), AT.clone().requires_grad_(), repeats=100)
    # an absolute term for where the estimate is exact and the standard error is rounding
    excess = (found.gradient[0] - gradient).abs() - 4 * found.standard_error[0]
    assert excess.max() < 1e-12


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("method", ["naive", "forward", "antithetic", "leave-one-out"])
def test_a_smoothed_step_has_its_closed_form_gradient(method: str, sigma: float) -> None:
    x = torch.tensor([0.3, -1.0], dtype=torch.float64, requires_grad=True)
    step = torchopt.diff.zero_order(
        torch.distributions.Normal(0.0, 1.0), method, num_samples=200, sigma=sigma
    )(lambda x: torch.sign(x).sum())
    found = diagnose(step, x, repeats=50)
    smoothed = 2 * torch.exp(-x.detach().square() / (2 * sigma**2)) / sigma / math.sqrt(2 * math.pi)
    assert ((found.gradient[0] - smoothed).abs() <= 4 * found.standard_error[0] + 1e-12).all()


def test_a_linear_control_is_unbiased_and_exact_where_it_is_right() -> None:
    function, gradient = OBJECTIVES["linear"]
    x = AT.clone().requires_grad_()
    normal = DISTRIBUTIONS["Normal"]
    for surrogate, bound in ((SLOPE, 1e-12), (SLOPE + 0.3, 1.0)):
        for base in (Antithetic(), Naive()):
            method = LinearControl([surrogate], base)
            found = diagnose(torchopt.diff.zero_order(normal, method)(function), x, repeats=100)
            assert (
                (found.gradient[0] - gradient).abs() <= 4 * found.standard_error[0] + 1e-12
            ).all()
            if isinstance(base, Antithetic):
                assert found.standard_error[0].max() < bound


def variance(method: Any, function: Callable[[Tensor], Tensor], sigma: float) -> float:
    x = AT.clone().requires_grad_()
    decorate = torchopt.diff.zero_order(DISTRIBUTIONS["Normal"], method, sigma=sigma)
    found = diagnose(decorate(function), x, repeats=2000)
    return float(found.standard_error[0].square().sum() * 2000)


def test_antithetic_variance_is_below_naive_by_the_predicted_factor() -> None:
    # For f = c + a.z sigma and z normal in d dimensions, the total variance of one sample is
    # naive: (c/sigma)^2 d + |a|^2 (d + 1), antithetic: |a|^2 (d + 1).
    sigma, c = 0.5, float(linear(AT))
    slope = float(SLOPE.square().sum())
    antithetic = slope * (AT.numel() + 1)
    naive = antithetic + (c / sigma) ** 2 * AT.numel()
    predicted = naive / antithetic
    assert predicted > 1.2
    ratio = variance("naive", linear, sigma) / variance("antithetic", linear, sigma)
    assert ratio == pytest.approx(predicted, rel=0.2)  # 2000 samples of heavy-tailed products
    assert variance("antithetic", linear, sigma) == pytest.approx(antithetic, rel=0.15)


def test_leave_one_out_is_invariant_to_a_constant() -> None:
    gradients = []
    for constant in (0.0, 1e6):
        x = AT.clone().requires_grad_()
        generator = torch.Generator().manual_seed(1)
        decorate = torchopt.diff.zero_order(
            DISTRIBUTIONS["Normal"], "leave-one-out", num_samples=8, generator=generator
        )
        decorate(lambda x, c=constant: linear(x) + c)(x).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_rank_shaping_ignores_monotone_transformations() -> None:
    gradients = []
    for transform in (lambda y: y, torch.exp, lambda y: y**3 + y):
        x = AT.clone().requires_grad_()
        generator = torch.Generator().manual_seed(1)
        decorate = torchopt.diff.zero_order(
            torch.randn, "rank-shaped", num_samples=256, generator=generator
        )
        decorate(lambda x, transform=transform: transform(linear(x)))(x).backward()
        gradients.append(x.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert torch.cosine_similarity(gradients[0].flatten(), SLOPE.flatten(), dim=0) > 0.9


def test_finite_differences_are_exact_to_rounding_on_quadratics() -> None:
    function, gradient = OBJECTIVES["quadratic"]
    x = AT.clone().requires_grad_()
    torchopt.diff.zero_order(torch.randn, "finite-difference", sigma=0.5)(function)(x).backward()
    torch.testing.assert_close(x.grad, gradient, rtol=1e-14, atol=1e-14)


def test_spsa_takes_signs_only() -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.sum()

    x = torch.zeros(4, requires_grad=True)
    normal = torch.distributions.Laplace(0.0, 1.0)
    decorate = torchopt.diff.zero_order(normal, SPSA(), 0, 5, 0.25, vectorize=False)
    decorate(function)(x).backward()
    assert all((point.abs() == 0.25).all() for point in seen[1:])
    assert len(seen) == 1 + 2 * 5


def test_cosine_and_standard_error_match_their_definitions() -> None:
    x = AT.clone().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    decorate = torchopt.diff.zero_order(torch.randn, "antithetic", 0, 4, 0.1, generator=generator)
    found = diagnose(decorate(quadratic), x, reference=[CURVATURE * AT + SLOPE], repeats=8)
    generator.manual_seed(3)
    estimates = torch.stack([torch.autograd.grad(decorate(quadratic)(x), x)[0] for _ in range(8)])
    torch.testing.assert_close(found.gradient[0], estimates.mean(0))
    torch.testing.assert_close(found.standard_error[0], estimates.std(0) / 8**0.5)
    reference = (CURVATURE * AT + SLOPE).flatten()
    cosine = torch.cosine_similarity(estimates.mean(0).flatten(), reference, dim=0)
    assert found.cosine == pytest.approx(float(cosine))
    single = torch.cosine_similarity(estimates.flatten(1), reference[None], dim=1).mean()
    assert found.single_cosine == pytest.approx(float(single))
