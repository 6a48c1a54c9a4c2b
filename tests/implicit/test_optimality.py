"""The conditions of Karush, Kuhn and Tucker: of quadratic and of nonlinear constraints."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.optimize
import torch
from torch.func import hessian, jacfwd, jacrev, vmap

from torchopt_implicit import KKTSolution, custom_root, kkt_conditions
from torchopt_implicit.linear_solve import solve_lu
from torchopt_implicit.solvers import qp

DOUBLE = torch.float64


def objective(x: Any, target: torch.Tensor) -> torch.Tensor:
    return (x["p"] - target).square().sum() + 0.3 * x["q"] ** 2 + x["q"] * x["p"][0]


def equalities(x: Any, target: torch.Tensor) -> Any:
    return [x["p"].sum() - x["q"] * target[0]]


def inequalities(x: Any, target: torch.Tensor) -> Any:
    return {"ball": x["p"].square().sum() + x["q"] ** 2 - 1, "loose": -3 - x["p"]}


conditions = kkt_conditions(objective, equalities, inequalities)


@custom_root(conditions, argnums=1, solve=solve_lu())
def solve(init: None, target: torch.Tensor) -> KKTSolution:
    """By scipy, and its multipliers from the stationarity of the active constraints."""

    def tree(v: Any) -> Any:
        v = torch.as_tensor(v, dtype=DOUBLE)
        return {"p": v[:2], "q": v[2]}

    found = scipy.optimize.minimize(
        lambda v: float(objective(tree(v), target)),
        [0.1, 0.1, 0.1],
        constraints=[
            {"type": "eq", "fun": lambda v: float(equalities(tree(v), target)[0])},
            {"type": "ineq", "fun": lambda v: -float(inequalities(tree(v), target)["ball"])},
        ],
        method="SLSQP",
        tol=1e-14,
    )

    def flat(function: Any) -> Any:
        return jacrev(lambda v: function({"p": v[:2], "q": v[2]}, target))

    v = torch.from_numpy(found.x)
    rows = torch.stack(
        (flat(lambda *a: inequalities(*a)["ball"])(v), flat(lambda *a: equalities(*a)[0])(v))
    )
    lam, nu = torch.linalg.lstsq(rows.mT, -flat(objective)(v).unsqueeze(-1)).solution[:, 0]
    return KKTSolution(tree(v), {"ball": lam, "loose": v.new_zeros(2)}, [nu])


TARGET = torch.tensor([1.5, 2.0], dtype=DOUBLE)


def test_conditions_hold_at_the_solution_of_scipy() -> None:
    solution = solve(None, TARGET)
    assert solution.lam["ball"] > 0.1
    residual = conditions(solution, TARGET)
    for leaf in torch.utils._pytree.tree_leaves(residual):
        torch.testing.assert_close(leaf, torch.zeros_like(leaf), atol=1e-6, rtol=0)


def test_derivatives_meet_finite_differences_of_scipy() -> None:
    slope = jacrev(lambda target: solve(None, target).x["p"])(TARGET)
    forward = jacfwd(lambda target: solve(None, target).x["p"])(TARGET)
    step = 1e-4 * torch.eye(2, dtype=DOUBLE)
    expected = torch.stack(
        [(solve(None, TARGET + e).x["p"] - solve(None, TARGET - e).x["p"]) / 2e-4 for e in step],
        -1,
    )
    torch.testing.assert_close(slope, forward, atol=1e-8, rtol=0)
    torch.testing.assert_close(slope, expected, atol=1e-4, rtol=0)


def test_it_agrees_with_the_derivatives_of_a_quadratic_program() -> None:
    Q = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 1.5]], dtype=DOUBLE)
    G = torch.tensor([[1.0, 1.0, 0.0], [0.0, -1.0, 1.0]], dtype=DOUBLE)
    A = torch.tensor([[1.0, 0.5, -1.0]], dtype=DOUBLE)
    h, b = torch.tensor([0.2, 5.0], dtype=DOUBLE), torch.tensor([0.3], dtype=DOUBLE)

    @custom_root(
        kkt_conditions(
            lambda z, q, h, b: 0.5 * z @ Q @ z + q @ z,
            lambda z, q, h, b: A @ z - b,
            lambda z, q, h, b: G @ z - h,
        ),
        argnums=(1, 2, 3),
        solve=solve_lu(),
    )
    def program(init: None, *data: torch.Tensor) -> KKTSolution:
        q, h, b = data
        found = qp(Q, q, G, h, A, b)
        return KKTSolution(found.z, found.lam, found.nu)

    q = torch.tensor([-1.0, -2.0, 0.5], dtype=DOUBLE)

    def ours(*data: torch.Tensor) -> torch.Tensor:
        return (program(None, *data).x ** 2).sum()

    def theirs(q: torch.Tensor, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (qp(Q, q, G, h, A, b).z ** 2).sum()

    for transform in (jacrev, jacfwd, hessian):
        got = transform(ours, argnums=(0, 1, 2))(q, h, b)
        expected = transform(theirs, argnums=(0, 1, 2))(q, h, b)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
    batch = torch.stack((q, q + 0.1))
    got = vmap(jacrev(ours), in_dims=(0, None, None))(batch, h, b)
    torch.testing.assert_close(got[1], jacrev(ours)(batch[1], h, b), atol=1e-8, rtol=0)


def test_without_constraints_it_is_the_gradient() -> None:
    found = kkt_conditions(lambda x, a: ((x - a) ** 2).sum())(
        KKTSolution(torch.ones(2)), torch.zeros(2)
    )
    torch.testing.assert_close(found.x, 2 * torch.ones(2))
    assert found.lam is None
    assert found.nu is None


def test_wrong_calls_are_named() -> None:
    with pytest.raises(TypeError, match="`equalities` must be callable"):
        kkt_conditions(objective, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`objective` must be callable"):
        kkt_conditions(None)  # type: ignore[arg-type]
    x = torch.ones(2)
    with pytest.raises(TypeError, match="go together, but `lam` is None"):
        kkt_conditions(lambda x: x.sum(), inequalities=lambda x: x)(KKTSolution(x))
    with pytest.raises(TypeError, match="go together, but `equalities` is None"):
        kkt_conditions(lambda x: x.sum())(KKTSolution(x, nu=x))
    with pytest.raises(ValueError, match="what `inequalities` returns"):
        kkt_conditions(lambda x: x.sum(), inequalities=lambda x: x)(
            KKTSolution(x, lam=torch.ones(3))
        )
    with pytest.raises(ValueError, match=r"`objective` must return a 0-dim tensor, got \(2,\)"):
        kkt_conditions(lambda x: x)(KKTSolution(x))
