"""What becomes of a solve is judged by the numbers of the problem, not by their scale."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from torchopt_implicit import Status, custom_fixed_point, custom_root, linear_solve
from torchopt_implicit.linalg import LinearOperator
from torchopt_implicit.linear_solve import (
    solve_auto,
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_lstsq,
    solve_lu,
    solve_normal_cg,
)

SOLVERS: dict[str, Any] = {
    "cg": solve_cg,
    "normal_cg": solve_normal_cg,
    "gmres": solve_gmres,
    "bicgstab": solve_bicgstab,
    "neumann": lambda **options: solve_inv(ns=True, alpha=0.5, maxiter=100, rtol=1e-5, **options),
    "lu": solve_lu,
    "cholesky": solve_cholesky,
    "lstsq": solve_lstsq,
    "auto": solve_auto,
}


def spd(n: int, condition: float, dtype: torch.dtype) -> torch.Tensor:
    Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))
    spectrum = torch.logspace(0, torch.tensor(condition).log10(), n, dtype=torch.float64)
    A = Q @ torch.diag(spectrum) @ Q.T
    return ((A + A.T) / 2).to(dtype)


@pytest.mark.parametrize("name", ["lu", "cholesky", "auto", "lstsq"])
def test_a_stable_solve_of_a_hard_system_converged(name: str) -> None:
    A = spd(30, 1e5, torch.float32)
    x_true = torch.linalg.eigh(A)[1][:, 0]  # of the smallest eigenvalue
    b = (A.double() @ x_true.double()).float()
    x, info = SOLVERS[name]().solve(A, b)
    backward = (b - A @ x).norm() / (A.norm() * x.norm() + b.norm())
    assert backward < 1e-5
    assert info.status is Status.CONVERGED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["lu"])
def test_a_system_that_is_singular_but_for_rounding_broke_down(
    name: str, dtype: torch.dtype
) -> None:
    eps = torch.finfo(dtype).eps
    A = torch.tensor([[1.0, 1.0], [1.0, 1.0 + eps]], dtype=dtype)
    _, info = SOLVERS[name]().solve(A, torch.tensor([1.0, 2.0], dtype=dtype))
    assert info.status is Status.BREAKDOWN


@pytest.mark.parametrize("scale", [1e-30, 1e-37, 1e20, 1e30])
@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_scale_with_the_right_hand_side(name: str, scale: float) -> None:
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    b = torch.tensor([1.0, -2.0])
    expected = torch.linalg.solve(A, b)
    x, info = SOLVERS[name]().solve(A, scale * b)
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(x.double() / scale, expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_batch_of_right_hand_sides_of_all_scales_is_solved(name: str) -> None:
    A = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    scales = torch.tensor([1e-30, 1.0, 0.0, 1e20])
    b = scales[:, None] * torch.tensor([1.0, -2.0])
    x, info = torch.vmap(SOLVERS[name]().solve, in_dims=(None, 0))(A, b)
    assert info.status.tolist() == [Status.CONVERGED] * 4
    expected = torch.linalg.solve(A, torch.tensor([1.0, -2.0]))
    for row, scale in zip(x[[0, 1, 3]], scales[[0, 1, 3]], strict=True):
        torch.testing.assert_close(row / scale, expected, rtol=1e-4, atol=1e-4)
    assert not x[2].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", SOLVERS)
def test_an_operator_that_is_not_finite_is_said_to_be(name: str, value: float) -> None:
    A = torch.eye(3)
    A[1, 1] = value
    _, info = SOLVERS[name]().solve(A, torch.ones(3))
    assert info.status is Status.NOT_FINITE


def test_bicgstab_goes_on_after_a_breakdown_of_its_recurrence() -> None:
    A = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    x, info = solve_bicgstab().solve(A, torch.ones(2))
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(x, torch.tensor([-1.0, 1.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decorate", [custom_root, custom_fixed_point])
def test_the_default_of_implicit_derivatives_is_as_good_as_a_factorization(decorate: Any) -> None:
    A = spd(50, 1e4, torch.float32)
    b = torch.randn(50)
    shift = 1.0 if decorate is custom_fixed_point else 0.0

    @decorate(lambda x, b: A @ x - b + shift * x, argnums=1)
    def solve(init: None, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A, b)

    b.requires_grad_()
    w = torch.randn(50)
    (gradient,) = torch.autograd.grad(solve(None, b), b, w)
    expected = torch.linalg.solve(A.double(), w.double())
    error = (gradient.double() - expected).norm() / expected.norm()
    assert error < 5e-3  # of condition 1e4 in float32


@pytest.mark.parametrize(
    ("n", "tags", "method"),
    [
        (256, {}, "LU"),
        (256, {"positive_definite": True}, "Cholesky"),
        (257, {}, "NormalCG"),
        (257, {"positive_definite": True}, "CG"),
    ],
)
def test_the_default_chooses_by_size_and_structure(n: int, tags: Any, method: str) -> None:
    A = LinearOperator.from_function(lambda v: 2 * v, torch.zeros(n), **tags)
    assert type(solve_auto().pick(A)).__name__ == method
    torch.testing.assert_close(solve_auto(throw=True)(A, torch.ones(n)), torch.full((n,), 0.5))


@pytest.mark.parametrize("name", [n for n in linear_solve.__all__ if n.startswith("solve_")])
def test_options_are_in_the_signature(name: str) -> None:
    parameters = inspect.signature(getattr(linear_solve, name)).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
    assert "throw" in [p.name for p in parameters]
