"""Solvers of constrained and composite problems: solutions, derivatives, batches, failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from torchopt_implicit import FailedSolveWarning, Status
from torchopt_implicit.differentiation import OneStep, Unrolled
from torchopt_implicit.projections import project_box, project_nonnegative, project_simplex
from torchopt_implicit.proximal import (
    from_projection,
    prox_elastic_net,
    prox_group_l1,
    prox_l1,
    prox_nuclear,
)
from torchopt_implicit.solvers import (
    Solver,
    block_coordinate_descent,
    lbfgsb,
    mirror_descent,
    projected_gradient,
    proximal_gradient,
)

DOUBLE = torch.float64
ROWS = torch.tensor(
    [[1.0, 0.3, -0.2, 0.5], [0.1, 0.9, 0.4, -0.3], [-0.5, 0.2, 1.2, 0.1], [0.3, -0.6, 0.2, 0.8],
     [0.7, 0.1, -0.3, 0.4]], dtype=DOUBLE,
)  # fmt: skip
RIGHT = torch.tensor([1.0, -2.0, 0.5, 1.5, 0.2], dtype=DOUBLE)
A = torch.tensor([0.9, -1.2, 1.6], dtype=DOUBLE)


def quartic(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return (x**4).sum() / 4 + 0.5 * ((x - a) ** 2).sum() + 0.1 * x.sum() ** 2


def quartic_gradient(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return x**3 + x - a + 0.2 * x.sum()


def squares(w: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (ROWS @ w - y).square().sum()


class Case(NamedTuple):
    """A solver as a function of options, where it starts, its arguments, what holds."""

    build: Callable[..., Solver]
    start: torch.Tensor
    args: tuple[Any, ...]
    # x = T(x, *args)
    fixed_point: Callable[..., torch.Tensor]
    # the arguments of `args` to differentiate in
    argnums: tuple[int, ...]


def weighted_l1(w: torch.Tensor, step: Any, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return prox_l1(w, step * weight)


def loss(p: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return 0.5 * (p - y).square().sum()


def block_l1(w: torch.Tensor, step: Any, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return prox_group_l1(w, step * weight)


WEIGHT = torch.tensor(0.3, dtype=DOUBLE)
Y2 = torch.stack((RIGHT, RIGHT.flip(0)), 1)
BOUNDS = (
    torch.tensor([-0.5, -0.4, -1.0], dtype=DOUBLE),
    torch.tensor([0.3, 1.0, 5.0], dtype=DOUBLE),
)
CASES = {
    "proximal_gradient": Case(
        lambda **o: proximal_gradient(squares, weighted_l1, **o),
        torch.zeros(4, dtype=DOUBLE),
        (WEIGHT, RIGHT),
        lambda w, c, y: prox_l1(w - ROWS.mT @ (ROWS @ w - y), c),
        (0, 1),
    ),
    "proximal_gradient, plain": Case(
        lambda **o: proximal_gradient(squares, weighted_l1, acceleration=False, **o),
        torch.zeros(4, dtype=DOUBLE),
        (WEIGHT, RIGHT),
        lambda w, c, y: prox_l1(w - ROWS.mT @ (ROWS @ w - y), c),
        (0, 1),
    ),
    "block_coordinate_descent": Case(
        lambda **o: block_coordinate_descent(loss, block_l1, **o),
        torch.zeros(4, 2, dtype=DOUBLE),
        (ROWS, Y2, 2 * WEIGHT),
        lambda w, A, y, c: prox_group_l1(w - A.mT @ (A @ w - y), c, dim=-1),
        (0, 1, 2),
    ),
    "mirror_descent": Case(
        lambda **o: mirror_descent(quartic, **o),
        torch.full((3,), 1 / 3, dtype=DOUBLE),
        (A,),
        lambda x, a: project_simplex(x - quartic_gradient(x, a)),
        (0,),
    ),
    "lbfgsb": Case(
        lambda **o: lbfgsb(quartic, **o),
        torch.zeros(3, dtype=DOUBLE),
        (BOUNDS, A),
        lambda x, bounds, a: project_box(x - quartic_gradient(x, a), *bounds),
        (1,),
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@each_case
def test_the_solution_is_a_fixed_point_in_the_dtype_of_init(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    monkeypatch.setitem(globals(), "ROWS", ROWS.to(dtype))
    start, args = torch.utils._pytree.tree_map(lambda leaf: leaf.to(dtype), (case.start, case.args))
    x, info = case.build().run(start, *args)
    assert info.status is Status.CONVERGED
    assert x.dtype == dtype
    tol = 1e-9 if dtype == DOUBLE else 1e-3
    torch.testing.assert_close(case.fixed_point(x, *args), x, atol=tol, rtol=0)


@each_case
def test_first_and_second_derivatives_meet_finite_differences(name: str) -> None:
    case = CASES[name]
    solver = case.build()
    leaves, spec = torch.utils._pytree.tree_flatten(case.args)

    def solve(*leaves: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = solver(case.start, *torch.utils._pytree.tree_unflatten(leaves, spec))
        return x

    given = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    torch.autograd.gradcheck(solve, given, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(solve, given, fast_mode=True)


@each_case
def test_gradients_are_those_of_the_implicit_function_theorem(name: str) -> None:
    case = CASES[name]
    solver = case.build()
    x = solver(case.start, *case.args)
    torch.testing.assert_close(case.fixed_point(x, *case.args), x, atol=1e-8, rtol=0)
    n = x.numel()
    by_x = jacrev(case.fixed_point)(x, *case.args).reshape(n, n)
    for i in case.argnums:
        by_a = jacrev(case.fixed_point, argnums=i + 1)(x, *case.args).reshape(n, -1)
        expected = torch.linalg.solve(torch.eye(n, dtype=DOUBLE) - by_x, by_a)
        got = jacrev(lambda *args: solver(case.start, *args), argnums=i)(*case.args)
        torch.testing.assert_close(got.reshape(n, -1), expected, atol=1e-7, rtol=1e-7)


@each_case
def test_transforms_agree_and_vmap_equals_a_loop(name: str) -> None:
    case = CASES[name]
    solver, last = case.build(), len(case.args) - 1

    def value(x: torch.Tensor) -> torch.Tensor:
        return (solver(case.start, *case.args[:last], x) ** 2).sum()

    a = case.args[last]
    torch.testing.assert_close(jacfwd(value)(a), jacrev(value)(a), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(hessian(value)(a), jacrev(jacrev(value))(a), atol=1e-7, rtol=1e-7)
    batch = torch.stack((a, 0.5 * a, 0.9 * a + 0.1))
    dims = (None, *(None for _ in range(last)), 0)
    x, info = vmap(solver.run, in_dims=dims)(case.start, *case.args[:last], batch)
    alone = [solver.run(case.start, *case.args[:last], row) for row in batch]
    torch.testing.assert_close(x, torch.stack([x for x, _ in alone]), atol=1e-8, rtol=0)
    assert info.all_converged
    gradients = torch.stack([grad(value)(row) for row in batch])
    torch.testing.assert_close(vmap(grad(value))(batch), gradients, atol=1e-7, rtol=1e-7)


@each_case
def test_step_by_step_is_the_same_search(name: str) -> None:
    case = CASES[name]
    solver = case.build()
    x, info = solver.run(case.start, *case.args)
    state = solver.init_state(case.start, *case.args)
    with torch.no_grad():
        for _ in range(info.iterations):
            assert state.is_running
            state = solver.update(state, *case.args)
    assert torch.equal(state.solution, x)
    assert state.info == info


@each_case
def test_a_search_cut_short_and_nan_are_told(name: str) -> None:
    case = CASES[name]
    with pytest.warns(FailedSolveWarning, match="ITERATION_LIMIT"):
        case.build(maxiter=0)(case.start, *case.args)
    _, info = case.build().run(case.start, *case.args[:-1], case.args[-1] * torch.nan)
    assert info.status is Status.NOT_FINITE


def test_the_lasso_is_that_of_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = torch.randn(30, 12, dtype=DOUBLE), torch.randn(30, dtype=DOUBLE)
    reference = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = torch.from_numpy(reference.fit(X.numpy(), y.numpy()).coef_)

    def fit(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.5 * (p - y).square().mean()

    fista = proximal_gradient(
        lambda w, X, y: fit(X @ w, y), lambda w, step, X, y: prox_l1(w, 0.1 * step)
    )
    sweeps = block_coordinate_descent(
        fit, lambda w, step, y: prox_l1(w, 0.1 * step), smoothness=1 / 30
    )
    start = torch.zeros(12, dtype=DOUBLE)
    torch.testing.assert_close(fista(start, X, y), expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(sweeps(start, X, y), expected, atol=1e-8, rtol=0)
    assert (expected == 0).any()


def test_acceleration_needs_fewer_iterations() -> None:
    scales = torch.logspace(0, -1.2, 40, dtype=DOUBLE)
    target = torch.randn(40, dtype=DOUBLE)
    counts = [
        proximal_gradient(
            lambda w: 0.5 * (scales * w - target).square().sum(),
            lambda w, step: prox_l1(w, 1e-5 * step),
            acceleration=acceleration,
            tol=1e-6,
            maxiter=5000,
        ).run(torch.zeros(40, dtype=DOUBLE))[1]
        for acceleration in (True, False)
    ]
    assert all(info.status is Status.CONVERGED for info in counts)
    assert counts[0].iterations < 0.5 * counts[1].iterations


@pytest.mark.parametrize("stepsize", [1e-3, 1.0, 1e3])
def test_the_first_length_does_not_matter_much(stepsize: float) -> None:
    solver = proximal_gradient(squares, weighted_l1, stepsize=stepsize)
    x, info = solver.run(torch.zeros(4, dtype=DOUBLE), WEIGHT, RIGHT)
    assert info.status is Status.CONVERGED
    assert info.iterations < 150
    torch.testing.assert_close(
        x, proximal_gradient(squares, weighted_l1)(torch.zeros(4).double(), WEIGHT, RIGHT)
    )


def test_low_rank_and_elastic_net_on_a_tree() -> None:
    target = {"m": torch.randn(4, 3, dtype=DOUBLE), "v": torch.randn(5, dtype=DOUBLE)}

    def distance(x: Any, target: Any) -> torch.Tensor:
        return sum(0.5 * (x[key] - target[key]).square().sum() for key in x)  # type: ignore[return-value]

    def prox(x: Any, step: Any, target: Any) -> Any:
        return {"m": prox_nuclear(x["m"], step), "v": prox_elastic_net(x["v"], 0.3 * step, step)}

    start = {key: torch.zeros_like(leaf) for key, leaf in target.items()}
    x = proximal_gradient(distance, prox)(start, target)
    torch.testing.assert_close(x["m"], prox_nuclear(target["m"], 1.0), atol=1e-8, rtol=0)
    torch.testing.assert_close(x["v"], prox_elastic_net(target["v"], 0.3, 1.0), atol=1e-8, rtol=0)


def test_projections_as_proximal_operators() -> None:
    by_prox = proximal_gradient(quartic, from_projection(lambda x, a: project_simplex(x)))
    by_projection = projected_gradient(quartic, lambda x, a: project_simplex(x))
    start = torch.zeros(3, dtype=DOUBLE)
    torch.testing.assert_close(by_prox(start, A), by_projection(start, A), atol=1e-8, rtol=0)


def test_mirror_descent_reaches_the_boundary_and_other_sets() -> None:
    def linear(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return 0.5 * x @ x - c @ x

    x = mirror_descent(linear)(A.new_full((3,), 1 / 3), torch.tensor([3.0, 0.1, 0.0]).double())
    torch.testing.assert_close(x, torch.tensor([1.0, 0.0, 0.0]).double(), atol=1e-8, rtol=0)
    orthant = mirror_descent(
        quartic,
        lambda x, a: project_nonnegative(x),
        lambda u, a: u.exp(),
    )
    expected = lbfgsb(quartic)(torch.ones(3).double(), (0.0, np.inf), A)
    torch.testing.assert_close(orthant(torch.ones(3).double(), A), expected, atol=1e-8, rtol=0)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize(
    "bounds", [(-2.0, 0.8), (-2.0, 2.0), (1.2, 3.0), (-np.inf, np.inf), (-0.3, np.inf)], ids=str
)
def test_lbfgsb_finds_what_scipy_finds_in_about_as_many_evaluations(
    bounds: tuple[float, float],
) -> None:
    start = torch.full((10,), 0.5, dtype=DOUBLE)
    reference = scipy.optimize.minimize(
        lambda x: float(rosenbrock(torch.from_numpy(x))),
        start.numpy(),
        jac=lambda x: grad(rosenbrock)(torch.from_numpy(x)).numpy(),
        method="L-BFGS-B",
        bounds=[bounds] * 10,
        options={"gtol": 1e-9, "ftol": 0.0, "maxiter": 10_000},
    )
    x, info = lbfgsb(rosenbrock).run(start, bounds)
    assert info.status is Status.CONVERGED
    torch.testing.assert_close(x, torch.from_numpy(reference.x), atol=1e-6, rtol=0)
    assert info.iterations <= 1.5 * reference.nfev + 20


def test_bounds_may_be_trees_and_numbers() -> None:
    def objective(x: Any, a: torch.Tensor) -> torch.Tensor:
        return quartic(x["w"], a) + (x["b"] - 3).square()

    start = {"w": torch.zeros(3, dtype=DOUBLE), "b": torch.tensor(0.0, dtype=DOUBLE)}
    upper = {"w": 0.3, "b": torch.tensor(1.0, dtype=DOUBLE)}
    x = lbfgsb(objective)(start, (-0.4, upper), A)
    assert x["b"] == 1.0
    torch.testing.assert_close(x["w"], lbfgsb(quartic)(start["w"], (-0.4, 0.3), A))


def test_bounds_that_cross_are_infeasible() -> None:
    low = torch.tensor([[-1.0, 1.0], [-1.0, -1.0], [-torch.inf, 2.0]], dtype=DOUBLE)
    high = torch.tensor([[1.0, -1.0], [1.0, 1.0], [torch.inf, torch.inf]], dtype=DOUBLE)
    solver = lbfgsb(lambda x: (x - 0.5).square().sum())
    start = torch.zeros(2, dtype=DOUBLE)
    expected = [Status.INFEASIBLE, Status.CONVERGED, Status.CONVERGED]
    single = [solver.run(start, bounds)[1].status for bounds in zip(low, high, strict=True)]
    assert single == expected
    batch = torch.vmap(solver.run, in_dims=(None, 0))(start, (low, high))[1].status
    assert batch.tolist() == expected
    with pytest.warns(FailedSolveWarning, match="INFEASIBLE"):
        solver(start, (low[0], high[0]))


def test_wrong_calls_are_named() -> None:
    with pytest.raises(ValueError, match=r"called as solver\(init, \(lower, upper\), \*args\)"):
        lbfgsb(quartic)(A)
    with pytest.raises(ValueError, match="must be a pair"):
        lbfgsb(quartic)(A, 0.0, A)
    with pytest.raises(ValueError, match="`history` must be a positive integer"):
        lbfgsb(quartic, history=0)
    with pytest.raises(TypeError, match="`prox` must be callable"):
        proximal_gradient(quartic, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`stepsize` must be positive"):
        proximal_gradient(quartic, prox_l1, stepsize=0.0)
    with pytest.raises(TypeError, match="`bregman_projection` must be callable"):
        mirror_descent(quartic, project_simplex, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`smoothness` must be positive"):
        block_coordinate_descent(loss, block_l1, smoothness=0.0)
    with pytest.raises(ValueError, match=r"`A` of shape \(m, 4\), since `init` has 4 rows"):
        block_coordinate_descent(loss, block_l1)(torch.zeros(4), ROWS.mT, RIGHT, WEIGHT)
    with pytest.raises(ValueError, match=r"`init` must be a tensor of shape \(n,\) or \(n, k\)"):
        block_coordinate_descent(loss, block_l1)(torch.tensor(0.0), ROWS, RIGHT, WEIGHT)


@each_case
def test_a_solution_differentiates_as_is_asked(name: str) -> None:
    case, last = CASES[name], len(CASES[name].args) - 1

    def slope(**options: Any) -> torch.Tensor:
        solver = case.build(**options)
        a = case.args[last].clone().requires_grad_()
        x = solver(case.start, *case.args[:last], a)
        (gradient,) = torch.autograd.grad(x.square().sum(), a)
        return gradient

    exact = slope()
    unrolled = slope(differentiation=Unrolled())
    torch.testing.assert_close(unrolled, exact, atol=1e-6, rtol=1e-6)
    x = case.build()(case.start, *case.args)
    one_step = torch.func.vjp(lambda a: case.fixed_point(x, *case.args[:last], a), case.args[last])
    (expected,) = one_step[1](2 * x)
    torch.testing.assert_close(slope(differentiation=OneStep()), expected, atol=1e-8, rtol=1e-8)
