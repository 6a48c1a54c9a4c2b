"""The ways to differentiate a solution agree where they must, and differ by what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import torchopt
from torchopt_implicit import custom_fixed_point, custom_root
from torchopt_implicit import differentiation as ways
from torchopt_implicit.differentiation import Constant, Implicit, Neumann, OneStep, Unrolled
from torchopt_implicit.linear_solve import solve_lu

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
N = 4
W = torch.randn(N, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 6


def layer(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ z + x)


def run(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    for _ in range(50):
        z = layer(z, x)
    return z


def equilibrium(way: ways.Differentiation) -> Callable[[torch.Tensor], torch.Tensor]:
    solver = custom_fixed_point(layer, argnums=1, differentiation=way)(run)
    return lambda x: solver(torch.zeros_like(x), x)


def minimum(way: ways.Differentiation) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the minimizer of a convex function, whose Hessian is within 1 and 2."""
    Q = torch.eye(N) + W @ W.T

    def gradient(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return Q @ z + 0.1 * torch.sin(z) - x

    @custom_root(gradient, argnums=1, differentiation=way)
    def solver(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for _ in range(80):
            z = z - 0.6 * gradient(z, x)
        return z

    return lambda x: solver(torch.zeros_like(x), x)


PROBLEMS = {"fixed point": equilibrium, "minimum": minimum}
EXACT = {
    "series": Neumann(terms=60, alpha=0.6),
    "unrolled": Unrolled(),
}
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": lambda f: hessian(lambda x: f(x).sin().sum()),
    "reverse over reverse": lambda f: jacrev(grad(lambda x: f(x).sin().sum())),
    "vmap of jacrev": lambda f: lambda x: vmap(jacrev(f))(torch.stack([x, 2 * x])),
}
POINT = torch.linspace(-0.5, 0.8, N, dtype=torch.float64)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("way", EXACT)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_ways_that_are_exact_in_the_limit_agree(problem: str, way: str, transform: str) -> None:
    build = PROBLEMS[problem]
    expected = TRANSFORMS[transform](build(Implicit()))(POINT)
    computed = TRANSFORMS[transform](build(EXACT[way]))(POINT)
    # what the default solver of linear systems promises
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [jacrev, jacfwd])
@pytest.mark.parametrize("terms", [1, 2, 5])
def test_a_truncated_series_is_what_its_formula_says(terms: int, mode: Any) -> None:
    x = POINT
    z = run(torch.zeros(N), x)
    J, B = jacrev(layer, argnums=(0, 1))(z, x)
    alpha = 0.8
    M = torch.eye(N) - alpha * (torch.eye(N) - J)
    P = alpha * sum(torch.linalg.matrix_power(M, k) for k in range(terms))
    computed = mode(equilibrium(Neumann(terms=terms, alpha=alpha)))(x)
    torch.testing.assert_close(computed, P @ B)
    if terms == 1:
        torch.testing.assert_close(mode(equilibrium(OneStep(alpha=alpha)))(x), P @ B)


def test_one_step_is_the_derivative_of_one_more_evaluation() -> None:
    z = run(torch.zeros(N), POINT)
    expected = jacrev(lambda x: layer(z, x))(POINT)
    torch.testing.assert_close(jacrev(equilibrium(OneStep()))(POINT), expected)


def test_one_step_of_newtons_method_is_exact() -> None:
    def newton(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return (x + a / x) / 2

    solver = custom_fixed_point(newton, argnums=1, differentiation=OneStep())
    slope = grad(lambda a: solver(lambda x, a: a.sqrt())(a, a))(torch.tensor(4.0))
    torch.testing.assert_close(slope, torch.tensor(0.25))


def test_the_bias_of_a_series_falls_with_its_terms() -> None:
    exact = jacrev(equilibrium(Implicit()))(POINT)
    errors = [
        float((jacrev(equilibrium(Neumann(terms=k)))(POINT) - exact).norm() / exact.norm())
        for k in range(1, 8)
    ]
    assert errors[0] > 0.05
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("problem", PROBLEMS)
def test_constants_have_no_derivative(problem: str) -> None:
    f = PROBLEMS[problem](Constant())
    x = POINT.clone().requires_grad_()
    assert not f(x).requires_grad
    torch.testing.assert_close(f(x), PROBLEMS[problem](Implicit())(x).detach())
    for mode in (jacrev, jacfwd):
        assert not mode(f)(POINT).any()


def test_unrolled_solutions_depend_on_the_initial_guess_too() -> None:
    @custom_fixed_point(lambda x, a: x / 2 + a, argnums=1, has_aux=True, differentiation=Unrolled())
    def solver(x: torch.Tensor, a: torch.Tensor) -> Any:
        for _ in range(3):
            x = x / 2 + a
        return x, "aux"

    x, a = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    solution, aux = solver(x, a)
    assert aux == "aux"
    assert [float(g) for g in torch.autograd.grad(solution, (x, a))] == [0.125, 1.75]
    with torch.no_grad():
        assert not solver(x, a)[0].requires_grad


def test_an_unrolled_solver_that_loses_gradients_is_an_error() -> None:
    @custom_fixed_point(lambda x, a: x / 2 + a, argnums=1, differentiation=Unrolled())
    def solver(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return (2 * a).detach()

    with pytest.raises(RuntimeError, match="the steps of solver are differentiated, but"):
        solver(torch.zeros(()), torch.ones((), requires_grad=True))


@pytest.mark.parametrize("way", [OneStep(), Neumann(terms=3), Constant()])
def test_a_way_reaches_what_the_equation_closes_over(way: ways.Differentiation) -> None:
    theta = torch.tensor(1.0, requires_grad=True)

    def solution(theta: torch.Tensor, argnums: Any) -> torch.Tensor:
        def step(x: torch.Tensor, a: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x / 2 + a * (theta if argnums == 1 else t)

        decorate = custom_fixed_point(step, argnums=argnums, differentiation=way)
        return decorate(lambda x, a, t: 2 * a * t)(torch.zeros(()), torch.ones(()), theta)

    closed, given = solution(theta, 1), solution(theta, (1, 2))
    assert closed.requires_grad is given.requires_grad is not isinstance(way, Constant)
    if closed.requires_grad:
        assert torch.autograd.grad(closed, theta) == torch.autograd.grad(given, theta)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Neumann(terms=0), ValueError, "`terms` must be at least 1, got 0"),
        (lambda: Neumann(terms=2.0), TypeError, "`terms` must be an integer, got 2.0"),
        (lambda: Neumann(terms=2, alpha=-1.0), ValueError, "`alpha` must be positive"),
        (lambda: OneStep(alpha=float("nan")), ValueError, "`alpha` must be positive"),
        (
            lambda: custom_root(layer, argnums=1, differentiation="jfb"),
            TypeError,
            "`differentiation` must be one of .* got 'jfb'",
        ),
        (
            lambda: custom_root(layer, argnums=1, solve=solve_lu(), differentiation=OneStep()),
            ValueError,
            "`solve` solves the linear systems .*OneStep.* leave out one of the two",
        ),
    ],
)
def test_wrong_arguments_are_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_what_cannot_be_compiled_is_an_error() -> None:
    def noisy(x: torch.Tensor, a: torch.Tensor, other: Any) -> torch.Tensor:
        return x - a * torch.rand(())

    a = torch.ones((), requires_grad=True)
    compiled = Implicit(compiled=True)
    solver = custom_root(noisy, argnums=1, differentiation=compiled)(lambda x, a, other: a)
    with pytest.raises(ValueError, match="draws random numbers"):
        solver(None, a, 1)
    decorate = custom_root(lambda x, a, other: x - a, argnums=1, differentiation=compiled)
    solver = decorate(lambda x, a, other: a)
    with pytest.raises(TypeError, match="must be hashable"):
        solver(None, a, {1, 2})


def test_the_front_door_has_the_same_module() -> None:
    assert torchopt.diff.implicit.differentiation is ways
