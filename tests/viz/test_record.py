"""What a recording adds to a graph: modules, source lines, steps, and where gradients stop."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchopt
from torchopt_viz import Graph, gradient_graph, record

from .test_graph import adapt, labels


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))


def group_of(graph: Graph, label: str) -> list[str]:
    """Return the labels of the groups around the nodes with a label, innermost first."""
    found: set[tuple[str, ...]] = set()
    for node in graph.nodes:
        if node.label == label:
            chain, key = [], node.group
            while (parent := graph.groups[key].parent) is not None:
                chain.append(graph.groups[key].label)
                key = parent
            found.add(tuple(chain))
    (chain_of_all,) = found
    return list(chain_of_all)


def test_nodes_belong_to_the_module_that_made_them() -> None:
    module = net()
    with record(module) as recording:
        out = module(torch.ones(1, 2)).exp().sum()
    graph = gradient_graph(out, recording=recording)
    assert labels(graph, "module") == [
        "0 (Linear)",
        "1 (Sequential)",
        "1.0 (Tanh)",
        "1.1 (Linear)",
    ]
    assert group_of(graph, "TanhBackward0") == ["1.0 (Tanh)", "1 (Sequential)"]
    assert group_of(graph, "ExpBackward0") == []


def test_modules_that_were_not_named_are_found() -> None:
    module = net()
    with record() as recording:
        out = module(torch.ones(1, 2)).sum()
    graph = gradient_graph(out, recording=recording)
    assert group_of(graph, "TanhBackward0") == ["1.0 (Tanh)", "1 (Sequential)", "Sequential"]


def test_a_leaf_belongs_to_the_only_module_that_uses_it() -> None:
    module = net()
    with record(module) as recording:
        out = module(torch.ones(1, 2)).sum()
    graph = gradient_graph(out, module, recording=recording)
    groups = {node.name: graph.groups[node.group].label for node in graph.nodes}
    assert groups["1.1.bias"] == "1.1 (Linear)"


def test_backward_nodes_belong_to_the_module_that_is_differentiated() -> None:
    module = net()
    x = torch.ones(1, 2, requires_grad=True)
    with record(module) as recording:
        (grad,) = torch.autograd.grad(module(x).exp().sum(), x, create_graph=True)
        out = grad.square().sum()
    graph = gradient_graph(out, recording=recording)
    assert group_of(graph, "TanhBackwardBackward0") == ["backward", "1.0 (Tanh)", "1 (Sequential)"]
    # what differentiates the loss, and then what uses the gradient
    assert group_of(graph, "MulBackward0") == ["backward"]
    assert group_of(graph, "PowBackward0") == []


def test_third_derivatives_stay_with_their_module() -> None:
    module = nn.Sequential(nn.Tanh())
    x = torch.ones(1, requires_grad=True)
    with record(module) as recording:
        y = module(x)
        for _ in range(2):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    graph = gradient_graph(y, recording=recording)
    kinds = {graph.groups[node.group].kind for node in graph.nodes if "Tanh" in node.label}
    assert kinds == {"module", "backward"}
    assert len(labels(graph, "backward")) <= 2


@pytest.mark.cuda
def test_backward_nodes_have_their_module_on_a_device() -> None:
    found = []
    for device in ("cpu", "cuda"):
        module = net().to(device)
        x = torch.ones(1, 2, requires_grad=True, device=device)
        with record(module) as recording:
            (grad,) = torch.autograd.grad(module(x).exp().sum(), x, create_graph=True)
            out = grad.square().sum()
        graph = gradient_graph(out, module, recording=recording)
        found.append([(node.label, node.name, node.group) for node in graph.nodes])
    assert found[0] == found[1]


def test_steps_of_a_meta_optimizer_are_inner_steps_without_any_names() -> None:
    module = net()
    with record(module) as recording:
        out, states = adapt(module, torch.ones(4, 2), 0.1, steps=3)
    unnamed = gradient_graph(out, recording=recording)
    assert labels(unnamed, "step") == [
        "inner step 1",
        "inner step 2",
        "inner step 3",
        "outer loss",
    ]
    named = gradient_graph(out, states, recording=recording)
    steps = [
        [g.groups[n.group].label for n in g.nodes if n.label == "TanhBackward0"]
        for g in (unnamed, named)
    ]
    assert steps[0] == steps[1]
    (repeat,) = unnamed.repeats
    assert len(repeat.groups) == 3


def line_of(function: Callable[..., Any], text: str) -> str:
    """Return where a piece of a function is, as a recording writes it."""
    lines, start = inspect.getsourcelines(function)
    (number,) = [start + i for i, line in enumerate(lines) if text in line]
    return f"test_record.py:{number}"


def test_nodes_know_the_line_that_made_them() -> None:
    module = net()
    inner = torchopt.MetaSGD(module, lr=0.1, use_accelerated_op=False)

    def program() -> Tensor:
        loss = module(torch.ones(1, 2)).exp().sum()
        inner.step(loss)
        return module(torch.ones(1, 2)).sigmoid().sum()

    with record(module) as recording:
        out = program()
    graph = gradient_graph(out, recording=recording)
    where = {node.label: node.where for node in graph.nodes}
    assert where["SigmoidBackward0"] == line_of(program, "sigmoid")
    assert where["ForeachAddBackward0List"] == line_of(program, "inner.step")
    # made in the step, by differentiating what this line made
    assert where["TanhBackwardBackward0"] == line_of(program, "exp")


# Each takes `w`, and returns something that the gradient of `w` does not come through.


def under_no_grad(w: Tensor) -> Tensor:
    with torch.no_grad():
        return w * 2  # here


def converted_by_item(w: Tensor) -> Tensor:
    rate = w.sum().item()  # here
    return torch.tensor([rate])


def converted_to_a_list(w: Tensor) -> Tensor:
    values = w.tolist()  # here
    return torch.tensor(values)


def written_under_no_grad(w: Tensor) -> Tensor:
    buffer = torch.zeros(3)
    with torch.no_grad():
        buffer.copy_(w)  # here
    return buffer


def added_in_place_under_no_grad(w: Tensor) -> Tensor:
    buffer = torch.zeros(3)
    with torch.no_grad():
        buffer += w  # here
    return buffer


def assigned_under_no_grad(w: Tensor) -> Tensor:
    buffer = torch.zeros(3)
    with torch.no_grad():
        buffer[:] = w  # here
    return buffer


def stopped(w: Tensor) -> Tensor:
    tree = [w.clone()]
    torchopt.stop_gradient(tree)  # here
    return tree[0]


class Holder(nn.Module):
    def __init__(self, w: nn.Parameter) -> None:
        super().__init__()
        self.w = w


def extracted_by_deepcopy(w: Tensor) -> Tensor:
    holder = Holder(w)  # type: ignore[arg-type]
    state = torchopt.extract_state_dict(holder, by="deepcopy")  # here
    return state.params[0]["w"]


def detached(w: Tensor) -> Tensor:
    return w.detach()  # here


def detached_in_place(w: Tensor) -> Tensor:
    return (w * 2).detach_()  # here


def taken_by_data(w: Tensor) -> Tensor:
    return w.data  # here


def argmax(w: Tensor) -> Tensor:
    return w.argmax()  # here


def to_long(w: Tensor) -> Tensor:
    return w.long()  # here


def compared(w: Tensor) -> Tensor:
    return (w > 0).float()  # here


def counted(w: Tensor) -> Tensor:
    return torch.histc(w, 2)  # here


CUTS = [
    (detached, "detached", "detach"),
    (detached_in_place, "detached", "detach_"),
    (taken_by_data, "detached", "data"),
    (converted_by_item, "detached", "item"),
    (converted_to_a_list, "detached", "tolist"),
    (counted, "detached", "histc"),
    (stopped, "detached", "detach_"),
    (extracted_by_deepcopy, "detached", "detach"),
    (under_no_grad, "no_grad", "mul"),
    (argmax, "integer", "argmax"),
    (to_long, "integer", "long"),
    (compared, "integer", "gt"),
    (written_under_no_grad, "in-place", "copy_"),
    (added_in_place_under_no_grad, "in-place", "add_"),
    (assigned_under_no_grad, "in-place", "__setitem__"),
]


@pytest.mark.parametrize(
    ("cutting", "cause", "operation"), CUTS, ids=[function.__name__ for function, *_ in CUTS]
)
def test_a_cut_is_shown_with_its_cause_and_line(
    cutting: Callable[[Tensor], Tensor], cause: str, operation: str
) -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    v = torch.ones((), requires_grad=True)
    with record() as recording:
        out = v * cutting(w).sum()
    graph = gradient_graph(out, {"w": w, "v": v}, recording=recording)
    (cut,) = [node for node in graph.nodes if node.kind == "cut"]
    assert (cut.cause, cut.label, cut.where) == (cause, operation, line_of(cutting, "# here"))
    assert graph.unreached == ("w",)
    # what leads from the parameter to the cut is there, and leads nowhere else
    assert graph.path("w") == ()
    before = {cut.key}
    for source, target in reversed(graph.edges):
        before |= {source} if target in before else set()
    assert graph.find("w") in before


def test_a_first_order_inner_step_is_a_cut_at_the_inner_loss() -> None:
    w = torch.ones(2, requires_grad=True)
    with record() as recording:
        (grad,) = torch.autograd.grad(w.square().sum(), w)
        out = (w - 0.1 * grad).sum()
    graph = gradient_graph(out, {"w": w}, recording=recording)
    (cut,) = [node for node in graph.nodes if node.kind == "cut"]
    assert (cut.cause, cut.label) == ("no_grad", "grad")
    (loss,) = [source for source, target in graph.edges if target == cut.key]
    assert graph.nodes[loss].label == "SumBackward0"
    assert graph.unreached == ()


def test_a_step_of_an_optimizer_of_torch_is_a_cut() -> None:
    rate = torch.ones(2, requires_grad=True)
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([w], lr=0.1)

    def program() -> Tensor:
        (w.grad,) = torch.autograd.grad((w * rate).square().sum(), w, create_graph=True)
        optimizer.step()
        return w.sum()

    with record() as recording:
        out = program()
    graph = gradient_graph(out, {"w": w, "rate": rate}, recording=recording)
    assert graph.unreached == ("rate",)
    cuts = [(node.cause, node.label, node.where) for node in graph.nodes if node.kind == "cut"]
    # the step also spoils the graph of the gradient
    assert cuts == [
        ("in-place", "saved self overwritten", line_of(program, "w * rate")),
        ("in-place", "add_", line_of(program, "optimizer.step")),
    ]


def test_a_saved_tensor_that_was_overwritten_is_a_cut() -> None:
    w = torch.ones(2, requires_grad=True)
    y = w * 1
    out = y.exp()
    out.mul_(2)
    graph = gradient_graph(out.sum(), {"w": w})
    (cut,) = [node for node in graph.nodes if node.kind == "cut"]
    assert (cut.cause, cut.label) == ("in-place", "saved result overwritten")
    (source,) = [source for source, target in graph.edges if target == cut.key]
    assert graph.nodes[source].label == "ExpBackward0"


def test_a_cut_within_a_step_belongs_to_the_step() -> None:
    module = net()
    scale = torch.ones(1, requires_grad=True)
    inner = torchopt.MetaSGD(module, lr=0.1, use_accelerated_op=False)
    with record(module) as recording:
        for _ in range(2):
            loss = module(scale.exp().detach() * torch.ones(1, 2)).exp().sum()
            loss.detach()
            inner.step(loss)
        out = module(torch.ones(1, 2)).sum()
    graph = gradient_graph(out, {"scale": scale}, recording=recording)
    cuts = [node for node in graph.nodes if node.kind == "cut"]
    steps = [graph.groups[cut.group].label for cut in cuts]
    assert steps == ["inner step 1"] * 2 + ["inner step 2"] * 2
    assert len(graph.repeats[0].groups) == 2


def test_what_only_leads_to_a_cut_keeps_no_memory_for_the_output() -> None:
    w = torch.ones(5, requires_grad=True)
    with record() as recording:
        y = w.exp()
        y.detach()
        out = w.sum()
    graph = gradient_graph(out, {"w": w}, recording=recording)
    assert "ExpBackward0" in [node.label for node in graph.nodes]
    assert graph.memory().total == 0


def test_logging_is_not_a_cut() -> None:
    w = torch.ones(2, requires_grad=True)
    with record() as recording:
        loss = w.square().sum()
        str(loss), f"{loss:.3f}", loss.item()
        out = (w - torch.autograd.grad(loss, w, create_graph=True)[0]).sum()
        out.item(), out.detach()
    graph = gradient_graph(out, {"w": w}, recording=recording)
    assert [node for node in graph.nodes if node.kind == "cut"] == []


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.detach() * x * (x > 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad * ctx.saved_tensors[0]


def step_of(optimizer: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    def run(w: Tensor) -> Tensor:
        module = nn.Linear(3, 1)
        inner = optimizer(module, lr=0.1, use_accelerated_op=False)
        for _ in range(3):
            inner.step(module(w).square().sum())
        return module(w)

    return run


def trained_by_torch(w: Tensor) -> Tensor:
    module = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    return module(w)


def solved(w: Tensor) -> Tensor:
    implicit = pytest.importorskip("torchopt_implicit")

    @implicit.custom_root(lambda x, w: x - w**2, argnums=1)  # type: ignore[untyped-decorator]
    def solve(start: Tensor, w: Tensor) -> Tensor:
        return start - (start - w**2)

    found: Tensor = solve(torch.zeros(3), w)
    return found


def estimated(w: Tensor) -> Tensor:
    zero = pytest.importorskip("torchopt_zero")

    @zero.zero_order(torch.randn, num_samples=2)  # type: ignore[untyped-decorator]
    def count(w: Tensor) -> Tensor:
        return (w > 0).sum() + w.detach().sum()

    found: Tensor = count(w)
    return found


NO_CUTS: dict[str, Callable[[Tensor], Any]] = {
    "shapes": lambda w: w * w.shape[0] * w.numel() * torch.zeros_like(w) + w.new_ones(3),
    "grad": lambda w: (w.grad, w * 2)[1],
    "custom function": Square.apply,
    "hard samples": lambda w: F.gumbel_softmax(w, hard=True),
    "attention": lambda w: nn.MultiheadAttention(3, 1)(w[None], w[None], w[None])[0],
    "batch normalization": lambda w: nn.BatchNorm1d(3)(w.expand(4, 3)),
    "dropout": lambda w: nn.Dropout()(w),
    "building a module": lambda w: nn.LSTM(3, 3)(w[None])[0],
    "checkpointing": lambda w: checkpoint(torch.sin, w, use_reentrant=False),
    "values and indices": lambda w: w.max(0).values,
    "MetaAdam": step_of(torchopt.MetaAdam),
    "MetaRAdam": step_of(torchopt.MetaRAdam),
    "torch.optim": trained_by_torch,
    "implicit differentiation": solved,
    "zero-order estimate": estimated,
    "torch.func": lambda w: torch.func.vmap(torch.sin)(w) + torch.func.grad(lambda x: x[0] ** 2)(w),
}


@pytest.mark.parametrize("computing", NO_CUTS.values(), ids=NO_CUTS)
def test_is_not_a_cut(computing: Callable[[Tensor], Tensor]) -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    with record() as recording:
        out = computing(w).sum()
    assert recording.cuts == ()
    assert gradient_graph(out, {"w": w}, recording=recording).unreached == ()


def test_recording_changes_no_derivative() -> None:
    w = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)

    def third(w: Tensor) -> Tensor:
        module = Holder(nn.Parameter(torch.ones(2, dtype=torch.float64)))
        inner = torchopt.MetaAdam(module, lr=[w], use_accelerated_op=False)
        for _ in range(2):
            inner.step((module.w * w).sin().sum())
        out = module.w.prod()
        for _ in range(2):
            (out,) = (x.sum() for x in torch.autograd.grad(out, w, create_graph=True))
        return out

    plain = third(w)
    with record():
        watched = third(w)
    grads = [torch.autograd.grad(out, w)[0] for out in (plain, watched)]
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


def test_a_second_recording_sees_what_the_first_has_seen() -> None:
    module = net()
    x = torch.ones(1, 2, requires_grad=True)
    with record(module):
        y = module(x).exp().sum()
        torch.autograd.grad(y, x, create_graph=True)
    with record(module) as second:
        (grad,) = torch.autograd.grad(y, x, create_graph=True)
    assert labels(gradient_graph(grad.sum(), recording=second), "backward") == ["backward"]


def test_steps_of_an_earlier_episode_are_not_counted() -> None:
    module = net()
    initial = torchopt.extract_state_dict(module)
    with record(module) as recording:
        for _ in range(2):
            torchopt.recover_state_dict(module, initial)
            out, _ = adapt(module, torch.ones(4, 2), 0.1, steps=2)
    assert len(recording.steps) == 4
    graph = gradient_graph(out, recording=recording)
    assert labels(graph, "step") == ["inner step 1", "inner step 2", "outer loss"]


def test_nothing_is_left_behind_even_by_an_error() -> None:
    made = []

    def program() -> None:
        with record():
            made.append(torch.ones(1, requires_grad=True).exp())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        program()
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._is_multithreading_enabled()


def test_tensors_that_foreach_functions_overwrite_still_raise() -> None:
    w = [torch.ones(2, requires_grad=True)]
    with record():
        ys = torch._foreach_mul(w, 1.0)
        zs = torch._foreach_mul(ys, ys)
    torch._foreach_mul_([y.detach() for y in ys], 2.0)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*at version 1"):
        zs[0].sum().backward()


def test_a_failed_backward_pass_leaves_no_module_behind() -> None:
    module = net()
    x = torch.ones(1, 2, requires_grad=True)
    with record(module) as recording:
        y = module(x).sum()
        with pytest.raises(RuntimeError, match="not have been used in the graph"):
            torch.autograd.grad(y, [x, torch.ones(1, requires_grad=True)], create_graph=True)
        out = x.sin().sum()
    graph = gradient_graph(out, recording=recording)
    assert [group.label for group in graph.groups] == ["graph"]


def test_other_threads_are_not_watched() -> None:
    module = net()

    def program() -> None:
        module(torch.ones(1, 2)).sum().detach()
        adapt(module, torch.ones(1, 2), 0.1, steps=1)

    with record(module) as recording:
        thread = threading.Thread(target=program)
        thread.start()
        thread.join()
    assert recording.cuts == ()
    assert recording.steps == ()


def test_a_recording_says_what_it_holds() -> None:
    with record() as recording:
        torch.ones(1, requires_grad=True).detach()
    assert repr(recording) == "Recording(0 steps, 1 cuts)"


def test_something_else_than_a_module() -> None:
    with (
        pytest.raises(TypeError, match=re.escape("`module` must be a torch.nn.Module, got int")),
        record(3),  # type: ignore[arg-type]
    ):
        pass
