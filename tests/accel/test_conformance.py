"""The compiled step is the composite one: every optimizer, dtype, layout and face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import (
    ADAGRAD,
    ADAM,
    Case,
    Family,
    every_family,
    every_kernel_case,
    make_grads,
    make_params,
)

import torchopt
from torchopt_accel import _native
from torchopt_accel._step import Step

from ._accel import (
    EVERY_KERNEL,
    FULL,
    HALF,
    Spy,
    assert_rounded,
    assert_rounds_alike,
    every_face,
    every_kernel,
    every_kernel_in,
    every_layout,
    functional,
    laid_out,
    meta,
    stateful,
    to_dtype,
    twin,
)

STEPS = 4
every_full_dtype = pytest.mark.parametrize("dtype", FULL, ids=str)
every_half_dtype = pytest.mark.parametrize("dtype", HALF, ids=str)
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


@every_full_dtype
@every_face
@every_kernel_case
def test_equals_the_composite_step(
    case: Case, face: Callable[..., Any], dtype: torch.dtype
) -> None:
    params, grads = laid_out("several-chunks", dtype, STEPS)
    assert_rounds_alike(face(case, params, grads, True), face(case, params, grads, False))


@every_layout
@every_face
@every_kernel_in(torch.float32, torch.float64)
def test_every_layout_equals_the_composite_step(
    case: Case, face: Callable[..., Any], dtype: torch.dtype, layout: str
) -> None:
    params, grads = laid_out(layout, dtype, STEPS)
    assert_rounds_alike(face(case, params, grads, True), face(case, params, grads, False))


@every_half_dtype
@every_kernel_case
def test_computes_16_bits_in_float32(case: Case, dtype: torch.dtype) -> None:
    """From the same numbers of 16 bits, in each step."""
    check_16_bits(case, dtype, "several-chunks")


@every_layout
@every_kernel_in(torch.bfloat16, torch.float16)
def test_every_layout_of_16_bits(case: Case, dtype: torch.dtype, layout: str) -> None:
    check_16_bits(case, dtype, layout)


def check_16_bits(case: Case, dtype: torch.dtype, layout: str) -> None:
    params, grads = laid_out(layout, dtype, STEPS)
    for inplace in (True, False):
        compiled = case.functional(use_accelerated_op=True)
        composite = case.functional(use_accelerated_op=False)
        state = compiled.init(params)
        for step in grads:
            exact = composite.update(
                to_dtype(step, torch.float32),
                to_dtype(state, torch.float32),
                params=to_dtype(params, torch.float32),
                inplace=False,
            )
            updates, state = compiled.update(step, state, params=params, inplace=inplace)
            assert {x.dtype for x in updates} == {dtype}
            assert_rounded((updates, state), exact)


def test_the_cases_that_stand_for_kernels_meet_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met, run = set(), Step.run

    def noted(step: Step, *args: Any) -> None:
        met.add(step.kernel.name)
        run(step, *args)

    monkeypatch.setattr(Step, "run", noted)
    for case in EVERY_KERNEL:
        functional(case, *laid_out("contiguous", torch.float32, 1), True, inplace=True)
    assert met == set(_native.load("cpu").RULES)


@every_half_dtype
@every_kernel_case
def test_objects_compute_16_bits_in_float32(case: Case, dtype: torch.dtype) -> None:
    """The parameters are rounded once, after the step, not the update before it is added."""
    if "initial_scale" in case.kwargs:  # a start that can be had in both
        case = case._replace(kwargs={**case.kwargs, "initial_scale": 0.25})
    params, grads = laid_out("several-chunks", dtype, STEPS)
    singles = to_dtype((params, grads[:1]), torch.float32)
    exact, _ = functional(case, *singles, False, inplace=False)
    for face in (stateful, meta):
        assert_rounded(face(case, params, grads[:1], True)[0], exact)
    # in later steps it is the same kernel that overwrites and that does not
    mine, theirs = (face(case, params, grads, True)[0] for face in (stateful, meta))
    torch.testing.assert_close(mine, theirs, rtol=0.0, atol=0.0)


@every_full_dtype
@every_face
@every_kernel
def test_covers_none_leaves_complex_leaves_and_their_own_step_counts(
    case: Case, face: Callable[..., Any], dtype: torch.dtype
) -> None:
    params = make_params(dtype)
    grads = make_grads(params, 6)
    assert_rounds_alike(face(case, params, grads, True), face(case, params, grads, False))


@every_half_dtype
@every_kernel_case
def test_16_bits_cover_none_leaves_and_their_own_step_counts(
    case: Case, dtype: torch.dtype
) -> None:
    params = make_params(dtype, real=True)
    grads = make_grads(params, 6)
    compiled = case.functional(use_accelerated_op=True)
    composite = case.functional(use_accelerated_op=False)
    state = compiled.init(params)
    for step in grads:
        inputs = optree.tree_map(lambda x: x.float(), (step, params))
        exact = composite.update(
            inputs[0], to_dtype(state, torch.float32), params=inputs[1], inplace=False
        )
        updates, state = compiled.update(step, state, params=params, inplace=False)
        assert [x is None for x in updates] == [x is None for x in step]
        assert_rounded((updates, state), exact)


@every_mode
@every_kernel_case
def test_dtypes_may_differ_between_leaves(case: Case, inplace: bool) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.complex128]
    params = [torch.randn(5).to(dtype) for dtype in dtypes]
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    together = functional(case, params, grads, True, inplace=inplace)
    assert [x.dtype for x in together[0]] == dtypes
    for i, param in enumerate(params):
        alone, _ = functional(case, [param], [[g[i]] for g in grads], True, inplace=inplace)
        torch.testing.assert_close(together[0][i], alone[0], rtol=0.0, atol=0.0)


@every_family
def test_one_call_steps_two_thousand_leaves(family: Family, spy: Spy) -> None:
    case = Case(family.functional.__name__, family, {}, lambda params: None, 0.05)
    params = [torch.randn(1 + i % 7) for i in range(2000)]
    grads = [[torch.randn_like(p) for p in params] for _ in range(2)]
    for inplace in (True, False):
        expected = functional(case, params, grads, False, inplace=inplace)
        assert spy.operations == []
        assert_rounds_alike(functional(case, params, grads, True, inplace=inplace), expected)
        assert len(spy.operations) == len(grads)
        spy.operations.clear()


@every_mode
def test_leaves_may_have_made_different_numbers_of_steps(inplace: bool) -> None:
    """One call, though the bias corrections differ."""
    params = [torch.randn(3, dtype=torch.float64) for _ in range(50)]
    grads = [[torch.randn_like(p) for p in params] for _ in range(3)]
    counts = [torch.tensor(i % 17) for i in range(50)]
    found = []
    for accelerated in (True, False):
        adam = torchopt.adam(0.1, betas=(0.6, 0.7), use_accelerated_op=accelerated)
        state = adam.init(params)
        state = (state[0]._replace(count=[x.clone() for x in counts]), *state[1:])
        for step in grads:
            updates, state = adam.update(step, state, inplace=inplace)
        found.append((updates, state))
    assert_rounds_alike(*found)
    assert [int(x) for x in found[0][1][0].count] == [i % 17 + 3 for i in range(50)]


@every_face
@every_family
def test_follows_a_schedule(family: Family, face: Callable[..., Any]) -> None:
    schedule = torchopt.schedule.linear_schedule(0.2, 0.01, transition_steps=3, transition_begin=1)
    kwargs = {"lr": schedule, "weight_decay": 0.1}
    if family.functional is torchopt.rmsprop:
        kwargs["momentum"] = 0.9
    case = Case("scheduled", family, kwargs, lambda params: None, 0.0)
    params, grads = laid_out("contiguous", torch.float64, 6)
    assert_rounds_alike(face(case, params, grads, True), face(case, params, grads, False))


MASKS = {
    "callable": lambda params: optree.tree_map(lambda x: x.ndim > 1, params),
    "tree": {"w": True, "b": False, "s": True},
    "nothing": {"w": False, "b": False, "s": False},
    "everything": {"w": True, "b": True, "s": True},
}


@every_mode
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_choose_what_decays(mask: Any, inplace: bool) -> None:
    params = {"w": torch.randn(2, 3), "b": torch.randn(3), "s": torch.randn(())}
    grads = [optree.tree_map(torch.randn_like, params) for _ in range(3)]
    grads[1]["b"] = None
    case = Case("masked", _ADAMW, {"weight_decay": 0.5, "mask": mask}, lambda params: None, 0.1)
    found = [functional(case, params, grads, x, inplace=inplace) for x in (True, False)]
    assert_rounds_alike(*found)


_ADAMW = Family(torchopt.adamw, torchopt.AdamW, torchopt.MetaAdamW, torch.optim.AdamW)


@every_mode
def test_is_a_link_of_a_chain(inplace: bool, spy: Spy) -> None:
    params, grads = laid_out("contiguous", torch.float64, 3)
    found = []
    for accelerated in (True, False):
        chain = torchopt.chain(
            torchopt.clip_grad_norm(0.5),
            torchopt.adam(0.1, weight_decay=0.1, use_accelerated_op=accelerated),
        )
        state, own = chain.init(params), [twin(p) for p in params]
        for step in grads:
            updates, state = chain.update(step, state, params=own, inplace=inplace)
            own = torchopt.apply_updates(own, updates, inplace=inplace)
        found.append((own, state))
    assert_rounds_alike(*found)
    assert len(spy.operations) == len(grads)


def test_parameter_groups_have_hyperparameters_of_their_own() -> None:
    params, grads = laid_out("contiguous", torch.float64, 4)
    found = []
    for accelerated in (True, False):
        first, second = (twin(p).requires_grad_() for p in params)
        optimizer = torchopt.Adam(
            [{"params": [first]}, {"params": [second], "lr": 0.5, "weight_decay": 0.3}],
            lr=0.1,
            use_accelerated_op=accelerated,
        )
        for step in grads:
            first.grad, second.grad = step
            optimizer.step()
        found.append([first.detach(), second.detach()])
    assert_rounds_alike(*found)


@pytest.mark.parametrize("family", [ADAM, ADAGRAD], ids=["adam", "adagrad"])
def test_steps_in_either_mode_continue_each_other(family: Family) -> None:
    """In place and not, compiled and not: one trajectory."""
    params, grads = laid_out("transposed", torch.float64, 8)
    case = Case("mixed", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    state, own = case.functional().init(params), [twin(p) for p in params]
    for t, step in enumerate(grads):
        transformation = case.functional(use_accelerated_op=t % 2 == 0)
        mode = t % 4 < 2
        updates, state = transformation.update(step, state, params=own, inplace=mode)
        own = torchopt.apply_updates(own, updates, inplace=mode)
    assert_rounds_alike((own, state), functional(case, params, grads, False, inplace=False))
