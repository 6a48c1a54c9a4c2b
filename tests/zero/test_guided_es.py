"""Guided ES searches where past gradients point, and reproduces the published toy problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_zero import GuidedES, diagnose

SLOPE = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (0.3, 2.0), (1.0, 1.0)])
def test_the_mean_is_the_covariance_times_the_gradient(alpha: float, beta: float) -> None:
    past = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    guided = GuidedES(k=2, alpha=alpha, beta=beta, remember=False)
    for gradient in past:
        guided.observe([gradient])
    basis = torch.linalg.qr(past.T).Q
    covariance = alpha / 4 * torch.eye(4, dtype=torch.float64) + (1 - alpha) / 2 * basis @ basis.T
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = torchopt.diff.zero_order(torch.randn, guided, num_samples=50)(lambda x: x @ SLOPE)
    found = diagnose(loss, x, repeats=200)
    wanted = beta * covariance @ SLOPE
    assert ((found.gradient[0] - wanted).abs() <= 4 * found.standard_error[0] + 1e-12).all()


def test_it_remembers_its_last_estimates_and_no_more() -> None:
    guided = GuidedES(k=2, alpha=0.0)
    loss = torchopt.diff.zero_order(torch.randn, guided)(lambda x: x @ SLOPE)
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    found = [torch.autograd.grad(loss(x), x)[0] for _ in range(5)]
    # with nothing outside the subspace, every estimate lies in the span of the first
    directions = torch.stack([gradient / gradient.norm() for gradient in found])
    torch.testing.assert_close((directions @ directions[0]).abs(), torch.ones(5).double())
    for _ in range(2):
        guided.observe([torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)])
    (latest,) = torch.autograd.grad(loss(x), x)
    assert not latest[:3].any()
    assert latest[3] > 0


def test_parallel_vanishing_and_broken_gradients_do_no_harm() -> None:
    guided = GuidedES(k=4, remember=False)
    x = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss = torchopt.diff.zero_order(torch.randn, guided, num_samples=3)(lambda x: x @ SLOPE)
    for past in (torch.zeros(4), torch.full((4,), torch.nan), torch.ones(4), 1e-9 * torch.ones(4)):
        guided.observe([past])
        (gradient,) = torch.autograd.grad(loss(x), x)
        assert gradient.isfinite().all()


class Quadratic(NamedTuple):
    """A least-squares problem whose surrogate gradients are biased and noisy."""

    hessian: Tensor
    linear: Tensor
    best: Tensor
    bias: Tensor

    def loss(self, x: Tensor) -> Tensor:
        return x @ (self.hessian @ x) / 2 - self.linear @ x

    def excess(self, x: Tensor) -> float:
        return float(self.loss(x.detach()) - self.loss(self.best))

    def surrogate(self, x: Tensor, generator: torch.Generator) -> Tensor:
        gradient = self.hessian @ x - self.linear
        noise = torch.randn(len(x), generator=generator)
        return gradient + gradient.norm() * (self.bias + 1.5 * noise / noise.norm())


def make_quadratic(dimension: int) -> Quadratic:
    generator = torch.Generator().manual_seed(0)
    rows = 2 * dimension
    matrix = torch.randn(rows, dimension, generator=generator)
    target = torch.randn(rows, generator=generator)
    hessian, linear = matrix.T @ matrix / rows, matrix.T @ target / rows
    bias = torch.randn(dimension, generator=generator)
    return Quadratic(hessian, linear, torch.linalg.solve(hessian, linear), bias / bias.norm())


def train(
    problem: Quadratic, kind: str, lr: float, steps: int, report: Callable[[int], bool]
) -> list[float]:
    surrogates = torch.Generator().manual_seed(1)
    x = torch.zeros(len(problem.linear), requires_grad=True)
    # With alpha = 1 nothing is left of the subspace: evolution strategies at the same scale.
    guided = GuidedES(k=1, alpha=0.5 if kind == "guided" else 1.0, beta=1.0, remember=False)
    estimated = torchopt.diff.zero_order(torch.randn, guided, 0, 1, 0.1, vectorize=False)
    loss = estimated(problem.loss)
    history = []
    for step in range(1, steps + 1):
        surrogate = problem.surrogate(x.detach(), surrogates)
        if kind == "sgd":
            gradient = surrogate
        else:
            guided.observe([surrogate])
            (gradient,) = torch.autograd.grad(loss(x), x)
        with torch.no_grad():
            x -= lr * gradient
        if report(step):
            history.append(problem.excess(x))
    return history


def test_the_published_ordering_on_a_quadratic() -> None:
    """Maheswaranathan et al. (2019), figure 1, at half its dimension and a fifth of its steps.

    Bias 1.0 and noise 1.5 are in units of the gradient's norm; sigma 0.1, alpha 0.5, k 1, beta 1;
    each method has the best learning rate of a grid of factors of two.
    """
    problem = make_quadratic(500)
    results = {
        kind: train(problem, kind, lr, 2000, lambda step: step in (500, 2000))
        for kind, lr in {"guided": 0.4, "es": 0.8, "sgd": 0.01}.items()
    }
    early, late = ({kind: found[i] for kind, found in results.items()} for i in range(2))
    assert early["guided"] < early["es"] / 1.3
    assert late["guided"] < late["es"] < late["sgd"] / 1.3
