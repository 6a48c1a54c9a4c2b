"""Bounds on the error of hypergradients hold, and estimates are near the mark."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from torchopt_implicit import Lipschitz, hypergradient_error
from torchopt_implicit.linear_solve import solve_cg, solve_gmres, solve_lu

pytestmark = pytest.mark.usefixtures("float64")
N, P = 8, 3


def random_problem(seed: int) -> dict[str, Any]:
    r"""An ill-conditioned inner problem, :math:`Q x + a \sin x + \theta_0 x / 10 = C \theta`.

    Its constants hold globally. Every other one is not symmetric.
    """
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    def rand() -> float:
        return float(torch.rand((), generator=g))

    basis, _ = torch.linalg.qr(randn(N, N))
    smallest = 10 ** (-4 * rand())
    spectrum = torch.logspace(math.log10(smallest), 1.0, N)
    skew = randn(N, N)
    Q = basis @ torch.diag(spectrum) @ basis.T + (skew - skew.T) * rand() * (seed % 2)
    wave = 0.5 * smallest * rand()
    C, center, theta = randn(N, P), randn(N), randn(P)
    theta[0] = abs(theta[0])

    def F(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return Q @ x + wave * torch.sin(x) + theta[0] * x * 0.1 - C @ theta

    def outer(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - center).square().sum() + 0.5 * theta.square().sum()

    x = torch.zeros(N)
    for _ in range(60):
        J = torch.func.jacrev(F)(x, theta)
        x = x - torch.linalg.solve(J, F(x, theta))
    mu = smallest - wave + 0.1 * float(theta[0])
    return {
        "F": F,
        "outer": outer,
        "theta": theta,
        "solution": x,
        "mu": mu,
        "lipschitz": Lipschitz(jacobian=wave, cross=0.1, outer=1.0),
        "perturbed": x + 10 ** (-1 - 5 * rand()) * randn(N),
        "rtol": 10 ** (-1 - 7 * rand()),
    }


def true_gradient(problem: dict[str, Any]) -> torch.Tensor:
    x, theta, F = problem["solution"], problem["theta"], problem["F"]
    A, B = torch.func.jacrev(F, argnums=(0, 1))(x, theta)
    dx, dtheta = torch.func.grad(problem["outer"], argnums=(0, 1))(x, theta)
    return dtheta - B.T @ torch.linalg.solve(A.T, dx)


@pytest.mark.parametrize(
    "block", [pytest.param(i, marks=pytest.mark.slow if i else ()) for i in range(10)]
)
def test_certified_bounds_are_never_below_the_true_error(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        problem = random_problem(seed)
        found = hypergradient_error(
            problem["F"],
            problem["outer"],
            problem["perturbed"],
            problem["theta"],
            solve=solve_gmres(rtol=problem["rtol"]),
            strong_monotonicity=problem["mu"],
            lipschitz=problem["lipschitz"],
        )
        assert found.certified
        assert math.isfinite(found.error)
        error = float((found.gradient - true_gradient(problem)).norm())
        assert error <= found.error, f"seed {seed}: {error} > {found.error}"


@pytest.mark.slow
def test_estimates_are_within_a_factor_of_two_of_the_true_error() -> None:
    ratios = []
    for seed in range(60):
        problem = random_problem(seed)
        x = problem["solution"] + 1e-5 * torch.randn(N)
        found = hypergradient_error(
            problem["F"], problem["outer"], x, problem["theta"], solve=solve_lu()
        )
        assert not found.certified
        ratios.append(found.error / float((found.gradient - true_gradient(problem)).norm()))
    assert min(ratios) > 0.5
    assert max(ratios) < 2.0


def test_exact_solutions_have_no_error_to_speak_of() -> None:
    problem = random_problem(0)
    for certificate in (
        {},
        {"strong_monotonicity": problem["mu"], "lipschitz": problem["lipschitz"]},
    ):
        found = hypergradient_error(
            problem["F"],
            problem["outer"],
            problem["solution"],
            problem["theta"],
            solve=solve_lu(),
            **certificate,
        )
        assert found.error < 1e-6
        torch.testing.assert_close(found.gradient, true_gradient(problem))


def test_trees_are_reported_as_trees() -> None:
    theta = {"shift": torch.tensor([1.0, 2.0]), "scale": torch.tensor(3.0)}
    x = (torch.tensor([0.4, 0.6]),)
    found = hypergradient_error(
        lambda x, t: (t["scale"] * x[0] - t["shift"],),
        lambda x, t: x[0].square().sum() / 2,
        x,
        theta,
        solve=solve_cg(),
    )
    assert set(found.gradient) == {"shift", "scale"}
    torch.testing.assert_close(found.gradient["shift"], x[0] / 3.0)
    assert found.solution_residual == pytest.approx(math.hypot(0.2, 0.2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strong_monotonicity": 1.0}, "give both or neither, got 1.0 and None"),
        ({"lipschitz": Lipschitz(0.0, 0.0, 0.0)}, "give both or neither"),
        (
            {"strong_monotonicity": 0.0, "lipschitz": Lipschitz(0.0, 0.0, 0.0)},
            "`strong_monotonicity` must be positive, got 0.0",
        ),
    ],
)
def test_certificates_are_whole(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hypergradient_error(
            lambda x, t: x - t, lambda x, t: x.sum(), torch.ones(1), torch.ones(1), **options
        )
