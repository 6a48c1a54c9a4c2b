"""Steps on many levels: batched cotangents, transforms inside of transforms, tangents, layouts.

What the core's arithmetic gives is expected everywhere; `use_accelerated_op=None` is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _table import ADAM, ADAMW, RMSPROP, SGD, Case, every_family, every_kernel_case
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.autograd.functional import hessian, jacobian
from torch.func import functionalize, grad, jacfwd, jacrev, jvp, vjp, vmap

import torchopt
from torchopt_accel import _native, _step
from torchopt_accel._step import Step

from ._accel import Spy, assert_rounds_alike, twin

pytestmark = pytest.mark.usefixtures("float64")

Loss = Callable[[torch.Tensor], torch.Tensor]

# the name, the family, and numbers far from where derivatives are steep
OPTIMIZERS = {
    "sgd": (SGD, {}),
    "sgd-momentum": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": (ADAM, {"eps": 0.1, "weight_decay": 0.1}),
    "adamw": (ADAMW, {"eps": 0.1, "weight_decay": 0.1}),
    "rmsprop": (RMSPROP, {"eps": 0.1}),
    "rmsprop-all": (RMSPROP, {"eps": 0.1, "centered": True, "momentum": 0.5}),
}
every_optimizer = pytest.mark.parametrize(
    "case",
    [Case(name, *row, lambda params: None, 0.1) for name, row in OPTIMIZERS.items()],
    ids=lambda case: case.name,
)


def adapted(case: Case, accelerated: bool | None, *, steps: int = 2) -> Loss:
    """Return some steps as a function of the parameters."""
    transformation = case.functional(use_accelerated_op=accelerated)

    def run(param: torch.Tensor) -> torch.Tensor:
        state = transformation.init([param])
        for _ in range(steps):
            slope = param.sin() + param**2
            (update,), state = transformation.update([slope], state, params=[param], inplace=False)
            param = param + update
        return param

    return run


def loss_of(step: Loss) -> Loss:
    return lambda x: (step(x).sin() * torch.arange(1.0, 4.0)).sum()


def point() -> torch.Tensor:
    return torch.tensor([0.3, 0.7, 0.4])


def both(case: Case, function: Callable[[Loss], Any], *, steps: int = 2, ulps: float = 1e5) -> None:
    """Assert that a function of the step gives what it gives of the composite step."""
    actual = function(adapted(case, None, steps=steps))
    assert_rounds_alike(actual, function(adapted(case, False, steps=steps)), ulps=ulps)


def batched_rows(step: Loss, *, create_graph: bool = False) -> Any:
    x = point().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(step)(x), x, create_graph=True)
    (rows,) = torch.autograd.grad(
        slope, x, torch.eye(3), is_grads_batched=True, create_graph=create_graph
    )
    return torch.autograd.grad(rows.square().sum(), x) if create_graph else rows


def recorded(function: Callable[..., torch.Tensor]) -> Callable[[Loss], Any]:
    """Differentiate a vectorized derivative once more."""

    def run(step: Loss) -> Any:
        x = point().requires_grad_()
        found = function(step, x)
        return found.detach(), torch.autograd.grad(found.square().sum(), x)

    return run


BATCHED: dict[str, Callable[[Loss], Any]] = {
    "rows of the Hessian": batched_rows,
    "rows of the Hessian, recorded": lambda step: batched_rows(step, create_graph=True),
    "jacobian": lambda step: jacobian(step, point(), vectorize=True),
    "jacobian, recorded": recorded(
        lambda step, x: jacobian(step, x, vectorize=True, create_graph=True)
    ),
    "jacobian, forward mode": lambda step: jacobian(
        step, point(), vectorize=True, strategy="forward-mode"
    ),
    "hessian": lambda step: hessian(loss_of(step), point(), vectorize=True),
    "hessian, recorded": recorded(
        lambda step, x: hessian(loss_of(step), x, vectorize=True, create_graph=True)
    ),
    "hessian, forward mode": lambda step: hessian(
        loss_of(step), point(), vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}


@pytest.mark.parametrize("derivative", BATCHED.values(), ids=BATCHED)
@every_optimizer
def test_batched_derivatives_equal_those_of_the_composite_step(
    case: Case, derivative: Callable[[Loss], Any]
) -> None:
    both(case, derivative)


@every_optimizer
def test_gradcheck_takes_batches(case: Case) -> None:
    step, x = adapted(case, None), point().requires_grad_()
    assert gradcheck(
        step, x, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(step, x, check_batched_grad=True, check_fwd_over_rev=True)


@every_family
def test_batched_second_derivatives_of_modules(family: Any) -> None:
    found = []
    for accelerated in (None, False):
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        start = net.weight
        data, target = torch.randn(5, 3), torch.randn(5, 2)
        optimizer = family.meta(net, 0.1, use_accelerated_op=accelerated)
        for _ in range(2):
            optimizer.step((net(data) - target).square().mean())
        loss = (net(data) - target).square().mean()
        (slope,) = torch.autograd.grad(loss, start, create_graph=True)
        basis = torch.eye(6).view(6, 2, 3)
        found.append(torch.autograd.grad(slope, start, basis, is_grads_batched=True))
    assert_rounds_alike(*found, ulps=1e6)


def test_a_batch_is_one_call(spy: Spy) -> None:
    x = point().requires_grad_()
    step = adapted(Case("adam", *OPTIMIZERS["adam"], lambda params: None, 0.1), None, steps=1)
    (slope,) = torch.autograd.grad(loss_of(step)(x), x, create_graph=True)
    spy.operations.clear()
    torch.autograd.grad(slope, x, torch.eye(3), is_grads_batched=True)
    assert spy.operations.count(_native.BACKWARD_TANGENT) == 1
    assert spy.operations.count(_native.FORWARD_TANGENT) == 1
    assert spy.operations.count(_native.BACKWARD) == 1  # of the gradient that the second one is of


@every_optimizer
def test_leaves_that_nothing_depends_on_get_none(case: Case) -> None:
    """Not zeros, which would be differentiated on."""
    found = []
    for accelerated in (None, False):
        params = [torch.full((k,), 0.5, requires_grad=True) for k in (1, 2, 3)]
        transformation = case.functional(use_accelerated_op=accelerated)
        updates, _ = transformation.update(
            [p.sin() for p in params], transformation.init(params), params=params, inplace=False
        )
        scalar = sum((p + u).square().sum() for p, u in zip(params, updates, strict=True))
        slopes = torch.autograd.grad(scalar, params, create_graph=True)
        rows = torch.ones(4, 2)
        found.append(
            [
                torch.autograd.grad(
                    slopes[1], params, g, is_grads_batched=b, allow_unused=True, retain_graph=True
                )
                for g, b in ((rows, True), (rows[0], False))
            ]
        )
    for mine, theirs in zip(*found, strict=True):
        assert [x is None for x in mine] == [x is None for x in theirs] == [True, False, True]
        assert_rounds_alike(mine, theirs, ulps=1e3)


def pulled_back_later(step: Loss) -> Any:
    """The levels that recorded the step have ended."""
    result, pull = vjp(step, point())
    with torch.no_grad():
        unrecorded = pull(result)
    return result, pull(result), unrecorded, vmap(pull)(torch.eye(3))


def pulled_back_inside(step: Loss) -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        result, pull = vjp(step, x)
        return pull(result.square())[0].square().sum()

    return grad(run)(point()), vmap(grad(run))(torch.stack([point(), 2 * point()]))


def autograd_inside(step: Loss) -> Any:
    """`torch.autograd.grad` differentiates again on the level of a transform."""

    def run(x: torch.Tensor) -> torch.Tensor:
        scalar = step(x).square().sum()
        for _ in range(2):
            (slope,) = torch.autograd.grad(scalar, x, create_graph=True)
            scalar = slope.square().sum()
        return scalar

    return grad(run)(point())


def autograd_outside(step: Loss) -> Any:
    x = point().requires_grad_()
    scales = torch.arange(1.0, 3.0)
    tangent = torch.ones(3)
    found = [
        grad(lambda x: step(x).square().sum())(x),
        vmap(lambda s: step(x * s))(scales),
        grad(lambda x: vmap(lambda s: step(x * s).square().sum())(scales).sum())(x),
        vjp(step, x)[1](tangent)[0],
    ]
    return [torch.autograd.grad(y.square().sum(), x) for y in found]


def tangents_outside(step: Loss) -> Any:
    x = point()
    scales = torch.arange(1.0, 3.0)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x.cos())
        found = [
            grad(lambda x: step(x).square().sum())(dual),
            vmap(lambda s: step(dual * s))(scales),
        ]
        return [[*forward_ad.unpack_dual(y)] for y in found]


def tangents_through_backward(step: Loss) -> Any:
    """Dual numbers through `torch.autograd.grad`, whether it records a graph or not."""
    x = point().requires_grad_()
    found = []
    for create_graph in (False, True):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, x.detach().cos())
            scalar = step(dual).square().sum()
            (slope,) = torch.autograd.grad(scalar, dual, create_graph=create_graph)
            found += [y.detach() for y in forward_ad.unpack_dual(slope)]
    return found


def without_gradients(step: Loss) -> Any:
    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fixed = step(x)
        return (fixed * x).sum()

    with torch.no_grad():
        outer = grad(lambda x: step(x).sum())(point())
    return outer, grad(run)(point()), vmap(grad(run))(torch.stack([point(), 2 * point()]))


def overwritten(step: Loss) -> Any:
    """What a step returns may be written to, also where nothing was differentiated."""

    def run(x: torch.Tensor) -> torch.Tensor:
        own, constant = step(x), step(torch.ones(3))
        return (own.mul_(x) + constant.mul_(x)).sum()

    return grad(run)(point())


def captured(step: Loss) -> Any:
    """Levels inside that do not depend on those outside, and the other way round."""

    def run(x: torch.Tensor) -> torch.Tensor:
        inside = grad(lambda y: step(x * y).square().sum())(x.detach())
        each = vmap(lambda s: step(x * s))(torch.arange(1.0, 3.0))
        return inside.square().sum() + each.square().sum()

    return grad(run)(point()), jvp(run, (point(),), (torch.ones(3),))


def any_batch(step: Loss) -> Any:
    rows = torch.stack([point(), 2 * point()], dim=1)
    return (
        vmap(step, in_dims=1, out_dims=1)(rows),
        vmap(grad(lambda x: step(x).sum()), in_dims=1, chunk_size=1)(rows),
        vmap(lambda x: vmap(lambda s: step(x * s))(torch.arange(1.0, 4.0)), in_dims=1)(rows),
    )


LEVELS = {
    "pulled-back-later": pulled_back_later,
    "pulled-back-inside": pulled_back_inside,
    "autograd-inside": autograd_inside,
    "autograd-outside": autograd_outside,
    "tangents-outside": tangents_outside,
    "tangents-through-backward": tangents_through_backward,
    "without-gradients": without_gradients,
    "overwritten": overwritten,
    "captured": captured,
    "any-batch": any_batch,
    "functionalize": lambda step: functionalize(step)(point()),
    "fourth-order": lambda step: jacrev(jacfwd(jacrev(grad(loss_of(step)))))(point()),
    "forward-over-forward-over-reverse": lambda step: jacfwd(jacfwd(grad(loss_of(step))))(point()),
    "reverse-over-forward-over-forward": lambda step: jacrev(jacfwd(jacfwd(step)))(point()),
}


@pytest.mark.parametrize("function", LEVELS.values(), ids=LEVELS)
@every_optimizer
def test_levels_give_what_the_composite_step_gives(
    case: Case, function: Callable[[Loss], Any]
) -> None:
    higher = "order" in function.__qualname__ or function in list(LEVELS.values())[-3:]
    both(case, function, steps=1 if higher else 2, ulps=1e7 if higher else 1e5)


KERNELS: dict[str, tuple[Callable[[Loss], Any], set[int]]] = {
    "grad": (lambda step: grad(loss_of(step))(point()), {_native.FORWARD, _native.BACKWARD}),
    "vmap-of-grad": (
        lambda step: vmap(grad(loss_of(step)))(torch.stack([point()] * 4)),
        {_native.FORWARD, _native.BACKWARD},
    ),
    "jvp": (
        lambda step: jvp(step, (point(),), (point(),)),
        {_native.FORWARD, _native.FORWARD_TANGENT},
    ),
    "forward-over-reverse": (
        lambda step: jvp(grad(loss_of(step)), (point(),), (point(),)),
        {0, 1, 2, 3},
    ),
    "reverse-over-reverse": (
        lambda step: grad(lambda x: grad(loss_of(step))(x).sin().sum())(point()),
        {0, 1, 2, 3},
    ),
    "reverse-over-forward": (
        lambda step: grad(lambda x: jvp(step, (x,), (x.sin(),))[1].sum())(point()),
        {0, 1, 2, 3},
    ),
}


@pytest.mark.parametrize(("function", "operations"), KERNELS.values(), ids=KERNELS)
def test_derivatives_to_the_second_order_are_kernels(
    function: Callable[[Loss], Any],
    operations: set[int],
    spy: Spy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each called once, for a batch as well, and nothing is recorded in the core's arithmetic."""
    case = Case("adam", *OPTIMIZERS["adam"], lambda params: None, 0.1)
    expected = function(adapted(case, False, steps=1))

    def refuse(*args: object) -> None:
        pytest.fail("the composite step was taken")

    monkeypatch.setattr(Step, "composite", refuse)
    found = function(adapted(case, None, steps=1))
    assert set(spy.operations) == operations
    if len(operations) == 2:
        assert len(spy.operations) == 2
    assert_rounds_alike(found, expected, ulps=1e5)


def lying(kind: str, x: torch.Tensor) -> torch.Tensor:
    """Return a tensor shaped like ``x`` that lies differently."""
    torch.manual_seed(1)
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "zero strides": lambda: torch.tensor(0.7).expand(x.shape),
        "one row": lambda: torch.randn(x.shape[-1]).expand(x.shape),
        "channels-last": lambda: torch.randn(x.shape).contiguous(memory_format=torch.channels_last),
        "transposed": lambda: torch.randn(x.transpose(0, 1).shape).transpose(0, 1),
        "sliced": lambda: torch.randn(*x.shape, 2)[..., 0],
        "negated": lambda: torch._neg_view(torch.randn(x.shape)),
    }
    return makers[kind]()


@pytest.mark.parametrize(
    "kind", ["zero strides", "one row", "channels-last", "transposed", "sliced", "negated"]
)
@pytest.mark.parametrize("moved", ["cotangents", "gradients", "parameters", "all"])
@every_kernel_case
def test_tensors_may_lie_anyhow_in_every_pass(case: Case, moved: str, kind: str) -> None:
    found = []
    for accelerated in (True, False):
        params, grads, bars = (
            [torch.full((2, 3, 4, 5), value), torch.full((3, 4, 5, 2), value)]
            for value in (0.5, 0.25, 0.75)
        )
        if moved in ("parameters", "all"):
            params = [lying(kind, x) for x in params]
        if moved in ("gradients", "all"):
            grads = [lying(kind, x) for x in grads]
        if moved in ("cotangents", "all"):
            bars = [lying(kind, x) for x in bars]
        inputs = [x.requires_grad_() for x in (*params, *grads)]
        transformation = case.functional(use_accelerated_op=accelerated)
        updates, _ = transformation.update(
            grads, transformation.init(params), params=params, inplace=False
        )
        results = [p + u for p, u in zip(params, updates, strict=True)]
        first = torch.autograd.grad(results, inputs, bars, create_graph=True)
        second: Any = [torch.zeros_like(x) for x in inputs]  # of what is linear
        if any(x.requires_grad for x in first):
            second = torch.autograd.grad(
                [x.sin().sum() for x in first if x.requires_grad],
                inputs,
                allow_unused=True,
                materialize_grads=True,
            )
        found.append([x.detach() for x in (*results, *first, *second)])
    for mine, theirs in zip(*found, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert_rounds_alike(mine / scale, theirs / scale, ulps=1e5)


@pytest.mark.parametrize("kind", ["zero strides", "one row", "transposed", "sliced", "negated"])
def test_only_what_lies_differently_is_copied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five tensors of a leaf that the backward pass of Adam reads: the cotangent."""
    copied: list[int] = []
    alike = _step._alike

    def counted(streams: Any, inputs: int, strided: Any) -> Any:
        copied.append(len(strided))
        return alike(streams, inputs, strided)

    monkeypatch.setattr(_step, "_alike", counted)
    param = torch.randn(2, 3, 4, 5).requires_grad_()
    adam = torchopt.adam(0.1)
    (update,), _ = adam.update([param.sin()], adam.init([param]), params=[param], inplace=False)
    assert copied == []
    torch.autograd.grad(update, param, lying(kind, param))
    assert copied == [1]


def test_tensors_that_lie_alike_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_step, "_alike", None)  # is not called
    param = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    adam = torchopt.adam(0.1)
    (update,), _ = adam.update([param.sin()], adam.init([param]), params=[param], inplace=False)
    (slope,) = torch.autograd.grad(update, param, twin(param), create_graph=True)
    torch.autograd.grad(slope, param, twin(param))


DETACHED = {
    "sgd-momentum": (SGD, {"momentum": 0.9}),
    "adam": (ADAM, {}),
    "adamw": (ADAMW, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize(("family", "kwargs"), DETACHED.values(), ids=DETACHED)
def test_steps_along_detached_gradients_keep_nothing(family: Any, kwargs: Any) -> None:
    """As in first-order MAML: also tensors of `inference_mode`, which cannot be kept."""
    kept = []
    with torch.inference_mode():
        slope = torch.randn(3)
    case = Case("detached", family, kwargs, lambda params: None, 0.1)
    param = point().requires_grad_()
    transformation = case.functional()
    state = transformation.init([param])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        (update,), _ = transformation.update([slope], state, params=[param], inplace=False)
    assert kept == []
    (found,) = torch.autograd.grad((param + update).sum(), param)
    decay = 0.1 * kwargs.get("weight_decay", 0.0)
    assert_rounds_alike(found, torch.full((3,), 1.0 - decay))


@every_optimizer
def test_what_is_kept_must_not_be_overwritten(case: Case) -> None:
    """Before the first and before the second derivative; torch says so in its own words."""
    if case.name.startswith("sgd"):
        return  # linear, which keeps nothing
    for order in (1, 2):
        param = point().requires_grad_()
        slope = param.square()
        transformation = case.functional()
        state = transformation.init([param])
        (update,), _ = transformation.update([slope], state, params=[param], inplace=False)
        scalar = update.pow(3).sum()
        if order == 2:
            (found,) = torch.autograd.grad(scalar, param, create_graph=True)
            scalar = found.sum()
        with torch.no_grad():
            slope.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(scalar, param)


class Subclass(torch.Tensor):
    """A kind of cotangent that no kernel reads."""


COTANGENTS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.tensor([1.0, 0.0, 2.0]).to_sparse(),
    "subclass": lambda: torch.ones(3).as_subclass(Subclass),
}


@pytest.mark.parametrize("create_graph", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("make", COTANGENTS.values(), ids=COTANGENTS)
@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}], ids=["sgd", "momentum"])
def test_cotangents_that_no_kernel_reads_are_composite(
    kwargs: Any, make: Callable[[], torch.Tensor], create_graph: bool
) -> None:
    found = []
    for accelerated in (None, False):
        step = adapted(Case("sgd", SGD, kwargs, lambda params: None, 0.1), accelerated)
        x = point().requires_grad_()
        (slope,) = torch.autograd.grad(step(x), x, make(), create_graph=create_graph)
        plain = slope.to_dense() if slope.is_sparse else slope.as_subclass(torch.Tensor)
        found.append([plain.detach()])
        if create_graph:
            found[-1] += torch.autograd.grad(plain.sum(), x)
    assert_rounds_alike(*found, ulps=1e3)
