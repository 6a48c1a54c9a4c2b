"""What is available, who is asked, and what is insisted on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import ADAM, SGD, Case, Family, every_family, every_kernel_case, tensors_in
from torch.autograd import gradcheck, gradgradcheck

import torchopt
import torchopt_accel

from ._accel import FACES, Spy, assert_rounds_alike, every_face, functional, laid_out, run_alone

HAS_CUDA = torch.cuda.is_available() and torchopt_accel.is_available("cuda")


@pytest.mark.parametrize(
    "devices",
    ["cpu", "cpu:0", torch.device("cpu"), ["cpu"], ("cpu", torch.device("cpu")), iter(["cpu"]), []],
    ids=["str", "numbered", "device", "list", "tuple", "iterator", "nothing"],
)
def test_the_processor_is_available(devices: Any) -> None:
    assert torchopt.accelerated_op_available(devices) is True


@pytest.mark.parametrize(
    "devices", ["meta", torch.device("meta"), ["cpu", "meta"], "xpu", 1000, ["cpu", 1000]], ids=repr
)
def test_other_devices_are_not_available(devices: Any) -> None:
    assert torchopt.accelerated_op_available(devices) is False


@pytest.mark.parametrize(
    "devices", [None, "cuda", "cuda:0", 0, torch.device("cuda", 0), [0, "cpu"]], ids=repr
)
def test_cuda_is_available_where_there_is_a_device_and_its_kernels(devices: Any) -> None:
    assert torchopt.accelerated_op_available(devices) is HAS_CUDA


def test_none_means_both_kinds_of_devices() -> None:
    assert torchopt.accelerated_op_available() is torchopt.accelerated_op_available(["cpu", "cuda"])


@pytest.mark.parametrize("devices", [1.5, True, [None], object(), ["cpu", b"cpu"]], ids=type)
def test_what_is_no_device_is_a_type_error(devices: Any) -> None:
    with pytest.raises(TypeError):
        torchopt.accelerated_op_available(devices)


def test_an_unknown_name_is_torch_s_own_error() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torchopt.accelerated_op_available("gpu")


def test_the_front_door_leads_to_the_package() -> None:
    assert torchopt.accelerated_op is torchopt_accel
    assert torchopt.accelerated_op.is_available("cpu") is True
    assert torchopt.accelerated_op.is_available.__module__ == "torchopt_accel._availability"
    accelerated = torchopt.transform.scale_by_accelerated_adam
    assert accelerated is torchopt_accel.scale_by_accelerated_adam
    assert "scale_by_accelerated_adam" in dir(torchopt.transform)


def test_a_module_that_does_not_load_is_not_available() -> None:
    """The answer is about the compiled module, not about the distribution."""
    printed = run_alone(
        "import sys; sys.modules['torchopt_accel._cpu'] = None\n"
        "import torch, torchopt\n"
        "print(torchopt.accelerated_op_available('cpu'))\n"
        "params = [torch.ones(2)]\n"
        "adam = torchopt.adam()\n"
        "print(adam.update(params, adam.init(params))[0][0].shape)\n"
        "try: torchopt.adam(use_accelerated_op=True).update(params, adam.init(params))\n"
        "except torchopt.accelerated_op.NotCoveredError as error: print(error)\n"
    )
    answer, shape, error = printed.splitlines()
    assert answer == "False"
    assert shape == "torch.Size([2])"
    assert error.startswith("`use_accelerated_op=True`, but")
    assert "torchopt-accel was built without its cpu kernels" in error


def test_nothing_compiled_is_loaded_before_it_is_needed() -> None:
    printed = run_alone(
        "import sys, torchopt\n"
        "torchopt.adam()\n"
        "print([name for name in sys.modules if name.startswith('torchopt_accel')])"
    )
    assert printed.strip() == "[]"


@every_face
@every_family
def test_true_and_none_call_the_kernel_and_false_never_does(
    family: Family, face: Callable[..., Any], spy: Spy
) -> None:
    case = Case("row", family, {"weight_decay": 0.1}, lambda params: None, 0.1)
    params, grads = laid_out("contiguous", torch.float32, 3)
    face(case, params, grads, False)
    assert spy.operations == []
    face(case, params, grads, True)
    assert len(spy.operations) == len(grads)
    spy.operations.clear()
    face(case, params, grads, None)
    # without a kernel, differentiable steps of a linear rule are faster for few leaves
    is_taken = family is not SGD or face in (FACES["functional-inplace"], FACES["stateful"])
    assert len(spy.operations) == (len(grads) if is_taken else 0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@every_kernel_case
def test_optimizers_are_copied_and_pickled(
    case: Case, used: bool, copied: Callable[[Any], Any], spy: Spy
) -> None:
    params, grads = laid_out("contiguous", torch.float64, 2)
    transformation = case.functional(use_accelerated_op=True)
    state = transformation.init(params)
    if used:  # so that what was compiled is at hand
        _, state = transformation.update(grads[0], state, params=params)
    other, other_state = copied(transformation), copied(state)
    assert "use_accelerated_op=True" in repr(other)
    expected = transformation.update(grads[1], state, params=params, inplace=False)
    spy.operations.clear()
    actual = other.update(grads[1], other_state, params=params, inplace=False)
    assert len(spy.operations) == 1
    assert_rounds_alike(actual, expected, ulps=0)


@every_family
def test_stateful_optimizers_are_copied_and_pickled(family: Family) -> None:
    def trained() -> torchopt.Optimizer:
        torch.manual_seed(0)
        optimizer = family.stateful([torch.randn(3).requires_grad_()], 0.1, use_accelerated_op=True)
        return step(optimizer)

    def step(optimizer: torchopt.Optimizer) -> torchopt.Optimizer:
        (param,) = optimizer.param_groups[0]["params"]
        param.grad = param.detach().cos()
        optimizer.step()
        return optimizer

    expected = step(trained()).param_groups[0]["params"]
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        assert_rounds_alike(step(copied(trained())).param_groups[0]["params"], expected, ulps=0)


ADAMS = {
    "default": {},
    "unusual": {"b1": 0.4, "b2": 0.6, "eps": 0.3, "eps_root": 0.2},
    "no-memory": {"b1": 0.0, "b2": 0.0, "eps": 0.1},
}
every_adam = pytest.mark.parametrize("kwargs", ADAMS.values(), ids=ADAMS)


@pytest.mark.parametrize("inplace", [True, False])
@every_adam
def test_scale_by_accelerated_adam_is_scale_by_adam(kwargs: Any, inplace: bool, spy: Spy) -> None:
    params, grads = laid_out("transposed", torch.float64, 4)
    grads[1][0] = None
    found = []
    for make in (torchopt.transform.scale_by_adam, torchopt.transform.scale_by_accelerated_adam):
        assert spy.operations == []
        transformation, trail = make(**kwargs), []
        state = transformation.init(params)
        for step in grads:
            updates, state = transformation.update(step, state, inplace=inplace)
            trail.append(optree.tree_map(torch.clone, (updates, state)))
        found.append(trail)
    assert len(spy.operations) == len(grads)
    assert_rounds_alike(*found)


@every_adam
def test_derivatives_of_scale_by_accelerated_adam(kwargs: Any, float64: None) -> None:
    adam = torchopt.transform.scale_by_accelerated_adam(**kwargs)
    state = adam.init(torch.zeros(3))
    state = state._replace(count=torch.tensor(4))
    inputs = [torch.tensor(x, requires_grad=True) for x in ([0.7, -1.3, 0.4], [0.2, 0.3, -0.4])]
    inputs.append(torch.tensor([1.1, 0.6, 1.4], requires_grad=True))

    def update(g: torch.Tensor, mu: torch.Tensor, nu: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = adam.update(g, state._replace(mu=mu, nu=nu), inplace=False)
        return tuple(x for x in tensors_in(found) if x.is_floating_point())

    assert gradcheck(update, inputs, check_forward_ad=True)
    assert gradgradcheck(update, inputs)


def test_scale_by_accelerated_adam_is_a_link_of_chains_that_pickles() -> None:
    params, grads = laid_out("contiguous", torch.float64, 3)
    found = []
    for make in (torchopt.transform.scale_by_adam, torchopt.transform.scale_by_accelerated_adam):
        chain = torchopt.chain(make(eps_root=1e-3), torchopt.transform.scale(-0.1))
        chain = pickle.loads(pickle.dumps(chain))
        state, own = chain.init(params), params
        for step in grads:
            updates, state = chain.update(step, state, inplace=False)
            own = torchopt.apply_updates(own, updates, inplace=False)
        found.append(own)
    assert_rounds_alike(*found)


def test_scale_by_accelerated_adam_passes_moments_that_require_grad() -> None:
    adam = torchopt.transform.scale_by_accelerated_adam(moment_requires_grad=True)
    state = adam.init(torch.zeros(2))
    assert state.mu.requires_grad
    assert state.nu.requires_grad


@pytest.mark.parametrize("name", ["b1", "b2", "eps", "eps_root"])
def test_scale_by_accelerated_adam_insists(name: str) -> None:
    """On numbers at once, and in each step on inputs that the kernels cover."""
    with pytest.raises(torchopt_accel.NotCoveredError, match="hyperparameters are tensors"):
        torchopt.transform.scale_by_accelerated_adam(**{name: torch.tensor(0.5)})
    adam = torchopt.transform.scale_by_accelerated_adam(**{name: 0.5})
    zeros = torch.zeros(2, device="meta")
    with pytest.raises(torchopt_accel.NotCoveredError, match="meta"):
        adam.update(zeros, adam.init(zeros))
    with pytest.raises(ValueError, match=r"got -0\.5"):
        torchopt.transform.scale_by_accelerated_adam(**{name: -0.5})


def test_installed_is_enough() -> None:
    """`None` is the default, and it is the compiled step."""
    params, grads = laid_out("contiguous", torch.float64, 3)
    transformation = torchopt.adam(0.1)
    state, own = transformation.init(params), params
    for step in grads:
        updates, state = transformation.update(step, state, inplace=False)
        own = torchopt.apply_updates(own, updates, inplace=False)
    case = Case("adam", ADAM, {}, lambda params: None, 0.1)
    expected = functional(case, params, grads, True, inplace=False)
    assert_rounds_alike((own, state), expected, ulps=0)
