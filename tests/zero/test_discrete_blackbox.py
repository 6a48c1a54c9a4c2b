"""Interpolation through black-box solvers: its gradient is that of the interpolated loss."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from torchopt_zero.discrete import (
    Blackbox,
    Solver,
    argmax,
    assignment,
    ranking,
    shortest_path,
    sorting_scores,
)

pytestmark = pytest.mark.usefixtures("float64")

SOLVERS = {
    "argmax": (argmax(), (4,)),
    "ranking": (ranking(), (4,)),
    "ranking, descending": (ranking(descending=True), (4,)),
    "assignment": (assignment(), (3, 3)),
    "assignment, maximized": (assignment(maximize=True), (3, 3)),
    "shortest path": (shortest_path(), (4, 4)),
}
ALL = pytest.mark.parametrize(("solver", "shape"), SOLVERS.values(), ids=SOLVERS)


@ALL
@pytest.mark.parametrize("lambd", [0.3, 3.0])
def test_the_gradient_is_that_of_the_interpolated_loss(
    solver: Solver, shape: tuple[int, ...], lambd: float
) -> None:
    # Costs of paths stay positive, where the problem is a linear one.
    x, cotangent = torch.rand(30, *shape) + 1.0, 0.3 * torch.rand(30, *shape)
    x.requires_grad_()
    y = Blackbox(solver, lambd)(x)
    assert torch.equal(y, solver(x))
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    sign = -1.0 if solver.maximize else 1.0

    def interpolated(x: Tensor) -> Tensor:
        """Eq. 2 of the paper, for a linear loss."""
        y, shifted = solver(x), solver(x + sign * lambd * cotangent)
        gap = (sign * x * (y - shifted)).flatten(1).sum(1)
        return (cotangent * shifted).flatten(1).sum(1) - gap / lambd

    direction = torch.randn_like(x)
    step = 1e-7 * direction
    differences = (interpolated(x + step) - interpolated(x - step)).detach() / 2e-7
    slopes = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(slopes, differences, rtol=1e-5, atol=1e-5)
    assert (slopes != 0).any()


@ALL
def test_a_step_small_enough_to_change_no_solution_has_no_gradient(
    solver: Solver, shape: tuple[int, ...]
) -> None:
    x = torch.rand(shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(Blackbox(solver, 1e-9)(x).sin().sum(), x)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@ALL
def test_descent_reaches_an_input_with_the_target_as_solution(
    solver: Solver, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(1)
    x, target = (torch.rand(shape) + 1.0).requires_grad_(), solver(torch.rand(shape))
    blackbox = Blackbox(solver, lambd=1.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(100):
        loss = (blackbox(x) - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == 0


@ALL
def test_a_batch_vmap_and_a_loop_agree(solver: Solver, shape: tuple[int, ...]) -> None:
    x, target = torch.rand(5, *shape), solver(torch.rand(5, *shape))
    blackbox = Blackbox(solver, lambd=2.0)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        return (blackbox(x) - target).square().sum()

    slope = torch.func.grad(loss)
    expected = torch.stack([slope(x[i], target[i]) for i in range(5)])
    assert torch.equal(slope(x, target), expected)
    assert torch.equal(torch.func.vmap(slope)(x, target), expected)
    assert (expected != 0).any()


def test_sorting_has_gradients_through_the_assignment_of_its_scores() -> None:
    x = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    permutation = Blackbox(assignment(maximize=True), lambd=2.0)(sorting_scores(x))
    place = permutation.T @ torch.arange(3.0)  # of each entry, ascending
    assert place.tolist() == [0, 2, 1]
    place[2].backward()  # descent is to put the last entry earlier
    assert x.grad is not None
    assert x.grad[2] > 0
    assert x.grad[2] == x.grad.max()


def test_gradients_compose_with_ordinary_ones() -> None:
    weight, x, cotangent = torch.randn(4, 4), torch.randn(4), torch.randn(4)
    blackbox = Blackbox(argmax(), lambd=5.0)
    chained = torch.func.grad(lambda w: blackbox(w @ x) @ cotangent)(weight)
    inner = torch.func.grad(lambda s: blackbox(s) @ cotangent)(weight @ x)
    assert torch.equal(chained, torch.outer(inner, x))


def test_a_second_derivative_is_refused_not_zero() -> None:
    x = torch.randn(3, requires_grad=True)
    loss = Blackbox(argmax())(x).exp().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="use `Perturbed`"):
        gradient.square().sum().backward()


def test_it_is_pickled() -> None:
    blackbox = pickle.loads(pickle.dumps(Blackbox(assignment(), 3.0)))
    x = torch.rand(3, 3)
    assert blackbox.lambd == 3.0
    assert torch.equal(blackbox(x), assignment()(x))
