"""Solvers with implicit gradients: solutions, derivatives, batches, dtypes, failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from torchopt_implicit import FailedSolveError, FailedSolveWarning, Status
from torchopt_implicit.linear_solve import solve_cg, solve_gmres, solve_lu
from torchopt_implicit.solvers import (
    Solver,
    _loop,
    anderson,
    bfgs,
    bisection,
    broyden,
    dogleg,
    gauss_newton,
    gradient_descent,
    lbfgs,
    levenberg_marquardt,
    newton,
    nonlinear_cg,
    project_ball,
    project_box,
    project_simplex,
    projected_gradient,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def quartic(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A strictly convex function; its minimizer depends on ``a`` nonlinearly."""
    return (x**4).sum() / 4 + 0.5 * ((x - a) ** 2).sum() + 0.1 * x.sum() ** 2


def quartic_gradient(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return x**3 + x - a + 0.2 * x.sum()


def quartic_residuals(x: torch.Tensor, a: torch.Tensor) -> Any:
    return {"power": x**2 / 2**0.5, "rest": [x - a, 0.2**0.5 * x.sum()]}


def contraction(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.cos(x) + 0.2 * a + 0.1 * x.sum()


def cubic(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return x**3 + x - a


def on_simplex(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return project_simplex(x, 1.0 + 0.1 * a[0] ** 2)


def in_box(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return project_box(x, -0.3, 0.2 + 0.1 * a[1] ** 2)


def in_ball(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return project_ball(x, 0.3 + 0.1 * a[1] ** 2)


def newton_krylov(function: Any, **options: Any) -> Solver:
    options.setdefault("derivative_solve", solve_lu())
    return newton(function, linear_solve=solve_gmres(), **options)


def levenberg_marquardt_matrix_free(residual: Any, **options: Any) -> Solver:
    options.setdefault("derivative_solve", solve_lu())
    return levenberg_marquardt(residual, linear_solve=solve_cg(), **options)


class Case(NamedTuple):
    solver: Callable[..., Solver]
    function: Callable[..., Any]
    # holds at the solution: is zero
    condition: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    start: Any = None


def fixed_by(projection: Callable[..., torch.Tensor]) -> Case:
    def condition(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x - projection(x - quartic_gradient(x, a), a)

    def solver(objective: Any, **options: Any) -> Solver:
        return projected_gradient(objective, projection, **options)

    return Case(solver, quartic, condition)


CASES = {
    "gradient_descent": Case(gradient_descent, quartic, quartic_gradient),
    "lbfgs": Case(lbfgs, quartic, quartic_gradient),
    "levenberg_marquardt": Case(levenberg_marquardt, quartic_residuals, quartic_gradient),
    "bfgs": Case(bfgs, quartic, quartic_gradient),
    "nonlinear_cg": Case(nonlinear_cg, quartic, quartic_gradient),
    "gauss_newton": Case(gauss_newton, quartic_residuals, quartic_gradient),
    "dogleg": Case(dogleg, quartic_residuals, quartic_gradient),
    "levenberg_marquardt, matrix-free": Case(
        levenberg_marquardt_matrix_free, quartic_residuals, quartic_gradient
    ),
    "newton, Krylov": Case(newton_krylov, quartic_gradient, quartic_gradient),
    "anderson": Case(anderson, contraction, lambda x, a: x - contraction(x, a)),
    "newton": Case(newton, quartic_gradient, quartic_gradient),
    "broyden": Case(broyden, quartic_gradient, quartic_gradient),
    "bisection": Case(bisection, cubic, cubic, (torch.full((3,), -4.0), torch.full((3,), 4.0))),
    "projected_gradient, simplex": fixed_by(on_simplex),
    "projected_gradient, box": fixed_by(in_box),
    "projected_gradient, ball": fixed_by(in_ball),
}
A = [0.7, -1.2, 2.0]
each_case = pytest.mark.parametrize("name", CASES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def build(name: str, dtype: torch.dtype, **options: Any) -> tuple[Solver, Any, torch.Tensor]:
    case = CASES[name]
    start = case.start or (torch.zeros(3),)
    start = tuple(x.to(dtype) for x in start)
    solver = case.solver(case.function, **options)
    return solver, start if case.start else start[0], torch.tensor(A, dtype=dtype)


@each_dtype
@each_case
def test_the_solution_satisfies_its_condition_in_the_dtype_of_init(
    name: str, dtype: torch.dtype
) -> None:
    solver, start, a = build(name, dtype)
    x, info = solver.run(start, a)
    assert x.dtype == dtype
    assert info.status is Status.CONVERGED
    assert isinstance(info.iterations, int)
    tol = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(CASES[name].condition(x, a), torch.zeros_like(x), atol=tol, rtol=0)


@each_case
def test_reverse_forward_and_second_derivatives_meet_finite_differences(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    a = a.requires_grad_()
    torch.autograd.gradcheck(lambda a: solver(start, a), (a,), check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda a: solver(start, a), (a,))


@each_dtype
@each_case
def test_gradients_are_those_of_the_implicit_function_theorem(
    name: str, dtype: torch.dtype
) -> None:
    solver, start, a = build(name, dtype)
    x = solver(start, a)
    by_x, by_a = jacrev(CASES[name].condition, argnums=(0, 1))(x, a)
    expected = -torch.linalg.solve(by_x, by_a)
    tol = 1e-7 if dtype == torch.float64 else 2e-3
    got = jacrev(lambda a: solver(start, a))(a)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=tol, rtol=tol)


@each_case
def test_transforms_compose_and_agree(name: str) -> None:
    solver, start, a = build(name, torch.float64)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return (solver(start, a) ** 2).sum()

    reverse, forward = jacrev(loss)(a), jacfwd(loss)(a)
    torch.testing.assert_close(reverse, forward, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(hessian(loss)(a), jacrev(jacrev(loss))(a), atol=1e-7, rtol=1e-7)


@each_case
def test_vmap_equals_a_loop_and_problems_stop_on_their_own(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    batch = a * torch.tensor([1.0, 0.1, -0.5, 0.0, 0.9], dtype=a.dtype).unsqueeze(-1)
    x, info = vmap(solver.run, in_dims=(None, 0))(start, batch)
    alone = [solver.run(start, row) for row in batch]
    torch.testing.assert_close(x, torch.stack([x for x, _ in alone]), atol=1e-9, rtol=1e-9)
    assert info.iterations.tolist() == [info.iterations for _, info in alone]
    assert info.all_converged

    def loss(row: torch.Tensor) -> torch.Tensor:
        return (solver(start, row) ** 2).sum()

    gradients = torch.stack([grad(loss)(row) for row in batch])
    torch.testing.assert_close(vmap(grad(loss))(batch), gradients, atol=1e-8, rtol=1e-8)
    nested = vmap(vmap(grad(loss)))(torch.stack((batch, batch.flip(0))))
    torch.testing.assert_close(nested[1], gradients.flip(0), atol=1e-8, rtol=1e-8)


@each_case
def test_a_search_cut_short_says_so(name: str) -> None:
    solver, start, a = build(name, torch.float64, maxiter=0)
    _, info = solver.run(start, a)
    assert info.status is Status.ITERATION_LIMIT
    with pytest.warns(FailedSolveWarning, match="ITERATION_LIMIT.*`maxiter`"):
        solver(start, a)
    solver, start, a = build(name, torch.float64, maxiter=0, throw=True)
    with pytest.raises(FailedSolveError, match="after 0 iterations") as caught:
        solver(start, a)
    assert caught.value.info.worst is Status.ITERATION_LIMIT


@each_case
def test_nan_in_an_argument_is_told_from_the_start(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    _, info = solver.run(start, a * torch.nan)
    assert info.status is Status.NOT_FINITE
    assert info.iterations == 0


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("bisection", "projected_gradient, simplex")]
)
def test_no_unknowns_and_one_unknown(name: str) -> None:
    case = CASES[name]
    projections = {"projected_gradient, box": in_box, "projected_gradient, ball": in_ball}
    solver = case.solver(case.function)
    if name in projections:  # whose sets depend on entries of `a`
        solver = projected_gradient(quartic, lambda x, a: projections[name](x, torch.zeros(3)))
    for shape in ((0,), (1,), ()):
        a = torch.full(shape, 0.5, requires_grad=True)
        x, info = solver.run(torch.zeros(shape), a)
        assert x.shape == shape
        assert info.status is Status.CONVERGED
        (gradient,) = torch.autograd.grad(x.sum(), a)
        assert torch.isfinite(gradient).all()


@each_case
def test_flags_looked_at_every_few_iterations_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver, start, a = build(name, torch.float64)
    batch = a * torch.tensor([1.0, 0.1, -0.5, 0.9], dtype=a.dtype).unsqueeze(-1)
    expected, info = vmap(solver.run, in_dims=(None, 0))(start, batch)
    looks: list[int] = []

    def unwrap(x: torch.Tensor) -> torch.Tensor:
        looks.append(1)
        return original(x)

    original = _loop.unwrap
    monkeypatch.setattr(_loop, "unwrap", unwrap)
    monkeypatch.setattr(_loop, "check_every", lambda device: 4)  # as on a device
    x, sparse = vmap(solver.run, in_dims=(None, 0))(start, batch)
    assert torch.equal(x, expected)
    assert torch.equal(sparse.iterations, info.iterations)
    assert len(looks) <= info.iterations.max() // 4 + 2


@pytest.mark.cuda
@each_dtype
@each_case
def test_accelerators_give_what_the_cpu_gives(name: str, dtype: torch.dtype) -> None:
    solver, start, a = build(name, dtype)
    moved = tuple(x.cuda() for x in start) if isinstance(start, tuple) else start.cuda()
    tol = 1e-8 if dtype == torch.float64 else 2e-3
    computed = jacrev(lambda a: solver(moved, a))(a.cuda())
    assert computed.is_cuda
    torch.testing.assert_close(
        computed.cpu(), jacrev(lambda a: solver(start, a))(a), atol=tol, rtol=tol
    )


def test_trees_modules_and_other_arguments_pass_through() -> None:
    def objective(x: Any, target: Any, model: torch.nn.Module, power: str) -> torch.Tensor:
        difference = model(x["w"]) - target["y"]
        return (difference ** {"two": 2}[power]).sum() + (x["b"][0] - target["z"][0]) ** 2

    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    start = {"w": torch.zeros(2, dtype=torch.float64), "b": [torch.tensor(0.0)]}
    target = {
        "y": torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True),
        "z": (torch.tensor(3.0, requires_grad=True),),
    }
    x = lbfgs(objective)(start, target, model, "two")
    assert [x["w"].dtype, x["b"][0].dtype] == [torch.float64, torch.float32]
    gradient, last = torch.autograd.grad(x["w"].sum() + x["b"][0], (target["y"], target["z"][0]))
    expected = torch.linalg.inv(model.weight.detach()).sum(0)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(last, torch.tensor(1.0))


def test_nothing_to_differentiate_leaves_no_graph() -> None:
    x = newton(cubic)(torch.zeros(3), torch.tensor(A))
    assert not x.requires_grad


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("build_solver", [gradient_descent, lbfgs, bfgs, nonlinear_cg])
def test_rosenbrock_in_ten_dimensions(build_solver: Callable[..., Solver]) -> None:
    start = torch.full((10,), -1.0, dtype=torch.float64)
    x, info = build_solver(rosenbrock, maxiter=5000).run(start)
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(x, torch.ones_like(x), atol=1e-6, rtol=0)


def test_lbfgs_needs_about_as_many_evaluations_as_scipy() -> None:
    start = torch.full((10,), -1.0, dtype=torch.float64)
    reference = scipy.optimize.minimize(
        lambda x: float(rosenbrock(torch.from_numpy(x))),
        start.numpy(),
        jac=lambda x: grad(rosenbrock)(torch.from_numpy(x)).numpy(),
        method="L-BFGS-B",
        options={"gtol": 1e-8, "ftol": 0.0},
    )
    _, info = lbfgs(rosenbrock, tol=1e-11).run(start)
    assert info.iterations <= 1.5 * reference.nfev


def test_levenberg_marquardt_fits_as_scipy_does() -> None:
    t = torch.linspace(0, 1, 30, dtype=torch.float64)
    y = 2 * torch.exp(-3 * t) + 1 + 0.05 * torch.sin(40 * t)

    def residual(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return p[0] * torch.exp(p[1] * t) + p[2] - y

    start = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    reference = scipy.optimize.least_squares(
        lambda p: residual(torch.from_numpy(p), y).numpy(), start.numpy(), xtol=1e-15, ftol=1e-15
    )
    p = levenberg_marquardt(residual)(start, y)
    np.testing.assert_allclose(p.numpy(), reference.x, rtol=1e-6)


@pytest.mark.parametrize("build_solver", [newton, broyden])
def test_roots_far_from_the_start(build_solver: Callable[..., Solver]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.atan(3 * (x[0] - 1)), x[1] ** 3 - x[0]])

    # a full Newton step overshoots further and further
    x, info = build_solver(function).run(torch.tensor([4.0, 1.5], dtype=torch.float64))
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(x, torch.ones_like(x), atol=1e-8, rtol=0)


def test_anderson_needs_fewer_evaluations_than_the_plain_iteration() -> None:
    basis, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))
    W = basis @ torch.diag(torch.linspace(-0.9, 0.98, 40, dtype=torch.float64)) @ basis.mT
    b = torch.randn(40, dtype=torch.float64)
    counts = [
        anderson(lambda x: W @ x + b, history=history, maxiter=2000).run(torch.zeros_like(b))[1]
        for history in (1, 10)
    ]
    assert all(info.status is Status.CONVERGED for info in counts)
    assert counts[1].iterations < 0.2 * counts[0].iterations


FAILURES = {
    "a gradient that is not of the objective": (
        gradient_descent(lambda x: (2 * x.detach() ** 2 - x**2).sum()),
        torch.ones(2),
        Status.STAGNATED,
    ),
    "a line search without end": (
        lbfgs(lambda x: (2 * x.detach() ** 2 - x**2).sum()),
        torch.ones(2),
        Status.STAGNATED,
    ),
    "a singular Jacobian": (newton(lambda x: x**2 - 1), torch.zeros(2), Status.BREAKDOWN),
    "a singular Jacobian at the start": (
        broyden(lambda x: x**2 - 1),
        torch.zeros(2),
        Status.BREAKDOWN,
    ),
    "no root": (newton(lambda x: x**2 + 1), torch.full((1,), 0.3), Status.ITERATION_LIMIT),
    "no change of sign": (
        bisection(lambda x: x**2 + 1),
        (torch.zeros(2), torch.ones(2)),
        Status.BREAKDOWN,
    ),
    "an objective unbounded below": (
        gradient_descent(lambda x: -(x**4).sum()),
        torch.ones(2),
        Status.NOT_FINITE,
    ),
    "a map that expands": (anderson(lambda x: x**3 + 2), torch.full((1,), 3.0), Status.NOT_FINITE),
}


@pytest.mark.parametrize("name", FAILURES)
def test_problems_built_to_fail_have_their_status(name: str) -> None:
    solver, start, status = FAILURES[name]
    _, info = solver.run(start)
    assert info.status is not Status.CONVERGED
    assert info.status is status


def test_a_batch_tells_which_problem_failed() -> None:
    shift = torch.tensor([-1.0, 1.0, -4.0])
    x, info = vmap(newton(lambda x, a: x**2 + a).run)(torch.full((3,), 0.3), shift)
    assert info.status.tolist() == [Status.CONVERGED, Status.ITERATION_LIMIT, Status.CONVERGED]
    torch.testing.assert_close(x[[0, 2]], torch.tensor([1.0, 2.0]))
    with pytest.warns(FailedSolveWarning, match="in 1 of 3 problems"):
        vmap(newton(lambda x, a: x**2 + a))(torch.full((3,), 0.3), shift)


BAD = {
    "not callable": (lambda: lbfgs(3), TypeError, "`objective` must be callable.*got int"),
    "projection": (
        lambda: projected_gradient(quartic, None),
        TypeError,
        "`projection` must be callable.*got NoneType",
    ),
    "maxiter": (lambda: newton(cubic, maxiter=-1), ValueError, "`maxiter`.*non-negative.*got -1"),
    "tol": (lambda: anderson(cubic, tol=0.0), ValueError, "`tol` must be positive.*got 0.0"),
    "stepsize": (lambda: gradient_descent(quartic, stepsize=0), ValueError, "`stepsize`.*got 0"),
    "history": (lambda: lbfgs(quartic, history=0), ValueError, "`history`.*got 0"),
    "mixing": (lambda: anderson(cubic, mixing=-1.0), ValueError, "`mixing`.*got -1.0"),
    "damping": (lambda: levenberg_marquardt(cubic, damping=0), ValueError, "`damping`.*got 0"),
    "linear_solve": (
        lambda: newton(cubic, linear_solve="cg"),
        TypeError,
        "`linear_solve` must be callable.*got str",
    ),
    "not scalar": (
        lambda: lbfgs(lambda x: x**2)(torch.ones(3)),
        ValueError,
        r"`objective` must return a 0-dim tensor, got shape \(3,\).*torch.vmap",
    ),
    "not square": (
        lambda: newton(lambda x: x[:2])(torch.ones(3)),
        ValueError,
        "2 values for 3 unknowns.*levenberg_marquardt",
    ),
    "integers": (
        lambda: newton(cubic)(torch.ones(3, dtype=torch.int64), torch.ones(3)),
        TypeError,
        "`init` must be a tree of floating point tensors.*int64",
    ),
    "bracket": (
        lambda: bisection(cubic)(torch.ones(3), torch.ones(3)),
        ValueError,
        r"`init` must be a pair \(lower, upper\), got Tensor",
    ),
    "empty simplex": (lambda: project_simplex(torch.ones(0)), ValueError, "`x` must have"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument_and_the_remedy(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


PROJECTIONS = {
    "box": (lambda x: project_box(x, -0.5, 0.8), lambda y: bool(((y >= -0.5) & (y <= 0.8)).all())),
    "simplex": (
        lambda x: project_simplex(x, 2.0),
        lambda y: bool((y >= 0).all() and torch.isclose(y.sum(), y.new_tensor(2.0))),
    ),
    "ball": (lambda x: project_ball(x, 0.7), lambda y: bool(y.norm() <= 0.7 + 1e-12)),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_are_the_nearest_points_of_their_sets(name: str) -> None:
    project, contains = PROJECTIONS[name]
    for scale in (0.1, 1.0, 10.0):
        x = scale * torch.randn(6, dtype=torch.float64)
        y = project(x)
        assert contains(y)
        torch.testing.assert_close(project(y), y)
        for _ in range(20):  # the angle to any other point of the set is obtuse
            other = project(torch.randn(6, dtype=torch.float64))
            assert (x - y) @ (other - y) <= 1e-12
        torch.autograd.gradcheck(project, (x.requires_grad_(),), check_forward_ad=True)


def test_the_ball_has_finite_gradients_at_its_center() -> None:
    x = torch.zeros(3, requires_grad=True)
    project_ball(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]
