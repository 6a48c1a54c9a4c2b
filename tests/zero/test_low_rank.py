"""Low-rank perturbations act as the sum of the matrix and an outer product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_zero import LowRank
from torchopt_zero._perturbed_matrix import PerturbedMatrix
from torchopt_zero._scratch import Scratch

LEFT = torch.linspace(-1.0, 1.0, 10).view(5, 2)
RIGHT = torch.linspace(0.5, -1.5, 6).view(3, 2)
BASE = torch.linspace(1.0, 2.0, 15).view(5, 3)
DENSE = BASE + LEFT @ RIGHT.T

USES: dict[str, Any] = {
    "linear": lambda w: F.linear(torch.ones(4, 3), w),
    "linear with bias": lambda w: F.linear(torch.ones(4, 3), w, torch.arange(5.0)),
    "linear of a vector": lambda w: F.linear(torch.ones(3), w),
    "linear of a batch": lambda w: F.linear(torch.ones(2, 4, 3), weight=w),
    "x @ w": lambda w: torch.ones(4, 5) @ w,
    "matmul": lambda w: torch.matmul(torch.ones(2, 4, 5), w),
    "mm": lambda w: torch.ones(4, 5).mm(w),
    "x @ w.T": lambda w: torch.ones(4, 3) @ w.T,
    "x @ w.mT": lambda w: torch.ones(4, 3) @ w.mT,
    "x @ w.t().t()": lambda w: torch.ones(4, 5) @ w.t().t(),
    "w @ x": lambda w: w @ torch.ones(3, 2),
    "w @ w.T": lambda w: w @ w.T,
    "w.T @ w": lambda w: w.T @ w,
    "sum": lambda w: w.sum(),
    "rows": lambda w: w[1:3] * 2,
    "arithmetic": lambda w: 1 + w * w,
    "concatenation": lambda w: torch.cat([w, w]),
    "transpose": lambda w: w.transpose(0, 1),
    "shape": lambda w: torch.tensor([*w.shape, w.ndim, w.size(0), w.dim()]),
    "dtype": lambda w: torch.ones(2, dtype=w.dtype, device=w.device),
}


@pytest.mark.parametrize("use", USES)
def test_functions_see_the_sum(use: str) -> None:
    found = USES[use](PerturbedMatrix.make(BASE, LEFT, RIGHT))
    torch.testing.assert_close(found + 0, USES[use](DENSE) + 0)


@pytest.mark.parametrize("use", [use for use in USES if use not in ("shape", "dtype")])
def test_functions_see_the_sum_under_vmap(use: str) -> None:
    lefts, rights = (torch.stack([x, -x, 2 * x]) for x in (LEFT, RIGHT))

    def with_parts(left: Tensor, right: Tensor) -> Tensor:
        return USES[use](PerturbedMatrix.make(BASE, left, right)) + 0

    def with_sum(left: Tensor, right: Tensor) -> Tensor:
        return USES[use](BASE + left @ right.T) + 0

    torch.testing.assert_close(
        torch.func.vmap(with_parts)(lefts, rights), torch.func.vmap(with_sum)(lefts, rights)
    )


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_the_estimate_is_that_of_the_dense_perturbations(rank: int) -> None:
    sigma, samples, seed = 0.3, 10, 12
    w = torch.randn(5, 3, dtype=torch.float64)
    b = torch.randn(5, dtype=torch.float64)
    x = torch.randn(7, 3, dtype=torch.float64)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, w, b).tanh().square().mean()

    drawn = LowRank(rank).draw([w, b], seed, range(samples), Scratch())
    z = drawn[0].left @ drawn[0].right.mT / rank**0.5
    plus, minus = (
        torch.stack(
            [
                loss(w + s * sigma * m, b + s * sigma * v)
                for m, v in zip(z, drawn[1].left, strict=True)
            ]
        )
        for s in (1, -1)
    )
    weights = (plus - minus) / (2 * sigma * samples)

    from torchopt_zero._evaluator import Evaluator
    from torchopt_zero._problem import Objective, Problem
    from torchopt_zero.estimators import Antithetic

    problem = Problem(
        objective=Objective(lambda leaves: loss(*leaves), Evaluator(True, "same")),
        leaves=[w, b],
        value=0.0,
        noise=LowRank(rank),
        num_samples=samples,
        sigma=sigma,
        seed=seed,
    )
    found = Antithetic().estimate(problem)
    torch.testing.assert_close(found[0], torch.tensordot(weights, z, 1))
    torch.testing.assert_close(found[1], torch.tensordot(weights, drawn[1].left, 1))


def test_no_perturbed_matrix_is_built_for_linear_layers() -> None:
    layers = [nn.Linear(64, 64) for _ in range(2)]
    params = [p for layer in layers for p in layer.parameters()]
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.numel())
            return out

    def loss(*params: Tensor) -> Tensor:
        x = torch.ones(2, 64)
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            x = torch.relu(F.linear(x, weight, bias))
        return x.mean()

    population = 100
    decorate = torchopt.diff.zero_order(
        LowRank(), "antithetic", tuple(range(4)), population, 0.1, chunk_size=population
    )
    value = decorate(loss)(*params)
    with Watch():
        value.backward()
    one_sample = sum(p.shape[0] + (p.shape[1] if p.ndim == 2 else 0) for p in params)
    assert largest <= population * one_sample  # all noise of a population, but no matrices
    assert largest < population * 64 * 64 / 8
