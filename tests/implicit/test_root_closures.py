"""What an equation has from elsewhere: differentiated, left alone, or refused by name."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

from torchopt_implicit import (
    ImplicitMetaGradientModule,
    affine_root,
    custom_fixed_point,
    custom_root,
)
from torchopt_implicit.linear_solve import solve_lu

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


def cube_root(theta: torch.Tensor) -> torch.Tensor:
    """Return the root of ``x**3 = theta**2``, whose equation closes over ``theta``."""

    @custom_root(lambda x, scale: x**3 - scale * theta**2, argnums=1, solve=solve_lu())
    def solver(init: None, scale: torch.Tensor) -> torch.Tensor:
        return (scale * theta**2) ** (1 / 3)

    return solver(None, torch.ones(()))


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": grad,
    "jacfwd": jacfwd,
    "jvp": lambda f: lambda a: jvp(f, (a,), (a,)),
    "hessian": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "vmap of grad": lambda f: lambda a: vmap(grad(f))(torch.stack([a, 2 * a])),
    "grad of vmap": lambda f: lambda a: grad(lambda a: vmap(f)(a).sum())(torch.stack([a, a])),
    "vmap of hessian": lambda f: lambda a: vmap(hessian(f))(torch.stack([a, 2 * a])),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_closed_over_tensors_are_differentiated(transform: str) -> None:
    a = torch.tensor(1.3)
    computed = TRANSFORMS[transform](cube_root)(a)
    expected = TRANSFORMS[transform](lambda a: a ** (2 / 3))(a)
    torch.testing.assert_close(computed, expected)


def test_closed_over_tensors_pass_gradcheck_to_second_order() -> None:
    a = torch.tensor(1.3, requires_grad=True)
    assert torch.autograd.gradcheck(cube_root, (a,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cube_root, (a,))
    b = torch.tensor(1.3, requires_grad=True)  # not a leaf where it is closed over
    assert torch.autograd.gradcheck(lambda b: cube_root(2 * b), (b,))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.inner.weight.mul_(0.3)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))


def run(layer: Callable[..., torch.Tensor], z: torch.Tensor, *args: Any) -> torch.Tensor:
    for _ in range(60):
        z = layer(z, *args)
    return z


def test_an_equilibrium_of_a_module_that_is_closed_over_trains_the_module() -> None:
    layer = Layer()
    x = torch.randn(3, requires_grad=True)
    inputs = (x, *layer.parameters())

    @custom_fixed_point(lambda z, x: layer(z, x), argnums=1, solve=solve_lu())
    def equilibrium(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return run(layer, z, x)

    computed = torch.autograd.grad(equilibrium(torch.zeros(3), x).square().sum(), inputs)
    expected = torch.autograd.grad(run(layer, torch.zeros(3), x).square().sum(), inputs)
    torch.testing.assert_close(computed, expected)


def test_modules_among_the_arguments_are_differentiated_if_in_argnums_and_else_are_not() -> None:
    layer = Layer()
    x = torch.randn(3, requires_grad=True)

    def F(z: torch.Tensor, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return z - layer(z, x)

    def solver(z: torch.Tensor, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        return run(layer, z, x)

    inputs = (x, *layer.parameters())
    expected = torch.autograd.grad(run(layer, torch.zeros(3), x).sum(), inputs)
    for argnums, wanted in (((1, 2), len(inputs)), (2, 1)):
        z = custom_root(F, argnums=argnums, solve=solve_lu())(solver)(torch.zeros(3), layer, x)
        computed = torch.autograd.grad(z.sum(), inputs, allow_unused=True)
        torch.testing.assert_close(computed[:wanted], expected[:wanted])
        assert computed[wanted:] == (None,) * (len(inputs) - wanted)


def test_closed_over_parameters_under_functional_call() -> None:
    layer = Layer()
    x = torch.randn(3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], implicit: bool) -> torch.Tensor:
        def step(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return functional_call(layer, parameters, (z, x))

        def solver(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return run(step, z, x)

        if implicit:
            solver = custom_fixed_point(step, argnums=1, solve=solve_lu())(solver)
        return solver(torch.zeros(3), x).square().sum()

    torch.testing.assert_close(grad(loss)(parameters, True), grad(loss)(parameters, False))


def test_affine_equations_are_differentiated_in_what_they_close_over() -> None:
    A = (torch.randn(3, 3) / 4 + torch.eye(3)).requires_grad_()
    b = torch.randn(3, requires_grad=True)
    x = affine_root(lambda x, b: A @ x - b, argnums=1)(torch.zeros(3), b)
    computed = torch.autograd.grad(x.square().sum(), (A, b))
    expected = torch.autograd.grad(torch.linalg.solve(A, b).square().sum(), (A, b))
    torch.testing.assert_close(computed, expected)


def test_a_nested_solver_passes_on_what_it_closes_over() -> None:
    theta = torch.tensor(1.3, requires_grad=True)

    @custom_root(lambda y, x: y**3 - x * theta, argnums=1, solve=solve_lu())
    def inner(init: None, x: torch.Tensor) -> torch.Tensor:
        return (x * theta) ** (1 / 3)

    @custom_root(lambda x, a: x - 0.5 * inner(None, x) - a, argnums=1, solve=solve_lu())
    def outer(init: None, a: torch.Tensor) -> torch.Tensor:
        x = torch.ones_like(a)
        for _ in range(80):
            x = 0.5 * (x * theta) ** (1 / 3) + a
        return x

    a = torch.tensor(0.8, requires_grad=True)
    x = torch.ones(())
    for _ in range(80):
        x = 0.5 * (x * theta) ** (1 / 3) + a
    computed = torch.autograd.grad(outer(None, a), (a, theta))
    torch.testing.assert_close(computed, torch.autograd.grad(x, (a, theta)))


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_tensors_out_of_reach_are_refused_by_name() -> None:
    theta = torch.tensor(2.0, requires_grad=True)
    net = nn.Linear(1, 1, bias=False)
    for function, name in (
        (lambda x, a: x - a * Square.apply(theta), "theta"),
        (lambda x, a: x - a * Square.apply(net.weight).sum(), r"net\.weight"),
    ):
        solver = custom_root(function, argnums=1)(lambda init, a: 4 * a)
        with pytest.raises(RuntimeError, match=f"depends on `{name}`, which requires gradients"):
            solver(None, torch.ones(()))


@pytest.mark.parametrize("transform", ["vmap", "jvp", "grad", "vmap of grad", "hessian"])
def test_tensors_out_of_reach_are_refused_by_name_under_transforms(transform: str) -> None:
    theta = torch.tensor(2.0, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)

    def root(function: Callable[..., torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        solver = custom_root(function, argnums=1)(lambda init, a: 12 * a**2)
        return lambda a: solver(None, a)

    points = torch.tensor([1.0, 2.0])
    evaluate: dict[str, Callable[[Any], Any]] = {
        "vmap": lambda f: vmap(f)(points),
        "jvp": lambda f: jvp(f, (points[0],), (points[1],)),
        "grad": lambda f: grad(f)(points[0]),
        "vmap of grad": lambda f: vmap(grad(f))(points),
        "hessian": lambda f: hessian(f)(points[0]),
    }
    scripted = torch.jit.script(nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match=r"depends on `scripted\.(weight|bias)`, which requires"):
        evaluate[transform](root(lambda x, a: x - scripted((scale * a).reshape(1)).sum()))
    evaluate[transform](root(lambda x, a: x - a**2 * scale * theta))


def test_arguments_mix_tensors_with_anything() -> None:
    def F(x: torch.Tensor, options: dict[str, Any], pair: Any) -> torch.Tensor:
        c = pair[0] if pair[2] == "plus" else -pair[0]
        return options["power"] * x - options["a"] - c

    @custom_root(F, argnums=(1, 2), solve=solve_lu())
    def solver(init: None, options: dict[str, Any], pair: Any) -> torch.Tensor:
        return (options["a"] + pair[0]) / options["power"]

    a, c = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    options = {"a": a, "power": 4, "none": None, "name": "x", "count": torch.tensor(3)}
    gradients = torch.autograd.grad(solver(None, options, (c, None, "plus")).sum(), (a, c))
    torch.testing.assert_close(gradients, (torch.full((2,), 0.25),) * 2)


@pytest.mark.parametrize("what", ["closed over", "argument"])
@pytest.mark.parametrize("mode", ["backward", "second order"])
def test_data_changed_in_place_before_the_backward_are_refused(what: str, mode: str) -> None:
    data = torch.tensor(3.0)
    closed = what == "closed over"
    function: Any = lambda x, a, d: x**2 - a * (data if closed else d)  # noqa: E731
    solver = custom_root(function, argnums=1)(lambda init, a, d: (a * d).sqrt())
    a = torch.tensor(3.0, requires_grad=True)
    x = solver(None, a, data)
    data.zero_()
    with pytest.raises(RuntimeError, match=r"in.?place"):
        torch.autograd.grad(x, a, create_graph=mode == "second order")


def test_autocast_of_the_forward_holds_in_the_backward() -> None:
    W = (torch.randn(8, 8, dtype=torch.float32) / 6).requires_grad_()
    seen = []

    def step(z: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        product = W @ z
        seen.append(product.dtype)
        return torch.tanh(product + 0.5).float()

    @custom_fixed_point(step, argnums=1, solve=lambda A, b: b)
    def solver(z: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return run(step, z, W)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = solver(torch.zeros(8, dtype=torch.float32), W)
    seen.clear()
    (first,) = torch.autograd.grad(z.sum(), W, create_graph=True)
    torch.autograd.grad(first.sum(), W)
    assert set(seen) == {torch.bfloat16}
    # and the other way round
    z = solver(torch.zeros(8, dtype=torch.float32), W)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.autograd.grad(z.sum(), W, create_graph=True)
    assert set(seen) == {torch.float32}


def test_every_evaluation_draws_the_same_random_numbers_and_the_generator_is_left_alone() -> None:
    masks = []

    def F(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        mask = torch.nn.functional.dropout(torch.ones(16), 0.5)
        masks.append(mask.detach())
        return x - a - a * mask

    @custom_root(F, argnums=1, solve=solve_lu())
    def solver(init: None, a: torch.Tensor) -> torch.Tensor:
        return a.clone()

    a = torch.ones(16, requires_grad=True)
    before = torch.get_rng_state()
    x = solver(None, a)
    (first,) = torch.autograd.grad(x.sum(), a, create_graph=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(masks) > 1
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    torch.testing.assert_close(first.detach(), 1 + masks[0])


@pytest.mark.parametrize("order", ["again", "create_graph"])
def test_modules_are_in_the_mode_of_the_solve(order: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    solver = custom_fixed_point(lambda x, a: a + 0.1 * net(x), argnums=1, solve=solve_lu())(
        lambda init, a: run(lambda x: a + 0.1 * net(x), torch.zeros_like(a))
    )
    a = torch.tensor([1.5, 2.5], requires_grad=True)
    expected = torch.linalg.inv(torch.eye(2) - 0.1 * net[0].weight)
    x = solver(None, a)
    net.train()
    for _ in range(3):
        (slope,) = torch.autograd.grad(
            x.sum(), a, retain_graph=True, create_graph=order == "create_graph"
        )
        torch.testing.assert_close(slope, expected.sum(0))
    assert all(module.training for module in net.modules())


class Normalized(ImplicitMetaGradientModule, linear_solve=solve_lu()):
    def __init__(self, prior: torch.Tensor) -> None:
        super().__init__()
        self.prior = prior
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.w = nn.Parameter(torch.zeros(2))

    def objective(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(x) * self.w - self.prior).square().mean() + self.w.square().sum()

    def solve(self, x: torch.Tensor) -> Normalized:
        with torch.enable_grad():
            optimizer = torch.optim.SGD([self.w], lr=0.2)
            for _ in range(80):
                optimizer.zero_grad()
                self.objective(x).backward(inputs=[self.w])
                optimizer.step()
        return self


def test_derivatives_leave_running_statistics_to_the_solver() -> None:
    x = torch.randn(6, 2)
    prior = torch.tensor([1.0, 2.0], requires_grad=True)
    module = Normalized(prior)
    reference = Normalized(prior)
    with torch.no_grad():
        reference.solve(x)
    module.solve(x)
    (slope,) = torch.autograd.grad((module.w * torch.arange(1.0, 3.0)).sum(), prior)
    for name, value in module.norm.named_buffers():
        torch.testing.assert_close(value, reference.norm.get_buffer(name))
    assert int(module.norm.num_batches_tracked) == 80

    def closed_form(prior: torch.Tensor) -> torch.Tensor:
        y = nn.functional.batch_norm(x, None, None, training=True)
        w = (y * prior).mean(0) / (y.square().mean(0) + 2)
        return (w * torch.arange(1.0, 3.0)).sum()

    torch.testing.assert_close(slope, grad(closed_form)(prior.detach()), rtol=1e-6, atol=1e-6)


def test_derivatives_write_to_nothing_that_an_equation_closes_over() -> None:
    calls = torch.zeros(())
    last = torch.zeros(2)

    def F(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        calls.add_(1)
        last.copy_(x.detach())
        return x**2 - a * last / last

    solver = custom_root(F, argnums=1, solve=solve_lu())(lambda init, a: a.sqrt())
    a = torch.ones(2, requires_grad=True)
    (first,) = torch.autograd.grad(solver(None, a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    torch.testing.assert_close(second, torch.full((2,), -0.25))
    torch.testing.assert_close(hessian(lambda a: solver(None, a).sum())(a), -0.25 * torch.eye(2))
    assert float(calls) == 0
    assert not last.any()


def test_nothing_is_kept_alive_after_a_solve() -> None:
    class Big:
        pass

    def solve(batched: bool) -> weakref.ref[Big]:
        big = Big()
        theta = torch.ones(3, requires_grad=True)

        def F(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            assert big is not None
            return x**3 - a * theta

        solver: Any = custom_root(F, argnums=1, solve=solve_lu())(lambda init, a: a ** (1 / 3))
        a = torch.ones((2, 3) if batched else (3,), requires_grad=True)
        f = vmap(lambda a: solver(None, a)) if batched else lambda a: solver(None, a)
        f(a).sum().backward()
        return weakref.ref(big)

    gc.collect()
    gc.disable()
    try:
        assert solve(batched=False)() is None
        assert solve(batched=True)() is None
    finally:
        gc.enable()


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler asks
def test_the_compiler_compiles_around_a_solver() -> None:
    theta = torch.tensor(2.0, requires_grad=True)
    solver = custom_root(lambda x, a: x**2 - a * theta, argnums=1, solve=solve_lu())(
        lambda init, a: (a * theta).sqrt()
    )

    def f(a: torch.Tensor) -> torch.Tensor:
        return (solver(None, a * 2) * 3).sum()

    a = torch.ones(2, requires_grad=True)
    expected = torch.autograd.grad(f(a), (a, theta))
    computed = torch.autograd.grad(torch.compile(f, backend="eager")(a), (a, theta))
    torch.testing.assert_close(computed, expected)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler asks
def test_equations_may_call_what_was_compiled() -> None:
    net = nn.Linear(2, 2)
    a = torch.ones(2, requires_grad=True)
    inputs = (a, *net.parameters())
    whole = torch.compile(net, backend="eager")
    part = torch.compile(lambda x: torch.tanh(net(x)), backend="eager")

    def derivatives(f: Callable[..., torch.Tensor]) -> Any:
        def step(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
            return a + 0.1 * f(x)

        solver = custom_fixed_point(step, argnums=1)(lambda init, a: run(step, init, a))
        x = solver(torch.zeros(2), a)
        first = torch.autograd.grad(x.square().sum(), inputs, create_graph=True)
        return first, torch.autograd.grad(first[0].sum(), inputs)

    for compiled, plain in ((whole, net), (part, lambda x: torch.tanh(net(x)))):
        torch.testing.assert_close(derivatives(compiled), derivatives(plain))
