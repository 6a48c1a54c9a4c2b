"""What folded pictures merge, and which of their edges are on a path."""

from __future__ import annotations

import re
from typing import Any

import graphviz
import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz import Graph, gradient_graph, make_dot
from torchopt_viz._roles import role_of_leaves
from torchopt_viz._view import view


def unrolled(kind: str) -> tuple[Tensor, dict[str, Tensor], set[str]]:
    """Return a loss after two inner steps, all leaves by name, and the names of rates."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    weights = dict(net.named_parameters())
    rates = {"lr": torch.tensor(0.1)}
    if kind == "a rate for each":
        rates = {f"lr.{name}": torch.full_like(x, 0.1) for name, x in weights.items()}
    for rate in rates.values():
        rate.requires_grad_()
    lr: Any = rates["lr"] if "lr" in rates else {n[3:]: x for n, x in rates.items()}
    make = torchopt.MetaAdam if kind == "moments" else torchopt.MetaSGD
    inner = make(net, lr=lr, use_accelerated_op=False)
    for _ in range(2):
        inner.step(net(torch.ones(1, 2)).square().sum())
    return net(torch.ones(1, 2)).sum(), {**weights, **rates}, set(rates)


KINDS = ["one rate", "a rate for each", "moments"]


@pytest.mark.parametrize("max_depth", [None, 0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_leaves_of_different_roles_are_never_one_box(kind: str, max_depth: int | None) -> None:
    out, names, rates = unrolled(kind)
    graph = gradient_graph(out, names)
    kinds = ("step", "module", "backward")
    for box in view(graph, kinds, max_depth, fold=True).boxes:
        if box.collapsed is None:
            found = {name in rates for key in box.nodes for name in graph.nodes[key].names}
            assert len(found) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_one_role_and_rates_another(kind: str) -> None:
    out, names, rates = unrolled(kind)
    graph = gradient_graph(out, names)
    roles: dict[bool, set[str]] = {False: set(), True: set()}
    for key, role in role_of_leaves(graph).items():
        roles[graph.nodes[key].name in rates].add(role)
    moments = {"tensors into Lerp"} if kind == "moments" else set()
    assert roles == {
        False: {"", *moments},
        True: {"tensors into Mul" if kind == "a rate for each" else "numbers into Mul"},
    }


def test_many_weights_are_still_one_box() -> None:
    out, names, rates = unrolled("one rate")
    graph = gradient_graph(out, names)
    shown = view(graph, (), None, fold=True)
    weights = {graph.nodes[k].name for box in shown.boxes if len(box.nodes) > 4 for k in box.nodes}
    assert set(names) - rates <= weights


def marked(dot: graphviz.Digraph) -> set[tuple[int, int]]:
    found = re.findall(r"^\s*n(\d+) -> n(\d+) .*penwidth", dot.source, flags=re.MULTILINE)
    return {(int(source), int(target)) for source, target in found}


def on_path(graph: Graph, name: str, **options: Any) -> set[tuple[int, int]]:
    """Return the boxes that two nodes are in which follow one another on a path."""
    path = set(graph.path(name))
    boxes = view(graph, **options).box_of
    pairs = {(boxes[a], boxes[b]) for a, b in graph.edges if a in path and b in path}
    return {(a, b) for a, b in pairs if a != b}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("group_by", [None, "step", ("step", "module")])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_only_edges_of_the_path_are_marked(kind: str, group_by: Any, fold: bool) -> None:
    out, names, rates = unrolled(kind)
    graph = gradient_graph(out, names)
    kinds = {"step"} if group_by == "step" else {"step", "module", "backward"} if group_by else ()
    name = sorted(rates)[0]
    dot = make_dot(out, names, fold=fold, group_by=group_by, highlight=name)
    assert marked(dot) == on_path(graph, name, kinds=kinds, max_depth=None, fold=fold)


def test_an_edge_between_two_boxes_of_the_path_need_not_be_on_it() -> None:
    # the six leaves are one box; of them, w0 alone goes into the product, w1 alone into the sum
    w = [torch.ones(2, requires_grad=True) for _ in range(7)]
    product, total = w[0] @ w[6], torch.stack(w[1:6]).sum()
    out = torch.dot(product.expand(2), total.expand(2))
    names = {f"w{i}": x for i, x in enumerate(w)}
    dot = make_dot(out, names, fold=True, highlight="w0")
    graph = gradient_graph(out, names)
    assert marked(dot) == on_path(graph, "w0", kinds=(), max_depth=None, fold=True)
    stack = next(
        i
        for i, box in enumerate(view(graph, (), None, True).boxes)
        if "Stack" in graph.nodes[box.nodes[0]].label
    )
    assert all(stack not in edge for edge in marked(dot))
