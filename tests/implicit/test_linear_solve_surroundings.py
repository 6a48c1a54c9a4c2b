"""What a direct linear solve makes of what is around it: changed data, autocast, devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt_implicit import custom_root
from torchopt_implicit.linalg import LinearOperator, cg, csr_operator, ns_inv
from torchopt_implicit.linear_solve import (
    diagonal_preconditioner,
    nystrom_preconditioner,
    solve_auto,
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_lstsq,
    solve_lu,
    solve_normal_cg,
    solve_nystrom,
    solve_qr,
    solve_tridiagonal,
)

pytestmark = pytest.mark.usefixtures("float64")
CSR_IS_BETA = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
ITERATIVE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "linalg.cg": cg,
    "cg": solve_cg(),
    "normal_cg": solve_normal_cg(),
    "gmres": solve_gmres(),
    "bicgstab": solve_bicgstab(),
    "neumann": solve_inv(ns=True, alpha=0.5, maxiter=100, rtol=1e-5),
    "nystrom": solve_nystrom(rank=4, ridge=1e-2),
}
#: how 2 I reaches the solver, given its diagonal
HOLDERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "function": lambda d: lambda v: d * v,
    "operator": LinearOperator.diagonal,
    "transposed": lambda d: LinearOperator.from_function(
        lambda v: d * v, d, transpose=lambda v: d * v
    ),
    "sparse": lambda d: csr_operator(torch.arange(5), torch.arange(4), d, (4, 4)),
}


@pytest.mark.parametrize("name", ITERATIVE)
def test_constant_matrices_changed_before_the_backward_are_refused(name: str) -> None:
    A, b = 2 * torch.eye(4), torch.ones(4, requires_grad=True)
    x = ITERATIVE[name](A, b)
    A.mul_(10)
    with pytest.raises(RuntimeError, match=r"that `A` has from elsewhere was changed in place"):
        x.sum().backward()


@pytest.mark.parametrize("holder", HOLDERS)
def test_constants_of_operators_changed_before_the_backward_are_refused(holder: str) -> None:
    d, b = torch.full((4,), 2.0), torch.ones(4, requires_grad=True)
    x = solve_cg()(HOLDERS[holder](d), b)
    (gradient,) = torch.autograd.grad(x.sum(), b, retain_graph=True)
    torch.testing.assert_close(gradient, torch.full((4,), 0.5))
    d.mul_(10)
    with pytest.raises(RuntimeError, match=r"that `A` has from elsewhere was changed in place"):
        x.sum().backward()


def test_changes_between_a_first_and_a_second_derivative_are_refused() -> None:
    d, b = torch.full((4,), 2.0), torch.ones(4, requires_grad=True)
    x = solve_cg()(lambda v: d * v, b)
    (gradient,) = torch.autograd.grad((x**3).sum(), b, create_graph=True)
    d.mul_(10)
    with pytest.raises(RuntimeError, match=r"that `A` has from elsewhere was changed in place"):
        gradient.sum().backward()


def test_large_operators_changed_before_the_backward_are_refused() -> None:
    A, b = 2 * torch.eye(300), torch.ones(300, requires_grad=True)
    x = solve_auto()(A, b)
    A.mul_(10)
    with pytest.raises(RuntimeError, match=r"that `A` has from elsewhere was changed in place"):
        x.sum().backward()


def test_what_a_matvec_itself_writes_to_is_no_change() -> None:
    calls, b = torch.zeros(()), torch.ones(4, requires_grad=True)

    def matvec(v: torch.Tensor) -> torch.Tensor:
        calls.add_(1)
        return 2 * v

    solve_cg()(matvec, b).sum().backward()
    torch.testing.assert_close(b.grad, torch.full((4,), 0.5))


@CSR_IS_BETA
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse])
def test_sparse_tensors_changed_before_the_backward_are_refused(convert: Any) -> None:
    A, b = convert(2 * torch.eye(4)), torch.ones(4, requires_grad=True)
    x = solve_cg()(A, b)
    A.mul_(10)
    with pytest.raises(RuntimeError, match=r"that `A` has from elsewhere was changed in place"):
        x.sum().backward()


DIRECT: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "lu": solve_lu(),
    "cholesky": solve_cholesky(),
    "qr": solve_qr(),
    "lstsq": solve_lstsq(),
    "lstsq with a ridge": solve_lstsq(ridge=1e-12),
    "tridiagonal": solve_tridiagonal(),
    "auto": solve_auto(),
}
BFLOAT16 = {"device_type": "cpu", "dtype": torch.bfloat16}


def tridiagonal() -> torch.Tensor:
    band = torch.full((3,), 0.3)
    return (2.1 * torch.eye(4) + band.diag(1) + band.diag(-1)).float()


@pytest.mark.parametrize("name", [*ITERATIVE, *DIRECT])
def test_matrices_are_solved_for_without_autocast(name: str) -> None:
    solve = (ITERATIVE | DIRECT)[name]
    A, b = tridiagonal().requires_grad_(), torch.rand(4).float().requires_grad_()
    with torch.autocast(**BFLOAT16):
        x = solve(A, b)
    found = torch.autograd.grad(x.sum(), (A, b))
    expected = solve(A, b)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (A, b)))
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("name", ITERATIVE)
def test_backwards_under_autocast_are_without_it(name: str) -> None:
    A, b = tridiagonal(), torch.rand(4).float().requires_grad_()
    x = ITERATIVE[name](A, b)
    (expected,) = torch.autograd.grad(x.sum(), b, retain_graph=True)
    with torch.autocast(**BFLOAT16):
        (gradient,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(gradient, expected)
    implicit = custom_root(lambda x, b: A @ x - b, argnums=1, solve=ITERATIVE[name])(
        lambda _, b: torch.linalg.solve(A, b)
    )
    x = implicit(torch.zeros_like(b), b)
    with torch.autocast(**BFLOAT16):
        (gradient,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("holder", ["function", "operator"])
def test_functions_keep_the_autocast_of_the_call_and_solves_do_not(holder: str) -> None:
    A, b = tridiagonal(), torch.rand(4).float().requires_grad_()
    seen = []

    def matvec(v: torch.Tensor) -> torch.Tensor:
        product = A @ v
        seen.append(product.dtype)
        return product

    make = {"function": lambda: matvec, "operator": lambda: LinearOperator.from_function(matvec, b)}
    with torch.autocast(**BFLOAT16):
        x = solve_cg(rtol=0.02)(make[holder](), b)
    (gradient,) = torch.autograd.grad(x.sum(), b)
    assert set(seen) == {torch.bfloat16}
    assert x.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(x, torch.linalg.solve(A, b), rtol=0.05, atol=0.05)


def test_weights_cast_within_a_solve_keep_their_gradients_outside() -> None:
    A, b = tridiagonal().requires_grad_(), torch.rand(4).float()
    with torch.autocast(**BFLOAT16):
        with torch.no_grad():
            solve_cg(rtol=0.02)(lambda v: A @ v, b)
        product = A @ b
    assert product.requires_grad


def test_sketches_diagonals_and_series_are_without_autocast() -> None:
    A = tridiagonal()
    operator, v = LinearOperator.from_matrix(A), torch.rand(4).float()
    expected = nystrom_preconditioner(operator, rank=2), diagonal_preconditioner(operator)
    with torch.autocast(**BFLOAT16):
        found = nystrom_preconditioner(operator, rank=2), diagonal_preconditioner(operator)
        inverse = ns_inv(A, 200, alpha=0.4)
    for M, N in zip(found, expected, strict=True):
        torch.testing.assert_close(M @ v, N @ v)
    torch.testing.assert_close(inverse, torch.linalg.inv(A), rtol=1e-4, atol=1e-4)
