"""Every solver, on every structure it is for, alone and batched, with derivatives of all orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from torchopt_implicit import Status, custom_root
from torchopt_implicit.linalg import LinearOperator, cg, ns, ns_inv
from torchopt_implicit.linear_solve import (
    LinearSolver,
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_lstsq,
    solve_lu,
    solve_normal_cg,
)
from torchopt_implicit.linear_solve._krylov import Stop

N = 5
ITERATIVE = {"maxiter": 500}
DEFINITE, SYMMETRIC, GENERAL = "positive definite", "symmetric", "general"

SOLVERS: dict[str, tuple[Callable[..., Any], dict[str, Any], set[str]]] = {
    "cg": (solve_cg, ITERATIVE, {DEFINITE}),
    "normal_cg": (solve_normal_cg, ITERATIVE, {DEFINITE, SYMMETRIC, GENERAL}),
    "gmres": (solve_gmres, ITERATIVE, {DEFINITE, SYMMETRIC, GENERAL}),
    "gmres restarted": (solve_gmres, ITERATIVE | {"restart": 3}, {DEFINITE, GENERAL}),
    "bicgstab": (solve_bicgstab, ITERATIVE, {DEFINITE, SYMMETRIC, GENERAL}),
    "neumann": (solve_inv, ITERATIVE | {"ns": True, "alpha": 0.4}, {DEFINITE, GENERAL}),
    "inverse": (solve_inv, {}, {DEFINITE, SYMMETRIC, GENERAL}),
    "lu": (solve_lu, {}, {DEFINITE, SYMMETRIC, GENERAL}),
    "cholesky": (solve_cholesky, {}, {DEFINITE}),
    "lstsq": (solve_lstsq, {}, {DEFINITE, SYMMETRIC, GENERAL}),
}
ROWS = [(name, kind) for name, (_, _, kinds) in SOLVERS.items() for kind in sorted(kinds)]
# of the residual; derivatives lose some of it to the condition number, below 10
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def build(name: str, dtype: torch.dtype) -> LinearSolver:
    factory, options, _ = SOLVERS[name]
    if "maxiter" in options:
        options = options | {"rtol": TOLERANCE[dtype]}
    solver = factory(**options, throw=True)
    assert isinstance(solver, LinearSolver)
    return solver


def matrix(kind: str, dtype: torch.dtype) -> torch.Tensor:
    S = torch.randn(N, N, dtype=torch.float64)
    Q, _ = torch.linalg.qr(S)
    spectrum = torch.linspace(1.0, 3.0, N, dtype=torch.float64)
    if kind == SYMMETRIC:
        spectrum[1::2] *= -1
    A = Q @ torch.diag(spectrum) @ Q.T
    if kind == GENERAL:
        A = A + 0.3 * (S - S.T) / 2
    return A.to(dtype)


ORDERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "value": lambda f: f,
    "reverse": lambda f: grad(f, argnums=(0, 1)),
    "forward": lambda f: jacfwd(f, argnums=(0, 1)),
    "reverse over reverse": lambda f: jacrev(grad(f, argnums=1), argnums=(0, 1)),
    "forward over reverse": lambda f: jacfwd(grad(f, argnums=1), argnums=(0, 1)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
# what single precision may break is a solve: of the operator, and of its transpose
@pytest.mark.parametrize(
    ("dtype", "order"),
    [
        *((torch.float64, order) for order in ORDERS),
        *((torch.float32, order) for order in ("value", "reverse")),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [None, 3], ids=["single", "batch"])
@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_solutions_and_derivatives_equal_those_of_the_dense_solve(
    name: str, kind: str, batch: int | None, dtype: torch.dtype, order: str
) -> None:
    solver = build(name, dtype)

    @custom_root(lambda x, A, b: A @ x - b, argnums=(1, 2), solve=solver)
    def solve(init: None, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A, b)

    def ours(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solve(None, A, b).sin().sum()

    def dense(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A, b).sin().sum()

    A = torch.stack([matrix(kind, dtype) for _ in range(batch or 1)])
    b = torch.randn(batch or 1, N, dtype=dtype)
    if batch is None:
        A, b = A[0], b[0]
        x, info = solver.solve(A, b)
        assert info.status is Status.CONVERGED
        assert info.residual_norm == pytest.approx(float((b - A @ x).norm()), abs=1e-5)
    compute, expect = ORDERS[order](ours), ORDERS[order](dense)
    if batch is None:
        computed, expected = compute(A, b), expect(A, b)
    else:  # vmap(jacfwd(torch.linalg.solve)) itself is wrong in torch 2.13, hence a loop
        computed = vmap(compute)(A, b)
        rows = [expect(*row) for row in zip(A, b, strict=True)]
        expected = optree.tree_map(lambda *xs: torch.stack(xs), *rows)
    tolerance = 1e3 * TOLERANCE[dtype]
    torch.testing.assert_close(computed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_trees_of_any_shape_are_solved_for(name: str, dtype: torch.dtype) -> None:
    b = {"w": torch.randn(2, 3, dtype=dtype), "s": [torch.randn((), dtype=dtype)], "none": None}

    def A(x: Any) -> Any:
        return {"w": 2 * x["w"], "s": [1.5 * x["s"][0]], "none": None}

    x = build(name, dtype)(A, b)
    torch.testing.assert_close(x["w"], b["w"] / 2)
    torch.testing.assert_close(x["s"][0], b["s"][0] / 1.5)
    assert x["none"] is None


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("name", SOLVERS)
def test_defaults_work_at_size_0_and_1(name: str, size: int) -> None:
    factory, options, _ = SOLVERS[name]
    solver = factory(**{k: v for k, v in options.items() if k == "ns"}, throw=True)
    b = torch.full((size,), 3.0)
    torch.testing.assert_close(solver(lambda x: x, b), b)
    torch.testing.assert_close(solver(lambda x: x, torch.tensor(3.0)), torch.tensor(3.0))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_zero_right_hand_side_has_the_solution_zero(name: str) -> None:
    x, info = build(name, torch.float64).solve(
        matrix(DEFINITE, torch.float64), torch.zeros(N, dtype=torch.float64)
    )
    assert info.status is Status.CONVERGED
    assert not x.any()


@pytest.mark.parametrize("name", SOLVERS)
def test_ridge_is_added_to_the_operator(name: str) -> None:
    solver = build(name, torch.float64)
    factory, options, _ = SOLVERS[name]
    solver = factory(**options, ridge=0.5, throw=True)
    A, b = matrix(DEFINITE, torch.float64), torch.randn(N, dtype=torch.float64)
    I = torch.eye(N, dtype=torch.float64)  # noqa: E741
    expected = torch.linalg.solve(A + 0.5 * I, b)
    if name in {"normal_cg", "lstsq"}:
        expected = torch.linalg.solve(A.T @ A + 0.5 * I, A.T @ b)
    torch.testing.assert_close(solver(A, b), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cg", "normal_cg", "gmres", "bicgstab"])
def test_init_and_preconditioner_save_iterations(name: str) -> None:
    factory, _, _ = SOLVERS[name]
    scales = torch.logspace(0, 3, 40, dtype=torch.float64)
    A = torch.diag(scales) + 0.01
    b = torch.randn(40, dtype=torch.float64)
    x, plain = factory(rtol=1e-8, maxiter=4000).solve(A, b)
    M = scales**-2 if name == "normal_cg" else 1 / scales
    for options in ({"init": x}, {"M": torch.diag(M)}, {"M": lambda v: M * v}):
        y, info = factory(rtol=1e-8, **options).solve(A, b)
        assert info.status is Status.CONVERGED
        assert info.iterations < plain.iterations / 3
        torch.testing.assert_close(A @ y, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_direct_calls_run_under_vmap(name: str) -> None:
    solver = build(name, torch.float64)
    A = torch.stack([matrix(DEFINITE, torch.float64) for _ in range(3)])
    b = torch.randn(3, N, dtype=torch.float64)
    torch.testing.assert_close(vmap(solver)(A, b), torch.linalg.solve(A, b))
    x = vmap(solver, in_dims=(0, None))(A, b[0])
    torch.testing.assert_close(x, torch.linalg.solve(A, b[0].expand(3, N)))
    x = vmap(solver, in_dims=(None, 0))(A[0], b)
    torch.testing.assert_close(x, torch.linalg.solve(A[0], b.T).T)


def test_direct_calls_are_differentiable() -> None:
    A = matrix(DEFINITE, torch.float64).requires_grad_()
    b = torch.randn(N, dtype=torch.float64, requires_grad=True)
    solver = build("cg", torch.float64)
    assert torch.autograd.gradcheck(lambda A, b: solver(A @ A.T, b), (A, b))


@pytest.mark.parametrize("name", ["lu", "cholesky", "lstsq"])
def test_the_transposed_solve_reuses_the_factorization(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = build(name, torch.float64)
    calls = []
    factorize = type(solver).factorize
    monkeypatch.setattr(
        type(solver), "factorize", lambda *args: calls.append(1) or factorize(*args)
    )

    @custom_root(lambda x, A, b: A @ x - b, argnums=(1, 2), solve=solver)
    def solve(init: None, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(A, b)

    A = matrix(DEFINITE, torch.float64).requires_grad_()
    b = torch.randn(N, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(solve(None, A, b).sin().sum(), A, create_graph=True)
    torch.autograd.grad(first.pow(2).sum(), (A, b))
    assert len(calls) == 1


def test_accelerators_are_waited_for_in_every_tenth_iteration_only() -> None:
    unreadable = torch.ones(3, dtype=torch.bool, device="meta")
    stop = Stop(tolerance=torch.zeros(()), limit=100, size=torch.ones(()))
    assert not any(stop.is_due(i, unreadable) for i in range(1, 10))
    with pytest.raises(RuntimeError, match="meta"):
        stop.is_due(10, unreadable)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SOLVERS)
def test_accelerators_give_what_the_cpu_gives(name: str, dtype: torch.dtype) -> None:
    @custom_root(lambda x, A, b: A @ x + x**3 - b, argnums=(1, 2), solve=build(name, dtype))
    def solve(init: None, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(b)
        for _ in range(30):
            J = A + torch.diag(3 * x**2)
            x = x - torch.linalg.solve(J, A @ x + x**3 - b)
        return x

    A = torch.stack([matrix(DEFINITE, dtype) for _ in range(3)])
    b = torch.randn(3, N, dtype=dtype) / 10
    gradient = vmap(grad(lambda A, b: solve(None, A, b).sum(), argnums=(0, 1)))
    computed = [g.cpu() for g in gradient(A.cuda(), b.cuda())]
    tolerance = 1e3 * TOLERANCE[dtype]
    for x, y in zip(computed, gradient(A, b), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def test_functions_of_linalg_solve_and_sum() -> None:
    A = torch.tensor([[0.8, 0.1], [0.1, 0.9]], dtype=torch.float64)
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = torch.linalg.solve(A, b)
    torch.testing.assert_close(cg(A, b, rtol=1e-12), expected)
    _, info = cg(A, b, x0=expected, return_info=True)
    assert (info.iterations, info.status) == (0, Status.CONVERGED)
    torch.testing.assert_close(ns(A, b, maxiter=100), expected)
    torch.testing.assert_close(ns({"A": A}["A"], b, 3, alpha=0.5), sum_of_series(A, 4, 0.5) @ b)
    torch.testing.assert_close(ns_inv(A, 100), torch.linalg.inv(A))
    torch.testing.assert_close(ns_inv((A,), 4, alpha=0.5)[0], sum_of_series(A, 4, 0.5))


@pytest.mark.parametrize(
    "solver", [solve_cg(), solve_normal_cg(), solve_inv(), solve_inv(ns=True, maxiter=100)]
)
def test_the_operator_may_be_given_by_either_name(solver: Any) -> None:
    A = torch.tensor([[0.8, 0.1], [0.1, 0.9]], dtype=torch.float64)
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = solver(lambda x: A @ x, b)
    torch.testing.assert_close(expected, torch.linalg.solve(A, b), rtol=1e-4, atol=1e-4)
    for options in ({"matvec": lambda x: A @ x}, {"A": lambda x: A @ x}):
        torch.testing.assert_close(solver(**options, b=b), expected, rtol=0, atol=0)


def sum_of_series(A: torch.Tensor, terms: int, alpha: float) -> torch.Tensor:
    I = torch.eye(len(A), dtype=A.dtype)  # noqa: E741
    powers = [torch.linalg.matrix_power(I - alpha * A, k) for k in range(terms)]
    return alpha * torch.stack(powers).sum(0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: solve_cg(maxiter=-1), ValueError, "`maxiter` must be non-negative, got -1"),
        (lambda: solve_cg(rtol=-1.0), ValueError, "`rtol` must be non-negative"),
        (lambda: solve_gmres(restart=0), ValueError, "`restart` must be positive, got 0"),
        (lambda: solve_cg(tol=1.0), TypeError, "tol"),
        (lambda: solve_cg(truncate=True), ValueError, "`truncate=True` needs `maxiter`"),
        (lambda: solve_gmres(truncate=5), TypeError, "`truncate` must be a bool, got 5"),
        (lambda: solve_inv(truncate=True), TypeError, "truncate"),
        (
            lambda: solve_cg()(torch.eye(2), torch.ones(2), matvec=torch.eye(2)),
            TypeError,
            "CG solves for `b` with one operator, `A` or `matvec`, got `A` and `matvec` and `b`",
        ),
        (lambda: solve_inv()(b=torch.ones(2)), TypeError, "LU solves .*, got `b`: call it as"),
        (lambda: solve_cg()(matvec=torch.eye(2)), TypeError, "`A` or `matvec`, got `matvec`:"),
        (lambda: solve_cg()(), TypeError, "`A` or `matvec`, got neither: call it as"),
        (lambda: solve_inv(maxiter=3), TypeError, "maxiter"),
        (lambda: solve_cg()(3, torch.ones(2)), TypeError, "`A` must be a callable, a matrix"),
        (lambda: solve_cg()(torch.eye(3), torch.ones(2)), ValueError, r"shape \(2, 2\)"),
        (lambda: solve_cg()(lambda x: x[:1], torch.ones(2)), ValueError, r"\[2\], got \[1\]"),
        (lambda: solve_cg()(torch.eye(2), [1.0, 2.0]), TypeError, "`b` must be a tree of float"),
        (lambda: ns_inv(torch.ones(2, 3)), ValueError, "`A` must be a square matrix"),
        (lambda: LinearOperator.from_matrix(torch.ones(2)), ValueError, "two dimensions"),
    ],
)
def test_wrong_options_and_operators_are_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()
