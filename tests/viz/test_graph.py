"""Autograd's graph as records: nodes, edges, names, groups, repeats."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz import Graph, gradient_graph


class Dot(nn.Module):
    """The inner product with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.w * x).sum()


def state(module: nn.Module, prefix: str) -> Any:
    return torchopt.extract_state_dict(module, enable_visual=True, visual_prefix=prefix)


def adapt(
    module: nn.Module, x: Tensor, lr: Any, steps: int, **options: Any
) -> tuple[Tensor, list[Any]]:
    """Return the outer loss after some inner steps, and the states before and after each."""
    states = [state(module, "step0.")]
    inner = torchopt.MetaSGD(module, lr=lr, use_accelerated_op=False, **options)
    for k in range(1, steps + 1):
        inner.step(module(x).square().mean())
        states.append(state(module, f"step{k}."))
    return module(x).mean(), states


def names_and_labels(graph: Graph) -> list[str]:
    return [node.name or node.label for node in graph.nodes]


def labels(graph: Graph, kind: str) -> list[str]:
    return [group.label for group in graph.groups if group.kind == kind]


# w' = w - lr * d/dw (w.x)^2, twice, and then w.x
STEP = [
    "MulBackward0",  # w * x
    "SumBackward0",  # its sum, the prediction
    "PowBackward0",  # from here the derivative of its square: the prediction to the power of one
    "MulBackward1",  # times two
    "MulBackward0",  # times the gradient of the loss, one
    "ExpandBackward0",  # to each of the summands
    "MulBackward0",  # times x: the gradient
    "MulBackward0",  # lr in the dtype of the parameters
    "MulBackward0",  # and with its sign
    "ForeachMulBackward0List",  # times the gradient
    "ForeachAddBackward0List",  # and the parameters
]


def test_two_steps_of_meta_sgd_are_the_graph_that_the_algorithm_says() -> None:
    net = Dot()
    lr = torch.tensor(0.1, requires_grad=True)
    states = [state(net, "step0.")]
    inner = torchopt.MetaSGD(net, lr=lr, use_accelerated_op=False)
    for k in (1, 2):
        inner.step(net(torch.ones(2)).square())
        states.append(state(net, f"step{k}."))
    graph = gradient_graph(net(torch.ones(2)), [*states, {"lr": lr}])

    first = ["step0.w", *STEP[:7], "lr", *STEP[7:], "step1.w"]
    second = [*STEP, "step2.w"]
    assert names_and_labels(graph) == [*first, *second, *STEP[:2], "output"]
    assert set(graph.edges) == {
        # the first step: forward, backward, the learning rate, the update
        *((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)),
        *((8, 9), (9, 10), (7, 11), (10, 11), (0, 12), (11, 12), (12, 13)),
        # the second
        *((13, 14), (14, 15), (15, 16), (16, 17), (17, 18), (18, 19), (19, 20)),
        *((8, 21), (21, 22), (20, 23), (22, 23), (13, 24), (23, 24), (24, 25)),
        # the outer loss
        *((25, 26), (26, 27), (27, 28)),
    }
    assert len(graph.edges) == len(set(graph.edges))
    kinds = {node.name: node.kind for node in graph.nodes if node.name is not None}
    assert kinds == {
        "step0.w": "parameter",
        "lr": "parameter",
        "step1.w": "tensor",
        "step2.w": "tensor",
        "output": "output",
    }
    groups = [graph.groups[node.group].label for node in graph.nodes]
    expected = ["inner step 1"] * 14 + ["inner step 2"] * 12 + ["outer loss"] * 2 + ["graph"]
    expected[0] = expected[8] = "graph"  # leaves are there before the steps
    assert groups == expected
    assert graph.unreached == ()


def test_all_parameters_that_are_reached_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    out, states = adapt(net, torch.ones(4, 2), 0.1, steps=3)
    graph = gradient_graph(out, states)
    found = {node.name for node in graph.nodes if node.kind in ("parameter", "tensor")}
    local = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found == {f"step{k}.{name}" for k in range(4) for name in local}
    assert not [node for node in graph.nodes if node.kind == "leaf"]


def test_states_without_a_prefix_name_every_step_alike() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    states = [state(net, "")]
    inner = torchopt.MetaSGD(net, lr=0.1, use_accelerated_op=False)
    x = torch.randn(4, 2)
    for _ in range(2):
        inner.step(net(x).square().mean())
        states.append(state(net, ""))
    graph = gradient_graph(net(x).square().mean(), states)
    found = [node.name for node in graph.nodes if node.kind in ("parameter", "tensor")]
    local = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert sorted(found) == sorted(3 * local)
    assert labels(graph, "step") == ["inner step 1", "inner step 2", "outer loss"]
    assert graph.unreached == ()
    with pytest.raises(KeyError, match=r"'0\.weight' is the name of 3 tensors; give each a name"):
        graph.find("0.weight")


@pytest.mark.parametrize("wrap", [lambda names: names, lambda names: [names, {}]])
def test_a_dict_may_go_from_tensors_to_names(wrap: Callable[[Any], Any]) -> None:
    w, v, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    graph = gradient_graph((w * v).sum(), wrap({w: "a", v: "b", unused: "c"}))
    assert [node.name for node in graph.nodes if node.kind == "parameter"] == ["a", "b"]
    assert graph.unreached == ("c",)
    same = gradient_graph((w * v).sum(), wrap({w: "a", v: "a"}))
    assert [node.name for node in same.nodes if node.kind == "parameter"] == ["a", "a"]


def test_the_names_of_a_state_alone_are_names() -> None:
    net = nn.Linear(2, 1)
    graph = gradient_graph(net(torch.ones(1, 2)).sum(), state(net, "net.").visual_contents)
    assert {node.name for node in graph.nodes if node.kind == "parameter"} == {
        "net.weight",
        "net.bias",
    }


def test_names_that_do_not_reach_the_output_are_listed() -> None:
    w, unused, frozen = (torch.ones(2, requires_grad=True) for _ in range(3))
    frozen = frozen.detach()
    graph = gradient_graph((w * 2).sum(), {"w": w, "unused": unused, "frozen": frozen})
    assert graph.unreached == ("unused", "frozen")


def test_buffers_of_a_state_are_not_expected_to_reach_the_output() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert gradient_graph(net(torch.randn(4, 2)).sum(), state(net, "")).unreached == ()


def _pairs(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()


@pytest.mark.parametrize(
    "params",
    [
        lambda net: dict(net.named_parameters()),
        lambda net: net,
        lambda net: state(net, ""),
        lambda net: net.named_parameters(),
        lambda net: list(net.named_parameters()),
        lambda net: [dict(net.named_parameters()), {"other": torch.ones(1, requires_grad=True)}],
        lambda net: (x for x in [state(net, "")]),
        lambda net: [_pairs(net), net],
    ],
    ids=["dict", "module", "state", "generator", "pairs", "dicts", "states", "mixed"],
)
def test_names_are_given_by(params: Callable[[nn.Module], Any]) -> None:
    net = nn.Linear(2, 1)
    graph = gradient_graph(net(torch.ones(1, 2)), params(net))
    assert {node.name for node in graph.nodes if node.kind == "parameter"} == {"weight", "bias"}


def test_a_tensor_with_two_names_shows_both() -> None:
    w = torch.ones(2, requires_grad=True)
    graph = gradient_graph(w.sum(), [{"w": w}, {"meta.w": w}])
    assert graph.nodes[0].name == "w, meta.w"
    assert graph.find("w") == graph.find("meta.w") == 0


def test_each_output_of_a_tree_is_a_node_by_its_path() -> None:
    w = torch.ones(2, requires_grad=True)
    graph = gradient_graph({"a": [w.sum()], "b": w})
    outputs = {node.name: node for node in graph.nodes if node.kind == "output"}
    assert set(outputs) == {"output['a'][0]", "output['b']"}
    sources = {graph.nodes[t].name: graph.nodes[s].label for s, t in graph.edges}
    assert sources["output['b']"] == "Tensor"
    assert sources["output['a'][0]"] == "SumBackward0"


def test_nodes_know_shapes_dtypes_and_attributes() -> None:
    w = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    graph = gradient_graph(w.add(w, alpha=3).sum(0))
    leaf, add, _, output = graph.nodes
    assert (leaf.shape, leaf.dtype) == ((2, 3), "float64")
    assert (add.shape, add.dtype) == ((2, 3), "float64")
    assert ("alpha", "3") in add.attrs
    assert (output.shape, output.dtype) == ((3,), "float64")


def test_sources_come_before_targets_and_a_leaf_before_its_first_user() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    graph = gradient_graph(adapt(net, torch.ones(4, 2), 0.1, steps=2)[0], net)
    assert [node.key for node in graph.nodes] == list(range(len(graph.nodes)))
    assert all(source < target for source, target in graph.edges)
    users = {node.key: min(t for s, t in graph.edges if s == node.key) for node in graph.nodes[:-1]}
    leaves = [node.key for node in graph.nodes if node.kind == "leaf"]
    assert all(set(range(key, users[key])) <= set(leaves) for key in leaves)


def test_a_path_is_what_lies_between_a_tensor_and_the_outputs() -> None:
    w, v = (torch.ones(2, requires_grad=True) for _ in range(2))
    graph = gradient_graph((w.exp() * v.sin()).sum(), {"w": w, "v": v})
    path = [graph.nodes[key].name or graph.nodes[key].label for key in graph.path("w")]
    assert path == ["w", "ExpBackward0", "MulBackward0", "SumBackward0", "output"]
    assert graph.path(graph.find("w")) == graph.path("w")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("x", "no tensor of the graph is named 'x'; there are ['w', 'output']"),
        ("unused", "'unused' does not reach the output; in the graph are ['w', 'output']"),
        (7, "`start` must be a key from 0 to 2, got 7"),
    ],
)
def test_a_path_from_nowhere_says_what_there_is(start: str | int, message: str) -> None:
    w, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    graph = gradient_graph(w.sum(), {"w": w, "unused": unused})
    with pytest.raises(KeyError, match=re.escape(message)):
        graph.path(start)


def test_functions_that_use_a_parameter_belong_to_its_module() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 1, bias=False)))
    graph = gradient_graph(net(torch.ones(1, 2)).sum(), net)
    found = {node.label: graph.groups[node.group].label for node in graph.nodes}
    assert found["AddmmBackward0"] == "0"
    assert found["MmBackward0"] == "1.1"
    assert found["ReluBackward0"] == "graph"
    inner = next(group for group in graph.groups if group.label == "1.1")
    assert inner.parent is not None
    assert graph.groups[inner.parent].label == "1"


def test_modules_have_the_same_names_in_every_step() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    graph = gradient_graph(*adapt(net, torch.ones(4, 2), 0.1, steps=2))
    assert labels(graph, "step") == ["inner step 1", "inner step 2", "outer loss"]
    assert labels(graph, "module") == ["0", "2"] * 3


def test_a_net_with_one_parameter_has_steps() -> None:
    out, states = adapt(nn.Linear(2, 1, bias=False), torch.ones(4, 2), 0.1, steps=2)
    assert labels(gradient_graph(out, states), "step")[-1] == "outer loss"


def test_the_prefix_of_a_single_state_is_no_module() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    graph = gradient_graph(net(torch.ones(1, 2)), state(net, "meta.initial."))
    assert labels(graph, "module") == ["0", "1"]


def test_tensors_that_are_not_states_make_no_steps() -> None:
    net = nn.Linear(2, 1)
    hidden = net(torch.ones(1, 2))
    graph = gradient_graph(hidden.sum(), [net, {"hidden": hidden}])
    assert labels(graph, "step") == []


def test_steps_of_two_tasks_do_not_take_the_outer_loss_between_them() -> None:
    net = nn.Linear(2, 1)
    initial = torchopt.extract_state_dict(net)
    losses, states = [], [state(net, "initial.")]
    for task in ("a", "b"):
        inner = torchopt.MetaSGD(net, lr=0.1, use_accelerated_op=False)
        inner.step(net(torch.ones(1, 2)).square().sum())
        states.append(state(net, f"{task}.step1."))
        losses.append(net(torch.ones(1, 2)).sigmoid().sum())
        torchopt.recover_state_dict(net, initial)
    graph = gradient_graph(torch.stack(losses).sum(), states)
    found = [graph.groups[n.group].label for n in graph.nodes if n.label == "SigmoidBackward0"]
    assert found == ["outer loss", "outer loss"]
    assert labels(graph, "step").count("inner step 2") == 1


@pytest.mark.parametrize("steps", [2, 5])
def test_steps_of_one_structure_are_repeats(steps: int) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    graph = gradient_graph(*adapt(net, torch.ones(4, 2), 0.1, steps=steps))
    (repeat,) = graph.repeats
    assert repeat.first == repeat.groups[0]
    assert [graph.groups[key].label for key in repeat.groups] == [
        f"inner step {k}" for k in range(1, steps + 1)
    ]


def test_steps_of_different_structure_are_no_repeats() -> None:
    net = nn.Linear(2, 1)
    states = [state(net, "0.")]
    inner = torchopt.MetaSGD(net, lr=0.1, use_accelerated_op=False)
    inner.step(net(torch.ones(1, 2)).square().sum())
    states.append(state(net, "1."))
    inner.step(net(torch.ones(1, 2)).exp().sum())
    states.append(state(net, "2."))
    assert gradient_graph(net(torch.ones(1, 2)), states).repeats == ()


def test_a_deep_graph_needs_no_stack() -> None:
    x = w = torch.ones((), requires_grad=True)
    for _ in range(20_000):
        x = x * 1.0
    graph = gradient_graph(x, {"w": w})
    assert len(graph.nodes) == 20_002
    assert len(graph.path("w")) == 20_002


def test_a_graph_keeps_no_tensor_alive_and_pickles() -> None:
    w = torch.ones(2, requires_grad=True)
    graph = gradient_graph(w.exp().sum(), {"w": w})
    assert pickle.loads(pickle.dumps(graph)) == graph


def test_collecting_changes_nothing() -> None:
    w = torch.ones(2, requires_grad=True)
    out = w.exp().sum()
    assert gradient_graph(out) == gradient_graph(out)
    (found,) = torch.autograd.grad(out, w)
    torch.testing.assert_close(found, torch.ones(2).exp())


def _under_no_grad() -> Tensor:
    with torch.no_grad():
        return torch.ones(2, requires_grad=True).sum()


@pytest.mark.parametrize(
    ("var", "message"),
    [
        (lambda: torch.ones(2), "`var`, a tensor of shape (2,) and torch.float32, has no graph"),
        (lambda: torch.ones(2).argmax(), "of shape () and torch.int64, has no graph"),
        (_under_no_grad, "outside of `torch.no_grad()`"),
        (lambda: torch.ones(2, requires_grad=True).detach(), "without `detach()`"),
        (lambda: [torch.ones(2, requires_grad=True), torch.ones(3)], "`var[1]`, a tensor of shape"),
        (lambda: torch.ones(2), "`inplace=False`"),
        (lambda: torch.ones(2), "`requires_grad_()`"),
    ],
)
def test_a_tensor_without_a_graph_is_told_how_to_get_one(
    var: Callable[[], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        gradient_graph(var())


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (3, TypeError, "`params` must be a dict of named tensors, a module"),
        (torch.ones(1), TypeError, "or a sequence of these, got Tensor"),
        ({"w": 1.0}, TypeError, "`params` must name tensors, but 'w' is a float"),
        ({1: torch.ones(1)}, TypeError, "by strings, got a name of type int"),
        ([("w", None)], TypeError, "`params` must name tensors, but 'w' is a NoneType"),
        ({torch.ones(1): 2}, TypeError, "by strings, got a name of type int"),
        (
            torchopt.extract_state_dict(nn.Linear(1, 1)),
            ValueError,
            "extract_state_dict(..., enable_visual=True",
        ),
    ],
)
def test_bad_names(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        gradient_graph(torch.ones(1, requires_grad=True).sum(), params)


@pytest.mark.parametrize(
    ("var", "message"),
    [(1.0, "`var` must be a tensor, got float"), ([], "got a tree without any")],
)
def test_something_else_than_tensors(var: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        gradient_graph(var)


def test_something_else_than_a_recording() -> None:
    with pytest.raises(TypeError, match=r"`recording` must be what `with record\(\)"):
        gradient_graph(torch.ones(1, requires_grad=True).sum(), recording=[])  # type: ignore[arg-type]
