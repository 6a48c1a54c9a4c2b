"""`ImplicitMetaGradientModule`: own parameters become functions of meta-parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from torchopt_implicit import FailedSolveWarning, ImplicitMetaGradientModule, custom_root
from torchopt_implicit.linear_solve import solve_cg, solve_lu

pytestmark = pytest.mark.usefixtures("float64")
X, Y = torch.randn(2, 12, 3, dtype=torch.float64)


class Inner(ImplicitMetaGradientModule, linear_solve=solve_cg(rtol=1e-12)):
    """Ridge regression towards a prior: the solution is known."""

    def __init__(self, prior: nn.Linear, strength: torch.Tensor) -> None:
        super().__init__()
        self.prior = prior
        self.strength = strength
        self.net = nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def objective(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        distance = (self.net.weight - self.prior.weight).square().sum()
        return (self(x) - y).square().sum() + self.strength.exp() * distance

    def solve(self, x: torch.Tensor, y: torch.Tensor) -> Inner:
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14
        )

        def closure() -> torch.Tensor:
            with torch.enable_grad():
                optimizer.zero_grad()
                loss = self.objective(x, y)
                loss.backward(inputs=list(self.parameters()))
            return loss

        optimizer.step(closure)
        return self


class ByResidual(Inner):
    """The same with its residual written out, as existing programs do."""

    def optimality(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = self.objective(x, y)
        return torch.autograd.grad(loss, tuple(self.parameters()), create_graph=True)


class ByInheritance(Inner, linear_solve=solve_lu()):
    def solve(self, x: torch.Tensor, y: torch.Tensor) -> Inner:
        return super().solve(x, y)


def make() -> tuple[nn.Linear, torch.Tensor]:
    return nn.Linear(3, 3), torch.tensor(0.3, requires_grad=True)


def closed_form(prior: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    gram = X.T @ X + strength.exp() * torch.eye(3)
    return torch.linalg.solve(gram, X.T @ Y + strength.exp() * prior.T).T


@pytest.mark.parametrize("cls", [Inner, ByResidual, ByInheritance])
def test_gradients_reach_meta_parameters_and_meta_modules(cls: type[Inner]) -> None:
    prior, strength = make()
    inner = cls(prior, strength)
    assert inner.solve(X, Y) is inner
    weight = closed_form(prior.weight, strength)
    torch.testing.assert_close(inner.net.weight, weight)
    metas = (prior.weight, strength)
    computed = torch.autograd.grad(inner(X).square().sum(), metas, create_graph=True)
    expected = torch.autograd.grad((X @ weight.T).square().sum(), metas, create_graph=True)
    torch.testing.assert_close(computed, expected, rtol=1e-7, atol=1e-7)
    # and again, through all that depends on the solution
    computed = torch.autograd.grad(computed[1], metas)
    expected = torch.autograd.grad(expected[1], metas)
    torch.testing.assert_close(computed, expected, rtol=1e-6, atol=1e-6)


def test_a_module_is_solved_again_from_where_it_was() -> None:
    prior, strength = make()
    inner = Inner(prior, strength)
    for _ in range(3):
        inner.solve(X, Y)
        (slope,) = torch.autograd.grad(inner(X).sum(), strength)
    (expected,) = torch.autograd.grad((X @ closed_form(prior.weight, strength).T).sum(), strength)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)


def test_without_gradients_it_only_solves() -> None:
    prior, strength = make()
    with torch.no_grad():
        inner = Inner(prior, strength).solve(X, Y)
    assert all(p.is_leaf for p in inner.parameters())
    torch.testing.assert_close(inner.net.weight, closed_form(prior.weight, strength))


def test_gradients_reach_tensors_that_are_closed_over_or_in_a_list() -> None:
    strength = torch.tensor(0.3, requires_grad=True)

    class Listed(ImplicitMetaGradientModule, linear_solve=solve_lu()):
        def __init__(self, priors: list[torch.Tensor]) -> None:
            super().__init__()
            self.priors = priors
            self.w = nn.Parameter(torch.zeros(3))

        def objective(self) -> torch.Tensor:
            pull = (self.w - self.priors[0]).square().sum()
            return strength * self.w.square().sum() + pull

        def solve(self) -> Listed:
            self.w.copy_(self.priors[0] / (1 + strength))
            return self

    prior = torch.randn(3, requires_grad=True)
    for inputs in ((prior, strength), (strength,)):
        module = Listed([prior if len(inputs) == 2 else prior.detach()])
        computed = torch.autograd.grad(module.solve().w.square().sum(), inputs)
        expected = torch.autograd.grad((prior / (1 + strength)).square().sum(), inputs)
        torch.testing.assert_close(computed, expected)
    strength.requires_grad_(False)
    module = Listed([prior.detach()])
    parameter = module.w
    assert module.solve().w is parameter  # depends on nothing, and stays a parameter


def test_tied_and_frozen_parameters() -> None:
    class Tied(ImplicitMetaGradientModule):
        def __init__(self, target: torch.Tensor) -> None:
            super().__init__()
            self.target = target
            self.a = self.b = nn.Parameter(torch.zeros(2))
            self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

        def optimality(self) -> Any:
            return self.a + self.b - self.frozen * self.target

        def solve(self) -> Tied:
            self.a.copy_(self.target / 2)
            return self

    target = torch.tensor([1.0, 3.0], requires_grad=True)
    module = Tied(target).solve()
    assert module.a is module.b
    assert module.frozen.is_leaf
    (module.a + module.b).sum().backward()
    torch.testing.assert_close(target.grad, torch.ones(2))


def test_it_agrees_with_custom_root() -> None:
    prior, strength = make()

    def F(w: torch.Tensor, p: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return 2 * (w @ X.T @ X - Y.T @ X) + 2 * s.exp() * (w - p)

    solver = custom_root(F, argnums=(1, 2), solve=solve_lu())(lambda init, p, s: closed_form(p, s))
    inner = Inner(prior, strength).solve(X, Y)
    outers = [w.sin().sum() for w in (inner.net.weight, solver(None, prior.weight, strength))]
    gradients = [torch.autograd.grad(outer, (prior.weight, strength)) for outer in outers]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


def test_failures_name_the_class() -> None:
    class Hasty(Inner, linear_solve=solve_cg(maxiter=1)):
        pass

    class Hasty2(Hasty):
        def solve(self, x: torch.Tensor, y: torch.Tensor) -> Inner:
            return super().solve(x, y)

    prior, strength = make()
    inner = Hasty2(prior, strength).solve(X, Y)
    with pytest.warns(FailedSolveWarning, match=r"the derivative of Hasty2\.solve failed"):
        inner(X).sum().backward()


def solve(self: Any, x: Any) -> Any:
    return self


def residual(self: Any, x: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ({"solve": solve}, {}, r"must define optimality\(\).*or objective\(\)"),
        ({}, {}, r"must define optimality\(\).*or objective\(\)"),
        ({"solve": solve, "objective": 3}, {}, "objective must be a method"),
        (
            {"solve": solve, "optimality": staticmethod(residual)},
            {},
            "optimality must be a method, .* got staticmethod",
        ),
        (
            {"solve": classmethod(solve), "objective": residual},
            {},
            "solve must be a method, .* got classmethod",
        ),
        ({"solve": lambda: 1, "objective": residual}, {}, "must take `self`"),
        (
            {"solve": solve, "objective": lambda self: 0.0},
            {},
            r"objective\(\) must take the arguments of solve\(\).*\(self\) and solve\(self: ",
        ),
        (
            {"solve": solve, "optimality": lambda self, x, y: x},
            {},
            r"optimality\(\) must take the arguments of solve\(\)",
        ),
        (
            {"solve": solve, "objective": residual},
            {"linear_solve": 3},
            r"`linear_solve` of Wrong must be callable, such as solve_cg\(\), got 3",
        ),
    ],
)
def test_wrong_classes_are_errors_at_their_definition(
    members: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        type("Wrong", (ImplicitMetaGradientModule,), members, **options)


def test_a_class_without_solve_cannot_be_instantiated() -> None:
    cls = type("Abstract", (ImplicitMetaGradientModule,), {"objective": residual})
    with pytest.raises(TypeError, match=r"Abstract must define solve\(\)"):
        cls()
