"""Sparse quadratic programs: solutions, derivatives, certificates, warm starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

from torchopt_implicit import FailedSolveError, FailedSolveWarning, Status
from torchopt_implicit.solvers import qp, sparse_qp

DOUBLE = torch.float64
LAYOUTS = {
    "dense": lambda x: x,
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")


def program(n: int, m: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """A program with equations, inequalities of one side and of both, and many zeros."""
    generator = torch.Generator().manual_seed(seed)

    def sparse(rows: int, per_row: int) -> torch.Tensor:
        values = torch.randn(rows, n, dtype=DOUBLE, generator=generator)
        return values * (torch.rand(rows, n, generator=generator) < per_row / n)

    root = sparse(n, 3)
    Q = root @ root.mT + 0.1 * torch.eye(n, dtype=DOUBLE)
    q = torch.randn(n, dtype=DOUBLE, generator=generator)
    A = sparse(m, 4)
    A[:, 0] += 1.0
    lower = -torch.rand(m, dtype=DOUBLE, generator=generator) - 0.05
    upper = torch.rand(m, dtype=DOUBLE, generator=generator) + 0.05
    lower[0] = upper[0] = 0.1
    lower[1] = -torch.inf
    return Q, q, A, lower, upper


def dense_reference(*data: torch.Tensor) -> torch.Tensor:
    Q, q, A, lower, upper = data
    one, rest = slice(0, 1), slice(2, None)
    G = torch.cat((A[1:], -A[rest]))
    return qp(Q, q, G, torch.cat((upper[1:], -lower[rest])), A[one], upper[one]).z


@each_layout
def test_it_solves_what_the_interior_point_method_solves(layout: str) -> None:
    Q, q, A, lower, upper = data = program(12, 8)
    convert = LAYOUTS[layout]
    z, y, info = sparse_qp(convert(Q), q, convert(A), lower, upper)
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(z, dense_reference(*data), atol=1e-6, rtol=0)
    torch.testing.assert_close(Q @ z + q + A.mT @ y, torch.zeros_like(q), atol=1e-5, rtol=0)
    values = A @ z
    assert ((values <= upper + 1e-6) & (values >= lower - 1e-6)).all()
    # multipliers lean on the bounds that are active
    assert (y[values < upper - 1e-4] <= 1e-5).all()
    assert (y[values > lower + 1e-4] >= -1e-5).all()


@each_layout
def test_derivatives_in_all_data_are_those_of_the_dense_program(layout: str) -> None:
    convert = LAYOUTS[layout]
    given = tuple(x.clone().requires_grad_() for x in program(12, 8))
    Q, q, A, lower, upper = given
    z = sparse_qp(convert(Q), q, convert(A), lower, upper).z
    got = torch.autograd.grad((z**3).sum(), given)
    expected = torch.autograd.grad((dense_reference(*given) ** 3).sum(), given)
    for i, (one, other, x) in enumerate(zip(got, expected, given, strict=True)):
        if i == 3:  # an equation has one right-hand side there, and two bounds here
            one, other = one + got[4], other + expected[4]
        known = (x != 0) if i in (0, 2) and layout != "dense" else torch.ones_like(x) != 0
        torch.testing.assert_close(one[known], other[known], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_values_of_a_sparse_leaf() -> None:
    Q, q, A, lower, upper = program(12, 8)
    leaf = A.to_sparse().requires_grad_()
    sparse_qp(Q, q, leaf, lower, upper).z.sum().backward()
    dense = A.clone().requires_grad_()
    sparse_qp(Q, q, dense, lower, upper).z.sum().backward()
    assert leaf.grad is not None
    assert dense.grad is not None
    assert leaf.grad.layout == torch.sparse_coo
    torch.testing.assert_close(leaf.grad.to_dense(), dense.grad * (A != 0), atol=1e-6, rtol=1e-5)


def test_modes_orders_and_batched_cotangents_agree() -> None:
    Q, q, A, lower, upper = program(6, 4)

    def value(q: torch.Tensor) -> torch.Tensor:
        return (sparse_qp(Q, q, A, lower, upper, tol=1e-9).z ** 3).sum()

    def reference(q: torch.Tensor) -> torch.Tensor:
        return (dense_reference(Q, q, A, lower, upper) ** 3).sum()

    torch.testing.assert_close(jacrev(value)(q), jacrev(reference)(q), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(jacfwd(value)(q), jacrev(reference)(q), atol=1e-6, rtol=1e-6)
    second = hessian(value)(q)
    torch.testing.assert_close(second, hessian(reference)(q), atol=1e-5, rtol=1e-5)
    rows = jacrev(lambda q: sparse_qp(Q, q, A, lower, upper, tol=1e-9).z)(q)
    expected = jacrev(lambda q: dense_reference(Q, q, A, lower, upper))(q)
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
def test_a_larger_program_is_differentiated_by_the_preconditioned_solver() -> None:
    Q, q, A, lower, upper = program(250, 150)
    q = q.requires_grad_()
    z = sparse_qp(Q.to_sparse_csr(), q, A.to_sparse_csr(), lower, upper).z
    (got,) = torch.autograd.grad(z.square().sum(), q)
    (expected,) = torch.autograd.grad(dense_reference(Q, q, A, lower, upper).square().sum(), q)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_linear_programs_are_those_of_scipy() -> None:
    c = torch.tensor([-1.0, -2.0, 0.5], dtype=DOUBLE)
    A = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0]], dtype=DOUBLE)
    upper = torch.tensor([4.0, 2.0], dtype=DOUBLE)
    whole = torch.cat((A, torch.eye(3, dtype=DOUBLE)))
    bounds = torch.cat((upper, torch.full((3,), 3.0, dtype=DOUBLE)))
    lower = torch.cat((torch.full((2,), -torch.inf), torch.zeros(3)))
    z = sparse_qp(torch.zeros(3, 3).double().to_sparse(), c, whole.to_sparse(), lower, bounds).z
    reference = scipy.optimize.linprog(c.numpy(), A.numpy(), upper.numpy(), bounds=[(0, 3)] * 3)
    np.testing.assert_allclose(z.numpy(), reference.x, atol=1e-5)


def test_a_warm_start_saves_iterations() -> None:
    Q, q, A, lower, upper = program(12, 8)
    first = sparse_qp(Q, q, A, lower, upper)
    again = sparse_qp(Q, q + 1e-4, A, lower, upper, init=(first.z, first.y))
    cold = sparse_qp(Q, q + 1e-4, A, lower, upper)
    assert again.info.iterations < cold.info.iterations
    torch.testing.assert_close(again.z, cold.z, atol=1e-5, rtol=0)


def test_without_solutions_it_says_why() -> None:
    eye, zeros = torch.eye(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE)
    both = torch.ones(2, 2, dtype=DOUBLE)
    low, high = torch.tensor([1.0, 3.0]).double(), torch.tensor([2.0, 4.0]).double()
    with pytest.warns(FailedSolveWarning, match="INFEASIBLE"):
        assert sparse_qp(eye, zeros, both, low, high).info.status is Status.INFEASIBLE
    for crossed in (1.0, torch.tensor([-3.0, -0.5])):
        with pytest.warns(FailedSolveWarning, match="INFEASIBLE"):
            assert sparse_qp(eye, zeros, eye, crossed, -1.0).info.status is Status.INFEASIBLE
    with pytest.raises(FailedSolveError, match="UNBOUNDED"):
        sparse_qp(0 * eye, zeros + 1, eye, -torch.inf, 1.0, throw=True)
    with pytest.warns(FailedSolveWarning, match="ITERATION_LIMIT"):
        sparse_qp(eye, zeros + 1, both, low, low, maxiter=1)
    with pytest.warns(FailedSolveWarning, match="NOT_FINITE"):
        sparse_qp(eye, zeros * torch.nan, eye, -1.0, 1.0)


def test_far_away_solutions_are_not_taken_for_infeasible() -> None:
    eye = torch.eye(1, dtype=DOUBLE)
    zero = torch.zeros(1, dtype=DOUBLE)
    found = sparse_qp(eye, zero, -1e-3 * eye, -torch.inf, -100.0)
    torch.testing.assert_close(found.z, torch.tensor([1e5], dtype=DOUBLE), rtol=1e-5, atol=0)


def test_single_precision_and_no_constraints() -> None:
    Q, q, A, lower, upper = (x.float() for x in program(12, 8))
    found = sparse_qp(Q.to_sparse(), q, A.to_sparse(), lower, upper)
    assert found.z.dtype == torch.float32
    expected = dense_reference(*program(12, 8)).float()
    torch.testing.assert_close(found.z, expected, atol=2e-3, rtol=0)
    Q, q = Q.double(), q.double()
    free = sparse_qp(Q, q, Q.new_zeros(0, 12), 0.0, 0.0)
    torch.testing.assert_close(free.z, torch.linalg.solve(Q, -q), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.zeros(3, 1)}, ValueError, r"`q` must have the shape \(n,\)"),
        ({"Q": torch.zeros(2, 3)}, ValueError, r"`Q` must have the shape \(3, 3\)"),
        ({"A": torch.zeros(2, 2)}, ValueError, r"`A` must have the shape \(m, 3\)"),
        ({"A": torch.zeros(2, 3).double()}, TypeError, "must be a tensor of torch.float32"),
        ({"Q": None}, TypeError, "`Q` must be a tensor of floats, got NoneType"),
        ({"A": "csc"}, TypeError, "COO or CSR"),
        ({"maxiter": -1}, ValueError, "`maxiter` must be a non-negative integer"),
        ({"tol": 0.0}, ValueError, "`tol` must be positive"),
    ],
)
def test_wrong_arguments_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {
        "Q": torch.eye(3),
        "q": torch.zeros(3),
        "A": torch.zeros(2, 3),
        "lower": -1.0,
        "upper": 1.0,
    }
    if change.get("A") == "csc":
        change = {"A": torch.zeros(2, 3).to_sparse_csc()}
    with pytest.raises(error, match=message):
        sparse_qp(**(given | change))


def test_vmap_is_refused_in_words() -> None:
    Q, q, A, lower, upper = program(6, 4)
    with pytest.raises(NotImplementedError, match=r"under torch.vmap; solve the problems one by"):
        vmap(lambda q: sparse_qp(Q, q, A, lower, upper).z)(torch.stack((q, q)))
