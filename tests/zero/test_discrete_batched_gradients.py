"""Many cotangents at once, with `is_grads_batched` and `vectorize`, give what one by one give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from torchopt_zero.discrete import (
    Blackbox,
    Perturbed,
    Solver,
    argmax,
    fenchel_young_loss,
    ranking,
    shortest_path,
)

SOLVERS = {"argmax": argmax(), "ranking": ranking(), "shortest_path": shortest_path()}


def smooth(solver: Solver, chunk_size: int | None = None) -> Perturbed:
    generator = torch.Generator().manual_seed(1)
    return Perturbed(solver, num_samples=7, chunk_size=chunk_size, generator=generator)


ESTIMATORS: dict[str, Callable[[Solver, Tensor], Tensor]] = {
    "blackbox": lambda solver, x: Blackbox(solver, lambd=2.0)(x),
    "perturbed": lambda solver, x: smooth(solver)(x),
    "chunked": lambda solver, x: smooth(solver, 3)(x),
    "fenchel-young": lambda solver, x: fenchel_young_loss(smooth(solver), x, solver(x.flip(0))),
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.parametrize("name", SOLVERS)
def test_batched_cotangents(name: str, kind: str, create_graph: bool) -> None:
    x = torch.rand(2, 3, 3, dtype=torch.float64, requires_grad=True)
    y = ESTIMATORS[kind](SOLVERS[name], x)
    cotangents = torch.randn(4, *y.shape, dtype=torch.float64)
    wanted = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in cotangents]
    assert torch.stack(wanted).any()
    (found,) = torch.autograd.grad(
        y, x, cotangents, is_grads_batched=True, create_graph=create_graph
    )
    torch.testing.assert_close(found, torch.stack(wanted))


def test_batches_of_batches() -> None:
    x = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return smooth(argmax())(x).square().sum()

    torch.testing.assert_close(hessian(loss, x, vectorize=True), hessian(loss, x))
    black = Blackbox(argmax(), lambd=2.0)
    torch.testing.assert_close(jacobian(black, x, vectorize=True), jacobian(black, x))
