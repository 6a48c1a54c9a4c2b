"""Estimates under the transforms of `torch.func`: every method by every transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import torchopt
from torchopt_zero import LinearControl, LowRank, PersistentES

NORMAL = torch.distributions.Normal(0.0, 1.0)
X = torch.tensor([[1.0, -2.0], [0.5, 3.0], [2.0, 0.0]], dtype=torch.float64)
METHODS: list[Any] = [
    "naive",
    "forward",
    "antithetic",
    "spsa",
    "finite-difference",
    "rank-shaped",
    "leave-one-out",
    "guided",
]


def cubes(x: Tensor) -> Tensor:
    return (x**3).sum()


def estimated(method: Any = "finite-difference", seed: int = 3, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    options = {"sigma": 0.1, "num_samples": 7, "generator": generator, **options}
    return torchopt.diff.zero_order(NORMAL, method, **options)(cubes)


def backward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@pytest.mark.parametrize("vectorize", [None, False])
@pytest.mark.parametrize("method", METHODS)
def test_grad_is_that_of_backward(method: str, vectorize: bool | None) -> None:
    wanted = backward(estimated(method, vectorize=vectorize), X)
    assert wanted.any()
    torch.testing.assert_close(grad(estimated(method, vectorize=vectorize))(X), wanted)
    value, pull = vjp(estimated(method, vectorize=vectorize), X)
    assert value == cubes(X)
    torch.testing.assert_close(pull(torch.tensor(-2.0).double())[0], -2 * wanted)


@pytest.mark.parametrize("method", METHODS)
def test_jvp_is_the_product_of_the_estimate_and_the_tangent(method: str) -> None:
    tangent = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).view(3, 2)
    wanted = (backward(estimated(method), X) * tangent).sum()
    value, found = jvp(estimated(method), (X,), (tangent,))
    torch.testing.assert_close((value, found), (cubes(X), wanted))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(estimated(method)(forward_ad.make_dual(X, tangent)))
        torch.testing.assert_close(dual.tangent, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_gives_each_member_an_estimate(method: str) -> None:
    wanted = torch.stack([backward(estimated(method), row) for row in X])
    found = vmap(grad(estimated(method)), randomness="same")(X)
    if method != "guided":  # remembers the estimate of the member before
        torch.testing.assert_close(found, wanted)
    assert found.any(1).all()
    through = backward(lambda x: vmap(estimated(method), randomness="same")(x).sum(), X)
    outside = grad(lambda x: vmap(estimated(method), randomness="same")(x).sum())(X)
    torch.testing.assert_close((through, outside), (found, found))


def test_the_randomness_of_vmap_says_whether_members_share_noise() -> None:
    same, different = (
        vmap(grad(estimated("naive")), randomness=randomness)(X[:1].expand(4, 2))
        for randomness in ("same", "different")
    )
    assert all(torch.equal(same[0], row) for row in same)
    assert len(different.unique(dim=0)) == 4
    with pytest.raises(RuntimeError, match="'same' or 'different' randomness"):
        vmap(grad(estimated("naive")))(X)


@pytest.mark.parametrize("method", ["antithetic", "finite-difference"])
def test_batched_gradients(method: str) -> None:
    wanted = backward(estimated(method), X)
    x = X.clone().requires_grad_()
    cotangents = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (found,) = torch.autograd.grad(estimated(method)(x), x, cotangents, is_grads_batched=True)
    torch.testing.assert_close(found, cotangents[:, None, None] * wanted)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
def test_jacobians(jacobian: Any) -> None:
    function = estimated()

    def pair(x: Tensor) -> Tensor:
        return torch.stack([function(x), 2 * function(x.flip(0))])

    found = jacobian(pair) if jacobian is jacrev else jacfwd(pair, randomness="same")
    gradient = backward(function, X)
    torch.testing.assert_close(found(X), torch.stack([gradient, 2 * gradient]))


@pytest.mark.parametrize(
    "second",
    [
        lambda f: grad(lambda x: grad(f)(x).sum())(X),
        lambda f: jvp(grad(f), (X,), (X,)),
        lambda f: hessian(f)(X),
        lambda f: vmap(grad(lambda x: grad(f)(x).sum()), randomness="same")(X),
    ],
)
def test_second_derivatives_are_refused(second: Any) -> None:
    with pytest.raises(RuntimeError, match=r"second derivatives|randomness error mode"):
        second(estimated())


def test_the_cotangent_is_differentiated_under_transforms() -> None:
    function = estimated()

    def slope(scale: Tensor) -> Tensor:
        return grad(lambda x: scale**2 * function(x))(X).sum()

    at = torch.tensor(3.0, dtype=torch.float64)
    wanted = 2 * at * backward(function, X).sum()
    torch.testing.assert_close(grad(slope)(at), wanted)
    torch.testing.assert_close(jvp(slope, (at,), (torch.ones_like(at),))[1], wanted)


@pytest.mark.parametrize("place", ["closed over", "an argument", "a keyword"])
def test_tensors_of_a_transform_reach_the_samples(place: str) -> None:
    """They live as long as the transform, samples are evaluated outside of it."""

    def gradient(scale: Tensor) -> Tensor:
        decorate = torchopt.diff.zero_order(NORMAL, "finite-difference", sigma=0.1)
        if place == "closed over":
            return grad(decorate(lambda x: (scale * x).sum()))(X)
        if place == "an argument":
            return grad(decorate(lambda x, scale: (scale * x).sum()))(X, scale)
        return grad(decorate(lambda x, *, scale: (scale * x).sum()))(X, scale=scale)

    scales = torch.tensor([2.0, -3.0], dtype=torch.float64)
    found = vmap(gradient, randomness="same")(scales)
    torch.testing.assert_close(found, scales[:, None, None].expand(2, 3, 2))


@pytest.mark.parametrize("where", ["argument", "closure", "leaf", "no leaf"])
def test_a_derivative_that_would_be_lost_is_refused(where: str) -> None:
    decorate = torchopt.diff.zero_order(NORMAL)

    def function(scale: Tensor) -> Tensor:
        if where == "argument":
            return decorate(lambda x, s: (s * x).sum())(X * scale, scale)
        if where == "closure":
            return decorate(lambda x: (scale * x).sum())(X * scale)
        return decorate(lambda x: (scale * x).sum())(X)

    scale = torch.tensor(2.0, dtype=torch.float64)
    message = r"shape \(\) that derivatives are asked for .* name it in `argnums`"
    with pytest.raises(RuntimeError, match=message):
        grad(function)(scale)
    with pytest.raises(RuntimeError, match=message):
        jvp(function, (scale,), (scale,))
    with pytest.raises(RuntimeError, match=message):
        function(scale.requires_grad_() * 1).backward()


def test_parameters_that_are_closed_over_are_constants() -> None:
    net = torch.nn.Linear(2, 1).double()
    x = X.clone().requires_grad_()
    torchopt.diff.zero_order(NORMAL)(lambda x: net(x).sum())(x).backward()
    assert x.grad is not None
    assert net.weight.grad is None


@pytest.mark.parametrize("method", [LinearControl([torch.ones(3, 2)]), "antithetic"])
def test_other_noise_and_estimators(method: Any) -> None:
    def make() -> Any:
        generator = torch.Generator().manual_seed(1)
        return torchopt.diff.zero_order(LowRank(), method, num_samples=3, generator=generator)(
            cubes
        )

    torch.testing.assert_close(grad(make())(X), backward(make(), X))


class Module(torchopt.nn.ZeroOrderGradientModule, method="finite-difference", sigma=0.1):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(X.clone())

    def forward(self, scale: Tensor) -> Tensor:
        return (self.weight**2 * scale).sum()

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randn(sample_shape)


def test_modules_under_vmap() -> None:
    module = Module()
    scales = torch.tensor([1.0, 3.0], dtype=torch.float64)
    vmap(module, randomness="same")(scales).sum().backward()
    torch.testing.assert_close(module.weight.grad, 8 * X)


def test_unrolls_under_transforms() -> None:
    def make() -> PersistentES:
        return PersistentES(
            lambda x, state: (state + x, ((state + x) ** 2).sum()),
            torch.zeros(3, 2, dtype=torch.float64),
            num_samples=4,
            generator=torch.Generator().manual_seed(0),
        )

    wanted = backward(make(), X)
    torch.testing.assert_close(grad(make())(X), wanted)
    torch.testing.assert_close(jvp(make(), (X,), (X,))[1], (wanted * X).sum())
    persistent = make()
    grad(persistent)(X)
    persistent(X.clone().requires_grad_())  # its states have outlived the transform
    with pytest.raises(ValueError, match=r"`params` must have the tensors .* call `reset` first"):
        persistent(X)
    with pytest.raises(RuntimeError, match=r"cannot be called under torch\.func\.vmap"):
        vmap(make(), randomness="same")(X[None])
