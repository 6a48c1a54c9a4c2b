"""The gradient of the smoothed objective with respect to the scale of the noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

import torchopt
from torchopt_zero import LowRank, Orthogonal, Sobol, diagnose

NORMAL = torch.distributions.Normal(0.0, 1.0)
METHODS = ["naive", "forward", "antithetic", "leave-one-out"]
CURVATURE = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    """Its smoothed value is that at x plus sigma^2 / 2 times the sum of curvatures."""
    return (CURVATURE * x * x).sum() / 2 + x.sum()


@pytest.mark.parametrize("noise", [NORMAL, torch.distributions.Normal(0.0, 2.0), Sobol()])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_that_of_the_smoothed_objective(method: str, noise: Any) -> None:
    sigma = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(noise, method, num_samples=200, sigma=sigma)
    x = torch.ones(3, dtype=torch.float64)
    found = diagnose(lambda sigma: decorate(quadratic)(x), sigma, repeats=60)
    scale = noise.scale if isinstance(noise, torch.distributions.Normal) else 1.0
    wanted = 0.7 * scale**2 * CURVATURE.sum()
    assert (found.gradient[0] - wanted).abs() < 4 * found.standard_error[0]
    assert found.standard_error[0] < wanted / 4


def test_arguments_and_sigma_have_gradients_together() -> None:
    sigma = torch.tensor(0.5, requires_grad=True)
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(Orthogonal(), "antithetic", num_samples=30000, sigma=sigma)
    (2 * decorate(quadratic)(x)).backward()
    torch.testing.assert_close(x.grad, 2 * (CURVATURE + 1), rtol=0.1, atol=0.1)
    torch.testing.assert_close(sigma.grad, torch.tensor(3.0), rtol=0.1, atol=0.0)


def test_chunks_and_workers_change_no_bit() -> None:
    from .test_reproducible import in_threads

    def gradient(**options: Any) -> Tensor:
        sigma = torch.tensor(0.5, requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        decorate = torchopt.diff.zero_order(
            NORMAL, "antithetic", num_samples=10, sigma=sigma, generator=generator, **options
        )
        return torch.autograd.grad(decorate(quadratic)(torch.ones(3).double()), sigma)[0]

    found = [gradient(), gradient(chunk_size=3), *in_threads(2, lambda w: gradient(workers=w))]
    assert all(torch.equal(found[0], other) for other in found)


def test_it_is_there_under_transforms() -> None:
    x = torch.ones(3, dtype=torch.float64)

    def value(sigma: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        decorate = torchopt.diff.zero_order(
            NORMAL, "antithetic", num_samples=5, sigma=sigma, generator=generator
        )
        return decorate(quadratic)(x)

    at = torch.tensor(0.5, dtype=torch.float64)
    leaf = at.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(value(leaf), leaf)
    torch.testing.assert_close(grad(value)(at), wanted)
    torch.testing.assert_close(jvp(value, (at,), (2 * torch.ones_like(at),))[1], 2 * wanted)


def test_sigma_is_read_at_each_call() -> None:
    sigma = torch.tensor(0.5)
    x = torch.ones(1, requires_grad=True)
    cube = torchopt.diff.zero_order(NORMAL, "finite-difference", sigma=sigma)(
        lambda x: (x**3).sum()
    )
    found = []
    for value in (0.5, 1.0):
        sigma.fill_(value)
        found.append(torch.autograd.grad(cube(x), x)[0])
    torch.testing.assert_close(torch.cat(found), torch.tensor([3.25, 4.0]))
    loss = cube(x)
    sigma.fill_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_learned_sigma_finds_how_far_to_look() -> None:
    """Where the objective is flat and rises further out, noise shrinks; on a ridge it grows."""
    for sign, grows in ((1.0, False), (-1.0, True)):
        log_sigma = torch.tensor(0.0, requires_grad=True)
        optimizer = torchopt.SGD([log_sigma], lr=0.02)
        for _ in range(10):
            decorate = torchopt.diff.zero_order(
                NORMAL, "antithetic", num_samples=200, sigma=log_sigma.exp()
            )
            loss = decorate(lambda x, sign=sign: sign * x.square().mean())(torch.zeros(3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (log_sigma > 0.2) if grows else (log_sigma < -0.2)


@pytest.mark.parametrize("method", ["spsa", "guided", "rank-shaped", "finite-difference"])
def test_methods_that_do_not_learn_it(method: str) -> None:
    sigma = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(ValueError, match="does not estimate the gradient with respect to `sigma`"):
        torchopt.diff.zero_order(NORMAL, method, sigma=sigma)


@pytest.mark.parametrize(
    "noise", [torch.randn, LowRank(), torch.distributions.Normal(1.0, 1.0), lambda s: torch.ones(s)]
)
def test_noise_that_is_not_normal(noise: Any) -> None:
    sigma = torch.tensor(0.5, requires_grad=True)
    loss = torchopt.diff.zero_order(noise, sigma=sigma)(lambda x: x.sum())(torch.ones(3))
    with pytest.raises(TypeError, match="with respect to `sigma` needs normal noise of mean zero"):
        loss.backward()


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (torch.ones(2), r"0-dim floating-point tensor, got shape \(2,\)"),
        (torch.tensor(1), "0-dim floating-point tensor, got shape .* torch.int64"),
        (torch.tensor(-1.0), "`sigma` must be a positive number, got -1.0"),
    ],
)
def test_tensors_that_are_no_scale(sigma: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchopt.diff.zero_order(NORMAL, sigma=sigma)
