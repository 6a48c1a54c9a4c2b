"""Derivatives of the compiled step: to any order, in every mode, under every transform.

Points are drawn away from kinks (the maximum of Adamax), so that central differences converge. Zero
gradients and zero moments, where they do not, are held against the composite step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import (
    ADADELTA,
    ADAGRAD,
    ADAM,
    ADAMAX,
    ADAMW,
    RADAM,
    RMSPROP,
    SGD,
    Bag,
    Case,
    every_family,
    every_kernel_case,
    tensors_in,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import torchopt
import torchopt_accel

from ._accel import Spy, assert_rounds_alike, every_kernel

pytestmark = pytest.mark.usefixtures("float64")

every_count = pytest.mark.parametrize("count", [0, 9], ids=["first-step", "tenth-step"])
Function = Callable[..., "tuple[torch.Tensor, ...]"]


def drawn(state: Any, count: int) -> Any:
    """Return a state in the middle of a run: positive squares, and a count for each leaf."""
    accessors, leaves, spec = optree.tree_flatten_with_accessor(state)
    result = []
    for accessor, leaf in zip(accessors, leaves, strict=True):
        name = accessor.codify("")
        if "count" in name:
            result.append(torch.full_like(leaf, count))
        elif "mu" in name or "trace" in name:
            result.append(0.2 + 0.3 * torch.rand_like(leaf))
        else:
            result.append(1.0 + torch.rand_like(leaf))
    return optree.tree_unflatten(spec, result)


def update(transformation: Any, params: Any, grads: Any, state: Any) -> Any:
    """The next parameters and state by the functional face, which makes updates."""
    updates, state = transformation.update(grads, state, params=params, inplace=False)
    return torchopt.apply_updates(params, updates, inplace=False), state


def replace(transformation: Any, params: Any, grads: Any, state: Any) -> Any:
    """The next parameters and state by the differentiable face, which makes parameters."""
    module = Bag([torch.zeros_like(p) for p in params])
    for name, param in zip(list(module._parameters), params, strict=True):
        module._parameters[name] = param
    meta = torchopt.MetaOptimizer(module, transformation)
    meta.load_state_dict((state,))
    meta.step(module.loss(grads))
    return module.tensors(), meta.state_dict()[0]


every_way = pytest.mark.parametrize("way", [update, replace], ids=["updates", "parameters"])


def one_step(
    transformation: Any, way: Callable[..., Any], count: int, *, zero: bool = False
) -> tuple[Function, list[torch.Tensor]]:
    """One step as a function of parameters, gradients and moments, and a point."""
    params = [torch.randn(2), torch.randn(())]
    grads = [torch.tensor([0.7, -1.3]), torch.tensor(0.9)]
    state = transformation.init(params)
    if zero:
        grads = [torch.zeros_like(g) for g in grads]
        state = optree.tree_map(lambda x: x + count if not x.is_floating_point() else x, state)
    else:
        state = drawn(state, count)
    leaves, spec = optree.tree_flatten((params, grads, state))
    floats = [i for i, x in enumerate(leaves) if x.is_floating_point()]

    def step(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        merged = list(leaves)
        for i, x in zip(floats, inputs, strict=True):
            merged[i] = x
        params, grads, state = optree.tree_unflatten(spec, merged)
        found = way(transformation, params, grads, state)
        return tuple(x for x in tensors_in(found) if x.is_floating_point())

    return step, [leaves[i].detach().clone().requires_grad_() for i in floats]


def tower(step: Function, inputs: list[torch.Tensor], order: int) -> list[torch.Tensor]:
    """Return the derivatives of orders 1 to ``order``, each of a random mix of those before."""
    generator = torch.Generator().manual_seed(1)

    def mixed(outputs: Any) -> torch.Tensor:
        weights = [torch.randn(x.shape, generator=generator) for x in outputs]
        return sum((w * x).sum() for w, x in zip(weights, outputs, strict=True))

    # with squares nothing is linear, so no order is trivial
    outputs = step(*inputs)
    scalar = mixed(outputs) + 0.1 * mixed([x**2 for x in outputs])
    found: list[torch.Tensor] = []
    for _ in range(order):
        derivatives = torch.autograd.grad(
            scalar, inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        found += [x.detach() for x in derivatives]
        scalar = mixed(derivatives)
    return found


@every_count
@every_way
@every_kernel_case
def test_three_orders_equal_those_of_the_composite_step(
    case: Case, way: Callable[..., Any], count: int
) -> None:
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        transformation = case.functional(use_accelerated_op=accelerated)
        found.append(tower(*one_step(transformation, way, count), order=3))
    # each order multiplies the operations, and so what they round
    assert_rounds_alike(*found, ulps=1e5)


@every_count
@every_way
@every_kernel_case
def test_first_derivatives_are_finite_differences(
    case: Case, way: Callable[..., Any], count: int
) -> None:
    step, inputs = one_step(case.functional(use_accelerated_op=True), way, count)
    assert gradcheck(step, inputs, check_forward_ad=way is update)


@every_way
@every_kernel_case
def test_second_derivatives_are_finite_differences(case: Case, way: Callable[..., Any]) -> None:
    step, inputs = one_step(case.functional(use_accelerated_op=True), way, 9)
    assert gradgradcheck(step, inputs)


@every_family
def test_forward_mode_over_a_recorded_graph(family: Any) -> None:
    """`forward_ad` where the inputs require grad, too, so that tangents are differentiable."""
    case = Case("mixed", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        transformation = case.functional(use_accelerated_op=accelerated)
        step, inputs = one_step(transformation, update, 9)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs]
            tangents = [forward_ad.unpack_dual(x).tangent for x in step(*duals)]
            scalar = sum((x**2).sum() for x in tangents)
            slopes = [torch.zeros_like(x) for x in inputs]
            if scalar.requires_grad:  # the tangents of a linear step depend on nothing
                slopes = torch.autograd.grad(
                    scalar, inputs, allow_unused=True, materialize_grads=True
                )
            slopes = [forward_ad.unpack_dual(x).primal for x in slopes]
        found.append([x.detach() for x in (*tangents, *slopes)])
    assert_rounds_alike(*found, ulps=1e5)


@every_family
def test_batched_cotangents(family: Any) -> None:
    """`is_grads_batched=True`, and what is built on it."""
    case = Case("mixed", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        transformation = case.functional(use_accelerated_op=accelerated)
        step, inputs = one_step(transformation, update, 9)
        rows = torch.autograd.grad(
            step(*inputs)[0], inputs, torch.eye(2), is_grads_batched=True, allow_unused=True
        )
        jacobian = torch.autograd.functional.jacobian(
            lambda *x, step=step: step(*x)[0],
            tuple(inputs),
            vectorize=True,
        )
        found.append((rows, jacobian))
    assert_rounds_alike(*found, ulps=1e3)


# eps, eps_root, betas and momentum far from their defaults, where a slip in their use shows
UNUSUAL = [
    ("sgd", SGD, {"momentum": 0.35, "dampening": 0.6, "weight_decay": 0.4}),
    ("sgd-nesterov", SGD, {"momentum": 0.35, "nesterov": True, "maximize": True}),
    ("adam", ADAM, {"betas": (0.3, 0.45), "eps": 0.5, "eps_root": 0.7, "weight_decay": 0.4}),
    ("adam-maximize", ADAM, {"betas": (0.3, 0.45), "eps": 0.5, "maximize": True}),
    ("adamw", ADAMW, {"betas": (0.3, 0.45), "eps": 0.5, "eps_root": 0.7, "weight_decay": 2.0}),
    ("adagrad", ADAGRAD, {"lr_decay": 0.8, "eps": 0.5, "initial_accumulator_value": 0.3}),
    ("adadelta", ADADELTA, {"rho": 0.35, "eps": 0.5, "weight_decay": 0.4}),
    ("adamax", ADAMAX, {"betas": (0.3, 0.45), "eps": 0.5, "weight_decay": 0.4}),
    ("radam", RADAM, {"betas": (0.3, 0.85), "eps": 0.5, "weight_decay": 0.4}),
    ("rmsprop", RMSPROP, {"alpha": 0.35, "eps": 0.5, "weight_decay": 0.4}),
    (
        "rmsprop-all",
        RMSPROP,
        {"alpha": 0.35, "eps": 0.5, "centered": True, "momentum": 0.6, "nesterov": True},
    ),
]
every_unusual = pytest.mark.parametrize(
    "case",
    [Case(name, family, kwargs, lambda params: None, 0.8) for name, family, kwargs in UNUSUAL],
    ids=lambda case: case.name,
)


@every_count
@every_way
@every_unusual
def test_derivatives_are_right_far_from_the_defaults(
    case: Case, way: Callable[..., Any], count: int
) -> None:
    step, inputs = one_step(case.functional(use_accelerated_op=True), way, count)
    assert gradcheck(step, inputs)
    assert gradgradcheck(step, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_count
@every_way
@every_kernel_case
def test_zero_gradients_and_moments_have_the_composite_derivatives(
    case: Case, way: Callable[..., Any], count: int, dtype: torch.dtype
) -> None:
    torch.set_default_dtype(dtype)
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        transformation = case.functional(use_accelerated_op=accelerated)
        found.append(tower(*one_step(transformation, way, count, zero=True), order=2))
    assert all(x.isfinite().all() for x in found[0])
    for mine, theirs in zip(*found, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert_rounds_alike(mine / scale, theirs / scale, ulps=1e5)


Tree = dict[str, torch.Tensor]


def inner_loss(params: Tree, x: torch.Tensor) -> torch.Tensor:
    return ((params["w"] @ x).tanh() + params["b"]).square().sum()


def problem() -> tuple[Tree, torch.Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(3, 2), "b": torch.randn(3)}, torch.randn(2)


def adapted(case: Case, accelerated: bool | None, params: Tree, x: torch.Tensor) -> torch.Tensor:
    """The loss on other data after two steps, by `torch.func`."""
    transformation = case.functional(use_accelerated_op=accelerated)
    state = transformation.init(params)
    for _ in range(2):
        grads = grad(inner_loss)(params, x)
        updates, state = transformation.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return inner_loss(params, x.flip(0))


TRANSFORMS: dict[str, Callable[[Callable[..., Any], torch.Tensor], Any]] = {
    "grad": lambda f, x: grad(f)(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.tensor([0.3, -0.7]),)),
    "vjp": lambda f, x: vjp(f, x)[1](torch.tensor(2.0)),
    "jacrev": lambda f, x: jacrev(f)(x),
    "jacfwd": lambda f, x: jacfwd(f)(x),
    "hessian": lambda f, x: hessian(f)(x),
    "forward-over-forward": lambda f, x: jacfwd(jacfwd(f))(x),
    "reverse-over-reverse": lambda f, x: jacrev(jacrev(f))(x),
    "reverse-over-forward": lambda f, x: jacrev(jacfwd(f))(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x, -x])),
    "vmap-of-grad": lambda f, x: vmap(grad(f))(torch.stack([x, 2 * x, -x])),
    "vmap-of-hessian": lambda f, x: vmap(hessian(f))(torch.stack([x, 2 * x])),
    "nested-vmap": lambda f, x: vmap(vmap(f))(torch.stack([x, 2 * x, -x, x + 1]).view(2, 2, 2)),
    "grad-of-vmap": lambda f, x: grad(lambda x: vmap(f)(torch.stack([x, 2 * x])).sum())(x),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


@every_transform
@every_kernel
def test_transforms_give_what_the_composite_step_gives(
    case: Case, transform: Callable[..., Any], spy: Spy
) -> None:
    params, x = problem()
    expected = transform(lambda x: adapted(case, False, params, x), x)
    assert spy.operations == []
    actual = transform(lambda x: adapted(case, True, params, x), x)
    # torch loses tangents of tangents of custom functions, so there the step is the composite one
    assert (spy.operations == []) == (transform is TRANSFORMS["forward-over-forward"])
    assert_rounds_alike(actual, expected, ulps=1e5)


@every_family
def test_third_derivatives_under_transforms(family: Any) -> None:
    case = Case("third", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    params, x = problem()
    found = [jacfwd(hessian(lambda x: adapted(case, on, params, x)))(x) for on in (True, False)]  # noqa: B023
    assert_rounds_alike(*found, ulps=1e6)


def stacked(case: Case, size: int) -> tuple[Any, ...]:
    """Return parameters, gradients and states of several optimizers, two steps in."""
    transformation = case.functional(use_accelerated_op=False)
    params = [torch.randn(size, 3, 2), torch.randn(size)]
    state = vmap(transformation.init)(params)
    for _ in range(2):
        grads = [torch.randn_like(p) for p in params]
        params, state = vmap(lambda p, g, s: update(transformation, p, g, s))(params, grads, state)
    return params, [torch.randn_like(p) for p in params], state


def looped(step: Callable[..., Any], *trees: Any) -> Any:
    """What `vmap` should give."""
    size = len(tensors_in(trees)[0])
    each = [step(*optree.tree_map(lambda x, i=i: x[i], trees)) for i in range(size)]
    return optree.tree_map(lambda *xs: torch.stack(xs), *each)


@every_kernel_case
def test_vmap_over_optimizers_is_a_loop_over_them(case: Case, spy: Spy) -> None:
    """Their states, step counts included, are stacked; they are stepped in one call."""
    inputs = stacked(case, 4)
    if "mask" in case.kwargs:
        case = case._replace(kwargs={**case.kwargs, "mask": [True, False]})
    expected = looped(lambda *x: update(case.functional(use_accelerated_op=False), *x), *inputs)
    transformation = case.functional(use_accelerated_op=True)
    actual = vmap(lambda *x: update(transformation, *x))(*inputs)
    assert len(spy.operations) == 1
    assert_rounds_alike(actual, expected, ulps=1e3)


@every_family
def test_batches_of_optimizers_may_have_any_batch_dimension(family: Any) -> None:
    case = Case("batch", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    params, grads, state = stacked(case, 4)
    moved = [g.movedim(0, -1) for g in grads]
    found = []
    for accelerated in (True, False):
        transformation = case.functional(use_accelerated_op=accelerated)
        step = vmap(lambda p, g, s: update(transformation, p, g, s), in_dims=(0, -1, 0))  # noqa: B023
        found.append(step(params, moved, state))
    assert_rounds_alike(*found, ulps=1e3)
    # parameters that all of them share are not copied by the caller
    shared = [p[0] for p in params]
    found = []
    for accelerated in (True, False):
        transformation = case.functional(use_accelerated_op=accelerated)
        step = vmap(lambda p, g, s: update(transformation, p, g, s), in_dims=(None, 0, 0))  # noqa: B023
        found.append(step(shared, grads, state))
    assert_rounds_alike(*found, ulps=1e3)


COUNTED = {"adam": ADAM, "adamw": ADAMW, "adamax": ADAMAX, "radam": RADAM, "adagrad": ADAGRAD}


@pytest.mark.parametrize("family", COUNTED.values(), ids=COUNTED)
def test_a_batch_with_different_step_counts_is_composite(family: Any) -> None:
    case = Case("batch", family, {}, lambda params: None, 0.1)
    params, grads, state = stacked(case, 3)
    later = optree.tree_map(
        lambda x: x if x.is_floating_point() else x + torch.tensor([0, 5, 9]), state
    )
    expected = looped(
        lambda *x: update(case.functional(use_accelerated_op=False), *x), params, grads, later
    )
    transformation = case.functional(use_accelerated_op=None)
    actual = vmap(lambda *x: update(transformation, *x))(params, grads, later)
    assert_rounds_alike(actual, expected, ulps=1e3)
    insisting = case.functional(use_accelerated_op=True)
    with pytest.raises(torchopt_accel.NotCoveredError, match="different numbers of steps"):
        vmap(lambda *x: update(insisting, *x))(params, grads, later)


@every_kernel_case
def test_dual_numbers_pass_through(case: Case) -> None:
    """`torch.autograd.forward_ad` without `torch.func`, in every input, over two steps."""
    params = [torch.randn(3, 2), torch.randn(())]
    grads = [torch.randn(3, 2), torch.randn(())]
    tangents = [torch.randn_like(x) for x in (*params, *grads)]
    found = []
    for accelerated in (True, False):
        transformation = case.functional(use_accelerated_op=accelerated)
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x, t) for x, t in zip((*params, *grads), tangents, strict=True)
            ]
            own, state = duals[:2], transformation.init(params)
            for _ in range(2):
                own, state = update(transformation, own, duals[2:], state)
            moments = [x for x in tensors_in(state) if x.is_floating_point()]
            found.append([x for d in (*own, *moments) for x in forward_ad.unpack_dual(d)])
    assert_rounds_alike(*found, ulps=1e3)


@every_kernel_case
def test_checkpointing_recomputes_the_step(case: Case) -> None:
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        transformation = case.functional(use_accelerated_op=accelerated)
        step, inputs = one_step(transformation, update, 9)
        outputs = checkpoint(step, *inputs, use_reentrant=False) if accelerated else step(*inputs)
        scalar = sum((x**2).sum() for x in outputs)
        found.append(torch.autograd.grad(scalar, inputs))
    assert_rounds_alike(*found, ulps=1e3)


def unrolled(transformation: Any, rate: Any) -> torch.Tensor:
    """A loss after three differentiable steps of a network by `functional_call`."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    state = transformation.init(params)

    def loss_fn(params: Tree) -> torch.Tensor:
        return (functional_call(net, params, x) - y).square().mean()

    for _ in range(3):
        leaves, spec = optree.tree_flatten(params)
        found = torch.autograd.grad(loss_fn(params), leaves, create_graph=True)
        params, state = update(transformation, params, optree.tree_unflatten(spec, found), state)
    return loss_fn(params)


def scalar_rate(rate: torch.Tensor) -> Any:
    return rate[0]


def tree_of_rates(rate: torch.Tensor) -> Any:
    names = ("0.weight", "0.bias", "2.weight", "2.bias")
    shapes = {"0.weight": (3, 2), "2.bias": (1,)}
    return {
        name: x.expand(shapes.get(name, ())) for name, x in zip(names, rate.unbind(), strict=True)
    }


def learned_schedule(rate: torch.Tensor) -> Any:
    return torchopt.schedule.exponential_decay(rate[0], rate[1])


every_rate = pytest.mark.parametrize("make", [scalar_rate, tree_of_rates, learned_schedule])


@every_rate
@every_family
def test_learned_rates_receive_the_composite_gradients(
    family: Any, make: Callable[..., Any], spy: Spy
) -> None:
    found = []
    for accelerated in (False, True):
        assert spy.operations == []
        rate = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
        transformation = family.functional(
            make(rate), weight_decay=0.1, use_accelerated_op=accelerated
        )
        (first,) = torch.autograd.grad(unrolled(transformation, rate), rate, create_graph=True)
        assert (first != 0).any()
        found.append((first.detach(), *torch.autograd.grad(first.sum(), rate)))
    assert spy.operations != []
    assert_rounds_alike(*found, ulps=1e5)


@every_rate
def test_learned_rates_of_modules_receive_the_composite_gradients(make: Callable[..., Any]) -> None:
    found = []
    for accelerated in (True, False):
        torch.manual_seed(0)
        rate = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
        net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        x, y = torch.randn(8, 2), torch.randn(8, 1)
        meta = torchopt.MetaAdamW(net, lr=make(rate), use_accelerated_op=accelerated)
        for _ in range(3):
            meta.step((net(x) - y).square().mean())
        found.append(torch.autograd.grad((net(x) - y).square().mean(), rate))
    assert_rounds_alike(*found, ulps=1e5)


LEARNED = {
    "adam-betas": (torchopt.adam, lambda x: {"betas": (0.5 * x, 0.9)}),
    "adam-eps": (torchopt.adam, lambda x: {"eps": x}),
    "adamw-weight-decay": (torchopt.adamw, lambda x: {"weight_decay": x}),
    "sgd-momentum": (torchopt.sgd, lambda x: {"momentum": x}),
    "rmsprop-alpha": (torchopt.rmsprop, lambda x: {"alpha": x}),
    "rmsprop-momentum": (torchopt.rmsprop, lambda x: {"momentum": x}),
    "adadelta-rho": (torchopt.adadelta, lambda x: {"rho": x}),
    "adamax-betas": (torchopt.adamax, lambda x: {"betas": (x, 0.9)}),
    "radam-betas": (torchopt.radam, lambda x: {"betas": (x, 0.9)}),
    "adagrad-eps": (torchopt.adagrad, lambda x: {"eps": x}),
}


@pytest.mark.parametrize(("functional", "kwargs"), LEARNED.values(), ids=LEARNED)
def test_other_learned_numbers_are_composite(
    functional: Any, kwargs: Callable[..., Any], spy: Spy
) -> None:
    found = []
    for accelerated in (None, False):
        x = torch.tensor(0.4, requires_grad=True)
        transformation = functional(0.1, **kwargs(x), use_accelerated_op=accelerated)
        found.append(torch.autograd.grad(unrolled(transformation, x), x))
    assert found[0][0] != 0
    assert_rounds_alike(*found, ulps=0)
    assert spy.operations == []
    x = torch.tensor(0.4, requires_grad=True)
    with pytest.raises(torchopt_accel.NotCoveredError, match=r"`use_accelerated_op=True`, but its"):
        unrolled(functional(0.1, **kwargs(x), use_accelerated_op=True), x)


def graph_of(tensors: list[torch.Tensor]) -> list[str]:
    """Return the names of the nodes that these tensors depend on, leaves left out."""
    seen, stack = set(), [x.grad_fn for x in tensors if x.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [following for following, _ in node.next_functions]
    return [node.name() for node in seen if node.name() != "torch::autograd::AccumulateGrad"]


def recorded_step(case: Case) -> tuple[list[torch.Tensor], int]:
    """Return what a differentiable second step makes, and how many tensors it keeps."""
    transformation = case.functional(use_accelerated_op=True)
    params = [torch.randn(3, 2), torch.randn(())]
    grads = [torch.randn_like(p) for p in params]
    _, state = transformation.update(grads, transformation.init(params), params=params)
    state = optree.tree_map(lambda x: x.requires_grad_() if x.is_floating_point() else x, state)
    for x in (*params, *grads):
        x.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        found = transformation.update(grads, state, params=params, inplace=False)
    return [x for x in tensors_in(found) if x.is_floating_point()], len(kept)


@every_kernel_case
def test_a_step_is_one_node_of_the_graph(case: Case) -> None:
    outputs, _ = recorded_step(case)
    assert graph_of(outputs) == ["ForwardBackward"]


@every_kernel_case
def test_every_step_of_a_module_is_one_node_of_the_graph(case: Case) -> None:
    module = Bag([torch.randn(3, 2), torch.randn(())])
    meta = case.meta(module, use_accelerated_op=True)
    for _ in range(4):
        meta.step(module.loss([p.detach().cos() for p in module.tensors()]))
    assert graph_of(module.tensors()).count("ForwardBackward") == 4


@every_kernel_case
def test_keeps_at_most_three_tensors_of_a_parameter(case: Case) -> None:
    """And the parameter itself where weight decay makes its gradient depend on it."""
    decays = case.kwargs.get("weight_decay", 0.0) != 0 and case.family is not ADAMW
    _, kept = recorded_step(case)
    assert kept <= 2 * (4 if decays else 3)


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_linear_steps_keep_nothing(kwargs: Any) -> None:
    _, kept = recorded_step(Case("sgd", SGD, kwargs, lambda params: None, 0.1))
    assert kept == 0


@every_kernel_case
def test_inputs_that_need_no_gradient_get_none(case: Case, spy: Spy) -> None:
    """And those that do get the same as if all did."""
    transformation = case.functional(use_accelerated_op=True)
    step, inputs = one_step(transformation, update, 9)
    weights = [torch.randn_like(x) for x in step(*inputs)]

    def gradients(wanted: list[torch.Tensor]) -> Any:
        outputs = step(*inputs)
        return torch.autograd.grad(outputs, wanted, weights, allow_unused=True)

    full = gradients(inputs)
    for k, x in enumerate(inputs):
        (alone,) = gradients([x])
        if full[k] is None or alone is None:
            assert full[k] is alone
        else:
            assert torch.equal(alone, full[k])


def test_the_graph_outlives_the_tensors_it_was_made_from() -> None:
    """A second backward pass over a graph that was kept gives the same."""
    step, inputs = one_step(torchopt.adam(0.1, use_accelerated_op=True), update, 9)
    scalar = sum((x**2).sum() for x in step(*inputs))
    first = torch.autograd.grad(scalar, inputs, retain_graph=True)
    assert_rounds_alike(torch.autograd.grad(scalar, inputs), first, ulps=0)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(scalar, inputs)
