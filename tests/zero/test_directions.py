"""Orthogonal and quasi-random directions: normal one by one, better than normal together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt_zero import Gaussian, Orthogonal, Sobol, diagnose
from torchopt_zero._scratch import Scratch

SLOPE = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64)
KINDS = {"Orthogonal": Orthogonal(), "Sobol": Sobol()}


def objective(x: Tensor) -> Tensor:
    return x @ SLOPE + x.square().sum() / 2


def error(noise: Any, num_samples: int, method: str = "antithetic") -> float:
    x = torch.ones(6, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(noise, method, num_samples=num_samples, sigma=0.3)
    found = diagnose(decorate(objective), x, repeats=60)
    excess = (found.gradient[0] - SLOPE - 1).abs() - 4 * found.standard_error[0]
    assert excess.max() < 1e-12  # unbiased
    return float(found.standard_error[0].norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_each_entry_is_standard_normal(kind: str, dtype: torch.dtype) -> None:
    leaves = [torch.zeros(3, dtype=dtype), torch.zeros(2, 2, dtype=dtype)]
    rows = [KINDS[kind].draw(leaves, seed, range(7), Scratch())[0] for seed in range(300)]
    noise = torch.cat(rows).double()
    assert noise.isfinite().all()
    count = noise.numel()
    # five deviations of the moments of as many independent normal numbers
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((noise**power).mean() - moment) < 5 * (variance / count) ** 0.5


@pytest.mark.parametrize("samples", [1, 5, 7, 14, 20])
def test_orthogonal_samples_are_orthogonal_in_groups(samples: int) -> None:
    leaves = [torch.zeros(3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)]
    (rows,) = Orthogonal().draw(leaves, 1, range(samples), Scratch())
    for group in rows.split(7):
        products = group @ group.T
        torch.testing.assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-12)
    normal = Gaussian().draw(leaves, 1, range(samples), Scratch())[0]
    torch.testing.assert_close(rows.norm(dim=1), normal.norm(dim=1))
    torch.testing.assert_close(rows[::7], normal[::7])


def test_a_basis_of_directions_lowers_the_variance() -> None:
    # for a linear function the directions of a basis leave the variance of their lengths alone:
    # 2 / (d + 1) of that of independent ones
    assert error(Orthogonal(), 6) < 0.75 * error(Gaussian(), 6)


def test_quasi_random_directions_converge_faster() -> None:
    assert error(Sobol(), 256) < 0.4 * error(Gaussian(), 256)
    assert error(Sobol(), 256, "forward") < 0.6 * error(Gaussian(), 256, "forward")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_no_bit(kind: str) -> None:
    found = []
    for chunk_size in (None, 1, 5):
        x = torch.ones(6, requires_grad=True)
        decorate = torchopt.diff.zero_order(
            KINDS[kind],
            "antithetic",
            num_samples=13,
            chunk_size=chunk_size,
            generator=torch.Generator().manual_seed(2),
            vectorize=False,
        )
        decorate(lambda x: x.exp().sum())(x).backward()
        found.append(x.grad)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_sequence_goes_on_from_tile_to_tile() -> None:
    leaves = [torch.zeros(3)]
    whole = Sobol().draw(leaves, 5, range(32), Scratch())[0]
    second = Sobol().draw(leaves, 5, range(16, 32), Scratch())[0]
    assert torch.equal(whole[16:], second)


def test_too_many_dimensions() -> None:
    x = torch.zeros(21202, requires_grad=True)
    with pytest.raises(ValueError, match=r"`Sobol` has 21201 dimensions, got 21202 entries"):
        torchopt.diff.zero_order(Sobol())(lambda x: x.sum())(x).backward()


def test_leaves_of_two_dtypes_share_one_sequence() -> None:
    halves = [torch.zeros(2, dtype=torch.float64), torch.zeros(3)]
    parts = Sobol().draw(halves, 5, range(32), Scratch())
    whole = Sobol().draw([torch.zeros(5, dtype=torch.float64)], 5, range(32), Scratch())[0]
    assert torch.equal(parts[0], whole[:, :2])
    assert torch.equal(parts[1], whole[:, 2:].float())
    x = torch.zeros(4, requires_grad=True)
    y = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    decorate = torchopt.diff.zero_order(Sobol(), "antithetic", (0, 1), 512)
    decorate(lambda x, y: x.sum() - y.sum())(x, y).backward()
    assert (x.grad - 1).abs().max() < 0.1
    assert (y.grad + 1).abs().max() < 0.1


@pytest.mark.parametrize("method", ["naive", "guided", "spsa", "finite-difference"])
def test_a_lone_leaf_without_entries(method: str) -> None:
    x = torch.zeros(0, requires_grad=True)
    decorate = torchopt.diff.zero_order(torch.distributions.Normal(0.0, 1.0), method)
    decorated = decorate(lambda x: x.sum())
    decorated(x).backward()
    decorated(x).backward()
    assert x.grad.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_without_entries(kind: str) -> None:
    x, y = torch.zeros(0, requires_grad=True), torch.zeros((), requires_grad=True)
    decorate = torchopt.diff.zero_order(KINDS[kind], "antithetic", (0, 1), 500)
    decorate(lambda x, y: x.sum() + y)(x, y).backward()
    assert x.grad.shape == (0,)
    assert abs(y.grad - 1) < 0.35
    torchopt.diff.zero_order(KINDS[kind])(lambda x: x.sum())(x).backward()
