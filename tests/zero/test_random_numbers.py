"""What a function draws by itself: the evaluations that are compared draw the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_zero import MeZO, NoiseReuseES, PersistentES, Workers, diagnose

NORMAL = torch.distributions.Normal(0.0, 1.0)
SLOPE = torch.linspace(-1.0, 2.0, 20, dtype=torch.float64)


def dropped(x: Tensor) -> Tensor:
    return F.dropout(x + 1, 0.1) @ SLOPE


def relative_error(method: str, randomness: Any, vectorize: bool | None) -> float:
    x = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(
        NORMAL, method, num_samples=20, sigma=1e-3, randomness=randomness, vectorize=vectorize
    )
    found = diagnose(decorate(dropped), x, repeats=20)
    return float(found.standard_error[0].norm() * 20**0.5 / SLOPE.norm())


@pytest.mark.parametrize("vectorize", [None, True, False])
@pytest.mark.parametrize("method", ["forward", "antithetic", "spsa"])
def test_a_pair_sees_one_mask(method: str, vectorize: bool | None) -> None:
    # for 20 samples in 20 dimensions an estimate is off by about its own size
    assert relative_error(method, "same", vectorize) < 2
    assert relative_error(method, "different", vectorize) > 20


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("method", ["antithetic", "finite-difference"])
def test_masks_of_samples_differ(method: str, vectorize: bool) -> None:
    masks = []

    def function(x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones(64, dtype=torch.float64), 0.5)
        masks.append(mask)
        return x.sum() * mask.sum()

    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(NORMAL, method, num_samples=3, vectorize=vectorize)
    decorate(function)(x).backward()
    if not vectorize:
        found = torch.stack(masks[-6:])
        assert torch.equal(found[::2], found[1::2])
        assert len(found.unique(dim=0)) == 3


@pytest.mark.parametrize("vectorize", [None, True, False])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_a_generator_decides_the_masks_of_samples_and_the_global_one_stays(
    randomness: Any, vectorize: bool | None
) -> None:
    found = []
    for _ in range(2):
        x = torch.ones(5, dtype=torch.float64, requires_grad=True)
        decorate = torchopt.diff.zero_order(
            NORMAL,
            "antithetic",
            num_samples=6,
            generator=torch.Generator().manual_seed(0),
            vectorize=vectorize,
            randomness=randomness,
        )
        loss = decorate(lambda x: F.dropout(x, 0.5).square().sum())(x)
        state = torch.get_rng_state()
        found += [torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(found[0], other) for other in found)


def test_chunk_size_changes_no_bit_of_a_loop_that_draws() -> None:
    found = []
    for chunk_size in (None, 1, 4):
        x = torch.ones(5, requires_grad=True)
        decorate = torchopt.diff.zero_order(
            NORMAL,
            "antithetic",
            num_samples=9,
            generator=torch.Generator().manual_seed(0),
            vectorize=False,
            chunk_size=chunk_size,
        )
        decorate(lambda x: F.dropout(x, 0.5).square().sum())(x).backward()
        found.append(x.grad)
    assert all(torch.equal(found[0], other) for other in found)


def test_randomness_that_begins_late_is_noticed() -> None:
    for vectorize in (None, True, False):
        net = nn.Dropout(0.1).double().eval()
        x = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        decorate = torchopt.diff.zero_order(
            NORMAL, "forward", num_samples=20, sigma=1e-3, vectorize=vectorize
        )
        loss = decorate(lambda x, net=net: net(x + 1) @ SLOPE)(x)
        net.train()
        (gradient,) = torch.autograd.grad(loss, x)
        assert gradient.norm() < 10 * SLOPE.norm()  # above 1000 with masks of their own


def test_words_for_randomness() -> None:
    for make in (
        lambda: torchopt.diff.zero_order(NORMAL, randomness="error"),
        lambda: MeZO([nn.Parameter(torch.ones(1))], randomness="error"),
        lambda: PersistentES(lambda x, s: (s, x), torch.ones(1), randomness="error"),
    ):
        with pytest.raises(ValueError, match="`randomness` must be 'same' or 'different', got 'er"):
            make()


def slopes(randomness: Any) -> Tensor:
    w = nn.Parameter(torch.ones(20, dtype=torch.float64))
    optimizer = MeZO([w], lr=0.0, sigma=1e-3, randomness=randomness)
    found = []
    for _ in range(50):
        values: list[Tensor] = []

        def closure(values: list[Tensor] = values) -> Tensor:
            values.append(F.dropout(w, 0.1) @ SLOPE)
            return values[-1]

        optimizer.step(closure)
        found.append((values[0] - values[1]).detach() / 2e-3)
    return torch.stack(found)


def test_both_evaluations_of_a_mezo_step_see_one_mask() -> None:
    # the deviation of a normal slope is the norm of the gradient, which the mask makes larger
    assert slopes("same").std() < 2 * SLOPE.norm()
    assert slopes("different").std() > 50 * SLOPE.norm()


def test_a_mezo_step_draws_on_as_one_evaluation_does() -> None:
    w = nn.Parameter(torch.ones(3))
    torch.manual_seed(5)
    MeZO([w], generator=torch.Generator().manual_seed(0)).step(lambda: torch.rand(3) @ w)
    found = torch.rand(())
    torch.manual_seed(5)
    torch.rand(3)
    assert found == torch.rand(())


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kind", [PersistentES, NoiseReuseES])
def test_both_particles_of_a_pair_see_one_mask(kind: Any, vectorize: bool) -> None:
    errors = []
    for randomness in ("same", "different"):
        es = kind(
            lambda x, state: (state, dropped(x + state)),
            torch.zeros(20, dtype=torch.float64),
            num_samples=50,
            sigma=1e-3,
            randomness=randomness,
            vectorize=vectorize,
        )
        x = torch.zeros(20, dtype=torch.float64, requires_grad=True)
        errors.append(float((torch.autograd.grad(es(x), x)[0] - SLOPE).norm() / SLOPE.norm()))
    assert errors[0] < 2
    assert errors[1] > 20


@pytest.mark.parametrize("method", ["leave-one-out", "rank-shaped", "workers"])
def test_samplers_with_a_generator_of_their_own_are_refused_where_noise_is_drawn_twice(
    method: str,
) -> None:
    own = torch.Generator().manual_seed(0)
    alone = Workers(0, 1, lambda table: table)
    options = {"workers": alone} if method == "workers" else {"method": method}
    x = torch.zeros(3, requires_grad=True)

    def sample(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=own)

    with pytest.raises(ValueError, match="must draw from torch's global generators"):
        torchopt.diff.zero_order(sample, **options)(lambda x: x.sum())(x).backward()
    torchopt.diff.zero_order(torch.randn, **options)(lambda x: x.sum())(x).backward()


def test_samplers_with_a_generator_of_their_own_serve_methods_that_draw_once() -> None:
    own = torch.Generator().manual_seed(0)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(
        lambda shape: torch.randn(shape, generator=own, dtype=torch.float64),
        "antithetic",
        num_samples=2000,
        chunk_size=100,
    )
    decorate(lambda x: x @ SLOPE[:3])(x).backward()
    torch.testing.assert_close(x.grad, SLOPE[:3], rtol=0, atol=0.25)
