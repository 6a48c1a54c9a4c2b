"""How solutions of solvers are differentiated, in what, in which dtype, and when compiled."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import optree
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

from implicit.test_solvers import CASES, build, each_case, quartic
from torchopt_implicit.differentiation import Constant, Implicit, Neumann, OneStep, Unrolled
from torchopt_implicit.linear_solve import solve_cg, solve_gmres, solve_lu
from torchopt_implicit.solvers import (
    bisection,
    broyden,
    gradient_descent,
    lbfgs,
    levenberg_marquardt,
    newton,
    qp,
)


def marked(names: Iterable[str]) -> list[Any]:
    """Rows, of which those that go through many linear solves take long."""
    slow = "levenberg_marquardt, matrix-free"
    return [pytest.param(x, marks=pytest.mark.slow if x == slow else ()) for x in names]


@pytest.mark.parametrize("name", marked(name for name in CASES if name != "bisection"))
def test_unrolled_steps_have_the_derivatives_of_the_solution(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    exact = jacrev(lambda a: solver(start, a))(a)
    # a few iterations more, since derivatives converge after the iterate
    options: dict[str, Any] = {"differentiation": Unrolled(), "tol": 1e-14}
    if "matrix-free" in name or "Krylov" in name:
        options["derivative_solve"] = None
    unrolled, start, a = build(name, torch.float64, **options)
    for jacobian in (jacrev, jacfwd):
        got = jacobian(lambda a: unrolled.run(start, a)[0])(a)
        torch.testing.assert_close(got, exact, atol=2e-4, rtol=2e-4)
    leaf = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(unrolled.run(start, leaf)[0].sum(), leaf)
    torch.testing.assert_close(gradient, exact.sum(0), atol=2e-4, rtol=2e-4)
    (batched,) = vmap(grad(lambda a: unrolled.run(start, a)[0].sum()))(a.unsqueeze(0))
    torch.testing.assert_close(batched, exact.sum(0), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", marked(CASES))
def test_series_approach_the_implicit_derivative_and_a_constant_has_none(name: str) -> None:
    exact, start, a = build(name, torch.float64, differentiation=Implicit())
    expected = jacrev(lambda a: exact(start, a))(a)
    errors = []
    # the Hessians' eigenvalues are below 8
    for way in (OneStep(alpha=0.1), Neumann(terms=4, alpha=0.1), Neumann(terms=400, alpha=0.1)):
        options: dict[str, Any] = {"differentiation": way}
        if "matrix-free" in name or "Krylov" in name:
            options["derivative_solve"] = None
        solver, start, a = build(name, torch.float64, **options)
        got = jacrev(partial(solver, start))(a)
        errors.append(float((got - expected).norm() / expected.norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    options["differentiation"] = Constant()
    constant, start, a = build(name, torch.float64, **options)
    assert not constant(start, a.requires_grad_()).requires_grad


def test_without_a_step_the_derivatives_of_the_steps_are_zero() -> None:
    for solver, start in (
        (newton(lambda y, x: 2 * y - x.sum(), differentiation=Unrolled()), 1.0),
        (newton(lambda y, x: y - x.sum(), differentiation=Unrolled(), maxiter=0), 2.0),
    ):
        x = torch.tensor([0.5, 1.5], requires_grad=True)
        y, info = solver.run(torch.tensor(start), x)
        assert info.iterations == 0
        assert y == start
        torch.testing.assert_close(torch.autograd.grad(y, x), (torch.zeros(2),))
        batch = torch.vmap(solver.run, in_dims=(None, 0))(torch.tensor(start), x.expand(3, 2))[0]
        torch.testing.assert_close(torch.autograd.grad(batch.sum(), x), (torch.zeros(2),))
        assert not solver.run(torch.tensor(start), x.detach())[0].requires_grad


def test_bisection_refuses_to_be_unrolled() -> None:
    with pytest.raises(ValueError, match=r"depend on signs alone.*Implicit\(\)"):
        bisection(lambda x: x, differentiation=Unrolled())


def test_a_linear_solver_for_derivatives_goes_with_implicit_ones() -> None:
    with pytest.raises(ValueError, match=r"`derivative_solve`.*OneStep"):
        lbfgs(quartic, derivative_solve=solve_cg(), differentiation=OneStep())
    with pytest.raises(TypeError, match=r"`differentiation` must be.*got 'jfb'"):
        lbfgs(quartic, differentiation="jfb")  # type: ignore[arg-type]


@pytest.mark.parametrize("rest", [0.5, None, "relu", [1, "x"]], ids=str)
def test_arguments_that_mix_tensors_with_other_things_are_differentiated(rest: Any) -> None:
    a = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    start = torch.zeros_like(a)
    solver = lbfgs(lambda x, given: quartic(x, given["a"]))
    (gradient,) = torch.autograd.grad(solver(start, {"a": a, "rest": rest}).sum(), a)
    (expected,) = torch.autograd.grad(lbfgs(quartic)(start, a).sum(), a)
    torch.testing.assert_close(gradient, expected)


def test_tensors_and_modules_that_are_closed_over_are_differentiated() -> None:
    a = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    net = torch.nn.Linear(2, 2, dtype=torch.float64)
    start = torch.zeros_like(a)
    (expected,) = torch.autograd.grad(lbfgs(quartic)(start, a).sum(), a)
    (gradient,) = torch.autograd.grad(lbfgs(lambda x: quartic(x, a))(start).sum(), a)
    torch.testing.assert_close(gradient, expected)
    x = newton(lambda x: net(x) - x)(start)
    weight = torch.linalg.inv(torch.eye(2) - net.weight.detach())
    (gradient,) = torch.autograd.grad(x.sum(), net.bias)
    torch.testing.assert_close(gradient, weight.sum(0))


@optree.dataclasses.dataclass(namespace="")
class Pair:
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize("build_solver", [lbfgs, gradient_descent])
def test_none_and_registered_classes_are_trees_forwards_and_backwards(build_solver: Any) -> None:
    a = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    solver = build_solver(lambda x, a: quartic(x["w"], a))
    x = solver({"w": torch.zeros_like(a), "none": None}, a)
    assert x["none"] is None
    (gradient,) = torch.autograd.grad(x["w"].sum(), a)
    (expected,) = torch.autograd.grad(build_solver(quartic)(torch.zeros_like(a), a).sum(), a)
    torch.testing.assert_close(gradient, expected)
    if not optree.treespec_is_leaf(optree.tree_structure(Pair(a, a))):
        pair = build_solver(lambda x, a: quartic(x.first, a) + x.second.square().sum())
        x = pair(Pair(torch.zeros_like(a), torch.ones_like(a)), a)
        (gradient,) = torch.autograd.grad(x.first.sum(), a)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_case
def test_half_precision_computes_its_vectors_in_single(name: str, dtype: torch.dtype) -> None:
    solver, start, a = build(name, dtype)
    exact, precise_start, precise_a = build(name, torch.float64)
    x, info = solver.run(start, a)
    assert x.dtype == dtype
    assert info.all_converged
    eps = torch.finfo(dtype).eps
    expected = exact(precise_start, precise_a)
    torch.testing.assert_close(x.double(), expected, atol=8 * eps ** (2 / 3), rtol=0)
    leaf = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solver(start, leaf).sum(), leaf)
    expected = grad(lambda a: exact(precise_start, a).sum())(precise_a)
    torch.testing.assert_close(gradient.double(), expected, atol=16 * eps, rtol=16 * eps)


# the compiler reads `.grad` of a tensor that is not a leaf where it resumes
reads_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.mark.parametrize("build_solver", [newton, lbfgs], ids=["newton", "lbfgs"])
@reads_grad
def test_a_compiled_function_calls_solvers(build_solver: Any) -> None:
    function = quartic if build_solver is lbfgs else (lambda x, a: x**3 + x - a)
    solver = build_solver(function)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return (solver(torch.zeros_like(a), 2 * a) ** 2).sum()

    check_compiled(loss)


@reads_grad
def test_a_compiled_function_calls_qp() -> None:
    def loss(a: torch.Tensor) -> torch.Tensor:
        eye = torch.eye(2, dtype=a.dtype)
        return (qp(eye, -2 * a, eye, torch.ones_like(a)).z ** 2).sum()

    check_compiled(loss)


def check_compiled(loss: Any) -> None:
    a = torch.tensor([0.7, -1.2], dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(loss, backend="eager")
    values = [function(a) for function in (loss, compiled)]
    torch.testing.assert_close(values[1], values[0])
    gradients = [torch.autograd.grad(value, a)[0] for value in values]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_linear_solver_of_steps_needs_no_matrix() -> None:
    n = 400
    a = torch.linspace(0, 1, n, dtype=torch.float64)
    shapes: list[int] = []

    class Counted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes.append(x.ndim)
            return x + 0.1 * torch.sin(x.roll(1)) - a

    x, info = newton(Counted(), linear_solve=solve_gmres(rtol=1e-8)).run(torch.zeros_like(a))
    assert info.all_converged
    assert len(shapes) < 200  # of n evaluations for the rows of a matrix
    torch.testing.assert_close(x, newton(Counted())(torch.zeros_like(a)))


def test_a_plain_function_solves_for_steps_as_it_does_for_derivatives() -> None:
    calls: list[int] = []

    def solve(A: Any, b: Any) -> Any:
        calls.append(1)
        return solve_lu()(A, b)

    a = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    x = newton(lambda x, a: x**2 - a, linear_solve=solve)(torch.ones_like(a), a)
    forward = len(calls)
    assert forward > 3
    torch.testing.assert_close(x.detach(), torch.tensor([2.0, 3.0], dtype=torch.float64))
    torch.autograd.grad(x.sum(), a)
    assert len(calls) == forward + 1
    x = levenberg_marquardt(lambda x, a: {"r": x - a}, linear_solve=solve)(torch.ones_like(a), a)
    torch.testing.assert_close(x, a)


def test_the_former_name_of_the_linear_solver_for_derivatives_still_works() -> None:
    calls: list[int] = []

    def solve(A: Any, b: Any) -> Any:
        calls.append(1)
        return solve_lu()(A, b)

    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    with pytest.warns(DeprecationWarning, match="`derivative_solve` now"):
        solver = broyden(lambda x, a: x**3 + x - a, linear_solve=solve)
    torch.autograd.grad(solver(torch.zeros_like(a), a).sum(), a)
    assert len(calls) == 1
    with pytest.raises(TypeError, match="former name"):
        lbfgs(quartic, linear_solve=solve, derivative_solve=solve)
