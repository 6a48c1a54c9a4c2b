"""A direct linear solve has derivatives, wherever its operator has its tensors from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchopt_implicit import FailedSolveWarning, custom_root
from torchopt_implicit.linalg import LinearOperator, cg, ns
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

pytestmark = pytest.mark.usefixtures("float64")
N = 4
TIGHT = {"rtol": 1e-14, "maxiter": 200}
SOLVERS: dict[str, Callable[[], Any]] = {
    "cg": lambda: solve_cg(**TIGHT),
    "normal_cg": lambda: solve_normal_cg(**TIGHT),
    "gmres": lambda: solve_gmres(**TIGHT),
    "bicgstab": lambda: solve_bicgstab(**TIGHT),
    "neumann": lambda: solve_inv(ns=True, alpha=0.3, **TIGHT),
    "linalg.cg": lambda: lambda A, b: cg(A, b, **TIGHT),
    "lu": solve_lu,
    "cholesky": solve_cholesky,
    "lstsq": solve_lstsq,
    "auto": solve_auto,
}
ITERATIVE = ["cg", "normal_cg", "gmres", "bicgstab", "neumann", "linalg.cg"]


def spd(seed: int = 0) -> torch.Tensor:
    S = torch.randn(N, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.eye(N) * 2 + S @ S.T / N


class Net(torch.nn.Module):
    """A symmetric positive definite map with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.root = torch.nn.Parameter(torch.randn(N, N) / 4)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return 2 * v + self.root @ (self.root.T @ v)


#: how the matrix 2 I + R R^T reaches the solver, given R
OPERATORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "matrix": lambda R: 2 * torch.eye(N) + R @ R.T,
    "function": lambda R: lambda v: 2 * v + R @ (R.T @ v),
    "operator": lambda R: LinearOperator.from_matrix(2 * torch.eye(N) + R @ R.T),
    "sum": lambda R: (
        LinearOperator.identity(torch.zeros(N)) * 2
        + LinearOperator.from_function(lambda v: R @ v, torch.zeros(N))
        @ LinearOperator.from_function(lambda v: R @ v, torch.zeros(N)).T
    ),
    "jacobian": lambda R: LinearOperator.jacobian(
        grad(lambda x: x @ x + (R.T @ x).square().sum() / 2), torch.ones(N), positive_definite=True
    ),
    "forward over reverse": lambda R: (
        lambda v: jvp(grad(lambda x: x @ x + (R.T @ x).square().sum() / 2), (torch.ones(N),), (v,))[
            1
        ]
    ),
    "rows by vmap": lambda R: lambda v: 2 * v + vmap(lambda row: row @ (R.T @ v))(R),
}
ORDERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "reverse": lambda f: jacrev(f, argnums=(0, 1)),
    "forward": lambda f: jacfwd(f, argnums=(0, 1)),
    "reverse over reverse": lambda f: jacrev(jacrev(f), argnums=(0, 1)),
    "forward over reverse": lambda f: jacfwd(jacrev(f), argnums=(0, 1)),
}


def dense(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(2 * torch.eye(N) + R @ R.T, b)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_jacobian_at_zero_is_the_inverse(name: str) -> None:
    A = spd()
    for jacobian in (jacrev, jacfwd):
        inverse = jacobian(lambda b: SOLVERS[name]()(A, b))(torch.zeros(N))
        torch.testing.assert_close(inverse, torch.linalg.inv(A))


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_are_as_good_as_solutions(name: str) -> None:
    A, b = spd(), torch.randn(N, requires_grad=True)
    x = SOLVERS[name]()(A, b)
    error = (x - torch.linalg.solve(A, b)).norm()
    (gradient,) = torch.autograd.grad(x[0], b)
    assert error < 1e-12
    torch.testing.assert_close(gradient, torch.linalg.inv(A)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["cg", "gmres"])
def test_derivatives_reach_what_the_operator_is_made_of(
    name: str, order: str, operator: str
) -> None:
    R, b = torch.randn(N, N) / 4, torch.randn(N)

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SOLVERS[name]()(OPERATORS[operator](R), b).sin().sum()

    def expected(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return dense(R, b).sin().sum()

    torch.testing.assert_close(ORDERS[order](ours)(R, b), ORDERS[order](expected)(R, b))


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_of_first_and_second_order_in_closed_over_tensors(name: str) -> None:
    R = (torch.randn(N, N) / 4).requires_grad_()
    b = torch.randn(N, requires_grad=True)

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SOLVERS[name]()(lambda v: 2 * v + R @ (R.T @ v), b)

    assert torch.autograd.gradcheck(ours, (R, b))
    assert torch.autograd.gradgradcheck(ours, (R, b))


def test_a_module_in_a_matvec_is_trained() -> None:
    net, b = Net().double(), torch.randn(N)
    solve_cg(**TIGHT)(net, b).square().sum().backward()
    R = net.root.detach().clone().requires_grad_()
    dense(R, b).square().sum().backward()
    torch.testing.assert_close(net.root.grad, R.grad)


@pytest.mark.parametrize("name", ITERATIVE)
def test_vmap_of_gradients_over_closed_over_tensors(name: str) -> None:
    R, b = torch.randn(3, N, N) / 4, torch.randn(3, N)

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SOLVERS[name]()(lambda v: 2 * v + R @ (R.T @ v), b).sin().sum()

    def expected(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return dense(R, b).sin().sum()

    for dims in ((0, 0), (0, None), (None, 0)):
        args = tuple(x if d == 0 else x[0] for x, d in zip((R, b), dims, strict=True))
        computed = vmap(grad(ours, argnums=(0, 1)), in_dims=dims)(*args)
        whole = (R if dims[0] == 0 else R[:1].expand(3, N, N), b if dims[1] == 0 else b[[0, 0, 0]])
        rows = [grad(expected, argnums=(0, 1))(*row) for row in zip(*whole, strict=True)]
        for x, y in zip(computed, zip(*rows, strict=True), strict=True):
            torch.testing.assert_close(x, torch.stack(y))


@pytest.mark.parametrize("name", ["cg", "gmres", "bicgstab"])
def test_a_vmap_of_a_vmap_is_a_loop_of_loops(name: str) -> None:
    R, b = torch.randn(2, N, N) / 4, torch.randn(3, N)

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SOLVERS[name]()(lambda v: 2 * v + R @ (R.T @ v), b)

    computed = vmap(vmap(ours, (None, 0)), (0, None))(R, b)
    torch.testing.assert_close(computed, torch.stack([dense(r, b.T).T for r in R]))


@pytest.mark.parametrize("name", SOLVERS)
def test_batched_gradients(name: str) -> None:
    R = (torch.randn(N, N) / 4).requires_grad_()
    b = torch.randn(N, requires_grad=True)
    cotangents = torch.eye(N)
    results = []
    for x in (SOLVERS[name]()(lambda v: 2 * v + R @ (R.T @ v), b), dense(R, b)):
        results.append(torch.autograd.grad(x, (R, b), cotangents, is_grads_batched=True))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("solve", [None, solve_cg(**TIGHT)], ids=["direct", "iterative"])
def test_batched_gradients_of_implicit_functions(solve: Any) -> None:
    @custom_root(lambda x, R, b: 2 * x + R @ (R.T @ x) - b, argnums=(1, 2), solve=solve)
    def solver(init: None, R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return dense(R, b)

    R = (torch.randn(N, N) / 4).requires_grad_()
    b = torch.randn(N, requires_grad=True)
    options = {"is_grads_batched": True, "create_graph": True}
    results = []
    for x in (solver(None, R, b), dense(R, b)):
        first = torch.autograd.grad(x, (R, b), torch.eye(N), **options)
        second = torch.autograd.grad(first[0].square().sum(), (R, b))
        results.append((first, second))
    torch.testing.assert_close(*results)


def test_hessians_of_solutions() -> None:
    R, b = torch.randn(N, N) / 4, torch.randn(N)

    def loss(solve: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda t: solve(t * R, b).sin().sum()

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solve_cg(**TIGHT)(lambda v: 2 * v + R @ (R.T @ v), b)

    t = torch.tensor(0.7)
    torch.testing.assert_close(hessian(loss(ours))(t), hessian(loss(dense))(t))
    third = jacrev(jacrev(jacrev(loss(ours))))(t)
    torch.testing.assert_close(third, jacrev(jacrev(jacrev(loss(dense))))(t))


def test_ridges_that_are_tensors_have_gradients() -> None:
    A, b = spd(), torch.randn(N)
    rho = torch.tensor(0.5, requires_grad=True)
    for name, make in {
        "cg": solve_cg,
        "gmres": solve_gmres,
        "bicgstab": solve_bicgstab,
        "lu": solve_lu,
        "normal_cg": solve_normal_cg,
        "lstsq": solve_lstsq,
    }.items():
        options = {} if name in {"lu", "lstsq"} else TIGHT
        (computed,) = torch.autograd.grad(make(ridge=rho, **options)(A, b).sum(), rho)
        matrix, right = (A.T @ A, A.T @ b) if name in {"normal_cg", "lstsq"} else (A, b)

        def dense_sum(
            r: torch.Tensor, matrix: torch.Tensor = matrix, right: torch.Tensor = right
        ) -> torch.Tensor:
            return torch.linalg.solve(matrix + r * torch.eye(N), right).sum()

        expected = grad(dense_sum)(rho.detach())
        torch.testing.assert_close(computed, expected, msg=name)


def test_derivatives_of_truncated_solves_are_truncated_solves() -> None:
    A, b = spd(), torch.randn(N, requires_grad=True)
    w = torch.randn(N)
    solver = solve_cg(maxiter=2, rtol=0.0)
    (gradient,) = torch.autograd.grad(solver(A, b), b, w)
    torch.testing.assert_close(gradient, solver(A, w))
    gradient = jacrev(lambda b: ns(A / 4, b, 5))(torch.zeros(N))
    powers = [torch.linalg.matrix_power(torch.eye(N) - A / 4, k) for k in range(6)]
    torch.testing.assert_close(gradient, torch.stack(powers).sum(0))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_an_absolute_tolerance_concerns_the_solution_not_its_derivatives(scale: float) -> None:
    A, b = spd(), torch.randn(N, requires_grad=True)
    x = solve_cg(rtol=0.0, atol=1e-6)(A, b)
    (gradient,) = torch.autograd.grad(scale * x[0], b)
    torch.testing.assert_close(gradient / scale, torch.linalg.inv(A)[0], rtol=1e-6, atol=1e-6)


def test_a_failed_solve_for_a_derivative_is_reported() -> None:
    A = torch.diag(torch.logspace(0, 5, 40)).requires_grad_()
    b = torch.zeros(40, requires_grad=True)
    x = solve_cg(maxiter=3)(A, b)  # nothing to do
    with pytest.warns(FailedSolveWarning, match="derivative of a solution by CG failed, ITERATION"):
        torch.autograd.grad(x.sum(), b)


def test_a_failed_solve_under_vmap_is_reported() -> None:
    A, b = torch.diag(torch.logspace(0, 5, 40)), torch.ones(3, 40)
    with pytest.warns(FailedSolveWarning, match="by CG failed, ITERATION_LIMIT in 3 of 3"):
        vmap(solve_cg(maxiter=3), in_dims=(None, 0))(A, b)


@pytest.mark.parametrize("name", ["cg", "gmres", "neumann"])
def test_initial_guesses_and_preconditioners_change_no_derivative(name: str) -> None:
    R, b = torch.randn(2, N, N) / 4, torch.randn(2, N)
    make = {
        "cg": lambda x, M: solve_cg(init=x, M=M, **TIGHT),
        "gmres": lambda x, M: solve_gmres(init=x, M=M, **TIGHT),
        "neumann": lambda x, M: solve_inv(ns=True, alpha=0.3 + 0 * x.sum(), **TIGHT),
    }[name]

    def ours(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        A = 2 * torch.eye(N) + R @ R.T
        solver = make(b / 2, lambda v: v / A.diagonal())
        return solver(A, b).sin().sum()

    def expected(R: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return dense(R, b).sin().sum()

    computed = vmap(grad(ours, argnums=(0, 1)))(R, b)
    rows = [grad(expected, argnums=(0, 1))(*row) for row in zip(R, b, strict=True)]
    for x, y in zip(computed, zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(x, torch.stack(y))


def test_complex_systems() -> None:
    S = torch.randn(N, N, dtype=torch.complex128)
    A = (torch.eye(N) * 2 + S @ S.mH / N).requires_grad_()
    b = torch.randn(N, dtype=torch.complex128, requires_grad=True)
    for solver in (solve_cg(**TIGHT), solve_gmres(**TIGHT), solve_lu(), solve_lstsq()):

        def hermitian(A: torch.Tensor, b: torch.Tensor, solver: Any = solver) -> torch.Tensor:
            return solver((A + A.mH) / 2, b)

        torch.testing.assert_close(hermitian(A, b), torch.linalg.solve(A, b))
        assert torch.autograd.gradcheck(hermitian, (A, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["cg", "gmres", "normal_cg", "bicgstab", "lu", "cholesky", "lstsq"]
)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    make = {"cg": solve_cg, "gmres": solve_gmres, "normal_cg": solve_normal_cg}
    make |= {"bicgstab": solve_bicgstab, "lu": solve_lu, "cholesky": solve_cholesky}
    solver = {**make, "lstsq": solve_lstsq}[name]
    solver = solver() if name in {"lu", "cholesky", "lstsq"} else solver(rtol=2e-2)
    A, b = spd().to(dtype), torch.ones(N, dtype=dtype, requires_grad=True)
    x = solver(A, b)
    assert x.dtype is dtype
    (gradient,) = torch.autograd.grad(x.sum(), b)
    expected = torch.linalg.solve(A.double(), torch.ones(N))
    torch.testing.assert_close(x.double(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(gradient.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", SOLVERS)
def test_trees_with_scalars_none_and_nothing(name: str) -> None:
    t = torch.tensor(1.0, requires_grad=True)
    b = {"w": torch.ones(2, 1) * t, "s": 2 * t, "none": None, "empty": torch.zeros(0)}

    def A(x: Any) -> Any:
        return {"w": 2 * x["w"], "s": t * x["s"], "none": None, "empty": x["empty"]}

    x = SOLVERS[name]()(A, b)
    (gradient,) = torch.autograd.grad(x["w"].sum() + x["s"], t)
    assert x["none"] is None
    assert x["empty"].shape == (0,)
    torch.testing.assert_close(gradient, torch.tensor(1.0))  # 2 t / 2 + 2 t / t


def test_a_graph_made_before_the_solve_is_used_but_not_differentiated_in_silence() -> None:
    params = torch.randn(N, requires_grad=True)
    b = torch.randn(N, requires_grad=True)
    loss = (params**4).sum() / 12 + params @ params
    (g,) = torch.autograd.grad(loss, params, create_graph=True)
    H = torch.diag(params.detach() ** 2 + 2)
    for create_graph in (False, True):

        def product(v: torch.Tensor, create_graph: bool = create_graph) -> torch.Tensor:
            options = {"retain_graph": True, "create_graph": create_graph}
            return torch.autograd.grad(g, params, v, **options)[0]

        x = solve_cg(**TIGHT)(product, b)
        torch.testing.assert_close(x, torch.linalg.solve(H, b))
        (gradient,) = torch.autograd.grad(x.sum(), b, retain_graph=True)
        torch.testing.assert_close(gradient, torch.linalg.inv(H).sum(0))
    with pytest.raises(NotImplementedError, match=r"use LinearOperator\.jacobian"):
        torch.autograd.grad(x.sum(), params)


def test_matvecs_that_call_autograd_themselves() -> None:
    params = torch.randn(N, requires_grad=True)
    b = torch.randn(N)

    def product(v: torch.Tensor) -> torch.Tensor:
        p = params * 1.0
        (g,) = torch.autograd.grad((p**4).sum() / 12 + p @ p, p, create_graph=True)
        return torch.autograd.grad(g, p, v, create_graph=True)[0]

    x = solve_cg(**TIGHT)(product, b)
    (gradient,) = torch.autograd.grad(x.sum(), params)
    expected = grad(lambda p: (b / (p**2 + 2)).sum())(params.detach())
    torch.testing.assert_close(gradient, expected)


def test_pullbacks_made_before_the_solve() -> None:
    M = spd()
    pullback = vjp(lambda x: M @ x, torch.zeros(N))[1]
    b = torch.randn(N, requires_grad=True)
    x = solve_cg(**TIGHT)(lambda v: pullback(v)[0], b)
    (gradient,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(gradient, torch.linalg.inv(M).sum(0))


def test_data_changed_between_the_passes_are_refused() -> None:
    A = spd()
    R = torch.zeros(N, N, requires_grad=True)
    scale = torch.ones(())
    b = torch.randn(N)
    moved = scale * R
    x = solve_cg(**TIGHT)(lambda v: A @ v + moved @ v, b)
    with torch.no_grad():
        moved.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_nothing_is_kept_where_nothing_has_derivatives() -> None:
    A, b = spd(), torch.randn(N)
    assert not solve_cg()(A, b).requires_grad
    with torch.no_grad():
        assert not solve_cg()(A.requires_grad_(), b).requires_grad


def test_dual_numbers() -> None:
    A, b, db = spd(), torch.randn(N), torch.randn(N)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(b, db)
        x = solve_cg(**TIGHT)(A, dual)
        tangent = torch.autograd.forward_ad.unpack_dual(x).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent, torch.linalg.solve(A, db))
