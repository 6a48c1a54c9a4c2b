"""Solvers whose equations hold solutions of other equations, under every transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from torchopt_implicit import custom_fixed_point, custom_root
from torchopt_implicit.linear_solve import solve_lu

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]
Function = Callable[[torch.Tensor], torch.Tensor]


def cubic(c: torch.Tensor) -> torch.Tensor:
    """Return the root of ``y**3 + y = c`` by Newton's method."""
    y = torch.zeros_like(c)
    for _ in range(7):
        y = y - (y**3 + y - c) / (3 * y**2 + 1)
    return y


@custom_root(lambda y, a, x: y**3 + y - a * x, argnums=(1, 2), solve=solve_lu())
def inner(init: None, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return cubic(a * x)


def iterate(step: Function, a: torch.Tensor) -> torch.Tensor:
    x = torch.zeros_like(a)
    for _ in range(26):
        x = step(x)
    return x


@custom_root(lambda x, a: x - torch.cos(inner(None, a, x)), argnums=1, solve=solve_lu())
def outer_root(init: None, a: torch.Tensor) -> torch.Tensor:
    return iterate(lambda x: torch.cos(inner(None, a, x)), a)


@custom_fixed_point(lambda x, a: torch.cos(inner(None, a, x)), argnums=1, solve=solve_lu())
def outer_fixed_point(init: None, a: torch.Tensor) -> torch.Tensor:
    return iterate(lambda x: torch.cos(inner(None, a, x)), a)


def outer_closed(init: None, a: torch.Tensor) -> torch.Tensor:
    """Solve the same with an inner equation that closes over the argument of the transform."""

    @custom_root(lambda y, x: y**3 + y - a * x, argnums=1, solve=solve_lu())
    def inner(init: None, x: torch.Tensor) -> torch.Tensor:
        return cubic(a * x)

    @custom_root(lambda x, b: x - torch.cos(inner(None, x)) + b, argnums=1, solve=solve_lu())
    def outer(init: None, b: torch.Tensor) -> torch.Tensor:
        return iterate(lambda x: torch.cos(inner(None, x)), a)

    return outer(None, torch.zeros(()))


def unrolled(a: torch.Tensor) -> torch.Tensor:
    return iterate(lambda x: torch.cos(cubic(a * x)), a)


def double_backward(f: Function) -> Function:
    def second(a: torch.Tensor) -> torch.Tensor:
        a = a.detach().clone().requires_grad_()
        (first,) = torch.autograd.grad(f(a), a, create_graph=True)
        return torch.autograd.grad(first, a)[0]

    return second


def stacked(a: torch.Tensor) -> torch.Tensor:
    return torch.stack([a, 1.1 * a])


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": grad,
    "double backward": double_backward,
    "jacfwd": jacfwd,
    "jvp": lambda f: lambda a: jvp(f, (a,), (a,)),
    "hessian": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "third": lambda f: jacrev(jacrev(jacrev(f))),
    "vmap of jacrev": lambda f: lambda a: vmap(jacrev(f))(stacked(a)),
    "vmap of jacfwd": lambda f: lambda a: vmap(jacfwd(f))(stacked(a)),
    "vmap of hessian": lambda f: lambda a: vmap(hessian(f))(stacked(a)),
    "jacrev of vmap": lambda f: lambda a: jacrev(vmap(f))(stacked(a)),
    "hessian of vmap": lambda f: lambda a: hessian(lambda a: vmap(f)(a).sum())(stacked(a)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("outer", [outer_root, outer_fixed_point, outer_closed])
def test_derivatives_of_nested_solvers_equal_those_of_the_unrolled_ones(
    outer: Callable[..., torch.Tensor], transform: str
) -> None:
    a = torch.tensor(0.7)
    if outer is outer_closed and transform == "forward over forward":
        # the products of the outer linear solve differentiate the inner solution in reverse mode
        with pytest.raises(NotImplementedError, match="take one of the forward derivatives"):
            jacfwd(jacfwd(lambda a: outer(None, a)))(a)
        return
    computed = TRANSFORMS[transform](lambda a: outer(None, a))(a)
    torch.testing.assert_close(computed, TRANSFORMS[transform](unrolled)(a), rtol=1e-9, atol=1e-9)


def test_a_graph_that_outlives_its_transform_still_differentiates() -> None:
    a = torch.tensor(0.7)
    _, pull = torch.func.vjp(grad(lambda a: outer_root(None, a)), a)
    torch.testing.assert_close(pull(torch.tensor(1.0))[0], hessian(unrolled)(a))
