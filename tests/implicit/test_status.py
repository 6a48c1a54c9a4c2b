"""Solves that must fail say how, and derivatives do not hide it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, vmap

from torchopt_implicit import (
    FailedSolveError,
    FailedSolveWarning,
    Info,
    Status,
    custom_root,
    stationarity,
)
from torchopt_implicit.linalg import cg, ns
from torchopt_implicit.linear_solve import (
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_lstsq,
    solve_lu,
    solve_normal_cg,
)

SOLVERS = {
    "cg": solve_cg,
    "normal_cg": solve_normal_cg,
    "gmres": solve_gmres,
    "bicgstab": solve_bicgstab,
    "neumann": lambda **options: solve_inv(ns=True, **options),
    "lu": solve_lu,
    "cholesky": solve_cholesky,
    "lstsq": solve_lstsq,
}
ITERATIVE = {"cg", "normal_cg", "gmres", "bicgstab", "neumann"}
NAN, INF = float("nan"), float("inf")
HARD = torch.diag(torch.logspace(-3, 0, 60, dtype=torch.float64))
SINGULAR = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
ONES = torch.ones(60, dtype=torch.float64)
THREE = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
ROTATION = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
TWO = torch.ones(2, dtype=torch.float64)

FAILURES = [
    ("cg", {"maxiter": 3}, HARD, ONES, Status.ITERATION_LIMIT),
    ("normal_cg", {"maxiter": 3}, HARD, ONES, Status.ITERATION_LIMIT),
    ("gmres", {"maxiter": 3}, HARD, ONES, Status.ITERATION_LIMIT),
    ("bicgstab", {"maxiter": 3}, HARD, ONES, Status.ITERATION_LIMIT),
    ("neumann", {"maxiter": 3, "rtol": 1e-5}, HARD, ONES, Status.ITERATION_LIMIT),
    ("neumann", {}, HARD, ONES, Status.ITERATION_LIMIT),
    ("cg", {"maxiter": 3, "rtol": 1e-5, "atol": 0}, HARD, ONES, Status.ITERATION_LIMIT),
    ("cg", {"maxiter": 3, "atol": 1e-9}, HARD, ONES, Status.ITERATION_LIMIT),
    ("cg", {"maxiter": 3, "atol": 0, "truncate": False}, HARD, ONES, Status.ITERATION_LIMIT),
    ("cg", {"maxiter": 0}, HARD, ONES, Status.ITERATION_LIMIT),
    ("cg", {"rtol": 1e-18, "maxiter": 5000}, HARD, ONES, Status.STAGNATED),
    ("gmres", {"rtol": 1e-18, "maxiter": 5000, "restart": 60}, HARD, ONES, Status.STAGNATED),
    ("cg", {}, ROTATION, TWO, Status.BREAKDOWN),
    ("cg", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("normal_cg", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("gmres", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("bicgstab", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("lu", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("cholesky", {}, SINGULAR, THREE, Status.BREAKDOWN),
    ("cholesky", {}, -HARD, ONES, Status.BREAKDOWN),
    ("cg", {}, 0 * SINGULAR, THREE, Status.BREAKDOWN),
    # truncation is no excuse for these
    ("cg", {"maxiter": 3, "truncate": True}, ROTATION, TWO, Status.BREAKDOWN),
    ("cg", {"maxiter": 3, "atol": 0}, SINGULAR, THREE * NAN, Status.NOT_FINITE),
    ("neumann", {"maxiter": 5}, 3 * HARD, ONES, Status.BREAKDOWN),
    ("neumann", {"maxiter": 5000}, 3 * HARD, ONES, Status.NOT_FINITE),
    *((name, {}, SINGULAR, THREE * NAN, Status.NOT_FINITE) for name in SOLVERS),
    *((name, {}, SINGULAR, THREE * INF, Status.NOT_FINITE) for name in SOLVERS),
]


@pytest.mark.parametrize(
    ("name", "options", "A", "b", "status"),
    FAILURES,
    ids=[f"{row[0]}-{row[4].name}-{i}" for i, row in enumerate(FAILURES)],
)
def test_a_failed_solve_is_named(
    name: str, options: dict[str, Any], A: torch.Tensor, b: torch.Tensor, status: Status
) -> None:
    x, info = SOLVERS[name](**options).solve(A, b)
    assert info.status is status
    expected = float((b - A @ x).norm())
    if math.isfinite(expected):
        assert info.residual_norm == pytest.approx(expected, rel=1e-6, abs=1e-14)
    with pytest.warns(FailedSolveWarning, match=f"{status.name}: {status.message}"):
        SOLVERS[name](**options)(A, b)
    with pytest.raises(FailedSolveError, match=status.name) as caught:
        SOLVERS[name](**options, throw=True)(A, b)
    assert caught.value.info.status is status


TRUNCATED = [
    *((name, {"maxiter": 3, "truncate": True}) for name in SOLVERS if name in ITERATIVE),
    *((name, {"maxiter": 3, "atol": 0}) for name in SOLVERS if name in ITERATIVE),
    ("cg", {"maxiter": 3, "rtol": 0.0, "atol": 0.0}),
    ("normal_cg", {"maxiter": 3, "atol": 0, "ridge": 0.1}),
    ("cg", {"maxiter": 0, "truncate": True}),
    ("neumann", {"maxiter": 3}),
]


@pytest.mark.parametrize(("name", "options"), TRUNCATED)
def test_a_solve_that_was_to_be_truncated_did_not_fail(name: str, options: dict[str, Any]) -> None:
    solver = SOLVERS[name](**options, throw=True)
    x, info = solver.solve(HARD, ONES)
    assert info.status is Status.TRUNCATED
    assert not info.all_converged
    assert info.iterations == options["maxiter"]
    assert info.describe().startswith("TRUNCATED: `maxiter` iterations were done, as was asked")
    torch.testing.assert_close(solver(HARD, ONES), x, rtol=0, atol=0)
    in_full = SOLVERS[name](**{**options, "rtol": 1e-5, "truncate": False})
    torch.testing.assert_close(in_full.solve(HARD, ONES)[0], x, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name in ITERATIVE])
def test_a_truncated_solve_may_converge(name: str) -> None:
    eye = torch.eye(3, dtype=torch.float64)
    assert SOLVERS[name](maxiter=3, truncate=True).solve(eye, THREE)[1].all_converged


def test_a_truncated_solve_beyond_the_number_of_unknowns_is_silent() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    for maxiter in (3, 4, 20):
        x = solve_cg(maxiter=maxiter, rtol=0.0, throw=True)(A, THREE)
        torch.testing.assert_close(x, torch.ones_like(x))


def test_derivatives_by_a_truncated_solve_are_silent() -> None:
    t = ONES.clone().requires_grad_()
    solve = solve_normal_cg(maxiter=5, atol=0)
    root(solve)(t).sum().backward()
    torch.testing.assert_close(t.grad, solve.solve(HARD.T, ONES)[0])
    batch = vmap(grad(lambda t: root(solve)(t).sum()))(ONES.repeat(4, 1))
    torch.testing.assert_close(batch, t.grad.repeat(4, 1))


def test_functions_of_linalg_may_be_truncated() -> None:
    for options in ({"truncate": True}, {"rtol": 0.0}):
        _, info = cg(HARD, ONES, maxiter=3, return_info=True, **options)
        assert (info.iterations, info.status) == (3, Status.TRUNCATED)
        cg(HARD, ONES, maxiter=3, **options)
    with pytest.warns(FailedSolveWarning, match="ITERATION_LIMIT"):
        cg(HARD, ONES, maxiter=3)
    for maxiter, count in ((None, 10), (4, 4)):
        _, info = ns(HARD, ONES, maxiter, return_info=True)
        assert (info.iterations, info.status) == (count, Status.TRUNCATED)


def test_a_batch_counts_failures_apart_from_what_was_truncated() -> None:
    status = torch.tensor([Status.CONVERGED, Status.TRUNCATED, Status.TRUNCATED])
    info = Info(torch.tensor([1, 2, 2]), torch.zeros(3), status)
    assert (info.worst, info.all_converged) == (Status.TRUNCATED, False)
    assert info.describe().startswith("TRUNCATED in 2 of 3 problems")
    status[0] = Status.BREAKDOWN
    assert info.describe().startswith("BREAKDOWN in 1 of 3 problems")


@pytest.mark.parametrize("name", ["normal_cg", "gmres", "lstsq"])
def test_a_singular_system_with_a_solution_is_solved(name: str) -> None:
    b = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    x, info = SOLVERS[name]().solve(SINGULAR, b)
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(SINGULAR @ x, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_convergence_is_that_of_the_true_residual(dtype: torch.dtype) -> None:
    A = torch.diag(torch.logspace(-6, 0, 50, dtype=dtype))
    b = torch.randn(50, dtype=dtype)
    for solver in (solve_cg(maxiter=3000), solve_bicgstab(maxiter=3000), solve_normal_cg()):
        x, info = solver.solve(A, b)
        true = float((b - A @ x).norm())
        assert (info.status is Status.CONVERGED) == (true <= 1.001e-5 * float(b.norm()))


def root(solve: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    @custom_root(lambda x, t: HARD @ x - t, argnums=1, solve=solve)
    def solver(init: None, t: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(HARD, t)

    return lambda t: solver(None, t)


def test_a_failed_solve_in_backward_warns_once_with_the_residual() -> None:
    x = root(solve_cg(maxiter=2))
    t = ONES.clone().requires_grad_()
    with pytest.warns(FailedSolveWarning, match=r"ITERATION_LIMIT.*residual norm \d"):
        x(t).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x(t).sum().backward()


def test_a_failed_solve_in_backward_raises_on_demand() -> None:
    x = root(solve_cg(maxiter=2, throw=True))
    t = ONES.clone().requires_grad_()
    for _ in range(2):
        with pytest.raises(FailedSolveError, match="derivative of solver failed"):
            x(t).sum().backward()
    with pytest.raises(FailedSolveError, match="in 4 of 4 problems"):
        vmap(grad(lambda t: x(t).sum()))(ONES.repeat(4, 1))


@pytest.mark.parametrize("solve", [solve_cg(), solve_lu(), lambda A, b: A(b)])
def test_a_nan_in_the_right_hand_side_is_said_to_be_there_from_the_start(solve: Any) -> None:
    t = ONES.clone().requires_grad_()
    with pytest.warns(FailedSolveWarning, match="right-hand side was not finite to begin with"):
        (root(solve)(t).sum() * NAN).backward()


def test_converged_solves_are_silent() -> None:
    t = ONES.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root(solve_cg())(t).sum().backward()
    torch.testing.assert_close(t.grad, 1 / HARD.diagonal(), rtol=1e-3, atol=1e-3)


def test_a_batch_has_a_status_for_each_problem() -> None:
    A = torch.stack([SINGULAR, SINGULAR + torch.eye(3, dtype=torch.float64)])
    b = THREE.repeat(2, 1)
    _, info = vmap(solve_lu().solve)(A, b)
    assert info.status.tolist() == [Status.BREAKDOWN, Status.CONVERGED]
    info = Info(torch.tensor([1, 2]), torch.tensor([0.5, 0.0]), info.status)
    assert info.worst is Status.BREAKDOWN
    assert "in 1 of 2 problems" in info.describe()


def test_every_status_has_its_own_sentence() -> None:
    assert len({status.message for status in Status}) == len(Status)


def test_stationarity_measures_and_warns() -> None:
    def f(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x**2 - a

    x, a = torch.tensor(1.5), torch.tensor(2.0)
    assert stationarity(f, x, a) == pytest.approx(0.25)
    assert stationarity(f, x, a, tol=0.3) == pytest.approx(0.25)
    with pytest.warns(FailedSolveWarning, match=r"has the norm 0\.25, above `tol` = 0\.1"):
        stationarity(f, x, a, tol=0.1)
    with pytest.raises(FailedSolveError, match="not stationary"):
        stationarity(f, x * NAN, a, tol=0.1, throw=True)
