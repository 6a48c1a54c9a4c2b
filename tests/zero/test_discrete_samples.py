"""Gumbel-softmax and straight-through estimators."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torchopt_zero.discrete import (
    gumbel_softmax,
    straight_through,
    straight_through_bernoulli,
    straight_through_categorical,
)
from torchopt_zero.discrete._noise import NOISES, uniform

pytestmark = pytest.mark.usefixtures("float64")

LOGITS = (0.3, -0.5, 1.2, 0.0)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _assert_frequencies(samples: Tensor, probabilities: Tensor) -> None:
    error = (probabilities * (1 - probabilities) / len(samples)).sqrt()
    assert ((samples.mean(0) - probabilities).abs() <= 4 * error).all()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_the_largest_entry_is_distributed_as_the_logits_say(tau: float, hard: bool) -> None:
    logits = torch.tensor(LOGITS)
    y = gumbel_softmax(logits.expand(20000, 4), tau, hard)
    torch.testing.assert_close(y.sum(-1), torch.ones(20000))
    _assert_frequencies((y == y.amax(-1, keepdim=True)).double(), logits.softmax(-1))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_relaxed_samples_have_the_moments_of_those_of_torch(tau: float) -> None:
    logits = torch.tensor(LOGITS).expand(20000, 4)
    ours, theirs = gumbel_softmax(logits, tau), torch.nn.functional.gumbel_softmax(logits, tau)
    for a, b in ((ours, theirs), (ours.square(), theirs.square()), (ours.log(), theirs.log())):
        error = ((a.var(0) + b.var(0)) / 20000).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * error).all()


def test_first_and_second_derivatives_of_a_relaxed_sample_are_exact() -> None:
    logits = torch.randn(2, 3, requires_grad=True)

    def sample(logits: Tensor) -> Tensor:
        return gumbel_softmax(logits, 0.7, generator=_generator())

    assert torch.autograd.gradcheck(sample, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(sample, logits)


def test_a_hard_sample_has_the_gradient_of_the_relaxed_one() -> None:
    logits, cotangent = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    soft = gumbel_softmax(logits, 0.7, generator=_generator())
    hard = gumbel_softmax(logits, 0.7, hard=True, generator=_generator())
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    assert torch.equal(hard.detach(), torch.eye(3)[soft.argmax(-1)])
    expected = torch.autograd.grad(soft, logits, cotangent)
    torch.testing.assert_close(torch.autograd.grad(hard, logits, cotangent), expected)


def test_categories_lie_along_any_dimension() -> None:
    logits = torch.randn(2, 3, 4)
    last = gumbel_softmax(logits.movedim(1, -1), hard=True, generator=_generator())
    middle = gumbel_softmax(logits, hard=True, dim=1, generator=_generator())
    assert torch.equal(middle, last.movedim(-1, 1))


@pytest.mark.parametrize("sample", [gumbel_softmax, straight_through_categorical])
def test_minus_infinity_rules_an_entry_out(sample: Callable[[Tensor], Tensor]) -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0]).expand(200, 3).clone().requires_grad_()
    y = sample(logits)
    assert (y[:, 1] == 0).all()
    y.square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


SAMPLERS = {
    "gumbel softmax": gumbel_softmax,
    "bernoulli": straight_through_bernoulli,
    "categorical": straight_through_categorical,
}


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_a_generator_makes_samples_reproducible(sample: Callable[..., Tensor]) -> None:
    logits = torch.zeros(50, 3)
    first = sample(logits, generator=_generator(1))
    assert torch.equal(sample(logits, generator=_generator(1)), first)
    assert not torch.equal(sample(logits, generator=_generator(2)), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_samples_keep_the_dtype(sample: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = torch.randn(5, 3).to(dtype).requires_grad_()
    y = sample(logits)
    assert y.dtype == dtype
    y.square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


@pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
def test_samples_are_drawn_under_vmap(sample: Callable[..., Tensor]) -> None:
    logits = torch.zeros(100, 3)
    same = torch.func.vmap(sample, randomness="same")(logits)
    assert torch.equal(same, same[:1].expand_as(same))
    different = torch.func.vmap(sample, randomness="different")(logits)
    assert not torch.equal(different, different[:1].expand_as(different))
    slope = torch.func.grad(lambda logits: sample(logits).square().sum())
    assert torch.func.vmap(slope, randomness="same")(logits).isfinite().all()


def test_straight_through_has_exactly_the_value_of_one_and_the_derivatives_of_the_other() -> None:
    x = torch.randn(1000, dtype=torch.float32, requires_grad=True)
    tenths = (10 * x.detach()).round() / 10
    assert torch.equal(straight_through(tenths, 100 * x), tenths)
    hard = (x > 0).to(torch.float32)
    y = straight_through(hard, x.sigmoid())
    assert torch.equal(y.detach(), hard)
    (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    p = x.sigmoid()
    torch.testing.assert_close(gradient, p * (1 - p))
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, p * (1 - p) * (1 - 2 * p))


def test_straight_through_takes_choices_of_any_dtype() -> None:
    soft = torch.tensor([0.2, 0.9], requires_grad=True)
    for hard in (torch.tensor([False, True]), torch.tensor([0, 1])):
        y = straight_through(hard, soft)
        assert y.dtype == soft.dtype
        assert y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("sample", "probabilities"),
    [
        (straight_through_bernoulli, torch.sigmoid),
        (straight_through_categorical, lambda x: x.softmax(-1)),
    ],
)
def test_straight_through_samples_have_their_probabilities_and_their_gradient(
    sample: Callable[..., Tensor], probabilities: Callable[[Tensor], Tensor]
) -> None:
    logits = torch.tensor(LOGITS, requires_grad=True)
    y = sample(logits.expand(20000, 4))
    assert ((y == 0) | (y == 1)).all()
    _assert_frequencies(y.detach(), probabilities(logits.detach()))
    cotangent = torch.randn(4)  # for a linear objective each gradient is exact, sample by sample
    single = torch.autograd.grad(sample(logits), logits, cotangent)
    torch.testing.assert_close(
        single, torch.autograd.grad(probabilities(logits), logits, cotangent)
    )


@pytest.mark.parametrize("name", NOISES)
def test_noise_has_its_distribution_and_no_correlation(name: str) -> None:
    noise = NOISES[name]
    z = noise.icdf(uniform(torch.tensor(5), 0, 400, torch.Size([50])))
    x, _ = z.flatten().sort()
    grid = (torch.arange(20000) + 0.5) / 20000
    # Kolmogorov and Smirnov: beyond 1.95 / sqrt(n) with probability 0.001.
    cdf = torch.special.ndtr(x) if name == "normal" else torch.exp(-torch.exp(-x))
    assert (cdf - grid).abs().max() < 1.95 / math.sqrt(20000)
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1])):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation) < 4 / math.sqrt(a.numel())
    other = noise.icdf(uniform(torch.tensor(6), 0, 400, torch.Size([50])))
    assert abs(torch.corrcoef(torch.stack([z.flatten(), other.flatten()]))[0, 1]) < 4 / 141


@pytest.mark.parametrize("name", NOISES)
def test_the_score_of_noise_is_the_derivative_of_its_potential(name: str) -> None:
    z = torch.linspace(-3, 5, 30)
    expected = torch.func.vmap(torch.func.grad(NOISES[name].potential))(z)
    torch.testing.assert_close(NOISES[name].score(z), expected)


def test_noise_of_a_sample_depends_on_no_other() -> None:
    seed = torch.tensor(-7)
    whole = uniform(seed, 0, 10, torch.Size([2, 3]))
    assert torch.equal(uniform(seed, 4, 6, torch.Size([2, 3])), whole[4:6])
    assert ((whole > 0) & (whole < 1)).all()
