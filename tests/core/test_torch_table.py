"""The table by which torch tests its own optimizers: same numbers, same errors."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from _table import assert_agree, tensors_in, through_a_file
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

import torchopt

# where torch keeps numbers in tensors, they have the default precision
pytestmark = pytest.mark.usefixtures("float64")

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


def draw_problem() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (3, 5), (20, 4), (20, 5)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loss_of_problem(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    x, y = draw_problem()[2:]
    return ((x @ first).tanh() @ second - y).square().mean()


def make_problem() -> tuple[list[torch.Tensor], Any]:
    """Parameters of a small network, and what clears and computes their gradients."""
    params = [p.requires_grad_() for p in draw_problem()[:2]]

    def closure() -> torch.Tensor:
        for p in params:
            p.grad = None
        loss = loss_of_problem(*params)
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
        "ASGD",
        "Rprop",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "LBFGS",
        "Muon",
        "NAdam",
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


class Functional:
    """The functional face with the options of a table's row, for the parameters of the problem."""

    def __init__(self, info: Any, params: list[torch.Tensor], kwargs: dict[str, Any]) -> None:
        form = getattr(torchopt, info.optim_cls.__name__.lower())
        names = inspect.signature(form).parameters
        self.transformation = form(**{k: x for k, x in kwargs.items() if k in names})
        # listed as torch lists them, which is not the order of the names
        self.tree = {"z": params[0].detach(), "a": params[1].detach()}
        self.state = self.transformation.init(self.tree)

    def step(self, loss: Any, times: int) -> None:
        """Step in place, so that the parameters of the problem move."""

        for _ in range(times):
            leaves = {key: p.detach().requires_grad_() for key, p in self.tree.items()}
            found = torch.autograd.grad(loss(leaves["z"], leaves["a"]), list(leaves.values()))
            grads = dict(zip(leaves, found, strict=True))
            updates, self.state = self.transformation.update(grads, self.state, params=self.tree)
            torchopt.apply_updates(self.tree, updates)


@pytest.mark.parametrize("theirs_first", [True, False], ids=["from torch", "to torch"])
@pytest.mark.parametrize(
    ("info", "inputs"), [row for row in INPUTS if row.values[0].optim_cls is not torch.optim.LBFGS]
)
def test_functional_state_goes_on_from_that_of_torch_and_back(
    info: Any, inputs: Any, theirs_first: bool
) -> None:
    kwargs, times = kwargs_of(inputs), 5
    params, closure = make_problem()
    step(info.optim_cls(params, **kwargs), closure, 2 * times)
    expected = [p.detach() for p in params]

    params, closure = make_problem()
    theirs = info.optim_cls(params, **kwargs)
    mine = Functional(info, params, kwargs)
    if theirs_first:
        step(theirs, closure, times)
        packed = theirs.state_dict()
        mine.state = torchopt.utils.from_torch_state_dict(mine.transformation, packed, mine.tree)
        mine.step(loss_of_problem, times)
    else:
        mine.step(loss_of_problem, times)
        packed = torchopt.utils.to_torch_state_dict(mine.transformation, mine.state, mine.tree)
        again = torchopt.utils.from_torch_state_dict(mine.transformation, packed, mine.tree)
        assert_agree(tensors_in(again), tensors_in(mine.state))
        theirs.load_state_dict(through_a_file(packed))
        step(theirs, closure, times)
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


def test_parameters_in_a_set_are_warned_of_and_in_a_group_refused() -> None:
    params = {torch.ones(1, requires_grad=True)}
    with pytest.warns(FutureWarning, match="organized in ordered collections"):
        optimizer = torchopt.SGD(params, 0.1)
    with pytest.raises(TypeError, match="organized in ordered collections"):
        optimizer.add_param_group({"params": {torch.ones(1, requires_grad=True)}})


def test_state_of_torch_is_copied() -> None:
    params, closure = make_problem()
    theirs, mine = torch.optim.Adam(params), torchopt.Adam(params)
    step(theirs, closure, 1)
    mine.load_state_dict(theirs.state_dict())
    kept = [x.clone() for x in tensors_in([dict(row) for row in theirs.state.values()])]
    step(mine, closure, 1)
    assert_agree(tensors_in([dict(row) for row in theirs.state.values()]), kept)


def stepped(transformation: Any, params: Any, grads: list[Any]) -> Any:
    """Parameters and state after functional steps."""
    state = transformation.init(params)
    for grad in grads:
        updates, state = transformation.update(grad, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params, state


def test_a_scheduled_rate_is_exported_as_that_of_the_coming_step() -> None:
    adam = torchopt.adam(torchopt.schedule.linear_schedule(1.0, 0.0, 4))
    params, state = stepped(adam, {"w": torch.ones(2)}, [{"w": torch.ones(2)}] * 3)
    packed = torchopt.utils.to_torch_state_dict(adam, state, params)
    assert packed["param_groups"][0]["lr"] == 0.25
    theirs = torch.optim.Adam([params["w"].requires_grad_()])
    theirs.load_state_dict(packed)
    params["w"].grad = torch.ones(2)
    theirs.step()
    back = torchopt.utils.from_torch_state_dict(adam, theirs.state_dict(), params)
    assert back[1].count == 4
    momentum = torchopt.sgd(torchopt.schedule.linear_schedule(1.0, 0.0, 4), momentum=0.9)
    params, state = stepped(momentum, [torch.ones(2)], [[torch.ones(2)]] * 3)
    packed = torchopt.utils.to_torch_state_dict(momentum, state, params)
    assert torchopt.utils.from_torch_state_dict(momentum, packed, params)[1].count == 3


def test_learned_hyperparameters_are_exported_as_numbers() -> None:
    lr, beta = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25)
    adam = torchopt.adam(lr, betas=(beta, torch.tensor(0.5)))
    packed = torchopt.utils.to_torch_state_dict(adam, adam.init([torch.ones(1)]), [torch.ones(1)])
    assert packed["param_groups"][0]["lr"] == 0.5
    assert packed["param_groups"][0]["betas"] == (0.25, 0.5)


def test_leaves_without_a_state_or_a_parameter() -> None:
    """None is no parameter for torch; what has not been stepped begins at zero."""
    params = {"b": None, "w": torch.ones(2), "a": torch.ones(3)}
    adam = torchopt.adam(0.1)
    params, state = stepped(adam, params, [{"b": None, "w": torch.ones(2), "a": None}])
    packed = torchopt.utils.to_torch_state_dict(adam, state, params)
    assert packed["param_groups"][0]["params"] == [0, 1]
    assert packed["state"][0]["exp_avg"].shape == (2,)
    back = torchopt.utils.from_torch_state_dict(adam, packed, params)
    assert back[0].mu["b"] is None
    assert_agree(tensors_in(back), tensors_in(state))
    del packed["state"][1]
    back = torchopt.utils.from_torch_state_dict(adam, packed, params)
    assert_agree(tensors_in(back), tensors_in(state))


def test_state_of_a_meta_optimizer_goes_to_torch() -> None:
    net = torch.nn.Linear(3, 2)
    meta = torchopt.MetaAdam(net, lr=0.1)
    meta.step(net(torch.ones(1, 3)).square().sum())
    params = list(net.parameters())
    packed = torchopt.utils.to_torch_state_dict(meta.impl, meta.state_dict()[0], params)
    back = torchopt.utils.from_torch_state_dict(meta.impl, packed, params)
    assert_agree(tensors_in(back), [x.detach() for x in tensors_in(meta.state_dict()[0])])
    meta.load_state_dict((back,))
    theirs = torch.optim.Adam([p.detach().requires_grad_() for p in params])
    theirs.load_state_dict(packed)
    assert theirs.param_groups[0]["lr"] == 0.1


def test_what_is_exported_is_a_copy() -> None:
    adam = torchopt.adam(0.1)
    params, state = stepped(adam, [torch.ones(2)], [[torch.ones(2)]])
    packed = torchopt.utils.to_torch_state_dict(adam, state, params)
    packed["state"][0]["exp_avg"].zero_()
    assert state[0].mu[0].all()
    back = torchopt.utils.from_torch_state_dict(adam, packed, params)
    back[0].mu[0].fill_(7.0)
    assert not packed["state"][0]["exp_avg"].any()


def test_a_composition_around_one_optimizer_is_exported() -> None:
    clipped = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(0.1))
    params, state = stepped(clipped, [torch.ones(2)], [[torch.ones(2)]])
    packed = torchopt.utils.to_torch_state_dict(clipped, state, params)
    own = torchopt.Optimizer([params[0].requires_grad_()], clipped)
    own.load_state_dict(packed)
    assert_agree(own.state[params[0]]["exp_avg"], state[1][0].mu[0])


@pytest.mark.parametrize(
    ("transformation", "message"),
    [
        (torchopt.transform.scale_by_adam(), "has none in it, or several"),
        (torchopt.chain(torchopt.adam(), torchopt.sgd(0.1)), "has none in it, or several"),
        (torchopt.adam([torch.tensor(0.1), torch.tensor(0.2)]), "each leaf has its own"),
        (torchopt.lbfgs(), "go by its stateful form"),
    ],
)
def test_what_torch_has_no_group_for_is_not_exported(transformation: Any, message: str) -> None:
    params = [torch.ones(1), torch.ones(2)]
    with pytest.raises(ValueError, match=message):
        torchopt.utils.to_torch_state_dict(transformation, transformation.init(params), params)


def test_state_dicts_that_do_not_fit_are_refused() -> None:
    params, closure = make_problem()
    theirs = torch.optim.Adam(params)
    step(theirs, closure, 1)
    packed = theirs.state_dict()
    load = torchopt.utils.from_torch_state_dict
    with pytest.raises(ValueError, match="2 parameters, `params` has 1"):
        load(torchopt.adam(), packed, params[:1])
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        load(torchopt.sgd(0.1, momentum=0.9), packed, params)
    with pytest.raises(ValueError, match="belongs to other parameters"):
        load(torchopt.adam(), packed, params[::-1])
    with pytest.raises(ValueError, match="`state` and `param_groups`"):
        load(torchopt.adam(), {}, params)
    beyond = {**packed, "state": {**packed["state"], 7: packed["state"][0]}}
    with pytest.raises(ValueError, match="go by its stateful form"):
        load(torchopt.lbfgs(), packed, params)
    with pytest.raises(ValueError, match="beyond its parameters"):
        load(torchopt.adam(), beyond, params)
    with pytest.raises(TypeError, match="belongs to another transformation"):
        torchopt.utils.to_torch_state_dict(torchopt.adam(), torchopt.radam().init(params), params)


def test_parameters_before_their_first_step_start_afresh_in_torch() -> None:
    """Torch would dampen the first step if it found a buffer."""
    momentum = torchopt.sgd(0.1, momentum=0.9, dampening=0.5)
    params = {name: torch.ones(1, requires_grad=True) for name in ("a", "b")}
    state = momentum.init(params)
    _, state = momentum.update({"a": torch.ones(1), "b": None}, state)
    theirs = torch.optim.SGD(params.values(), lr=1.0)
    theirs.load_state_dict(torchopt.utils.to_torch_state_dict(momentum, state, params))
    grads = {"a": torch.ones(1), "b": torch.ones(1)}
    updates, _ = momentum.update(grads, state, inplace=False)
    expected = torchopt.apply_updates(params, updates, inplace=False)
    for name, p in params.items():
        p.grad = grads[name]
    theirs.step()
    torch.testing.assert_close(params, expected)
