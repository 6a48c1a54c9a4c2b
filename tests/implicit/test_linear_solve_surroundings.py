"""What a direct linear solve makes of what is around it: changed data, autocast, devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt_implicit.linalg import LinearOperator, cg, csr_operator
from torchopt_implicit.linear_solve import (
    solve_auto,
    solve_bicgstab,
    solve_cg,
    solve_gmres,
    solve_inv,
    solve_normal_cg,
    solve_nystrom,
)

pytestmark = pytest.mark.usefixtures("float64")
CSR_IS_BETA = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
ITERATIVE: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "linalg.cg": cg,
    "cg": solve_cg(),
    "normal_cg": solve_normal_cg(),
    "gmres": solve_gmres(),
    "bicgstab": solve_bicgstab(),
    "neumann": solve_inv(ns=True, alpha=0.5),
    "nystrom": solve_nystrom(rank=4, ridge=1e-9),
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
