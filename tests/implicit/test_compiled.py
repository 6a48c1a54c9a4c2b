"""Compiled derivatives are those that are not compiled, and see what changes between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, vmap

from torchopt_implicit import _compiled, custom_root
from torchopt_implicit.differentiation import Implicit
from torchopt_implicit.linear_solve import solve_gmres, solve_lu

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.compile,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of the compiler, about what it imports
]
N = 3


class Counter:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        build = _compiled._build

        def counted(*args: Any) -> Any:
            self.count += 1
            return build(*args)

        monkeypatch.setattr(_compiled, "_build", counted)


def problem(compiled: bool, solve: Any, data: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the root of ``Q x + x**3 / 10 = a`` for ``Q`` in a list that may change."""

    def F(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return data[0] @ x + x**3 / 10 - a

    @custom_root(F, argnums=1, solve=solve, differentiation=Implicit(compiled=compiled))
    def solver(init: None, a: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(a)
        for _ in range(25):
            J = data[0] + torch.diag_embed(0.3 * x**2)
            x = x - torch.linalg.solve(J, F(x, a))
        return x

    return lambda a: solver(None, a)


def matrix() -> torch.Tensor:
    return 2 * torch.eye(N) + torch.randn(N, N) / 4


@pytest.mark.parametrize("solve", [solve_gmres(rtol=1e-12), solve_lu()], ids=["GMRES", "LU"])
@pytest.mark.parametrize("order", ["first", "second", "vmap"])
def test_compiled_derivatives_equal_recorded_ones(solve: Any, order: str) -> None:
    data = [matrix()]
    fs = [problem(compiled, solve, data) for compiled in (True, False)]
    a = torch.randn(N)
    if order == "vmap":
        rows = torch.randn(2, N)
        computed, expected = (vmap(grad(lambda a, f=f: f(a).sin().sum()))(rows) for f in fs)
    else:
        transform = grad if order == "first" else hessian
        computed, expected = (transform(lambda a, f=f: f(a).sin().sum())(a) for f in fs)
    torch.testing.assert_close(computed, expected)


def test_it_compiles_once_for_each_shape_and_sees_new_data(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    data = [torch.empty(())]
    compiled, plain = (problem(c, solve_gmres(rtol=1e-12), data) for c in (True, False))
    counts = []
    for _ in range(3):
        data[0] = matrix().requires_grad_()
        a = torch.randn(N, requires_grad=True)
        gradients = [torch.autograd.grad(f(a).sin().sum(), (a, data[0])) for f in (compiled, plain)]
        torch.testing.assert_close(*gradients)
        counts.append(counter.count)
    assert counts == [2, 2, 2]  # products, and the pullback to the tensors


def test_data_without_gradients_are_inputs_too() -> None:
    data = [matrix()]
    compiled, plain = (problem(c, solve_lu(), data) for c in (True, False))
    for _ in range(2):
        a = torch.randn(N, requires_grad=True)
        gradients = [torch.autograd.grad(f(a).sin().sum(), a) for f in (compiled, plain)]
        torch.testing.assert_close(*gradients)
        data[0] = matrix()


def test_each_call_looks_for_tensors_out_of_reach() -> None:
    scripted = torch.jit.script(torch.nn.Linear(N, N).requires_grad_(False))

    @custom_root(
        lambda x, a: x - scripted(a),
        argnums=1,
        solve=solve_lu(),
        differentiation=Implicit(compiled=True),
    )
    def solver(init: None, a: torch.Tensor) -> torch.Tensor:
        return scripted(a)

    a = torch.randn(N, requires_grad=True)
    (slope,) = torch.autograd.grad(solver(None, a).sum(), a)
    torch.testing.assert_close(slope, scripted.weight.sum(0))
    scripted.weight.requires_grad_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"depends on `scripted\.weight`, which requires"):
            solver(None, a)
