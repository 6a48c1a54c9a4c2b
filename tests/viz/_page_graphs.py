"""Graphs to show on pages, built record by record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import torchopt
from torchopt_viz import gradient_graph, record
from torchopt_viz._graph import Graph, Group, Node, Repeat, Saved

UNFRIENDLY = "a\"b'</script><b>&amp;\\ ünï \N{SNOWMAN}"


class Builder:
    """Collects the records of a graph."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self.groups = [Group(0, None, "graph", "graph")]
        self.repeats: list[Repeat] = []
        self.storages = 0

    def group(self, kind: Any, label: str, parent: int = 0) -> int:
        self.groups.append(Group(len(self.groups), parent, kind, label))
        return len(self.groups) - 1

    def node(
        self,
        kind: Any,
        label: str,
        *inputs: int,
        group: int = 0,
        name: str | None = None,
        saved: tuple[int, ...] = (),
        where: str | None = None,
        cause: Any = None,
    ) -> int:
        key = len(self.nodes)
        names = () if name is None else (name,)
        tensors = tuple(
            Saved(f"saved[{i}]", (nbytes // 4,), "float32", nbytes, self.storages + i, False)
            for i, nbytes in enumerate(saved)
        )
        self.storages += len(saved)
        shape = None if kind in ("function", "step", "cut") else (8, 4)
        dtype = None if shape is None else "float32"
        attrs = (("alpha", "1"),) if label == "AddBackward0" else ()
        self.nodes.append(
            Node(key, kind, label, names, shape, dtype, tensors, group, where, attrs, cause)
        )
        self.edges += [(source, key) for source in inputs]
        return key

    def graph(self, unreached: tuple[str, ...] = (), unseen: tuple[int, ...] = ()) -> Graph:
        return Graph(
            tuple(self.nodes),
            tuple(self.edges),
            tuple(self.groups),
            tuple(self.repeats),
            unreached,
            unseen,
        )


def unrolled(steps: int, layers: int = 2, depth: int = 1) -> Graph:
    """Return the graph of gradient descent, unrolled: a network of `layers`, `depth` nodes each."""
    build = Builder()
    kinds = ["weight", "bias"]
    names = [f"layers.{layer}.{kind}" for layer in range(layers) for kind in kinds]
    params = [build.node("parameter", "Parameter", name=name) for name in names]
    groups = []
    for step in range(steps):
        group = build.group("step", f"inner step {step}")
        groups.append(group)
        forward = []
        value = build.node("leaf", "Tensor", group=group)
        for layer in range(layers):
            module = build.group("module", f"layers.{layer} (Linear)", group)
            weight = build.node("function", "TBackward0", params[2 * layer], group=module)
            value = build.node(
                *("function", "AddmmBackward0", params[2 * layer + 1], value, weight),
                group=module,
                saved=(256, 1000 + step),
                where=f"net.py:{10 + layer}",
            )
            for _ in range(depth):
                value = build.node("function", "TanhBackward0", value, group=module, saved=(128,))
            forward.append(value)
        value = build.node("function", "MseLossBackward0", value, group=group, saved=(64, 64))
        backward = build.group("backward", "backward", group)
        updated = []
        for layer in reversed(range(layers)):
            module = build.group("module", f"layers.{layer} (Linear)", backward)
            for _ in range(depth):
                value = build.node(
                    *("function", "TanhBackwardBackward0", value, forward[layer]),
                    group=module,
                    saved=(32,),
                )
            for kind in reversed(range(2)):
                old = params[2 * layer + kind]
                scaled = build.node("function", "MulBackward0", value, group=group, saved=(16,))
                total = build.node("function", "AddBackward0", old, scaled, group=group)
                name = f"step{step}.{names[2 * layer + kind]}"
                updated.append(build.node("tensor", "Tensor", total, group=group, name=name))
        params = updated[::-1]
    build.repeats.append(Repeat(groups[0], tuple(groups)))
    loss = build.node("function", "MeanBackward0", *params, where="train.py:31")
    build.node("output", "Tensor", loss, name="loss")
    return build.graph()


def marked() -> Graph:
    """Return a small graph with cuts, unreached parameters, a fused step and unfriendly names."""
    build = Builder()
    weight = build.node("parameter", "Parameter", name="weight")
    unfriendly = build.node("parameter", "Parameter", name=UNFRIENDLY)
    step = build.group("step", "inner step 0")
    product = build.node(
        *("function", "MulBackward0", weight, unfriendly), group=step, saved=(400, 600)
    )
    fused = build.node("step", "FusedAdam", weight, product, group=step, saved=(2000,))
    for cause, label in [
        ("detached", "detach"),
        ("in-place", "add_"),
        ("no_grad", "mul"),
        ("integer", "argmax"),
    ]:
        build.node(
            *("cut", label, product),
            group=step,
            where=f"train.py:{len(build.nodes)}",
            cause=cause,
        )
    loss = build.node("function", "SumBackward0", fused, where="train.py:40")
    build.node("output", "Tensor", loss, name="loss")
    return build.graph(unreached=("head.bias", UNFRIENDLY + "2"), unseen=(loss,))


def beside() -> Graph:
    """Return two modules side by side, the second one taller."""
    build = Builder()
    source = build.node("parameter", "Parameter", name="x")
    ends = []
    for name, size in [("short", 2), ("tall", 9)]:
        module = build.group("module", name)
        value = source
        for _ in range(size):
            value = build.node("function", "SinBackward0", value, group=module)
        ends.append(value)
    build.node("output", "Tensor", build.node("function", "AddBackward0", *ends), name="y")
    return build.graph()


def there_and_back() -> Graph:
    """Return a module that is used before and after another, and a leaf that comes late."""
    build = Builder()
    outer = build.group("module", "outer")
    inner = build.group("module", "inner")
    x = build.node("parameter", "Parameter", name="x")
    before = build.node("function", "SinBackward0", x, group=outer)
    between = build.node("function", "CosBackward0", before, group=inner)
    late = build.node("parameter", "Parameter", name="late")
    after = build.node("function", "MulBackward0", between, late, group=outer)
    build.node("output", "Tensor", after, name="y")
    return build.graph()


def flat(size: int) -> Graph:
    """Return a chain of so many nodes, in no group."""
    build = Builder()
    value = build.node("parameter", "Parameter", name="x")
    for _ in range(size - 2):
        value = build.node("function", "SinBackward0", value, saved=(4,))
    build.node("output", "Tensor", value, name="y")
    return build.graph()


def conv4(steps: int) -> Graph:
    """Return MAML with the network of the few-shot literature, as a recording sees it."""
    layers: list[nn.Module] = []
    for channels in (1, 2, 2, 2):
        layers += [nn.Conv2d(channels, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(2, 5))
    x = torch.ones(2, 1, 16, 16)

    def state(step: int) -> Any:
        prefix = f"step{step}."
        return torchopt.extract_state_dict(net, enable_visual=True, visual_prefix=prefix)

    with record(net) as recording:
        inner = torchopt.MetaSGD(net, lr=0.01)
        states = [state(0)]
        for step in range(steps):
            inner.step(net(x).square().mean())
            states.append(state(step + 1))
        loss = net(x).square().mean()
    return gradient_graph(loss, states, recording=recording)
