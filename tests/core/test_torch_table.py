"""The table by which torch tests its own optimizers: same numbers, same errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _table import assert_agree, tensors_in
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import torchopt

OURS = {info.optim_cls: getattr(torchopt, info.optim_cls.__name__, None) for info in optim_db}
TABLE = [info for info in optim_db if OURS[info.optim_cls] is not None]
# options that torch 2.15 has and we have not
LATER = {
    "LBFGS-maximize": "maximize",
    "LBFGS-maximize_strong_wolfe": "maximize",
    "Muon-spectral_unclamped lr adjustment": "spectral_unclamped",
}


def table_row(info: Any, inputs: Any) -> Any:
    name = f"{info.optim_cls.__name__}-{inputs.desc}"
    later = LATER.get(name)
    skip = pytest.mark.skip(reason=f"{later!r} is an option of torch 2.15 alone")
    return pytest.param(info, inputs, id=name, marks=[skip] if later else [])


INPUTS = [
    table_row(info, inputs) for info in TABLE for inputs in info.optim_inputs_func(device="cpu")
]
ERRORS = [
    pytest.param(info, k, id=f"{info.optim_cls.__name__}-{k}-{error.error_regex[:40]}")
    for info in TABLE
    for k, error in enumerate(info.optim_error_inputs_func(device="cpu", dtype=torch.float64))
]


def make_problem() -> tuple[list[torch.Tensor], Any]:
    """Parameters of a small network, and what clears and computes their gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    params = [draw(4, 3).requires_grad_(), draw(3, 5).requires_grad_()]
    x, y = draw(20, 4), draw(20, 5)

    def closure() -> torch.Tensor:
        for p in params:
            p.grad = None
        loss = ((x @ params[0]).tanh() @ params[1] - y).square().mean()
        loss.backward()
        return loss

    return params, closure


def kwargs_of(inputs: Any) -> dict[str, Any]:
    """The options, with tensors in the precision of the parameters."""
    return {k: x.double() if isinstance(x, torch.Tensor) else x for k, x in inputs.kwargs.items()}


def step(optimizer: torch.optim.Optimizer, closure: Any, times: int) -> None:
    for _ in range(times):
        if isinstance(optimizer, (torch.optim.LBFGS, torchopt.LBFGS)):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def test_every_optimizer_that_both_have_is_in_the_table() -> None:
    names = {info.optim_cls.__name__ for info in TABLE}
    assert names == {
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "LBFGS",
        "Muon",
        "RAdam",
        "RMSprop",
        "SGD",
    }


@pytest.mark.parametrize(("info", "inputs"), INPUTS)
def test_has_the_numbers_of_torch(info: Any, inputs: Any) -> None:
    results = []
    for make in (OURS[info.optim_cls], info.optim_cls):
        params, closure = make_problem()
        # L-BFGS amplifies rounding, twofold or so in each of its twenty iterations a step
        times = 2 if make.__name__ == "LBFGS" else 12
        step(make(params, **kwargs_of(inputs)), closure, times)
        results.append([p.detach() for p in params])
    assert_agree(*results)


@pytest.mark.parametrize("theirs_first", [True, False], ids=["from torch", "to torch"])
@pytest.mark.parametrize(("info", "inputs"), INPUTS)
def test_goes_on_from_a_state_dict_of_the_other(info: Any, inputs: Any, theirs_first: bool) -> None:
    """Half of the way with one, the other half with the other: as one way."""
    makes = [OURS[info.optim_cls], info.optim_cls]
    first, second = reversed(makes) if theirs_first else makes
    kwargs = kwargs_of(inputs)
    times = 1 if first.__name__ == "LBFGS" else 5
    params, closure = make_problem()
    whole = info.optim_cls(params, **kwargs)
    step(whole, closure, 2 * times)
    expected = [p.detach() for p in params]

    params, closure = make_problem()
    begun = first(params, **kwargs)
    step(begun, closure, times)
    continued = second(params, **kwargs)
    continued.load_state_dict(begun.state_dict())
    step(continued, closure, times)
    assert_agree([p.detach() for p in params], expected)


@pytest.mark.parametrize(("info", "inputs"), INPUTS)
def test_state_has_the_names_of_torch(info: Any, inputs: Any) -> None:
    packed = []
    for make in (OURS[info.optim_cls], info.optim_cls):
        params, closure = make_problem()
        optimizer = make(params, **kwargs_of(inputs))
        step(optimizer, closure, 1)
        packed.append(optimizer.state_dict())
    mine, theirs = packed
    for key, row in theirs["state"].items():
        # torch's L-BFGS saves its scratch memory, "al"
        names = {name for name, x in row.items() if x is not None and name != "al"}
        # dampening, which does not apply to the first step, is told by a count
        assert names == mine["state"].get(key, {}).keys() - ({"step"} - names)
    if info.optim_cls is not torch.optim.Muon:  # which has none of the general options
        groups = zip(mine["param_groups"], theirs["param_groups"], strict=True)
        # torch's AdamW is its Adam with an option that is always on
        without = {"decoupled_weight_decay"}
        if info.optim_cls is torch.optim.LBFGS:
            without |= {"maximize"}  # of torch 2.15
        assert all(their.keys() - without <= my.keys() for my, their in groups)


@pytest.mark.parametrize(("info", "k"), ERRORS)
def test_raises_where_torch_does(info: Any, k: int) -> None:
    error = info.optim_error_inputs_func(device="cpu", dtype=torch.float64)[k]
    ours, inputs = OURS[info.optim_cls], error.optimizer_error_input
    if error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR:
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                ours(inputs.params, **inputs.kwargs)
            return
        # in our own words where the option is at fault, in torch's where its parameters are
        with pytest.raises((error.error_type, ValueError)):
            ours(inputs.params, **inputs.kwargs)
        return
    optimizer = ours(inputs.params, **inputs.kwargs)
    with pytest.raises(error.error_type, match=error.error_regex):
        optimizer.step()


def test_state_of_torch_is_copied() -> None:
    params, closure = make_problem()
    theirs, mine = torch.optim.Adam(params), torchopt.Adam(params)
    step(theirs, closure, 1)
    mine.load_state_dict(theirs.state_dict())
    kept = [x.clone() for x in tensors_in([dict(row) for row in theirs.state.values()])]
    step(mine, closure, 1)
    assert_agree(tensors_in([dict(row) for row in theirs.state.values()]), kept)
