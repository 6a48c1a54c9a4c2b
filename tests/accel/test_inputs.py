"""What the kernels take, what they leave to the composite step, and what nobody takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import (
    ADAM,
    ADAMW,
    SGD,
    Case,
    Family,
    assert_same,
    every_family,
    every_kernel_case,
    snapshot,
    tensors_in,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import torchopt
from torchopt_accel import NotCoveredError

from ._accel import HALF, Spy, assert_rounds_alike, every_kernel, functional, laid_out, stateful

every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


def case_of(family: Family, **kwargs: Any) -> Case:
    return Case(family.functional.__name__, family, kwargs, lambda params: None, 0.1)


@every_mode
def test_second_moments_neither_vanish_nor_freeze_in_bfloat16(inplace: bool) -> None:
    """There 1 - 0.999 is 0 if it is rounded before the subtraction."""
    adam = torchopt.adam(0.1, betas=(0.9, 0.999), use_accelerated_op=True)
    params = [torch.ones(3, dtype=torch.bfloat16)]
    state = adam.init(params)
    for t in range(1, 21):
        updates, state = adam.update([2 * params[0]], state, inplace=inplace)
        expected = torch.full((3,), 4 * (1 - 0.999**t))
        # each step may round the moment by half a unit in the last place
        error = t * torch.finfo(torch.bfloat16).eps / 2
        torch.testing.assert_close(state[0].nu[0].float(), expected, rtol=error, atol=0.0)
        torch.testing.assert_close(updates[0].float(), torch.full((3,), -0.1), rtol=error, atol=0.0)


def test_eps_is_not_rounded_to_16_bits() -> None:
    """In float16, 1e-8 would be 0, and the step of a tiny gradient infinite or NaN."""
    adam = torchopt.adam(1.0, use_accelerated_op=True)
    grads = [torch.tensor([0.0, 6e-8], dtype=torch.float16)]
    updates, _ = adam.update(grads, adam.init(grads), inplace=False)
    # the moments that are stored underflow, those that are divided do not
    expected = torch.tensor([0.0, -6e-8 / (6e-8 + 1e-8)])
    torch.testing.assert_close(updates[0].float(), expected, rtol=0.02, atol=0.0)


def negated(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor of these values whose memory holds their negatives."""
    return torch._neg_view(-x)


@every_mode
@every_kernel_case
def test_negated_views_are_read_as_what_they_show(case: Case, inplace: bool) -> None:
    params, grads = laid_out("contiguous", torch.float64, 3)
    views = [[negated(grads[t][0]), grads[t][1]] for t in range(3)]
    assert views[0][0].is_neg()
    for accelerated in (True, None):
        actual = functional(case, params, views, accelerated, inplace=inplace)
        expected = functional(case, params, grads, accelerated, inplace=inplace)
        assert_rounds_alike(actual, expected, ulps=0)


def test_imaginary_parts_of_conjugates_are_read_as_what_they_show() -> None:
    z = torch.randn(2, 3, dtype=torch.complex128)
    grad = z.conj().imag
    assert grad.is_neg()
    adam = torchopt.adam(0.1, use_accelerated_op=True)
    actual = adam.update([grad], adam.init([grad]), inplace=False)
    assert_rounds_alike(actual, adam.update([-z.imag], adam.init([z.imag]), inplace=False), ulps=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 10.0], ids=["none", "half", "whole"])
@pytest.mark.parametrize("family", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_negated_parameters_and_moments_are_written_as_what_they_show(
    family: Family, decay: float
) -> None:
    """Even if the decoupled decay takes all of the parameter: 1 - lr * decay is 0."""
    values, grad = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = []
    for param in (negated(values.clone()), values.clone()):
        leaf = param.requires_grad_()
        optimizer = family.stateful([leaf], 0.1, weight_decay=decay, use_accelerated_op=True)
        leaf.grad = grad
        optimizer.step()
        found.append(leaf.detach().resolve_neg())
    assert_rounds_alike(*found, ulps=0)

    adam = torchopt.adam(0.1, use_accelerated_op=True)
    found = []
    for make in (negated, torch.clone):
        state = adam.init([values])
        state[0].mu[0], state[0].nu[0] = make(values), make(values.abs())
        _, state = adam.update([grad], state)
        found.append([x.resolve_neg() for x in (*state[0].mu, *state[0].nu)])
    assert_rounds_alike(*found, ulps=0)


class Subclass(torch.Tensor):
    """A tensor that may show something else than it holds."""


FAKE = FakeTensorMode()


def meta_tensor(x: torch.Tensor) -> torch.Tensor:
    return x.to("meta")


def sparse(x: torch.Tensor) -> torch.Tensor:
    return x.to_sparse()


def subclass(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(Subclass)


def fake(x: torch.Tensor) -> torch.Tensor:
    return FAKE.from_tensor(x)


# how gradients arrive, and what the refusal says
UNCOVERED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "meta": (meta_tensor, "meta"),
    "subclass": (subclass, "Subclass"),
    "fake": (fake, "FakeTensor|fake"),
    "sparse": (sparse, "[Ss]parse"),
}
every_uncovered = pytest.mark.parametrize(("make", "reason"), UNCOVERED.values(), ids=UNCOVERED)


def outcome(function: Callable[[], Any]) -> Any:
    """Return the result, or the type of the error."""
    try:
        return function()
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        return type(error)


@every_mode
@every_uncovered
@every_family
def test_insisting_on_uncovered_inputs_names_the_reason_and_changes_nothing(
    family: Family, make: Callable[..., Any], reason: str, inplace: bool
) -> None:
    transformation = family.functional(0.1, use_accelerated_op=True)
    plain = torch.tensor([0.5, -1.5])
    dense = make is not sparse
    params = [plain.clone(), make(plain) if dense else plain.clone()]
    state = transformation.init(params)
    kept = optree.tree_map(torch.clone, (params[0], state)) if make is not meta_tensor else None
    with pytest.raises(NotCoveredError, match=reason) as caught:
        transformation.update([plain, make(plain)], state, params=params, inplace=inplace)
    assert "`use_accelerated_op=True`, but" in str(caught.value)
    assert "`use_accelerated_op=None`" in str(caught.value)
    assert "\n" not in str(caught.value)
    if make in (sparse, subclass):
        assert_same((params[0], state), kept)


@every_mode
@every_uncovered
@every_family
def test_uncovered_inputs_have_the_composite_outcome(
    family: Family, make: Callable[..., Any], reason: str, inplace: bool
) -> None:
    """A result, or the composite step's own error."""
    plain = torch.tensor([0.5, -1.5])
    found = []
    for accelerated in (None, False):
        transformation = family.functional(0.1, use_accelerated_op=accelerated)
        params = [make(plain) if make is not sparse else plain.clone()]
        state = transformation.init(params)
        found.append(
            outcome(
                lambda: transformation.update([make(plain)], state, params=params, inplace=inplace)  # noqa: B023
            )
        )
    if isinstance(found[1], type):
        assert found[0] is found[1]
    elif make in (subclass, sparse):
        assert_same(*[optree.tree_map(torch.Tensor.to_dense, x[0]) for x in found])
    else:
        described = [[(x.shape, x.dtype, x.device) for x in tensors_in(x)] for x in found]
        assert described[0] == described[1]


def test_tracing_sees_every_operation(spy: Spy) -> None:
    adam = torchopt.adam(0.1)
    grad = torch.randn(3)
    state = adam.init([grad])

    def step(grad: torch.Tensor) -> torch.Tensor:
        return adam.update([grad], state, inplace=False)[0][0]

    traced = torch.fx.experimental.proxy_tensor.make_fx(step)(grad)
    assert spy.operations == []
    other = torch.randn(3)
    assert_rounds_alike(traced(other), step(other))
    insisting = torchopt.adam(0.1, use_accelerated_op=True)
    with pytest.raises(NotCoveredError, match="traced"):
        torch.fx.experimental.proxy_tensor.make_fx(
            lambda g: insisting.update([g], state, inplace=False)[0][0]
        )(grad)


def test_a_step_asked_for_in_place_among_dual_numbers_has_tangents() -> None:
    """So it is none in place: nothing is overwritten, and the kernel's tangents are the core's."""
    grad, direction = torch.randn(2, 3, dtype=torch.float64)
    tangents = []
    for use in (None, False):
        adam = torchopt.adam(0.1, use_accelerated_op=use)
        state = adam.init([grad])
        with forward_ad.dual_level():
            (update,), _ = adam.update([forward_ad.make_dual(grad, direction)], state)
            tangents.append(forward_ad.unpack_dual(update).tangent)
        assert not any(x.any() for x in torchopt.pytree.tree_leaves(state))
    assert tangents[0].abs().sum() > 0
    torch.testing.assert_close(*tangents)


def trouble(kind: str, state: Any, grads: list[Any]) -> tuple[Any, list[Any]]:
    """Return the second leaf's moments, or its gradient, changed so that they do not fit."""
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "shape": lambda x: torch.zeros(5, dtype=x.dtype),
        "broadcastable-shape": lambda x: x[:1].clone(),
        "transposed-shape": lambda x: x.t().contiguous(),
        "dtype": lambda x: x.float(),
    }
    if kind.startswith("gradient-"):
        return state, [grads[0], changes[kind.removeprefix("gradient-")](grads[1])]
    change = changes[kind]

    def changed(tree: Any) -> Any:
        if isinstance(tree, list) and all(x.is_floating_point() for x in tree):
            return [tree[0], change(tree[1])]
        return tree

    return optree.tree_map(changed, state, is_leaf=lambda x: isinstance(x, list)), grads


MISMATCHES = [
    *("shape", "broadcastable-shape", "transposed-shape", "dtype"),
    *("gradient-shape", "gradient-broadcastable-shape", "gradient-dtype"),
]


@every_mode
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("kind", MISMATCHES)
@every_kernel
def test_mismatches_raise_and_change_nothing(
    case: Case, kind: str, layout: str, inplace: bool
) -> None:
    """Between gradients, parameters and state; the leaf before the bad one is as it was, too."""
    params, (grads,) = laid_out(layout, torch.float64, 1)
    transformation = case.functional(use_accelerated_op=True)
    state = transformation.init(params)
    bad_state, bad_grads = trouble(kind, state, grads)
    fits = all(
        x.shape == y.shape and x.dtype == y.dtype
        for x, y in zip(tensors_in(bad_state), tensors_in(state), strict=True)
    )
    if fits and not kind.startswith("gradient-"):
        assert case.name == "sgd"  # which has no state
        return
    if kind == "gradient-dtype" and case.name == "sgd":
        return  # nothing that it could differ from: plain SGD's updates do not see the parameters
    inputs = (bad_grads, bad_state, params)
    kept = optree.tree_map(torch.clone, inputs)
    with pytest.raises((NotCoveredError, ValueError), match=r"differ|shape|dtype"):
        transformation.update(bad_grads, bad_state, params=params, inplace=inplace)
    assert_same(inputs, kept)


@every_family
def test_a_stateful_step_that_fails_changes_nothing(family: Family) -> None:
    params, grads = laid_out("contiguous", torch.float64, 2)
    leaves = [p.requires_grad_() for p in params]
    kwargs = {"momentum": 0.9} if family is SGD else {}
    optimizer = family.stateful(leaves, 0.1, use_accelerated_op=True, **kwargs)
    for leaf, grad in zip(leaves, grads[0], strict=True):
        leaf.grad = grad
    optimizer.step()
    row = optimizer.state[leaves[1]]
    row.update((name, x[:1].clone()) for name, x in row.items() if x.is_floating_point())
    kept = snapshot(optimizer)
    with pytest.raises((NotCoveredError, ValueError), match=r"differ|shape"):
        optimizer.step()
    assert_same(snapshot(optimizer), kept)


@every_kernel_case
def test_in_place_steps_bump_versions(case: Case) -> None:
    """So that a graph which needs the old values raises in its backward pass."""
    params, (grads, later) = laid_out("contiguous", torch.float64, 2)
    leaves = [p.requires_grad_() for p in params]
    optimizer = case.stateful(leaves, use_accelerated_op=True)
    for steps in (grads, later):
        loss = sum((p**2).sum() for p in leaves)
        versions = [p._version for p in leaves]
        for leaf, grad in zip(leaves, steps, strict=True):
            leaf.grad = grad
        optimizer.step()
        assert all(p._version > v for p, v in zip(leaves, versions, strict=True))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    assert [g._version for g in (*grads, *later)] == [0] * 4


@every_kernel_case
def test_in_place_updates_bump_the_versions_of_the_state_alone(case: Case) -> None:
    if "mask" in case.kwargs:  # may raise midway, so its state is replaced
        case = case._replace(kwargs={**case.kwargs, "mask": None})
    params, (grads, later) = laid_out("contiguous", torch.float64, 2)
    transformation = case.functional(use_accelerated_op=True)
    _, state = transformation.update(grads, transformation.init(params), params=params)
    moments = [x for x in tensors_in(state) if x.is_floating_point()]
    watched = [x.requires_grad_() for x in (torch.ones(3, 4, dtype=torch.float64) for _ in moments)]
    losses = [(m * w).sum() for m, w in zip(moments, watched, strict=True) if m.numel()]
    transformation.update(later, state, params=params, inplace=True)
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    assert [x._version for x in (*grads, *later, *params)] == [0] * 6


NON_FINITE = [float("nan"), float("inf"), float("-inf"), 0.0, 1.0]


@every_mode
@every_kernel_case
def test_non_finite_gradients_propagate_as_in_the_composite_step(case: Case, inplace: bool) -> None:
    """To the same elements and no others; the others stay as exact as ever."""
    params = [torch.tensor([0.3, -0.4, 0.5, 0.6, -0.7], dtype=torch.float64)]
    first = torch.tensor(NON_FINITE, dtype=torch.float64)
    grads = [[first], [torch.ones_like(first)], [first.roll(1)]]
    if case.name == "rmsprop-all" or "centered" in case.name:
        grads = grads[:2]  # later, zeros meet a variance of rounding errors
    mine = tensors_in(functional(case, params, grads, True, inplace=inplace))
    theirs = tensors_in(functional(case, params, grads, False, inplace=inplace))
    assert not mine[0].isfinite().all()
    for x, y in zip(mine, theirs, strict=True):
        assert torch.equal(x.isfinite(), y.isfinite())
        assert_rounds_alike(x[x.isfinite()], y[y.isfinite()], ulps=1e3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_16_bits_round_as_torch_does(dtype: torch.dtype) -> None:
    """Every number of 16 bits, and those in the middle between two: ties, subnormals, overflow."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    sgd = torchopt.sgd(1.0, use_accelerated_op=True)
    updates, _ = sgd.update(every, sgd.init(every), inplace=False)
    assert_same(updates, -every)  # NaN for NaN, and nothing is rounded
    for rate in (0.5, 0.75, 1.0 + 2**-9, 1.0 + 2**-12, 3.0):
        sgd = torchopt.sgd(rate, use_accelerated_op=True)
        updates, _ = sgd.update(every, sgd.init(every), inplace=False)
        assert_same(updates, (-rate * every.float()).to(dtype))


@every_kernel_case
def test_an_infinite_parameter_that_does_not_decay_disturbs_nothing(case: Case) -> None:
    case = case._replace(kwargs={**case.kwargs, "weight_decay": 0.0})
    _, grads = laid_out("contiguous", torch.float64, 3)
    params = [torch.full((3, 4), float("inf"), dtype=torch.float64), torch.ones(3, 4).double()]
    finite = [torch.zeros_like(params[0]), params[1]]
    found, state = stateful(case, params, grads, True)
    _, expected = stateful(case, finite, grads, True)
    assert_same(found[0], params[0])
    assert_same(state, expected)
    assert all(x.isfinite().all() for x in tensors_in(state))
    grads = [[g.clone().requires_grad_() for g in step] for step in grads]
    transformation = case.functional(use_accelerated_op=True)
    state = transformation.init(params)
    updates, _ = transformation.update(grads[0], state, params=params, inplace=False)
    assert all(u.isfinite().all() for u in updates)
    slopes = torch.autograd.grad(sum(u.sum() for u in updates), grads[0])
    assert all(x.isfinite().all() for x in slopes)


@every_family
def test_no_leaves_and_no_gradients_are_no_call(family: Family, spy: Spy) -> None:
    transformation = family.functional(0.1, use_accelerated_op=True)
    for params, grads in (([], []), ([torch.ones(2)], [None]), (None, None)):
        state = transformation.init(params)
        updates, after = transformation.update(grads, state, params=params)
        assert updates == grads
        assert_same(tensors_in(after), tensors_in(state))
    assert spy.operations == []


def test_gradients_are_never_written_to() -> None:
    case = case_of(ADAM, weight_decay=0.1, maximize=True)
    for layout in ("contiguous", "sliced", "expanded-gradients"):
        params, grads = laid_out(layout, torch.float64, 3)
        kept = optree.tree_map(torch.clone, grads)
        for inplace in (True, False):
            functional(case, params, grads, True, inplace=inplace)
        stateful(case, params, grads, True)
        assert_same(grads, kept)
