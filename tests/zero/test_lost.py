"""A derivative that would be lost is refused, wherever its tensor is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_zero import PersistentES

NORMAL = torch.distributions.Normal(0.0, 1.0)
LOST = r"shape \(.*\) that derivatives are asked for .* lost; name it in `argnums`"
zero_order = torchopt.diff.zero_order


class Scaled(torchopt.nn.ZeroOrderGradientModule, method="antithetic"):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randn(sample_shape)


def calls(v: Tensor) -> dict[str, Callable[[], Tensor]]:
    x = torch.ones(2, requires_grad=True)
    decorate = zero_order(NORMAL, "antithetic")
    return {
        "argument": lambda: decorate(lambda x, v: (x * v).sum())(x, v),
        "keyword": lambda: decorate(lambda x, *, v: (x * v).sum())(x, v=v),
        "tree": lambda: decorate(lambda x, tree: (x * tree["v"][0]).sum())(x, {"v": [v]}),
        "closure": lambda: decorate(lambda x: (x * v).sum())(x),
        "module": lambda: Scaled()(v),
        "twice": lambda: decorate(lambda x, v: (x * v).sum())(v, v),
        "itself": lambda: decorate(lambda x: (x * v).sum())(v),
        "unroll": lambda: PersistentES(lambda x, s: (s, (x * v).sum()), torch.zeros(()))(x),
    }


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("place", list(calls(torch.ones(2))))
def test_what_requires_a_gradient_and_is_not_perturbed(place: str, leaf: bool) -> None:
    v = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match=LOST):
        calls(v if leaf else v * 1)[place]()
    loss = calls(v.detach())[place]()
    if place not in ("twice", "itself"):
        loss.backward()


def test_parameters_of_a_module_are_constants() -> None:
    v = nn.Parameter(torch.ones(2))
    for place, call in calls(v).items():
        v.grad = None
        call().backward()
        assert (v.grad is None) == (place not in ("twice", "itself"))


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("method", ["naive", "forward", "antithetic", "spsa", "finite-difference"])
def test_what_is_used_at_perturbed_points_only(method: Any, vectorize: bool, leaf: bool) -> None:
    v = torch.ones((), requires_grad=True)
    used = v if leaf else v * 2
    visits: list[int] = []

    def function(w: Tensor) -> Tensor:
        visits.append(0)
        return w * used if len(visits) > 1 else w * 1.0

    w = torch.zeros((), requires_grad=True)
    loss = zero_order(NORMAL, method, num_samples=3, vectorize=vectorize)(function)(w)
    with pytest.raises(RuntimeError, match=LOST):
        loss.backward()


@pytest.mark.parametrize("vectorize", [None, False])
def test_an_objective_may_differentiate_by_itself(vectorize: bool | None) -> None:
    def function(w: Tensor) -> Tensor:
        with torch.enable_grad():
            inner = w.detach() * 1
            inner.requires_grad = True
            other = torch.ones(2, requires_grad=True)
            slopes = torch.autograd.grad((inner.square() * other).sum(), [inner, other])
        return sum(slope.sum() for slope in slopes)

    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    zero_order(NORMAL, "finite-difference", sigma=0.1, vectorize=vectorize)(function)(w).backward()
    torch.testing.assert_close(w.grad, torch.full_like(w, 4.0))
