"""Gradients of solvers beside closed forms, unrolled loops, and each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch.func import grad, jacrev

from torchopt_implicit.solvers import (
    Solver,
    anderson,
    broyden,
    gradient_descent,
    lbfgs,
    levenberg_marquardt,
    newton,
    project_box,
    projected_gradient,
    qp,
)

pytestmark = pytest.mark.usefixtures("float64")


def ridge_data(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    X = torch.randn(rows, columns) / rows**0.5
    return X, torch.randn(rows), torch.tensor(0.3)


def loss(w: torch.Tensor, X: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return 0.5 * (X @ w - y).square().sum() + 0.5 * penalty * w.square().sum()


def residuals(
    w: torch.Tensor, X: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return X @ w - y, penalty.sqrt() * w


def descend(
    w: torch.Tensor, X: torch.Tensor, y: torch.Tensor, penalty: torch.Tensor
) -> torch.Tensor:
    return w - 0.2 * grad(loss)(w, X, y, penalty)


RIDGE: dict[str, Solver] = {
    "gradient_descent": gradient_descent(loss),
    "lbfgs": lbfgs(loss),
    "levenberg_marquardt": levenberg_marquardt(residuals),
    "newton": newton(grad(loss)),
    "broyden": broyden(grad(loss)),
    "anderson": anderson(descend, maxiter=1000),
    "projected_gradient": projected_gradient(loss, lambda w, *args: w),
}


# of more than 256 unknowns the derivative iterates rather than factorises
@pytest.mark.parametrize("columns", [10, 300], ids=["direct", "iterative"])
@pytest.mark.parametrize("name", RIDGE)
def test_ridge_regression_has_the_gradients_of_its_closed_form(name: str, columns: int) -> None:
    X, y, penalty = ridge_data(2 * columns, columns)
    leaves = X.requires_grad_(), y.requires_grad_(), penalty.requires_grad_()
    weights = torch.randn(columns)
    w = RIDGE[name](torch.zeros(columns), *leaves)
    exact = torch.linalg.solve(X.mT @ X + penalty * torch.eye(columns), X.mT @ y)
    torch.testing.assert_close(w, exact, atol=1e-8, rtol=1e-8)
    gradients = torch.autograd.grad(w @ weights, leaves)
    expected = torch.autograd.grad(exact @ weights, leaves)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-7 * theirs.norm()


def test_logistic_regression_has_the_gradients_of_the_unrolled_loop() -> None:
    inputs, labels = load_breast_cancer(return_X_y=True)
    X = torch.as_tensor(inputs[:200])
    X = (X - X.mean(0)) / X.std(0)
    y = torch.as_tensor(labels[:200]).to(X)

    def objective(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        fit = torch.nn.functional.binary_cross_entropy_with_logits(X @ w, y)
        return fit + 0.5 * (penalty.exp() * w.square()).sum()

    log_penalty = torch.linspace(-2, 0, X.shape[1]).requires_grad_()
    w = lbfgs(objective)(torch.zeros(X.shape[1]), log_penalty)
    (implicit,) = torch.autograd.grad(w.square().sum(), log_penalty)

    unrolled = torch.zeros(X.shape[1])
    for _ in range(600):
        unrolled = unrolled - 0.3 * grad(objective)(unrolled, log_penalty)
    (expected,) = torch.autograd.grad(unrolled.square().sum(), log_penalty)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(w, unrolled, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(implicit, expected, atol=1e-8, rtol=1e-6)


def test_projected_gradient_and_qp_agree_on_a_box() -> None:
    root = torch.randn(5, 5)
    Q, q, upper = root @ root.mT + torch.eye(5), torch.randn(5), torch.tensor(0.1)

    def by_qp(Q: torch.Tensor, q: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        G = torch.cat((torch.eye(5), -torch.eye(5)))
        return qp(Q, q, G, torch.cat((upper.expand(5), torch.full((5,), 0.2)))).z

    solver = projected_gradient(
        lambda z, Q, q, upper: 0.5 * z @ Q @ z + q @ z,
        lambda z, Q, q, upper: project_box(z, -0.2, upper),
    )

    def by_projection(Q: torch.Tensor, q: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return solver(torch.zeros(5), Q, q, upper)

    z = by_qp(Q, q, upper)
    assert (z == upper).any()
    assert ((z > -0.2) & (z < upper)).any()

    def jacobians(solve: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return jacrev(solve, argnums=(0, 1, 2))(Q, q, upper)

    torch.testing.assert_close(by_projection(Q, q, upper), z, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(jacobians(by_projection), jacobians(by_qp), atol=1e-7, rtol=1e-7)
