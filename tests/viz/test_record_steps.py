"""Recordings see every way to take a step, and change none."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz import gradient_graph, record

from .test_graph import labels

X = torch.ones(4, 2)
Params = dict[str, Tensor]
STEPS = ["inner step 1", "inner step 2", "inner step 3", "outer loss"]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def loss_of(module: nn.Module, params: Params) -> Tensor:
    out: Tensor = torch.func.functional_call(module, params, (X,))
    return out.square().mean()


def by_autograd(module: nn.Module, params: Params) -> Params:
    loss = loss_of(module, params)
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    return dict(zip(params, grads, strict=True))


def by_transform(module: nn.Module, params: Params) -> Params:
    return torch.func.grad(lambda p: loss_of(module, p))(params)  # type: ignore[no-any-return]


@pytest.mark.parametrize("gradients", [by_autograd, by_transform])
@pytest.mark.parametrize("make", [torchopt.sgd, torchopt.adam], ids=["sgd", "adam"])
def test_functional_inner_loops_have_steps(
    make: Callable[..., torchopt.GradientTransformation],
    gradients: Callable[[nn.Module, Params], Params],
) -> None:
    module, transformation = net(), make(0.1)
    params: Params = dict(module.named_parameters())
    state = transformation.init(params)
    apply = torchopt.apply_updates  # bound before the recording
    with record(module) as recording:
        for _ in range(3):
            grads = gradients(module, params)
            updates, state = transformation.update(grads, state, params=params, inplace=False)
            params = apply(params, updates, inplace=False)
        out = loss_of(module, params)
    graph = gradient_graph(out, recording=recording)
    assert labels(graph, "step") == STEPS
    assert [len(repeat.groups) for repeat in graph.repeats] == [3]


@pytest.mark.parametrize("is_function", [False, True])
def test_steps_of_a_functional_optimizer(is_function: bool) -> None:
    module = net()
    params: Params = dict(module.named_parameters())
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
    with record(module) as recording:
        for _ in range(3):
            loss = (lambda p: loss_of(module, p)) if is_function else loss_of(module, params)
            params = optimizer.step(loss, params)
        out = loss_of(module, params)
    assert labels(gradient_graph(out, recording=recording), "step") == STEPS
    assert len(recording.steps) == 3


@pytest.mark.parametrize("accelerated", [False, True])
def test_a_step_that_was_bound_before(accelerated: bool) -> None:
    if accelerated:
        pytest.importorskip("torchopt_accel")
    module = net()
    step = torchopt.MetaAdam(module, lr=0.1, use_accelerated_op=accelerated).step
    with record(module) as recording:
        for _ in range(3):
            step(module(X).square().mean())
        out = module(X).square().mean()
    assert labels(gradient_graph(out, recording=recording), "step") == STEPS


def test_a_step_given_a_function_that_computes_the_loss() -> None:
    module = net()
    inner = torchopt.MetaSGD(module, lr=0.1)
    with record(module) as recording:
        for _ in range(3):
            inner.step(lambda: module(X).square().mean())
        out = module(X).square().mean()
    assert labels(gradient_graph(out, recording=recording), "step") == STEPS


def test_what_follows_a_step_is_not_the_steps() -> None:
    class Double(torch.autograd.Function):  # no watched call makes its node
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: object, inputs: object, output: object) -> None:
            pass

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return 2 * grad

    module = net()
    inner = torchopt.MetaSGD(module, lr=0.1)
    with record(module) as recording:
        inner.step(module(X).square().mean())
        out = Double.apply(module[0].weight).sum()
    graph = gradient_graph(out, recording=recording)
    (node,) = (node for node in graph.nodes if node.label == "DoubleBackward")
    assert (graph.groups[node.group].label, node.where) == ("outer loss", None)


def test_fused_steps_know_their_line() -> None:
    pytest.importorskip("torchopt_accel")
    module = net()
    inner = torchopt.MetaAdam(module, lr=0.1, use_accelerated_op=True)
    with record(module) as recording:
        inner.step(module(X).square().mean())
        out = module(X).square().mean()
    graph = gradient_graph(out, recording=recording)
    lines = {node.where for node in graph.nodes if node.kind == "step"}
    assert len(lines) == 1
    assert str(lines.pop()).startswith("test_record_steps.py:")


def test_recordings_in_two_threads_leave_nothing_behind() -> None:
    before = torchopt.MetaOptimizer.step
    entered, left = threading.Barrier(2, timeout=30), threading.Event()
    counts: dict[str, int] = {}

    def program(name: str, steps: int) -> None:
        module = net()
        with record(module) as recording:
            entered.wait()
            inner = torchopt.MetaSGD(module, lr=0.1)
            for _ in range(steps):
                inner.step(module(X).square().mean())
            if name == "late":
                assert left.wait(30)
        counts[name] = len(recording.steps)
        left.set()

    threads = [threading.Thread(target=program, args=x) for x in [("early", 2), ("late", 3)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {"early": 2, "late": 3}
    assert torchopt.MetaOptimizer.step is before
