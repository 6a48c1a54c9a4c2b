"""Every exact memory policy gives the derivatives of the full graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import torchopt
from torchopt.diff.explicit import (
    Binomial,
    Checkpointed,
    FullGraph,
    Memory,
    MixedMode,
    Offloaded,
    unroll,
)

pytestmark = pytest.mark.usefixtures("float64")

POLICIES: dict[str, Memory] = {
    "checkpointed": Checkpointed(),
    "nested": Checkpointed(3, within=Checkpointed(2)),
    "binomial, 1 slot": Binomial(1),
    "binomial, 3 slots": Binomial(3),
    "binomial within": Checkpointed(3, within=Binomial(2)),
    "offloaded": Offloaded(Binomial(2)),
    "mixed mode": MixedMode(),
    "mixed mode, checkpointed": MixedMode(Checkpointed()),
    "mixed mode, offloaded": Offloaded(MixedMode(Binomial(2))),
}
every_policy = pytest.mark.parametrize("memory", POLICIES.values(), ids=POLICIES.keys())
FEW = ["checkpointed", "binomial, 3 slots", "mixed mode", "mixed mode, checkpointed"]
few_policies = pytest.mark.parametrize("memory", [POLICIES[name] for name in FEW], ids=FEW)

OPTIMIZERS: dict[str, Callable[[Any], torchopt.GradientTransformation]] = {
    "sgd": lambda lr: torchopt.sgd(lr, momentum=0.9),
    "adam": torchopt.adam,
    "adamw": lambda lr: torchopt.adamw(lr, weight_decay=0.1),
    "rmsprop": torchopt.rmsprop,
    "adadelta": torchopt.adadelta,
    "adagrad": torchopt.adagrad,
    "adafactor": torchopt.adafactor,
    "sam": lambda lr: torchopt.chain(torchopt.sam(torchopt.sgd(lr), rho=0.05)),
    "lookahead": lambda lr: torchopt.lookahead(torchopt.sgd(lr), k=2),
    "schedule-free": lambda lr: torchopt.schedule_free(torchopt.sgd(lr)),
    "clipped": lambda lr: torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(lr)),
    "scheduled": lambda lr: torchopt.sgd(lambda count: lr / (1 + count)),
    "partition": lambda lr: torchopt.partition(
        {"a": torchopt.adam(lr), "b": torchopt.sgd(lr)}, {"w": "a", "v": "b"}
    ),
}
STEPS = 4


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found = {
        "w": torch.randn(3, 4),
        "v": torch.randn(4),
        "x": torch.randn(STEPS, 6, 3),
        "c": torch.tensor(0.7),
        "lr": torch.tensor(0.05),
        "closed": torch.tensor(0.3),
    }
    return {name: x.requires_grad_() for name, x in found.items()}


def network(params: Any, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    hidden = torch.tanh(x @ params["w"] * c)
    return (hidden @ params["v"]).square().mean() + 0.1 * (params["w"] - 1).square().sum()


def outer(
    memory: Memory | None, make: Callable[[Any], torchopt.GradientTransformation], **given: Any
) -> torch.Tensor:
    closed = given["closed"]
    adapted = unroll(
        lambda params, x, c: network(params, x, c) * closed,
        make(given["lr"]),
        {"w": given["w"], "v": given["v"]},
        given["c"],
        batches=given["x"],
        memory=memory,
        losses=True,
    )
    assert adapted.losses is not None
    assert adapted.losses.shape == (STEPS,)
    return (
        adapted.params["w"].sin().sum() + adapted.params["v"].square().sum() + adapted.losses.sum()
    )


def assert_close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@few_policies
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_gradients_are_those_of_the_full_graph(
    memory: Memory, make: Callable[[Any], torchopt.GradientTransformation]
) -> None:
    given = tensors()
    expected = torch.autograd.grad(outer(None, make, **given), list(given.values()))
    found = torch.autograd.grad(outer(memory, make, **given), list(given.values()))
    assert all(g.abs().sum() > 0 for g in expected)
    assert_close(found, expected)


@every_policy
def test_second_derivatives_are_those_of_the_full_graph(memory: Memory) -> None:
    results = []
    for policy in (None, memory):
        given = tensors()
        every = list(given.values())
        first = torch.autograd.grad(outer(policy, torchopt.adam, **given), every, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), every))  # type: ignore[arg-type]
    scale = max(float(g.abs().max()) for g in results[0])
    assert_close([g / scale for g in results[1]], [g / scale for g in results[0]])


@few_policies
def test_finite_differences(memory: Memory) -> None:
    given = tensors()
    names = ["w", "c", "lr", "closed"]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return outer(memory, torchopt.adam, **{**given, **dict(zip(names, values, strict=True))})

    inputs = [given[name] for name in names]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def scalar(memory: Memory | None, c: Any, x: Any, w: Any) -> torch.Tensor:
    constants = {"v": torch.linspace(-1, 1, 4), "lr": 0.05, "closed": torch.tensor(0.3)}
    return outer(memory, torchopt.adam, **constants, c=c, x=x, w=w)


def closed(memory: Memory | None, c: Any, x: Any, w: Any) -> torch.Tensor:
    """The same kind of problem, of which a transform wraps what is in the closure of the loss."""
    params = {"w": w, "v": torch.linspace(-1, 1, 4)}
    adapted = unroll(
        lambda p: network(p, x[0], c), torchopt.adam(0.05), params, steps=STEPS, memory=memory
    )
    return adapted.params["w"].sin().sum()


Function = Callable[..., torch.Tensor]
# with what is wrapped in the closure of the loss
CLOSED = ["grad", "jvp", "vmap", "vmap of grad", "grad of vmap of vmap"]
TRANSFORMS: dict[str, Callable[[Function, Any], Any]] = {
    "grad": lambda f, a: grad(f, (0, 1, 2))(a.c[0], a.x[0], a.w),
    "grad of grad": lambda f, a: grad(grad(f))(a.c[0], a.x[0], a.w),
    "jvp": lambda f, a: jvp(lambda c, w: f(c, a.x[0], w), (a.c[0], a.w), (a.c[1], a.w.cos()))[1],
    "jacrev": lambda f, a: jacrev(f, 2)(a.c[0], a.x[0], a.w),
    "jacfwd": lambda f, a: jacfwd(f, 2)(a.c[0], a.x[0], a.w),
    "hessian": lambda f, a: hessian(f, 2)(a.c[0], a.x[0], a.w),
    "jacrev of jacrev": lambda f, a: jacrev(jacrev(f, 2), 2)(a.c[0], a.x[0], a.w),
    "vmap": lambda f, a: vmap(f, (0, 0, None))(a.c, a.x, a.w),
    "vmap in chunks": lambda f, a: vmap(f, (0, 0, None), chunk_size=2)(a.c, a.x, a.w),
    "vmap of grad": lambda f, a: vmap(grad(f, (0, 2)), (0, 0, None))(a.c, a.x, a.w),
    "grad of vmap": lambda f, a: grad(lambda w: vmap(f, (0, 0, None))(a.c, a.x, w).sum())(a.w),
    "vmap of jvp": lambda f, a: vmap(
        lambda c, x: jvp(lambda c: f(c, x, a.w), (c,), (torch.ones_like(c),))[1]
    )(a.c, a.x),
    "vmap of jacrev of grad": lambda f, a: vmap(jacrev(grad(f)), (0, 0, None))(a.c, a.x, a.w),
    "vmap of vmap": lambda f, a: vmap(vmap(f, (0, None, None)), (None, 0, None))(a.c, a.x, a.w),
    "grad of vmap of vmap": lambda f, a: grad(
        lambda w: vmap(vmap(f, (0, None, None)), (None, 0, None))(a.c, a.x, w).sum()
    )(a.w),
}


class Arguments:
    def __init__(self) -> None:
        torch.manual_seed(2)
        self.c = torch.rand(3) + 0.5
        self.x = torch.randn(3, STEPS, 6, 3)
        self.w = torch.randn(3, 4)


@pytest.mark.parametrize("memory", [POLICIES[name] for name in FEW[1:]], ids=FEW[1:])
@pytest.mark.parametrize(
    ("function", "name"),
    [*[(scalar, name) for name in TRANSFORMS], *[(closed, name) for name in CLOSED]],
)
def test_transforms_give_what_they_give_through_the_full_graph(
    function: Callable[..., Any], name: str, memory: Memory
) -> None:
    a, transform = Arguments(), TRANSFORMS[name]
    expected = transform(lambda c, x, w: function(None, c, x, w), a)
    assert_close(transform(lambda c, x, w: function(memory, c, x, w), a), expected)


@few_policies
def test_batched_cotangents(memory: Memory) -> None:
    given = tensors()

    def jacobian(policy: Memory | None, **kwargs: Any) -> Any:
        params = {"w": given["w"], "v": given["v"]}
        arguments = (given["x"][0], given["c"])
        adapted = unroll(network, torchopt.adam(0.05), params, *arguments, steps=3, memory=policy)
        w = adapted.params["w"].reshape(-1)
        if kwargs:
            return torch.autograd.grad(w, list(params.values()), torch.eye(12), **kwargs)
        rows = [torch.autograd.grad(y, list(params.values()), retain_graph=True) for y in w]
        return tuple(map(torch.stack, zip(*rows, strict=True)))

    assert_close(jacobian(memory, is_grads_batched=True), jacobian(None))


@pytest.mark.parametrize("memory", [FullGraph(), *POLICIES.values()], ids=["full", *POLICIES])
def test_forward_mode_outside_of_transforms(memory: Memory) -> None:
    a = Arguments()
    expected = torch.autograd.functional.jacobian(lambda c: closed(None, c, a.x[0], a.w), a.c[0])
    with forward_ad.dual_level():
        c = forward_ad.make_dual(a.c[0], torch.ones_like(a.c[0]))  # type: ignore[no-untyped-call]
        value = closed(memory, c, a.x[0], a.w)
        tangent = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    assert_close(tangent, expected)


def test_forward_mode_over_forward_mode_is_refused_where_it_would_be_lost() -> None:
    a = Arguments()

    def derivative(c: torch.Tensor) -> torch.Tensor:
        return jvp(lambda c: closed(Checkpointed(), c, a.x[0], a.w), (c,), (c,))[1]

    with pytest.raises(NotImplementedError, match="jacrev"):
        jvp(derivative, (a.c[0],), (a.c[0],))
