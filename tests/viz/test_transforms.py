"""Pictures inside of ``torch.func`` transforms, and of functions with attributes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchopt_viz import Graph, gradient_graph, make_dot, record

NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
NAMES = sorted(name for name, _ in NET.named_parameters())
X = torch.ones(4, 2)
Params = dict[str, Tensor]


def drawn(seen: list[Graph]) -> Callable[..., Tensor]:
    """Return a loss that is drawn where it is computed."""

    def loss(params: Params, x: Tensor = X) -> Tensor:
        with record(NET) as recording:
            y = torch.func.functional_call(NET, params, (x,)).square().sum()
        seen.append(gradient_graph(y, params, recording=recording))
        make_dot(y, params, True, True, group_by="module", recording=recording)
        return y  # type: ignore[no-any-return]

    return loss


def grad_of_grad(loss: Callable[..., Tensor]) -> Callable[[Params], Any]:
    return torch.func.grad(lambda p: torch.func.grad(loss)(p)["0.weight"].sum())


def grad_of_vmap(loss: Callable[..., Tensor]) -> Callable[[Params], Any]:
    xs = torch.ones(3, 4, 2)
    return torch.func.grad(lambda p: torch.func.vmap(lambda x: loss(p, x))(xs).sum())


def vmap_of_grad(loss: Callable[..., Tensor]) -> Callable[[Params], Any]:
    per_task = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    return lambda p: per_task(p, torch.ones(3, 4, 2))


def jvp(loss: Callable[..., Tensor]) -> Callable[[Params], Any]:
    return lambda p: torch.func.jvp(
        loss, ({name: x.clone().requires_grad_() for name, x in p.items()},), (p,)
    )


@pytest.mark.parametrize(
    "transform", [torch.func.grad, torch.func.jacrev, grad_of_grad, grad_of_vmap, vmap_of_grad, jvp]
)
def test_inside_of_a_transform(transform: Callable[..., Callable[[Params], Any]]) -> None:
    seen: list[Graph] = []
    transform(drawn(seen))({name: p.detach() for name, p in NET.named_parameters()})
    for graph in seen:
        assert sorted(name for node in graph.nodes for name in node.names) == [*NAMES, "output"]
        assert graph.unreached == ()
        assert graph.memory().total > 0
        assert "TanhBackward0" in [node.label for node in graph.nodes]
    assert seen


def test_a_leaf_from_outside_of_the_transform_is_not_in_its_graph() -> None:
    outer = torch.ones(2, requires_grad=True)
    seen = []

    def loss(v: Tensor) -> Tensor:
        with record() as recording:
            y = (outer * v).sum() + (outer.detach() * v).sum()
        seen.append(gradient_graph(y, {"outer": outer, "v": v}, recording=recording))
        return y

    torch.func.grad(loss)(torch.ones(2))
    (graph,) = seen
    assert graph.unreached == ("outer",)
    assert [node.label for node in graph.nodes if node.kind == "cut"] == ["detach"]


def test_a_tensor_without_a_graph_inside_of_a_transform() -> None:
    def loss(x: Tensor) -> Tensor:
        with pytest.raises(ValueError, match="has no graph"):
            make_dot(x.sum())
        return x.sum()

    torch.func.jvp(loss, (torch.ones(2),), (torch.ones(2),))
    torch.func.vmap(loss)(torch.ones(2, 2))


class Named(torch.autograd.Function):
    """A function whose context has attributes that are called like methods of nodes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.name = "layer1"
        ctx._sequence_nr = "first"
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


def test_attributes_of_a_function_hide_nothing() -> None:
    w = torch.ones(2, requires_grad=True)
    with record() as recording:
        out = Named.apply(w.exp()).sum()
        torch.autograd.grad(out, w, create_graph=True)
    graph = gradient_graph(out, {"w": w}, recording=recording)
    assert [node.label for node in graph.nodes] == [
        *("Parameter" if isinstance(w, nn.Parameter) else "Tensor", "ExpBackward0"),
        *("NamedBackward", "SumBackward0", "Tensor"),
    ]
    assert ("name", "layer1") in graph.nodes[2].attrs
    assert "name: layer1" in make_dot(out, {"w": w}, show_attrs=True).source
