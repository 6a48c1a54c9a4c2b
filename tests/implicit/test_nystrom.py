"""Sketches of low rank: exact where the rank is, and a help to conjugate gradients elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from torchopt_implicit import Status, custom_root
from torchopt_implicit.linalg import LinearOperator
from torchopt_implicit.linear_solve import (
    diagonal_preconditioner,
    nystrom_preconditioner,
    solve_cg,
    solve_nystrom,
)

pytestmark = pytest.mark.usefixtures("float64")
N, RANK, RIDGE = 12, 4, 0.3


def low_rank() -> torch.Tensor:
    S = torch.randn(N, RANK)
    return S @ S.T


def regularized(A: torch.Tensor) -> torch.Tensor:
    return A + RIDGE * torch.eye(N)


def test_the_inverse_is_exact_at_the_rank_of_the_operator() -> None:
    A, b = low_rank(), torch.randn(N)
    x, info = solve_nystrom(rank=RANK, ridge=RIDGE).solve(A, b)
    torch.testing.assert_close(x, torch.linalg.solve(regularized(A), b), rtol=1e-6, atol=1e-6)
    assert info.status is Status.TRUNCATED
    torch.testing.assert_close(solve_nystrom(rank=100, ridge=RIDGE)(A, b), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", [False, True])
def test_hypergradients_reuse_one_sketch(batch: bool) -> None:
    A, b = low_rank(), torch.randn(3, N)
    calls = []

    @custom_root(lambda x, b: A @ x - b, argnums=1, solve=solve_nystrom(rank=RANK, ridge=RIDGE))
    def solve(init: None, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return torch.linalg.solve(regularized(A), b)

    gradient = grad(lambda b: solve(None, b).sin().sum())
    computed = vmap(gradient)(b) if batch else gradient(b[0])[None]
    for row, c in zip(b, computed, strict=False):
        outer = torch.linalg.solve(regularized(A), row).cos()
        expected = torch.linalg.solve(regularized(A), outer)
        torch.testing.assert_close(c, expected, rtol=1e-6, atol=1e-6)


def test_more_rank_is_a_better_hypergradient() -> None:
    A = torch.diag(torch.logspace(0, -6, 50))
    b = torch.randn(50)
    exact = torch.linalg.solve(A + 0.01 * torch.eye(50), b)
    errors = [
        float((solve_nystrom(rank=k, ridge=0.01)(A, b) - exact).norm()) for k in (2, 8, 20, 50)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_direct_calls_are_differentiable() -> None:
    S = torch.randn(N, RANK, requires_grad=True)
    b = torch.randn(N, requires_grad=True)

    def ours(S: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solve_nystrom(rank=RANK, ridge=RIDGE)(lambda v: S @ (S.T @ v), b)

    assert torch.autograd.gradcheck(ours, (S, b), rtol=1e-4, atol=1e-5)


def test_an_operator_that_is_not_finite_is_reported() -> None:
    _, info = solve_nystrom().solve(torch.full((3, 3), float("nan")), torch.ones(3))
    assert info.status is Status.NOT_FINITE


@pytest.mark.parametrize("kind", ["nystrom", "diagonal"])
def test_preconditioners_save_iterations(kind: str) -> None:
    A = LinearOperator.from_matrix(torch.diag(torch.logspace(-4, 4, 100)), positive_definite=True)
    b, options = torch.randn(100), {"ridge": 0.1, "maxiter": 2000, "rtol": 1e-8}
    M = (
        nystrom_preconditioner(A, rank=60, ridge=0.1)
        if kind == "nystrom"
        else diagonal_preconditioner(A, ridge=0.1)
    )
    plain, info = solve_cg(**options).solve(A, b)
    x, better = solve_cg(M=M, **options).solve(A, b)
    assert better.status is Status.CONVERGED
    assert better.iterations < info.iterations / 3
    torch.testing.assert_close(x, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`rank` must be a positive integer, got 0"),
        ({"rank": True}, "`rank` must be a positive integer"),
        ({"ridge": 0.0}, r"`ridge` must be positive, got 0\.0"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_nystrom(**options)


def test_a_ridge_to_be_learned_is_refused_not_lost() -> None:
    ridge = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=r"`ridge` must be a number, got a tensor"):
        solve_nystrom(ridge=ridge)  # type: ignore[arg-type]


def test_sketches_are_the_same_under_transforms() -> None:
    A, b = low_rank(), torch.randn(N, requires_grad=True)
    solver = solve_nystrom(rank=RANK, ridge=RIDGE)
    inverse = torch.linalg.inv(regularized(A))
    x = solver(A, b)
    (rows,) = torch.autograd.grad(x, b, torch.eye(N), is_grads_batched=True)
    torch.testing.assert_close(rows, inverse, rtol=1e-6, atol=1e-6)
    batch = torch.randn(2, N)
    expected = batch @ inverse
    torch.testing.assert_close(vmap(lambda b: solver(A, b))(batch), expected, rtol=1e-6, atol=1e-6)

    def preconditioned(b: torch.Tensor) -> torch.Tensor:
        M = nystrom_preconditioner(LinearOperator.from_matrix(A), rank=RANK, ridge=RIDGE)
        return solve_cg(M=M, ridge=RIDGE, rtol=1e-12)(A, b)

    torch.testing.assert_close(vmap(preconditioned)(batch), expected)


def test_sketches_are_on_the_device_of_the_operator_not_the_default_one() -> None:
    A, b = low_rank(), torch.randn(N)
    solver = solve_nystrom(rank=RANK, ridge=RIDGE)
    expected = solver(A, b)
    with torch.device("meta"):
        found = solver(A, b)
        M = nystrom_preconditioner(LinearOperator.from_matrix(A), rank=RANK, ridge=RIDGE)
        preconditioned = M @ b
    torch.testing.assert_close(found, expected)
    assert preconditioned.device == b.device
