"""Persistent ES is unbiased over truncated unrolls, where truncated estimates are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchopt_zero import NoiseReuseES, PersistentES

SIZE, POSITIVE = 23, 10
TRANSITION = torch.eye(SIZE) / 2 + torch.diag(torch.full((SIZE - 1,), 0.5), 1)
SIGNS = torch.where(torch.arange(SIZE) < POSITIVE, 1.0, -1.0)


def influence(theta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The influence balancing problem: what theta does at once opposes what it does in the end."""
    state = TRANSITION @ state + theta * SIGNS
    return state, (state[0] - 1).square() / 2


def final_loss(theta: Tensor) -> float:
    state = torch.ones(SIZE)
    for _ in range(300):
        state, loss = influence(theta, state)
    return float(loss)


def descend(gradient: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    theta = torch.tensor(0.5, requires_grad=True)
    for _ in range(steps):
        slope = gradient(theta)
        with torch.no_grad():
            theta -= 1e-4 * slope
    return theta.detach()


def test_it_balances_influences() -> None:
    """Vicol, Metz, Sohl-Dickstein (2021), section 4.1: N = 1000, sigma = 0.1, truncation 1."""
    persistent = PersistentES(influence, torch.ones(SIZE), num_samples=500, sigma=0.1)
    theta = descend(lambda theta: torch.autograd.grad(persistent(theta), theta)[0], 1000)
    assert final_loss(theta) < 1e-2


def test_truncated_methods_do_not() -> None:
    state = torch.ones(SIZE)

    def backpropagation(theta: Tensor) -> Tensor:
        nonlocal state
        state, loss = influence(theta, state.detach())
        return torch.autograd.grad(loss, theta)[0]

    def evolution(theta: Tensor) -> Tensor:
        nonlocal state
        # Forgetting past perturbations is what makes it truncated.
        one = PersistentES(influence, state.detach(), num_samples=50, sigma=0.1)
        (slope,) = torch.autograd.grad(one(theta), theta)
        state, _ = influence(theta.detach(), state)
        return slope

    for method in (backpropagation, evolution):
        state = torch.ones(SIZE)
        theta = descend(method, 1000)
        assert final_loss(theta) > 2 * final_loss(torch.tensor(0.5))
        assert final_loss(theta + 0) > 20
    state = torch.ones(SIZE)
    assert final_loss(descend(backpropagation, 2500)) > 100


def geometric(rate: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    state = state * rate.tanh() + rate
    return state, (state * state).sum()


@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
@pytest.mark.parametrize("vectorize", [True, False])
def test_the_sum_over_a_horizon_is_the_full_gradient(kind: Any, vectorize: bool) -> None:
    """Of the smoothed objective, whether or not its perturbation is fresh in each unroll."""
    horizon, sigma, repeats = 4, 0.05, 60
    rate = torch.tensor([0.3, -0.5], dtype=torch.float64, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64)
    persistent = kind(
        geometric, start, num_samples=50, sigma=sigma, horizon=horizon, vectorize=vectorize
    )
    found = []
    for _ in range(repeats if vectorize else 10):
        losses = [persistent(rate) for _ in range(horizon)]
        found.append(torch.autograd.grad(sum(losses), rate)[0])
    estimates = torch.stack(found)
    error = estimates.std(0) / len(found) ** 0.5
    state, total = start, torch.zeros(())
    for _ in range(horizon):
        state, loss = geometric(rate, state)
        total = total + loss
    (wanted,) = torch.autograd.grad(total, rate)
    # smoothing by sigma moves the gradient by O(sigma^2)
    assert ((estimates.mean(0) - wanted).abs() <= 4 * error + 10 * sigma**2).all()


def test_a_horizon_starts_the_computation_again() -> None:
    states = []

    def count(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        states.append(float(state))
        return state + 1, x.sum()

    persistent = PersistentES(count, torch.zeros(()), horizon=3, vectorize=False)
    x = torch.ones(2, requires_grad=True)
    for _ in range(7):
        persistent(x)
    assert states == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0] * 2 + [0.0, 0.0]
    persistent.reset()
    persistent(x)
    assert states[-2:] == [0.0, 0.0]


def test_states_and_parameters_are_trees() -> None:
    def unroll(params: dict[str, Tensor], state: tuple[Tensor, dict[str, Tensor]]):
        position, extra = state
        position = position + params["speed"]
        return (position, {"age": extra["age"] + 1}), position.sum() + 0 * params["b"].sum()

    init = (torch.zeros(2), {"age": torch.tensor(0.0)})
    persistent = PersistentES(unroll, init, num_samples=2000, sigma=0.1)
    params = {"speed": torch.ones(2, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    loss = persistent(params)
    (3 * loss).backward()
    assert float(loss.detach()) == pytest.approx(2.0, abs=0.05)
    torch.testing.assert_close(params["speed"].grad, torch.full((2,), 3.0), rtol=0.2, atol=0.0)


def test_a_generator_makes_it_reproducible() -> None:
    found = []
    for _ in range(2):
        x = torch.ones(2, requires_grad=True)
        generator = torch.Generator().manual_seed(1)
        persistent = PersistentES(geometric, torch.ones(2), num_samples=3, generator=generator)
        found.append([torch.autograd.grad(persistent(x), x)[0] for _ in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_loss_that_is_no_scalar() -> None:
    persistent = PersistentES(lambda x, state: (state, x), torch.ones(2))
    with pytest.raises(RuntimeError, match="`output` must be a scalar tensor"):
        persistent(torch.ones(2, requires_grad=True))


def alternating(rate: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
    total, sign = state
    total = total + sign * rate
    return (total, -sign), total.sum()


def test_reused_noise_sees_the_sum_of_influences() -> None:
    """Li et al. (2023), section 4: noise drawn anew pays for each of them by itself."""
    for kind, exact in ((NoiseReuseES, True), (PersistentES, False)):
        es = kind(alternating, (torch.zeros(3), torch.ones(())), num_samples=10, sigma=0.1)
        rate = torch.zeros(3, requires_grad=True)
        found = [torch.autograd.grad(es(rate), rate)[0] for _ in range(8)]
        # after an even number of pieces the influences of the parameters cancel
        assert (torch.stack(found[1::2]).abs().max() < 1e-5) == exact
        assert all(gradient.abs().max() > 0.1 for gradient in found[::2])


def test_noise_is_reused_until_the_computation_starts_again() -> None:
    seen = []

    def watch(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x.clone())
        return state, x.sum()

    es = NoiseReuseES(watch, torch.zeros(()), horizon=2, vectorize=False)
    x = torch.zeros(2, requires_grad=True)
    for _ in range(4):
        es(x)
    assert torch.equal(seen[0], -seen[1])
    assert all(torch.equal(seen[i], seen[i + 2]) for i in (0, 1, 4, 5))
    assert not torch.equal(seen[0], seen[4])


def test_computed_tensors_that_are_closed_over_are_refused() -> None:
    scale = torch.tensor(2.0, requires_grad=True) * 1
    es = PersistentES(lambda x, state: (state, scale * x.sum()), torch.zeros(()))
    with pytest.raises(RuntimeError, match="that derivatives are asked for"):
        es(torch.zeros(2, requires_grad=True))
