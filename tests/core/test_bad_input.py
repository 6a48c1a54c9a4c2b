"""Bad input gets an error that names the argument, the value and the remedy."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from _table import ADAM, ADAMW, FAMILIES, SGD, Bag, Family, assert_same, every_family
from torch import nn

import torchopt
from torchopt import transform


@every_family
def test_empty_parameter_lists(family: Family) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        family.stateful([])
    with pytest.raises(ValueError, match=r"empty parameter list.* module has no parameters"):
        family.meta(nn.ReLU())
    optimizer = family.meta(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="empty parameter list"):
        optimizer.add_param_group(nn.ReLU())


@every_family
def test_integer_parameters(family: Family) -> None:
    params = {"w": torch.ones(2), "n": [torch.arange(3)]}
    message = r"must be floating point or complex.*int64"
    with pytest.raises(ValueError, match=rf"params\['n'\]\[0\] {message}"):
        family.functional().init(params)
    with pytest.raises(ValueError, match=rf"params\[1\] {message}"):
        family.stateful([torch.ones(2), torch.arange(3)])
    module = nn.Linear(2, 1)
    module.register_parameter("n", nn.Parameter(torch.arange(3), requires_grad=False))
    with pytest.raises(ValueError, match=message):
        family.meta(module)


def test_parameters_that_are_no_tensors() -> None:
    with pytest.raises(TypeError, match=r"params\['w'\] must be a tensor or None, got float"):
        torchopt.adam().init({"w": 1.0})
    with pytest.raises(TypeError, match="params argument given to the optimizer"):
        torchopt.Adam(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got list"):
        torchopt.MetaAdam([torch.ones(2)])


ADAM_AT = {"a": torch.ones(2), "b": torch.ones(3)}
MISMATCHED: dict[str, tuple[Any, str]] = {
    "missing leaf": ({"a": torch.ones(2)}, "structure"),
    "additional leaf": ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "structure"),
    "other key": ({"a": torch.ones(2), "c": torch.ones(3)}, "structure"),
    "other kind": ([torch.ones(2), torch.ones(3)], "structure"),
    "deeper": ({"a": torch.ones(2), "b": [torch.ones(3)]}, "structure"),
    "other shape": (
        {"a": torch.ones(2), "b": torch.ones(4)},
        r"shape.*\(3,\).*shape.*\(4,\)",
    ),
    "shape that broadcasts": (
        {"a": torch.ones(2), "b": torch.ones(2, 3)},
        r"shape.*\(3,\).*shape.*\(2, 3\)",
    ),
    "scalar": ({"a": torch.ones(2), "b": torch.ones(())}, r"shape.*\(3,\).*shape.*\(\)"),
}
every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])


def stateful_transformations() -> dict[str, torchopt.GradientTransformation]:
    found: dict[str, torchopt.GradientTransformation] = {
        name: family.functional() for name, family in FAMILIES.items() if name != "sgd"
    }
    return {
        **found,
        "sgd with momentum": torchopt.sgd(0.1, momentum=0.9),
        "chain": torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam()),
        "masked": transform.masked(transform.trace(0.9), True),
    }


@every_mode
@pytest.mark.parametrize(("grads", "message"), MISMATCHED.values(), ids=MISMATCHED)
@pytest.mark.parametrize(
    "transformation", stateful_transformations().values(), ids=stateful_transformations()
)
def test_gradients_unlike_the_state(
    transformation: torchopt.GradientTransformation, grads: Any, message: str, inplace: bool
) -> None:
    state = transformation.init(ADAM_AT)
    kept = optree.tree_map(torch.clone, state)
    with pytest.raises(ValueError, match=rf"(?s)state.*{message}|{message}.*state"):
        transformation.update(grads, state, inplace=inplace)
    assert_same(state, kept)


def test_structures_are_both_named() -> None:
    adam = torchopt.adam()
    with pytest.raises(ValueError, match=r"(?s)state.*'a'.*'b'.*updates.*'a'.*'c'"):
        adam.update({"a": torch.ones(2), "c": torch.ones(3)}, adam.init(ADAM_AT))


@every_mode
@pytest.mark.parametrize(
    "transformation", stateful_transformations().values(), ids=stateful_transformations()
)
def test_gradients_for_what_was_none(transformation: Any, inplace: bool) -> None:
    state = transformation.init({"a": torch.ones(2), "b": None})
    kept = optree.tree_map(torch.clone, state)
    with pytest.raises(ValueError, match=r"(?s)state.*None"):
        transformation.update(ADAM_AT, state, params=ADAM_AT, inplace=inplace)
    assert_same(state, kept)
    params = {"a": torch.ones(2), "b": None}
    with pytest.raises(ValueError, match=r"(?s)params.*None"):
        torchopt.apply_updates(params, ADAM_AT, inplace=inplace)
    assert_same(params["a"], torch.ones(2))


@every_mode
@pytest.mark.parametrize(("other", "message"), MISMATCHED.values(), ids=MISMATCHED)
@pytest.mark.parametrize("make", [torchopt.adamw, torchopt.adam], ids=["adamw", "adam"])
def test_parameters_unlike_the_gradients(
    make: Any, other: Any, message: str, inplace: bool
) -> None:
    transformation = make(weight_decay=0.1)
    state = transformation.init(ADAM_AT)
    kept = optree.tree_map(torch.clone, state)
    words = message.split(".*")[0]
    with pytest.raises(ValueError, match=rf"(?s){words}.*params|params.*{words}"):
        transformation.update(ADAM_AT, state, params=other, inplace=inplace)
    assert_same(state, kept)


@every_mode
@pytest.mark.parametrize(("updates", "message"), MISMATCHED.values(), ids=MISMATCHED)
def test_updates_unlike_the_parameters(updates: Any, message: str, inplace: bool) -> None:
    params = optree.tree_map(torch.clone, ADAM_AT)
    words = message.split(".*")[0]
    with pytest.raises(ValueError, match=rf"(?s)params.*{words}|{words}.*params"):
        torchopt.apply_updates(params, updates, inplace=inplace)
    assert_same(params, ADAM_AT)


# one rate for all entries of a leaf is no mistake
NO_RATES = {name: row for name, row in MISMATCHED.items() if name != "scalar"}


@every_mode
@pytest.mark.parametrize(("rates", "message"), NO_RATES.values(), ids=NO_RATES)
def test_learning_rates_unlike_the_parameters(rates: Any, message: str, inplace: bool) -> None:
    adam = torchopt.adam(lr=rates)
    state = adam.init(ADAM_AT)
    kept = optree.tree_map(torch.clone, state)
    words = message.split(".*")[0]
    with pytest.raises(ValueError, match=rf"(?s)`lr`.*{words}|{words}.*`lr`"):
        adam.update(ADAM_AT, state, inplace=inplace)
    assert_same(state, kept)


def test_learning_rates_by_names_the_module_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"`lr` has the names .*other.* module has .*weight"):
        torchopt.MetaSGD(nn.Linear(2, 1), lr={"weight": torch.tensor(0.1), "other": torch.ones(1)})


@pytest.mark.parametrize("mask", [{"a": True}, [True, False], {"a": True, "b": {"c": True}}])
@pytest.mark.parametrize(
    "make",
    [
        lambda mask: torchopt.adamw(mask=mask),
        lambda mask: transform.add_decayed_weights(0.1, mask),
        lambda mask: transform.masked(transform.trace(0.9), mask),
    ],
    ids=["adamw", "add_decayed_weights", "masked"],
)
def test_masks_unlike_the_parameters(make: Any, mask: Any) -> None:
    transformation = make(mask)
    with pytest.raises(ValueError, match="`mask` must be a tree of bools"):
        transformation.update(ADAM_AT, transformation.init(ADAM_AT), params=ADAM_AT)


@pytest.mark.parametrize(
    "transformation",
    [
        torchopt.adamw(),
        torchopt.sgd(0.1, weight_decay=0.1),
        transform.add_decayed_weights(0.1),
    ],
    ids=["adamw", "sgd", "add_decayed_weights"],
)
def test_weight_decay_without_parameters(transformation: Any) -> None:
    with pytest.raises(ValueError, match="`weight_decay` needs the parameters: pass `params=`"):
        transformation.update(ADAM_AT, transformation.init(ADAM_AT))


def steppers() -> dict[str, Callable[[Any], Any]]:
    """Ways to step on a loss that the module, or the parameters, did not make."""
    module, params = nn.Linear(2, 1), [torch.ones(2, requires_grad=True)]
    return {
        "MetaAdam": torchopt.MetaAdam(module).step,
        "MetaOptimizer": torchopt.MetaOptimizer(module, torchopt.sgd(0.1)).step,
        "FuncOptimizer": lambda loss: torchopt.FuncOptimizer(torchopt.adam()).step(loss, params),
    }


@pytest.mark.parametrize("step", steppers().values(), ids=steppers())
def test_losses_that_cannot_be_differentiated(step: Callable[[Any], Any]) -> None:
    leaf = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="`loss` must be a tensor, got float"):
        step(1.0)
    with pytest.raises(ValueError, match=r"`loss` must be a scalar, got shape \(2,\).*mean"):
        step(leaf * 2)
    with pytest.raises(ValueError, match="`loss` does not require grad"):
        step(torch.tensor(1.0))
    with torch.no_grad():
        loss = leaf.sum()
    with pytest.raises(ValueError, match=r"`loss` does not require grad.*no_grad"):
        step(loss)


@pytest.mark.parametrize("step", steppers().values(), ids=steppers())
def test_losses_of_another_module(step: Callable[[Any], Any]) -> None:
    other = nn.Linear(2, 1)
    with pytest.raises(ValueError, match=r"`loss` does not depend on any parameter of"):
        step(other(torch.ones(1, 2)).sum())


def test_loss_of_before_the_last_step() -> None:
    module = nn.Linear(2, 1)
    optimizer = torchopt.MetaSGD(module, lr=0.1)
    loss = module(torch.ones(1, 2)).sum()
    optimizer.step(loss)
    with pytest.raises(ValueError, match="`loss` does not depend on any parameter of"):
        optimizer.step(loss)


def test_modules_added_twice() -> None:
    module = nn.Linear(2, 1)
    optimizer = torchopt.MetaSGD(module, lr=0.1)
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        optimizer.add_param_group(module)
    optimizer.step(module(torch.ones(1, 2)).sum())


def stepped_meta(family: Family, *shapes: tuple[int, ...], **kwargs: Any) -> Any:
    module = Bag([torch.ones(shape) for shape in shapes])
    optimizer = family.meta(module, **{"lr": 0.1, **kwargs})
    optimizer.step(module.loss([torch.ones(shape) for shape in shapes]))
    return optimizer


META_STATES: dict[str, Callable[[], Any]] = {
    "RMSprop": lambda: stepped_meta(FAMILIES["rmsprop"], (2,), (3,)).state_dict(),
    "RAdam, whose state has the same names": lambda: stepped_meta(
        FAMILIES["radam"], (2,), (3,)
    ).state_dict(),
    "SGD": lambda: stepped_meta(SGD, (2,), (3,)).state_dict(),
    "other shapes": lambda: stepped_meta(ADAM, (2,), (4,)).state_dict(),
    "fewer parameters": lambda: stepped_meta(ADAM, (2,)).state_dict(),
    "two modules": lambda: stepped_meta(ADAM, (2,), (3,)).state_dict() * 2,
    "no modules": lambda: (),
    "without moments": lambda: optree.tree_map(
        lambda x: None, stepped_meta(ADAM, (2,), (3,)).state_dict()
    ),
    "a list of numbers": lambda: ([1.0, 2.0],),
}


@pytest.mark.parametrize("make", META_STATES.values(), ids=META_STATES)
def test_meta_state_of_something_else(make: Callable[[], Any]) -> None:
    optimizer = stepped_meta(ADAM, (2,), (3,))
    kept = optimizer.state_dict()
    for load in (optimizer.load_state_dict, lambda s: torchopt.recover_state_dict(optimizer, s)):
        with pytest.raises(ValueError, match=r"the state (belongs to|must be)"):
            load(make())
        assert all(x is y for x, y in zip(optimizer.state_dict(), kept, strict=True))


def test_meta_state_of_adamw_in_adam_is_no_mistake() -> None:
    """They keep the same moments: a learner may go on with the other kind of decay."""
    optimizer = stepped_meta(ADAM, (2,), (3,))
    optimizer.load_state_dict(stepped_meta(ADAMW, (2,), (3,)).state_dict())


def test_module_state_of_something_else() -> None:
    module, other = nn.Linear(2, 1), nn.Linear(3, 1)
    kept = list(module.parameters())
    with pytest.raises(ValueError, match=r"`state` is not a state of this Linear.*\(1, 3\)"):
        torchopt.recover_state_dict(module, torchopt.extract_state_dict(other))
    with pytest.raises(TypeError, match="`state` must be the ModuleState"):
        torchopt.recover_state_dict(module, module.state_dict())
    with pytest.raises(TypeError, match="`state` must be the tuple"):
        torchopt.recover_state_dict(
            torchopt.MetaSGD(module, lr=0.1), torchopt.extract_state_dict(module)
        )
    assert all(p is q for p, q in zip(module.parameters(), kept, strict=True))


@every_mode
@pytest.mark.parametrize(
    ("transformation", "other"),
    [
        (torchopt.adam(), torchopt.rmsprop()),
        (torchopt.adam(), torchopt.radam()),
        (torchopt.adam(), torchopt.adamax()),
        (torchopt.sgd(0.1, momentum=0.9), torchopt.sgd(0.1)),
        (torchopt.sgd(0.1, momentum=0.9, dampening=0.1), torchopt.sgd(0.1, momentum=0.9)),
        (torchopt.rmsprop(centered=True), torchopt.rmsprop()),
        (torchopt.adam(lr=lambda count: 0.1), torchopt.adam()),
        (torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam()), torchopt.adam()),
        (torchopt.adam(), torchopt.chain(torchopt.adam(), transform.scale(2.0))),
        (torchopt.adam(), transform.scale_by_adam()),
        (transform.masked(transform.trace(0.9), True), transform.trace(0.9)),
        (transform.scale_by_schedule(lambda count: 0.1), torchopt.identity()),
    ],
)
def test_functional_state_of_another_transformation(
    transformation: Any, other: Any, inplace: bool
) -> None:
    state = other.init(ADAM_AT)
    kept = optree.tree_map(torch.clone, state)
    with pytest.raises(TypeError, match="the state belongs to another transformation"):
        transformation.update(ADAM_AT, state, params=ADAM_AT, inplace=inplace)
    assert_same(state, kept)


def test_update_before_init() -> None:
    with pytest.raises(TypeError, match="the state belongs to another transformation"):
        torchopt.adam().update(ADAM_AT, torchopt.base.UninitializedState())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_mode
def test_gradients_that_are_not_finite_with_error_if_nonfinite(bad: float, inplace: bool) -> None:
    clip = torchopt.clip_grad_norm(1.0, error_if_nonfinite=True)
    grads = {"a": torch.ones(2), "b": torch.tensor([1.0, bad])}
    with pytest.raises(RuntimeError, match=rf"norm of order 2\.0 .* {bad}.*error_if_nonfinite"):
        clip.update(grads, clip.init(grads), inplace=inplace)


def test_chains_of_what_is_no_transformation() -> None:
    for bad in (torchopt.adam, None, lambda g: g, (1, 2)):
        with pytest.raises(TypeError, match=r"argument 1 of `chain` must be a GradientTransform"):
            torchopt.chain(torchopt.sgd(0.1), bad)
    for make in (
        lambda impl: torchopt.Optimizer([torch.ones(1)], impl),
        lambda impl: torchopt.MetaOptimizer(nn.Linear(1, 1), impl),
        torchopt.FuncOptimizer,
    ):
        with pytest.raises(TypeError, match="`impl` must be a GradientTransformation"):
            make(torchopt.adam)
    with pytest.raises(TypeError, match="must be a GradientTransformation"):
        transform.masked(torchopt.adam)


def some_params() -> list[torch.Tensor]:
    return [torch.ones(1, requires_grad=True)]


# what is given for a transformation, and what the message ends with
NO_TRANSFORMATIONS: dict[str, tuple[Callable[[], Any], str]] = {
    "of torch": (
        lambda: torch.optim.Adam(some_params()),
        "got an instance of torch.optim.Adam: pass its functional form, `torchopt.adam(...)`",
    ),
    "a class of torch": (
        lambda: torch.optim.SGD,
        "got the class torch.optim.SGD: pass its functional form, `torchopt.sgd(...)`",
    ),
    "unknown here": (
        lambda: torch.optim.SparseAdam(some_params()),
        (
            "got an instance of torch.optim.SparseAdam: pass a functional optimizer, such as "
            "`torchopt.adam(...)`"
        ),
    ),
    "stateful": (
        lambda: torchopt.Adam(some_params()),
        "got an instance of Adam: pass its `impl`",
    ),
    "differentiable": (
        lambda: torchopt.MetaOptimizer(nn.Linear(1, 1), torchopt.adam()),
        "got an instance of MetaOptimizer: pass its `impl`",
    ),
    "a stateful class": (
        lambda: torchopt.RMSprop,
        "got the class RMSprop: pass its functional form, `torchopt.rmsprop(...)`",
    ),
    "a differentiable class": (
        lambda: torchopt.MetaAdamW,
        "got the class MetaAdamW: pass its functional form, `torchopt.adamw(...)`",
    ),
    "not called": (lambda: torchopt.adam, "got the function adam: did you mean to call it?"),
    "parameters": (some_params, "got an instance of list"),
    "nothing": (lambda: None, "got an instance of NoneType"),
}
TAKES_TRANSFORMATIONS: dict[str, Callable[[Any], Any]] = {
    "Optimizer": lambda impl: torchopt.Optimizer(some_params(), impl),
    "MetaOptimizer": lambda impl: torchopt.MetaOptimizer(nn.Linear(1, 1), impl),
    "FuncOptimizer": torchopt.FuncOptimizer,
    "chain": lambda impl: torchopt.chain(torchopt.sgd(0.1), impl),
    "masked": transform.masked,
    "partition": lambda impl: torchopt.partition({"a": impl}, "a"),
    "lookahead": torchopt.lookahead,
}


@pytest.mark.parametrize("take", TAKES_TRANSFORMATIONS.values(), ids=TAKES_TRANSFORMATIONS)
@pytest.mark.parametrize(("make", "message"), NO_TRANSFORMATIONS.values(), ids=NO_TRANSFORMATIONS)
def test_what_is_no_transformation_is_named_with_what_to_give_instead(
    take: Callable[[Any], Any], make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        take(make())
    assert str(caught.value).endswith(f" must be a GradientTransformation, {message}")


@every_family
def test_classes_without_parameters_or_module_are_named(family: Family) -> None:
    for made, argument in ((family.stateful, "params"), (family.meta, "module")):
        found = re.escape(f"{made.__name__}() missing a required argument: '{argument}'; call it")
        with pytest.raises(
            TypeError, match=rf"^{found} as `{made.__name__}\({argument}, \.\.\.\)`"
        ):
            made(lr=0.1)
    name = family.stateful.__name__
    with pytest.raises(TypeError, match=rf"got float: call it as `{name}\(params, \.\.\.\)`"):
        family.stateful(0.1)
    with pytest.raises(TypeError, match=r"got Linear: call it as `\w+\(module\.parameters\(\), "):
        family.stateful(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"`module` must be a torch\.nn\.Module, got float"):
        family.meta(0.1)


@every_family
def test_unknown_hyperparameters_are_named_with_those_there_are(family: Family) -> None:
    message = r"\w\(\) got an unexpected keyword argument 'momentun'; it takes .*\blr\b"
    for make in (
        lambda **options: family.functional(**options),
        lambda **options: family.stateful(some_params(), **options),
        lambda **options: family.meta(nn.Linear(1, 1), **options),
    ):
        with pytest.raises(TypeError, match=message):
            make(momentun=0.1)


def test_functions_that_are_none() -> None:
    with pytest.raises(TypeError, match="`hook` must be callable"):
        torchopt.register_hook(None)
    with pytest.raises(TypeError, match="`step_size_fn` must be callable"):
        transform.scale_by_schedule(0.1)
    with pytest.raises(TypeError, match="`inplace` must be a bool"):
        torchopt.FuncOptimizer(torchopt.adam(), inplace="yes")


def test_parameters_given_twice() -> None:
    param = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="appear in more than one parameter group"):
        torchopt.Adam([{"params": [param]}, {"params": [param]}])


def test_sparse_gradients() -> None:
    embedding = nn.Embedding(3, 2, sparse=True)
    optimizer = torchopt.Adam(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    kept = embedding.weight.detach().clone()
    with pytest.raises(ValueError, match=r"sparse gradients .*`sparse=False`"):
        optimizer.step()
    assert_same(embedding.weight.detach(), kept)
