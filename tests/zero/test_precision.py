"""Half precision: noise and sums are of float32, results of the dtype of the arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_zero import LinearControl, LowRank, Orthogonal, PersistentES, Rademacher, Sobol
from torchopt_zero.discrete import Perturbed, argmax, fenchel_young_loss, gumbel_softmax

HALVES = [torch.bfloat16, torch.float16]
NORMAL = torch.distributions.Normal(0.0, 1.0)


def steep(x: Tensor) -> Tensor:
    return 50 * x.float().sum()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "method",
    ["forward", "antithetic", "spsa", "leave-one-out", "finite-difference"],
)
def test_estimates_do_not_stagnate_or_overflow(method: str, dtype: torch.dtype) -> None:
    x = torch.zeros((), dtype=dtype, requires_grad=True)
    decorate = torchopt.diff.zero_order(NORMAL, method, num_samples=2048, sigma=0.5)
    decorate(steep)(x).backward()
    # four deviations of the mean of 2048 squares of normal numbers
    torch.testing.assert_close(x.grad, torch.tensor(50.0, dtype=dtype), rtol=0.125, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "noise", [NORMAL, Rademacher(), Orthogonal(), Sobol(), LowRank(), torch.randn]
)
def test_half_precision_gives_what_float32_gives(noise: Any, dtype: torch.dtype) -> None:
    found = []
    for kind in (dtype, torch.float32):
        x = torch.full((4, 4), 0.5, dtype=kind, requires_grad=True)
        generator = torch.Generator().manual_seed(0)
        decorate = torchopt.diff.zero_order(
            noise, "antithetic", num_samples=300, sigma=0.5, generator=generator
        )
        decorate(steep)(x).backward()
        assert x.grad.dtype == kind
        found.append(x.grad.float())
    # points are rounded to 8 bits, with errors that do not depend on the noise
    assert (found[0] - found[1]).norm() < 0.03 * found[1].norm()


def test_a_linear_control_in_half_precision() -> None:
    x = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    method = LinearControl([torch.full((3,), 50.0)])
    torchopt.diff.zero_order(NORMAL, method, num_samples=4)(steep)(x).backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 50.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_large_cotangent_is_applied_before_rounding(dtype: torch.dtype) -> None:
    x = torch.zeros(2, dtype=dtype, requires_grad=True)
    decorate = torchopt.diff.zero_order(NORMAL, "finite-difference", sigma=0.5)
    loss = decorate(lambda x: 1e-4 * x.float().sum())(x)
    (2.0**18 * loss).backward()  # as a gradient scaler makes it; beyond the numbers of float16
    torch.testing.assert_close(x.grad, torch.full((2,), 26.2144, dtype=dtype))


def test_differences_divide_by_what_the_entries_moved() -> None:
    x = torch.tensor([1.0, 0.01], dtype=torch.bfloat16, requires_grad=True)
    decorate = torchopt.diff.zero_order(NORMAL, "finite-difference", sigma=0.006)
    decorate(steep)(x).backward()
    torch.testing.assert_close(x.grad, torch.full((2,), 50.0, dtype=torch.bfloat16))
    small = torchopt.diff.zero_order(NORMAL, "finite-difference", sigma=1e-3)
    with pytest.raises(ValueError, match=r"`sigma`, 0.001, is too small to move .* torch.bfloat16"):
        small(steep)(x).backward()


def test_unrolls_in_half_precision() -> None:
    persistent = PersistentES(
        lambda x, state: (state, steep(x)), torch.zeros(1), num_samples=4096, sigma=0.5
    )
    x = torch.zeros((), dtype=torch.bfloat16, requires_grad=True)
    persistent(x).backward()
    torch.testing.assert_close(x.grad, torch.tensor(50.0).bfloat16(), rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", HALVES)
def test_means_of_many_solutions(dtype: torch.dtype) -> None:
    x = torch.zeros(4, dtype=dtype, requires_grad=True)
    soft = Perturbed(argmax(), num_samples=4000)
    mean = soft(x)
    assert mean.dtype == dtype
    # five deviations of a frequency of 1/4
    torch.testing.assert_close(mean.float(), torch.full((4,), 0.25), rtol=0, atol=0.035)
    loss = fenchel_young_loss(soft, x, mean)
    assert loss.dtype == dtype
    loss.backward()
    assert x.grad.dtype == dtype


def test_no_entry_is_favoured_among_equals() -> None:
    logits = torch.zeros(400, 4096, dtype=torch.bfloat16)
    picked = gumbel_softmax(logits, hard=True).argmax(-1).double()
    assert abs(picked.mean() - 2047.5) < 5 * 4096 / 12**0.5 / 20
    soft = Perturbed(argmax(), num_samples=1)(logits).argmax(-1).double()
    assert abs(soft.mean() - 2047.5) < 5 * 4096 / 12**0.5 / 20
