"""Where parts meet: precision, devices, schedules, links of users, what changes between steps."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _table import CASES, CASES_OF_CORE, Case, assert_agree, assert_same, tensors_in
from torch import nn
from torch.optim import lr_scheduler

import torchopt
from torchopt import schedule, transform

every_mode = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "functional"])
every_elementwise = pytest.mark.parametrize(
    "case", [*CASES, *CASES_OF_CORE], ids=lambda case: case.name
)


def stepped(optimizer: torch.optim.Optimizer, *grads: Any) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer.step()


# a graph that is recorded, and by what


LEARNED: dict[str, Callable[[torch.Tensor], torchopt.GradientTransformation]] = {
    "a rate": torchopt.sgd,
    "a schedule of the rate": lambda x: torchopt.sgd(schedule.linear_schedule(x, 0.0, 10)),
    "a schedule": lambda x: transform.scale_by_schedule(schedule.linear_schedule(x, 0.0, 10)),
    "a schedule within": lambda x: torchopt.lookahead(
        torchopt.sgd(schedule.linear_schedule(x, 0.0, 10))
    ),
    "a factor of a part": lambda x: torchopt.partition({0: transform.scale(x)}, 0),
}


@pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED)
def test_what_is_learned_receives_its_gradient_by_default(make: Callable[..., Any]) -> None:
    learned = torch.tensor(0.1, requires_grad=True)
    transformation = make(learned)
    params = torch.ones(2)
    updates, _ = transformation.update(params, transformation.init(params), params=params)
    assert torch.autograd.grad(updates.sum(), learned)[0] != 0


def test_initial_moments_receive_their_gradient_by_default() -> None:
    adam = torchopt.adam(0.1, moment_requires_grad=True)
    state = adam.init(torch.ones(2))
    updates, _ = adam.update(torch.ones(2), state)
    moments = [x for x in tensors_in(state) if x.is_floating_point()]
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(updates.sum(), moments))


def test_weights_that_begin_as_parameters_are_no_reason_to_record_a_graph() -> None:
    """So ordinary training from parameters that require grad does not collect one."""
    params = torch.ones(2, requires_grad=True)
    for impl in (
        torchopt.lookahead(torchopt.adam(0.1), k=2),
        torchopt.schedule_free(torchopt.sgd(0.1)),
        torchopt.prodigy(),
    ):
        state = impl.init(params)
        for _ in range(5):
            updates, state = impl.update(torch.ones(2), state, params=params)
            assert not updates.requires_grad


def test_results_do_not_share_memory_with_the_state() -> None:
    momentum = transform.trace(0.9)
    first, state = momentum.update(torch.ones(2), momentum.init(torch.ones(2)), inplace=False)
    kept = first.clone()
    momentum.update(torch.ones(2), state, inplace=True)
    assert_same(first, kept)


# low precision


@every_mode
@pytest.mark.parametrize("use", [None, False], ids=["default", "core"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [1e-2, 1.0, 300.0, 1e4])
@pytest.mark.parametrize("lr", [1e-5, 0.1])
@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "rmsprop", "adagrad", "adamax"])
def test_low_precision_neither_overflows_nor_stands_still(
    name: str, lr: float, grad: float, dtype: torch.dtype, use: bool | None, inplace: bool
) -> None:
    """The first step of a gradient whose square the dtype cannot hold, beside single precision."""
    held = {"adagrad": 200.0, "adamax": 6e4, "radam": 6e4}.get(name, 3e3)
    if dtype == torch.float16 and grad > held:
        pytest.skip("the second moments themselves overflow, as torch's do")
    results = []
    for kind in (dtype, torch.float32):
        make = getattr(torchopt, name)(lr, use_accelerated_op=use)
        params = torch.ones(2, dtype=kind)
        grads = torch.full((2,), grad, dtype=dtype).to(kind)
        updates, _ = make.update(grads, make.init(params), params=params, inplace=inplace)
        assert updates.dtype == kind
        results.append(updates.double())
    # the second moments are rounded once, or are subnormal numbers
    rtol = 0.02 if grad > 0.01 else 0.5
    torch.testing.assert_close(*results, rtol=rtol, atol=1e-7)


@every_mode
@pytest.mark.parametrize("use", [None, False], ids=["default", "core"])
def test_second_moments_that_overflow_are_not_read_before_they_are_used(
    use: bool | None, inplace: bool
) -> None:
    radam = torchopt.radam(1e-4, use_accelerated_op=use)
    for dtype, grad in ((torch.float16, 1e4), (torch.float32, 1e21)):
        params = torch.zeros(2, dtype=dtype)
        updates, _ = radam.update(params + grad, radam.init(params), inplace=inplace)
        torch.testing.assert_close(updates, torch.full_like(params, -1e-4 * grad))


def test_a_zero_gradient_in_half_precision_is_no_nan() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        adam = torchopt.adam(0.1, use_accelerated_op=False)
        params = torch.zeros(2, dtype=dtype)
        for inplace in (True, False):
            updates, _ = adam.update(params, adam.init(params), inplace=inplace)
            assert_same(updates, torch.zeros(2, dtype=dtype))


@every_elementwise
def test_tangents_of_scalars_keep_their_dtype(case: Case) -> None:
    """A number beside a 0-dim tensor is a double to torch.func.jvp."""
    transformation = case.functional()

    def update(g: torch.Tensor) -> torch.Tensor:
        return transformation.update(g, transformation.init(g), params=torch.ones(()))[0]

    value, tangent = torch.func.jvp(update, (torch.ones(()),), (torch.ones(()),))
    assert value.dtype == tangent.dtype == torch.float32


# devices


@every_elementwise
def test_a_default_device_does_not_matter(case: Case) -> None:
    params, grads = torch.ones(2), torch.full((2,), 0.3)

    def run() -> Any:
        transformation = case.functional(lr=schedule.linear_schedule(0.1, 0.0, 10))
        state = transformation.init(params)
        for inplace in (True, False):
            updates, state = transformation.update(grads, state, params=params, inplace=inplace)
        return updates, state

    expected = run()
    with torch.device("meta"):
        actual = run()
    assert {x.device.type for x in tensors_in(actual)} == {"cpu"}
    assert_same(tensors_in(actual), tensors_in(expected))


# composition


COMPOSED: dict[str, Callable[[torchopt.GradientTransformation], Any]] = {
    "chain": lambda inner: torchopt.chain(torchopt.clip_grad_norm(1e9), inner),
    "masked": lambda inner: torchopt.masked(inner, [True]),
    "chain of masked": lambda inner: torchopt.chain(
        torchopt.masked(torchopt.chain(inner)), torchopt.nan_to_num()
    ),
    "lookahead": lambda inner: torchopt.lookahead(inner, k=100),
    "partition": lambda inner: torchopt.partition({"all": inner}, "all"),
    "chain of partition": lambda inner: torchopt.chain(
        torchopt.clip_grad_norm(1e9), torchopt.partition({"all": inner}, "all")
    ),
}


@pytest.mark.parametrize("compose", COMPOSED.values(), ids=COMPOSED)
def test_schedulers_reach_the_optimizer_however_it_is_composed(compose: Any) -> None:
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    mine = torchopt.Optimizer(params[:1], compose(torchopt.adam(0.1)))
    theirs = torch.optim.Adam(params[1:], 0.1)
    schedulers = [lr_scheduler.StepLR(optimizer, 1, 0.5) for optimizer in (mine, theirs)]
    for _ in range(4):
        for optimizer, scheduler in zip((mine, theirs), schedulers, strict=True):
            stepped(optimizer, torch.ones(3))
            scheduler.step()
    assert mine.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert_agree(params[0].detach(), params[1].detach())


def test_groups_of_a_partition_have_the_hyperparameters_of_their_parts() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    parts = {"matrix": torchopt.adam(0.1), "bias": torchopt.sgd(0.2, momentum=0.9)}
    labels: Any = lambda params: {  # noqa: E731
        name: "bias" if name.endswith("bias") else "matrix" for name in params
    }
    optimizer = torchopt.Optimizer(net.named_parameters(), torchopt.partition(parts, labels))
    assert [group["label"] for group in optimizer.param_groups] == ["matrix", "bias"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    scheduler = lr_scheduler.LambdaLR(optimizer, [lambda t: 0.5**t, lambda t: 0.1**t])
    kept = [p.detach().clone() for p in net.parameters()]
    references = [
        torch.optim.Adam([p.requires_grad_() for p in (kept[0], kept[2])], 0.1),
        torch.optim.SGD([p.requires_grad_() for p in (kept[1], kept[3])], 0.2, momentum=0.9),
    ]
    for t in range(3):
        for p, q in zip(net.parameters(), kept, strict=True):
            q.grad = p.grad = torch.randn_like(p)
        optimizer.step()
        scheduler.step()
        for reference, factor in zip(references, (0.5, 0.1), strict=True):
            reference.step()
            reference.param_groups[0]["lr"] = reference.defaults["lr"] * factor ** (t + 1)
    assert_agree([p.detach() for p in net.parameters()], [q.detach() for q in kept])
    row = optimizer.state[net[0].weight]
    assert set(row) >= {"exp_avg", "exp_avg_sq", "step"}


def test_a_partition_of_the_state_resumes() -> None:
    def make(params: Any) -> torchopt.Optimizer:
        parts = {"a": torchopt.adam(schedule.linear_schedule(0.1, 0.0, 9)), "b": torchopt.lion(0.1)}
        return torchopt.Optimizer(params, torchopt.partition(parts, ["a", "b", "a"]))

    params = [torch.ones(2, requires_grad=True) for _ in range(3)]
    optimizer = make(params)
    for _ in range(3):
        stepped(optimizer, *[torch.randn(2) for _ in range(3)])
    copies = [p.detach().clone().requires_grad_() for p in params]
    other = make(copies)
    other.load_state_dict(optimizer.state_dict())
    grads = [torch.randn(2) for _ in range(3)]
    stepped(optimizer, *grads)
    stepped(other, *grads)
    assert_same([p.detach() for p in copies], [p.detach() for p in params])


# what changes between two steps


def test_a_module_may_be_moved_before_its_first_step() -> None:
    net = nn.Linear(2, 1)
    optimizer = torchopt.Adam(net.parameters())
    net.double()
    net(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert optimizer.state[net.weight]["exp_avg"].dtype == torch.float64


def test_lazy_modules_are_optimized() -> None:
    net = nn.LazyLinear(1)
    optimizer = torchopt.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.state[net.weight]["exp_avg"].shape == (1, 2)


def test_parameters_may_be_replaced_and_appended() -> None:
    """They start fresh; what all share goes on."""
    params = [torch.ones(2, requires_grad=True) for _ in range(4)]
    optimizer = torchopt.Adam(params[:2], lr=schedule.linear_schedule(0.1, 0.0, 10))
    stepped(optimizer, torch.ones(2), torch.ones(2))
    group = optimizer.param_groups[0]
    group["params"][0] = params[2]
    group["params"].append(params[3])
    before = params[2].detach().clone()
    stepped(optimizer, *[torch.ones(2) for _ in range(3)])
    # the second step of the schedule, the first one of the parameter
    assert_agree(before - params[2].detach(), torch.full((2,), 0.09))
    steps = [optimizer.state[p]["step"].item() for p in (params[2], params[1], params[3])]
    assert steps == [1, 2, 1]


def test_state_is_looked_up_and_may_be_changed() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)]
    optimizer = torchopt.Adam(params, lr=0.1)
    assert len(optimizer.state) == 0
    stepped(optimizer, torch.ones(2), torch.ones(2))
    row = optimizer.state[params[0]]
    assert row is optimizer.state[params[0]]
    row["exp_avg"] = torch.zeros(2)
    optimizer.state[params[1]]["exp_avg"].zero_()
    stepped(optimizer, torch.zeros(2), torch.zeros(2))
    assert_same(row["exp_avg"], torch.zeros(2))
    optimizer.state.clear()
    stepped(optimizer, torch.ones(2), torch.ones(2))
    assert optimizer.state[params[0]]["step"].item() == 1


def test_numbers_of_numpy_are_numbers() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = torchopt.Adam([param], lr=np.float32(0.1), betas=(np.float64(0.9), np.array(0.99)))
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda t: np.float64(0.5) ** t)
    stepped(optimizer, torch.ones(2))
    scheduler.step()
    stepped(optimizer, torch.ones(2))
    optimizer.param_groups[0]["lr"] = np.array(0.2)
    stepped(optimizer, torch.ones(2))
    assert_agree(param.detach(), torch.full((2,), 1 - 0.1 - 0.05 - 0.2))


def test_a_tree_of_rates_may_be_reassigned() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = torchopt.SGD([param], lr=[torch.tensor(0.1)])
    stepped(optimizer, torch.ones(2))
    optimizer.param_groups[0]["lr"] = [torch.tensor([0.1, 0.2])]
    stepped(optimizer, torch.ones(2))
    assert_agree(param.detach(), torch.tensor([0.8, 0.7]))


def test_other_keys_of_a_group_are_kept() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = torchopt.Adam([{"params": [param], "lr_scale": 3}])
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    packed = optimizer.state_dict()["param_groups"][0]
    assert packed["lr_scale"] == 3
    assert {"initial_lr", "max_lr", "min_lr"} <= packed.keys()


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"capturable": True}])
def test_options_that_choose_an_implementation_are_accepted(options: dict[str, bool]) -> None:
    results = []
    for kwargs in ({}, options):
        param = torch.ones(2, requires_grad=True)
        stepped(torchopt.AdamW([param], **kwargs), torch.ones(2))
        results.append(param.detach())
    assert_same(*results)


def test_the_option_that_would_change_results_is_refused() -> None:
    with pytest.raises(ValueError, match="differentiable form"):
        torchopt.Adam([torch.ones(2, requires_grad=True)], differentiable=True)


# links of users, and states that grow


def test_a_link_that_returns_nothing_is_named() -> None:
    def no_pair(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        return None

    def no_update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        return None, state

    for update, message in ((no_pair, "the pair"), (no_update, "returned None for leaf 0")):
        link = torchopt.GradientTransformation(lambda params: (), update)
        chained = torchopt.chain(link, torchopt.sgd(0.1))
        with pytest.raises((TypeError, ValueError), match=message):
            chained.update(torch.ones(2), chained.init(torch.ones(2)))


def test_a_link_receives_what_its_signature_names() -> None:
    seen: dict[str, Any] = {}

    def update(
        updates: Any,
        state: Any,
        *,
        params: Any = None,
        inplace: bool = True,
        value: Any = None,
        value_and_grad: Any = None,
    ) -> Any:
        seen.update(value=value, again=value_and_grad(params))
        return updates, state

    link = torchopt.GradientTransformation(lambda params: (), update)
    chained = torchopt.chain(torchopt.clip_grad_norm(9.0), link, torchopt.sgd(0.1))
    params = {"a": torch.tensor([3.0]), "none": None}
    chained.update(
        {"a": torch.ones(1), "none": None},
        chained.init(params),
        params=params,
        value=torch.tensor(5.0),
        value_and_grad=lambda tree: (tree["a"].sum(), {"a": 2 * tree["a"], "none": None}),
    )
    assert seen["value"] == 5.0
    assert_same(seen["again"], (torch.tensor(3.0), {"a": torch.tensor([6.0]), "none": None}))


def test_a_schedule_that_returns_a_vector_is_refused() -> None:
    sgd = torchopt.sgd(lambda count: torch.ones(2))
    with pytest.raises(ValueError, match=r"a number or a 0-dim tensor, got .* shape \(2,\)"):
        sgd.update(torch.ones(()), sgd.init(torch.ones(())))


def test_factors_may_be_a_tree_of_numbers() -> None:
    scale = transform.scale({"a": 0.1, "b": torch.tensor(2.0)})
    params = {"a": torch.ones(2), "b": torch.ones(1)}
    updates, _ = scale.update(params, scale.init(params))
    assert_agree(updates, {"a": torch.full((2,), 0.1), "b": torch.full((1,), 2.0)})


def test_a_transformation_with_another_function_is_a_pair_of_functions() -> None:
    adam = torchopt.adam(0.1)
    changed = adam._replace(update=lambda updates, state, **_: (updates, state))
    assert repr(changed)
    chained = torchopt.chain(torchopt.clip_grad_norm(1e9), changed)
    updates, _ = chained.update(torch.ones(2), chained.init(torch.ones(2)))
    assert_agree(updates, torch.ones(2))


def test_a_meta_optimizer_takes_back_a_state_that_grew_or_was_made_from_values() -> None:
    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = True) -> Any:
        return updates, [*state, torch.ones(2)]

    link = torchopt.GradientTransformation(lambda params: [float(params[0].detach().sum())], update)
    net = nn.Linear(2, 1)
    meta = torchopt.MetaOptimizer(net, torchopt.chain(link, torchopt.sgd(0.1)))
    for _ in range(2):
        kept = meta.state_dict()
        meta.step(net(torch.ones(3, 2)).sum())
    meta.load_state_dict(kept)
    assert len(meta.state_groups[0][0]) == 2


# closures and evaluation


@pytest.mark.parametrize(
    "impl", [torchopt.sam(torchopt.sgd(0.1)), torchopt.lbfgs()], ids=["sam", "lbfgs"]
)
def test_what_evaluates_the_loss_again_says_what_it_needs(impl: Any) -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = torchopt.Optimizer([param], impl)
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match="pass a closure"):
        optimizer.step()
    with pytest.raises(ValueError, match="`value_and_grad=`"):
        impl.update(torch.ones(2), impl.init(torch.ones(2)), params=torch.ones(2))
    net = nn.Linear(2, 1)
    meta = torchopt.MetaOptimizer(net, impl)
    with pytest.raises(ValueError, match="a function"):
        meta.step(net(torch.ones(1, 2)).sum())


def test_a_closure_that_fails_midway_leaves_everything_as_it_was() -> None:
    for impl in (torchopt.sam(torchopt.adam(0.1)), torchopt.lbfgs()):
        param = torch.ones(2, requires_grad=True)
        optimizer = torchopt.Optimizer([param], impl)
        calls: list[None] = []

        def closure(
            optimizer: Any = optimizer, param: Any = param, calls: Any = calls
        ) -> torch.Tensor:
            calls.append(None)
            if len(calls) == 2:
                raise RuntimeError("out of data")
            optimizer.zero_grad()
            loss = param.square().sum()
            loss.backward()
            return loss

        with pytest.raises(RuntimeError, match="out of data"):
            optimizer.step(closure)
        assert_same(param.detach(), torch.ones(2))
        assert not any(optimizer.state.values())


def test_parameters_to_evaluate_at_are_swapped_in_and_out() -> None:
    param = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = torchopt.ScheduleFree([param], torchopt.sgd(0.1))
    impl = torchopt.schedule_free(torchopt.sgd(0.1))
    params, state = param.detach().clone(), impl.init(param.detach())
    optimizer.eval()  # there is nothing to swap before the first step
    optimizer.train()
    for _ in range(5):
        updates, state = impl.update(2 * params, state, params=params)
        params = torchopt.apply_updates(params, updates, inplace=False)
        stepped(optimizer, 2 * param.detach())
    trained = param.detach().clone()
    optimizer.eval()
    assert_agree(param.detach(), torchopt.eval_params(impl, params, state))
    assert not torch.equal(param, trained)
    with pytest.raises(RuntimeError, match=r"call `train\(\)`"):
        optimizer.step()
    packed = optimizer.state_dict()
    assert packed["param_groups"][0]["train_mode"] is False
    optimizer.eval()
    optimizer.train()
    assert_agree(param.detach(), trained)


# the shape of the package


def imports(file: Path, package: Path) -> set[str]:
    """The modules of the package that a module imports, for annotations too."""
    found = set()
    modules = {
        "torchopt" + "".join(f".{x}" for x in path.relative_to(package).with_suffix("").parts)
        for path in package.rglob("*.py")
    }
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torchopt"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found.add(inner if inner in modules else node.module)
    return {name for name in found if name in modules}


def test_no_module_imports_itself_by_a_circle() -> None:
    package = Path(torchopt.__file__).parent
    graph = {
        "torchopt"
        + "".join(f".{x}" for x in path.relative_to(package).with_suffix("").parts): imports(
            path, package
        )
        for path in package.rglob("*.py")
        if path.name != "__init__.py"
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for other in graph.get(name, ()):
            visit(other, (*way, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_package_shows_nothing_that_is_not_its_own() -> None:
    for module in (torchopt, torchopt.diff, torchopt.nn, torchopt.transform):
        assert not {"Any", "TYPE_CHECKING", "annotations"} & set(dir(module))


def test_the_stateful_optimizer_is_found_where_0_7_had_it() -> None:
    module = importlib.import_module("torchopt.optim.base")
    assert module.Optimizer is torchopt.Optimizer
