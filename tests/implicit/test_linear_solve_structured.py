"""Tags choose a solver, and the solvers for a structure give what a dense one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from torchopt_implicit import FailedSolveWarning, Status, custom_root
from torchopt_implicit.linalg import LinearOperator, Tag
from torchopt_implicit.linear_solve import (
    solve_auto,
    solve_cg,
    solve_diagonal,
    solve_gmres,
    solve_lstsq,
    solve_qr,
    solve_triangular,
    solve_tridiagonal,
)

pytestmark = pytest.mark.usefixtures("float64")
N = 6
MASKS = {
    "diagonal": torch.eye(N),
    "lower": torch.ones(N, N).tril(),
    "upper": torch.ones(N, N).triu(),
    "tridiagonal": torch.ones(N, N).tril(1).triu(-1),
}
TAGS = {
    "diagonal": Tag.DIAGONAL,
    "lower": Tag.LOWER_TRIANGULAR,
    "upper": Tag.UPPER_TRIANGULAR,
    "tridiagonal": Tag.TRIDIAGONAL | Tag.POSITIVE_DEFINITE,
}
SOLVERS = {
    "diagonal": solve_diagonal(throw=True),
    "lower": solve_triangular(throw=True),
    "upper": solve_triangular(lower=False, throw=True),
    "tridiagonal": solve_tridiagonal(throw=True),
}


def matrix(kind: str) -> torch.Tensor:
    return (torch.randn(N, N) / 3 + 3 * torch.eye(N)) * MASKS[kind].double()


@pytest.mark.parametrize("kind", TAGS)
def test_structured_solves_and_their_derivatives_are_dense_ones(kind: str) -> None:
    A, b = matrix(kind), torch.randn(N)
    mask = MASKS[kind].double()

    def ours(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SOLVERS[kind](A * mask, b).sin()

    def dense(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A * mask, b).sin()

    torch.testing.assert_close(ours(A, b), dense(A, b))
    for order in (jacrev, jacfwd, lambda f, argnums: jacrev(jacrev(f), argnums=argnums)):
        expected = order(dense, argnums=(0, 1))(A, b)
        torch.testing.assert_close(order(ours, argnums=(0, 1))(A, b), expected)
    batch = torch.stack([A, 2 * A])
    torch.testing.assert_close(
        vmap(ours, (0, None))(batch, b), torch.stack([ours(A, b) for A in batch])
    )


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", TAGS)
def test_implicit_derivatives_solve_with_the_transpose(kind: str, batch: bool) -> None:
    mask = MASKS[kind].double()

    @custom_root(lambda x, A, b: (A * mask) @ x - b, argnums=(1, 2), solve=SOLVERS[kind])
    def solve(init: None, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A, b)

    A, b = torch.stack([matrix(kind) for _ in range(3)]), torch.randn(3, N)
    ours = grad(lambda A, b: solve(None, A, b).sin().sum(), argnums=(0, 1))
    dense = grad(lambda A, b: torch.linalg.solve(A * mask, b).sin().sum(), argnums=(0, 1))
    computed = vmap(ours)(A, b) if batch else ours(A[0], b[0])
    rows = [dense(*row) for row in zip(A, b, strict=True)]
    expected = tuple(torch.stack(x) for x in zip(*rows, strict=True)) if batch else rows[0]
    torch.testing.assert_close(tuple(computed), expected)


@pytest.mark.parametrize(
    ("tags", "n", "method"),
    [
        (Tag.DIAGONAL, 1000, "Diagonal"),
        (Tag.DIAGONAL | Tag.POSITIVE_DEFINITE, 5, "Diagonal"),
        (Tag.LOWER_TRIANGULAR, 5, "Triangular"),
        (Tag.UPPER_TRIANGULAR, 5, "Triangular"),
        (Tag.LOWER_TRIANGULAR | Tag.SYMMETRIC, 1000, "Diagonal"),
        (Tag.TRIDIAGONAL, 5, "LU"),
        (Tag.TRIDIAGONAL | Tag.POSITIVE_DEFINITE, 1000, "Tridiagonal"),
        (Tag.SYMMETRIC, 5, "LU"),
    ],
)
def test_tags_choose_the_solver(tags: Tag, n: int, method: str) -> None:
    A = LinearOperator.from_function(lambda v: 2 * v, torch.zeros(n), tags=tags)
    assert type(solve_auto().pick(A)).__name__ == method
    torch.testing.assert_close(solve_auto(throw=True)(A, torch.ones(n)), torch.full((n,), 0.5))


def test_tags_follow_along() -> None:
    def operator(tags: Tag) -> LinearOperator:
        return LinearOperator.from_function(lambda v: v, torch.zeros(2), tags=tags)

    L, U, D, T = (operator(TAGS[k]) for k in ("lower", "upper", "diagonal", "tridiagonal"))
    rows = [
        (L.T, Tag.UPPER_TRIANGULAR),
        (L @ L, Tag.LOWER_TRIANGULAR),
        (L @ U, Tag.NONE),
        (L + U, Tag.NONE),
        (L + D, Tag.LOWER_TRIANGULAR),
        (D @ D, Tag.DIAGONAL),
        (D @ T, Tag.TRIDIAGONAL),
        (T @ T, Tag.NONE),
        (T + T, Tag.TRIDIAGONAL | Tag.POSITIVE_DEFINITE),
        (-1 * T, Tag.TRIDIAGONAL | Tag.SYMMETRIC),
        (T.T, T.tags),
        (T.shifted(1.0), T.tags),
    ]
    for operator_, tags in rows:
        assert operator_.tags == tags


def test_a_large_tridiagonal_system_takes_three_matvecs() -> None:
    n, calls = 5000, []

    def laplacian(v: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        left, right = torch.zeros_like(v), torch.zeros_like(v)
        left = torch.cat([v[:1] * 0, v[:-1]])
        right = torch.cat([v[1:], v[:1] * 0])
        return 2.1 * v - left - right

    b = torch.randn(n)
    x, info = solve_tridiagonal().solve(laplacian, b)
    assert info.status is Status.CONVERGED
    assert len(calls) == 4  # and one for the residual
    torch.testing.assert_close(laplacian(x), b)


def test_a_zero_pivot_is_a_breakdown() -> None:
    _, info = solve_tridiagonal().solve(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.ones(2))
    assert info.status is Status.BREAKDOWN
    _, info = solve_diagonal().solve(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), torch.ones(2))
    assert info.status is Status.BREAKDOWN


SHAPES = {"tall": (5, 3), "wide": (3, 5), "square": (4, 4)}


@pytest.mark.parametrize(
    "solver", [solve_lstsq(throw=True), solve_qr(throw=True)], ids=["svd", "qr"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_rectangular_systems_and_their_derivatives(shape: str, solver: Any) -> None:
    A, b = torch.randn(SHAPES[shape]), torch.randn(SHAPES[shape][0])

    def ours(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solver(LinearOperator.from_matrix(A), b)

    expected = torch.linalg.lstsq(A, b.unsqueeze(-1), driver="gelsd").solution[:, 0]
    torch.testing.assert_close(ours(A, b), expected)
    torch.testing.assert_close(solver(A, b), expected)
    args = (A.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(ours, args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(ours, args)
    A, b = A.detach(), b.detach()
    jacobian = jacrev(ours, argnums=(0, 1))
    batched = vmap(jacobian, (None, 0))(A, torch.stack([b, 2 * b]))
    single = jacobian(A, b)
    torch.testing.assert_close(batched[1][0], single[1])


def test_least_squares_of_lower_rank_have_derivatives() -> None:
    u, v, b = torch.randn(4, 1), torch.randn(1, 3), torch.randn(4)
    args = tuple(x.requires_grad_() for x in (u, v, b))
    assert torch.autograd.gradcheck(lambda u, v, b: solve_lstsq()(u @ v, b), args)


def test_equal_singular_values_have_derivatives() -> None:
    A, b = torch.eye(3).requires_grad_(), torch.randn(3).requires_grad_()
    for solver in (solve_lstsq(), solve_lstsq(ridge=0.5)):
        assert torch.autograd.gradcheck(lambda A, b, s=solver: s(A, b), (A, b))


@pytest.mark.parametrize("learned", [False, True])
def test_ridges_below_the_rounding_of_the_normal_equation_have_derivatives(learned: bool) -> None:
    def outputs(dtype: torch.dtype, solve: Any) -> Any:
        A = torch.ones(2, 2, dtype=dtype, requires_grad=True)
        b = torch.tensor([1.0, 3.0], dtype=dtype, requires_grad=True)
        x = solve(A, b)
        return x, *torch.autograd.grad(x[0] + 2 * x[1], (A, b))

    def normal_equation(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A.T @ A + 1e-9 * torch.eye(2), A.T @ b)

    ridge = torch.tensor(1e-9, dtype=torch.float32, requires_grad=True) if learned else 1e-9
    found = outputs(torch.float32, solve_lstsq(ridge=ridge, throw=True))
    expected = outputs(torch.float64, normal_equation)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_ridges_of_least_squares_have_derivatives_of_first_and_second_order(ridge: float) -> None:
    A, b = torch.randn(4, 2).requires_grad_(), torch.randn(4).requires_grad_()
    args = (A, b, torch.tensor(ridge, requires_grad=True))

    def solve(A: torch.Tensor, b: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
        return solve_lstsq(ridge=ridge)(A, b)

    assert torch.autograd.gradcheck(solve, args, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(solve, args)
    nested = torch.func.jacfwd(torch.func.jacrev(solve, argnums=(0, 2)), argnums=(0, 2))(*args)

    def dense(A: torch.Tensor, b: torch.Tensor, ridge: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A.T @ A + ridge * torch.eye(2), A.T @ b)

    expected = torch.func.jacfwd(torch.func.jacrev(dense, argnums=(0, 2)), argnums=(0, 2))(*args)
    torch.testing.assert_close(nested, expected)


def test_qr_breaks_down_on_operators_of_lower_rank() -> None:
    _, info = solve_qr().solve(torch.ones(4, 2), torch.ones(4))
    assert info.status is Status.BREAKDOWN


def test_square_methods_refuse_rectangular_operators() -> None:
    A = LinearOperator.from_matrix(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"`A` must be square.*solve_lstsq"):
        solve_cg()(A, torch.ones(3))


def test_compiled_functions_may_solve() -> None:
    A = torch.eye(3) * 2

    @torch.compile(backend="eager")
    def f(b: torch.Tensor) -> torch.Tensor:
        return solve_cg()(A, b * 2) + 1

    torch.testing.assert_close(f(torch.ones(3)), torch.full((3,), 2.0))


def test_preconditioners_of_transposed_solves_are_transposed() -> None:
    A = torch.randn(40, 40).triu() / 4 + torch.diag(torch.logspace(0, 3, 40))
    inverse = torch.linalg.inv(A)
    b = torch.randn(40, requires_grad=True)
    w = torch.randn(40)
    gradient = None
    for M_ in (inverse, None):
        solver = custom_root(lambda x, b: A @ x - b, argnums=1, solve=solve_gmres(M=M_, maxiter=2))
        x = solver(lambda init, b: torch.linalg.solve(A, b))(None, b)
        if M_ is None:
            with pytest.warns(FailedSolveWarning):
                torch.autograd.grad(x, b, w)
        else:
            (gradient,) = torch.autograd.grad(x, b, w)
    torch.testing.assert_close(gradient, torch.linalg.solve(A.T, w), rtol=1e-4, atol=1e-4)
