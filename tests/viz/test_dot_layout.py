"""Where Graphviz puts what a picture asks for: steps, titles, arrows."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from typing import Any, NamedTuple

import graphviz
import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz import Recording, make_dot, record

pytestmark = pytest.mark.skipif(shutil.which("dot") is None, reason="needs the program dot")

Box = tuple[float, float, float, float]


class Drawn(NamedTuple):
    """A picture as Graphviz lays it out; y grows upwards."""

    # by name: left, bottom, right, top
    nodes: dict[str, Box]
    frames: dict[str, Box]
    # the ends of each arrow, and points along it
    arrows: list[tuple[str, str, list[tuple[float, float]]]]


def draw(dot: graphviz.Digraph) -> Drawn:
    found = json.loads(dot.pipe(format="json"))
    nodes, frames, names = {}, {}, {}
    for thing in found["objects"]:
        names[thing["_gvid"]] = thing["name"]
        if thing["name"].startswith("cluster"):
            frames[thing["name"]] = tuple(map(float, thing["bb"].split(",")))
        else:
            x, y = map(float, thing["pos"].split(","))
            w, h = (36 * float(thing[side]) for side in ("width", "height"))
            nodes[thing["name"]] = (x - w, y - h, x + w, y + h)
    arrows = []
    for edge in found["edges"]:
        if edge.get("style") != "invis":
            points = along(edge["pos"])
            arrows.append((names[edge["tail"]], names[edge["head"]], points))
    return Drawn(nodes, frames, arrows)  # type: ignore[arg-type]


def along(spline: str) -> list[tuple[float, float]]:
    """Return points on a spline of cubic pieces."""
    bare = re.sub(r"[es],\S+ ", "", spline)
    ends = [tuple(map(float, point.split(","))) for point in bare.split()]
    points = []
    for i in range(0, len(ends) - 3, 3):
        for t in (k / 20 for k in range(21)):
            weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
            pairs = list(zip(weights, ends[i : i + 4], strict=True))
            points.append((sum(w * p[0] for w, p in pairs), sum(w * p[1] for w, p in pairs)))
    return points


def unrolled(steps: int) -> tuple[Tensor, list[Any], Recording]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    lr = torch.tensor(0.1, requires_grad=True)
    x = torch.ones(2, 4)

    def state(step: int) -> Any:
        prefix = f"step{step}."
        return torchopt.extract_state_dict(net, enable_visual=True, visual_prefix=prefix)

    with record(net) as recording:
        inner = torchopt.MetaSGD(net, lr=lr, use_accelerated_op=False)
        states = [state(0)]
        for step in range(steps):
            inner.step(net(x).square().mean())
            states.append(state(step + 1))
        loss = net(x).square().mean()
    return loss, [*states, {"lr": lr}], recording


OPTIONS: list[dict[str, Any]] = [{}, {"fold": True}, {"group_by": "step"}]


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_arrows_lead_down(options: dict[str, Any], recorded: bool) -> None:
    loss, params, recording = unrolled(3)
    seen = recording if recorded else None
    drawn = draw(
        make_dot(loss, params, recording=seen, **{"group_by": ["step", "module"], **options})
    )
    up = [(a, b) for a, b, _ in drawn.arrows if drawn.nodes[a][1] < drawn.nodes[b][3]]
    assert len(drawn.arrows) > 50
    assert up == []


@pytest.mark.parametrize("max_depth", [None, 1])
def test_steps_are_stacked(max_depth: int | None) -> None:
    loss, params, recording = unrolled(4)
    group_by: Any = ["step", "module"]
    dot = make_dot(loss, params, group_by=group_by, recording=recording, max_depth=max_depth)
    titles = dict(re.findall(r'^\s*t(\d+) \[label="(inner step \d|outer loss)', dot.source, re.M))
    frames = [box for name, box in draw(dot).frames.items() if name.split("_")[1] in titles]
    assert len(frames) == 5
    frames.sort(key=lambda box: -box[3])
    for above, below in itertools.pairwise(frames):
        assert below[3] <= above[1]
        common = min(above[2], below[2]) - max(above[0], below[0])
        assert common > 0.5 * min(above[2] - above[0], below[2] - below[0])


@pytest.mark.parametrize("max_depth", [None, 1])
@pytest.mark.parametrize("recorded", [True, False])
def test_no_arrow_runs_through_a_title(recorded: bool, max_depth: int | None) -> None:
    loss, params, recording = unrolled(3)
    group_by: Any = ["step", "module"]
    seen = recording if recorded else None
    dot = make_dot(loss, params, group_by=group_by, recording=seen, max_depth=max_depth)
    drawn = draw(dot)
    titles = {name: box for name, box in drawn.nodes.items() if name.startswith("t")}
    assert len(titles) >= 4
    hit = [
        (source, target, name)
        for source, target, points in drawn.arrows
        for name, (left, bottom, right, top) in titles.items()
        if any(left + 1 < x < right - 1 and bottom + 1 < y < top - 1 for x, y in points)
    ]
    assert hit == []


def test_titles_are_at_the_top_of_their_frames() -> None:
    loss, params, recording = unrolled(2)
    group_by: Any = ["step", "module"]
    drawn = draw(make_dot(loss, params, group_by=group_by, recording=recording, max_depth=1))
    for name, (left, bottom, right, top) in drawn.frames.items():
        inside = [
            box[3]
            for node, box in drawn.nodes.items()
            if left <= box[0]
            and box[2] <= right
            and bottom <= box[1]
            and box[3] <= top
            and node.startswith("n")
        ]
        assert drawn.nodes[name.replace("cluster_", "t")][3] >= max(inside)


def test_arrows_leave_a_long_list_at_its_lower_side() -> None:
    w = {f"layers.{i}.weight": torch.ones(2, requires_grad=True) for i in range(5)}
    parts = [
        torch.stack(list(w.values())),
        torch.cat(list(w.values())),
        torch.block_diag(*w.values()),
    ]
    dot = make_dot(torch.stack([part.sum() for part in parts]).prod(), w, fold=True)
    lists = set(re.findall(r'^\s*(n\d+) \[label="layers', dot.source, re.MULTILINE))
    assert lists
    drawn = draw(dot)
    starts = [(drawn.nodes[a], points[0]) for a, _, points in drawn.arrows if a in lists]
    assert len(starts) > 1
    for (left, bottom, right, _), (x, y) in starts:
        assert x == pytest.approx((left + right) / 2, abs=1)
        assert y == pytest.approx(bottom, abs=2)


def test_functions_have_clean_names_everywhere() -> None:
    loss, params, recording = unrolled(2)
    for options in OPTIONS:
        dot = make_dot(loss, params, recording=recording, **options)
        labels = re.findall(r'^\s*n\d+ \[label="?(.*?)"? fillcolor', dot.source, re.MULTILINE)
        assert labels
        assert [label for label in labels if re.search(r"Backward\d", label)] == []
        assert "ForeachAddBackward0List" in dot.source  # as torch calls it, in the tooltip
