"""Pictures of gradient graphs as DOT text."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import graphviz
import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt_viz import gradient_graph, make_dot, record, resize_graph

from .test_graph import adapt


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def boxes(dot: graphviz.Digraph) -> list[str]:
    """Return the labels of the boxes, but not the legend."""
    pattern = r'^\s*n\w+ \[label="?((?:[^"\\]|\\.|\n)*?)"? (?:fillcolor|color|shape|tooltip)='
    return re.findall(pattern, dot.source, flags=re.MULTILINE)


def frames(dot: graphviz.Digraph) -> list[str]:
    """Return the labels of the frames, without their bytes."""
    return re.findall(
        r'^\s*t\d+ \[label="?(.*?)(?:  \([^)]*\))?"? fontsize', dot.source, re.MULTILINE
    )


def adapted(steps: int = 2) -> tuple[Tensor, list[Any], Tensor]:
    lr = torch.tensor(0.1, requires_grad=True)
    out, states = adapt(net(), torch.ones(4, 2), lr, steps=steps)
    return out, [*states, {"lr": lr}], lr


def test_the_signatures_are_those_that_programs_rely_on() -> None:
    def described(function: Callable[..., Any]) -> list[tuple[str, Any]]:
        params = inspect.signature(function).parameters.values()
        return [(p.name, p.default) for p in params if p.kind is not p.KEYWORD_ONLY]

    assert described(torchopt.visual.make_dot) == [
        ("var", inspect.Parameter.empty),
        ("params", None),
        ("show_attrs", False),
        ("show_saved", False),
        ("max_attr_chars", 50),
    ]
    assert described(torchopt.visual.resize_graph) == [
        ("dot", inspect.Parameter.empty),
        ("size_per_element", 0.5),
        ("min_size", 12.0),
    ]
    assert torchopt.visual.make_dot is make_dot


def test_importing_takes_no_plotting_library() -> None:
    program = "import sys, torchopt_viz; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_text_needs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    module = net()
    dot = make_dot(module(torch.ones(1, 2)).sum(), dict(module.named_parameters()))
    assert isinstance(dot, graphviz.Digraph)
    assert dot.source.startswith("digraph")
    assert "0.weight\n(3, 2)" in boxes(dot)


@pytest.mark.parametrize(
    "draw",
    [
        lambda dot, path: dot.render(path / "graph"),
        lambda dot, path: dot.render(filename=path / "graph", format="svg"),
        lambda dot, path: dot.pipe(format="png"),
        lambda dot, path: dot.unflatten(),
    ],
    ids=["render", "render to svg", "pipe", "unflatten"],
)
def test_drawing_without_graphviz_says_in_one_sentence_what_to_install(
    draw: Callable[[graphviz.Digraph, Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dot = make_dot(torch.ones(1, requires_grad=True).sum())
    monkeypatch.setenv("PATH", "")
    with pytest.raises(graphviz.ExecutableNotFound, match="install Graphviz") as caught:
        draw(dot, tmp_path)
    assert "apt install graphviz" in str(caught.value)
    assert caught.value.__suppress_context__
    assert not re.search(r"[.!?] [A-Z]", str(caught.value))


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs the program dot")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"show_saved": True, "show_attrs": True},
        {"group_by": ("step", "module"), "fold": True, "highlight": "lr"},
        {"group_by": "step", "max_depth": 0},
    ],
    ids=str,
)
def test_graphviz_draws_it(options: dict[str, Any]) -> None:
    out, params, _ = adapted()
    odd = {'<b> "quoted" \\N \\': torch.ones(1, requires_grad=True)}
    picture = make_dot(out, [*params, odd], **options).pipe(format="svg")
    assert picture.count(b"<g ") > 3


def test_each_inner_step_has_its_parameters_by_name() -> None:
    out, params, _ = adapted(steps=3)
    shown = " ".join(boxes(make_dot(out, params)))
    assert all(f"step{k}.{n}.weight" in shown for k in range(4) for n in (0, 2))
    assert "lr" in shown


def test_a_legend_explains_what_is_there() -> None:
    out, params, _ = adapted()
    source = make_dot(out, params).source
    for text in ("leaf with a name", "tensor with a name", "function", "output"):
        assert f">{text}</td>" in source
    assert "saved for backward" not in source
    assert ">saved for backward</td>" in make_dot(out, params, show_saved=True).source


def test_the_legend_lists_names_that_are_not_reached() -> None:
    w, lost = (torch.ones(1, requires_grad=True) for _ in range(2))
    source = make_dot(w.sum(), {"w": w, "lost<1>": lost}).source
    assert re.search(r"not reached:<br [^>]*/>lost&lt;1&gt;<", source)
    many = {f"lost{i}": torch.ones(1, requires_grad=True) for i in range(30)}
    assert "and 6 more" in make_dot(w.sum(), many).source


def test_attributes_are_shown_and_cut_to_a_length() -> None:
    out = torch.ones(2, 3, requires_grad=True).sum((0, 1), keepdim=True)
    assert "Sum" in boxes(make_dot(out))
    (box,) = [b for b in boxes(make_dot(out, show_attrs=True)) if b.startswith("Sum")]
    assert "keepdim: True" in box
    (box,) = [
        b for b in boxes(make_dot(out, show_attrs=True, max_attr_chars=2)) if b.startswith("Sum")
    ]
    assert "keepdim: Tr..." in box


def test_saved_tensors_are_shown() -> None:
    dot = make_dot(torch.ones(2, 3, requires_grad=True).exp().sum(), show_saved=True)
    assert "result (2, 3)\nfloat32, 24 B" in boxes(dot)


def test_frames_are_drawn_around_steps_and_modules() -> None:
    out, params, _ = adapted()
    steps = ["inner step 1", "inner step 2", "outer loss"]
    assert frames(make_dot(out, params)) == []
    assert frames(make_dot(out, params, group_by="step")) == steps
    assert frames(make_dot(out, params, group_by=["module"])) == ["0", "2"] * 3
    both = frames(make_dot(out, params, group_by=("step", "module")))
    assert both == [f for step in steps for f in (step, "0", "2")]


@pytest.mark.parametrize(
    ("size", "text"), [(1, "4 B"), (256, "1 KiB"), (384, "1.5 KiB"), (2**20, "4 MiB")]
)
def test_frames_say_how_many_bytes_they_keep(size: int, text: str) -> None:
    w = torch.ones(size, requires_grad=True)
    with record() as recording:
        out = nn.Sequential(nn.Tanh())(w).sum()
    dot = make_dot(out, group_by="module", recording=recording)
    assert f'label="0 (Tanh)  ({text})"' in dot.source


def test_frames_say_when_torch_does_not_show_all_bytes() -> None:
    def adapt_with_momentum() -> tuple[Tensor, list[Any]]:
        module = net()
        states = [torchopt.extract_state_dict(module, enable_visual=True, visual_prefix="0.")]
        inner = torchopt.MetaSGD(module, lr=0.1, momentum=0.9, use_accelerated_op=False)
        for prefix in ("1.", "2."):
            inner.step(module(torch.ones(1, 2)).square().sum())
            state = torchopt.extract_state_dict(module, enable_visual=True, visual_prefix=prefix)
            states.append(state)
        return module(torch.ones(1, 2)).sum(), states

    dot = make_dot(*adapt_with_momentum(), group_by="step")
    assert re.search(r"inner step 2  \(at least [^)]+\)", dot.source)
    assert re.search(r"outer loss  \(\d", dot.source)
    with record() as recording:
        out, states = adapt_with_momentum()
    assert "at least" not in make_dot(out, states, group_by="step", recording=recording).source


def test_groups_deeper_than_the_limit_are_one_box() -> None:
    out, params, _ = adapted()
    closed = make_dot(out, params, group_by="step", max_depth=0)
    assert frames(closed) == []
    heads = [box.splitlines()[0] for box in boxes(closed)]
    assert [head for head in heads if " " in head] == [
        "inner step 1",
        "inner step 2",
        "outer loss",
    ]
    half = make_dot(out, params, group_by=("step", "module"), max_depth=1)
    assert frames(half) == ["inner step 1", "inner step 2", "outer loss"]
    assert sum(box.startswith("0\n") for box in boxes(half)) == 3


def test_a_cut_is_shown_even_in_a_closed_group() -> None:
    module = net()
    with record(module) as recording:
        inner = torchopt.MetaSGD(module, lr=0.1, use_accelerated_op=False)
        loss = module(torch.ones(1, 2)).square().sum()
        loss.detach()
        inner.step(loss)
        out = module(torch.ones(1, 2)).sum()
    dot = make_dot(out, group_by="step", max_depth=0, recording=recording)
    (cut,) = [box for box in boxes(dot) if box.startswith("detached")]
    assert re.fullmatch(r"detached: detach\ntest_dot\.py:\d+", cut)
    assert ">the gradient stops</td>" in dot.source


def test_chains_of_elementwise_functions_fold_into_one_box() -> None:
    w = torch.ones(3, requires_grad=True)
    out = w.exp().exp().sin().mul(w).sum().sigmoid()
    assert boxes(make_dot(out, {"w": w}, fold=True)) == [
        "w\n(3,)",
        "Exp x2\nSin\nMul",
        "Sum",
        "Sigmoid",
        "output\n()",
    ]


def test_a_value_that_is_used_twice_ends_a_chain() -> None:
    w = torch.ones(3, requires_grad=True)
    y = w.exp().sin()
    out = y.cos() * y.tan()
    folded = boxes(make_dot(out, {"w": w}, fold=True))
    assert folded == ["w\n(3,)", "Exp\nSin", "Cos\nTan\nMul", "output\n(3,)"]


def test_tensors_that_are_used_alike_fold_into_one_box() -> None:
    out, params, _ = adapted()
    folded = boxes(make_dot(out, params, group_by="step", max_depth=0, fold=True))
    assert "\n".join(
        ["step0.0.weight (3, 2)", "step0.0.bias (3,)", "step0.2.weight (1, 3)", "step0.2.bias (1,)"]
    ) in [box.replace("\\n", "\n") for box in folded]


def test_leaves_without_names_fold_into_their_number() -> None:
    out = torch.stack([torch.ones(2, requires_grad=True) for _ in range(3)])
    assert boxes(make_dot(out, fold=True))[0] == "3 leaves"


@pytest.mark.parametrize("by_name", [True, False], ids=["name", "tensor"])
def test_paths_to_the_output_are_highlighted(by_name: bool) -> None:
    w, v = (torch.ones(1, requires_grad=True) for _ in range(2))
    out = w.exp() * v.sin()
    plain = make_dot(out, {"w": w, "v": v})
    dot = make_dot(out, {"w": w, "v": v}, highlight="w" if by_name else w)
    assert "penwidth" not in plain.source
    marked = [line for line in dot.source.splitlines() if "penwidth" in line]
    assert len([line for line in marked if "->" in line]) == 3  # w, exp, mul, output
    assert len([line for line in marked if "->" not in line]) == 4
    assert "highlighted" in dot.source


def test_a_tensor_that_shares_its_name_can_be_highlighted() -> None:
    w, v = torch.ones(1, requires_grad=True), torch.ones(2, requires_grad=True)
    dot = make_dot(w.sin() + v.cos().sum(), {w: "p", v: "p"}, highlight=v)
    assert {"p\n(1,)", "p, highlighted\n(2,)"} <= set(boxes(dot))
    with pytest.raises(ValueError, match="`highlight`: 'p' is the name of 2 tensors"):
        make_dot(w.sin() + v.cos().sum(), [("p", w), ("p", v)], highlight="p")


def test_a_tensor_without_a_name_can_be_highlighted() -> None:
    w = torch.ones(1, requires_grad=True)
    y = w.exp()
    dot = make_dot(y.sin(), (x for x in [("w", w)]), highlight=y)
    assert "highlighted\n(1,)" in boxes(dot)
    assert "w\n(1,)" in boxes(dot)


def test_a_fused_step_is_one_coloured_node() -> None:
    pytest.importorskip("torchopt_accel")
    module = net()
    inner = torchopt.MetaAdam(module, lr=0.1, use_accelerated_op=True)
    for _ in range(2):
        inner.step(module(torch.ones(1, 2)).square().sum())
    dot = make_dot(module(torch.ones(1, 2)).sum())
    assert boxes(dot).count("adam step") == 2
    colours = set(re.findall(r'label="adam step" fillcolor="(#\w+)"', dot.source))
    assert len(colours) == 1
    assert f'bgcolor="{colours.pop()}" align="left">fused optimizer step' in dot.source


@pytest.mark.parametrize(
    ("lines", "size_per_element", "min_size", "size"),
    [(1, 0.5, 12.0, "12.0,12.0"), (40, 0.5, 12.0, "20.0,20.0"), (40, 1, 7, "40.0,40.0")],
)
def test_resize_graph_scales_with_what_is_there(
    lines: int, size_per_element: float, min_size: float, size: str
) -> None:
    dot = graphviz.Digraph(body=["a -> b\n"] * lines)
    resize_graph(dot, size_per_element, min_size)
    assert dot.graph_attr["size"] == size


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group_by": "layer"}, ValueError, "`group_by` must be 'step', 'module', both or None"),
        ({"group_by": ["step", 3]}, ValueError, "or None, got ['step', 3]"),
        ({"group_by": 3}, ValueError, "both or None, got 3"),
        ({"max_depth": "1"}, TypeError, "`max_depth` must be an integer, got str"),
        ({"max_attr_chars": None}, TypeError, "`max_attr_chars` must be an integer, got NoneType"),
        ({"max_depth": 1}, ValueError, "`max_depth=1` is a depth of groups: choose `group_by`"),
        ({"max_depth": -1, "group_by": "step"}, ValueError, "non-negative or None, got -1"),
        ({"max_attr_chars": 0}, ValueError, "`max_attr_chars` must be a positive integer, got 0"),
        ({"max_attr_chars": "9"}, TypeError, "`max_attr_chars` must be an integer, got str"),
        ({"highlight": "x"}, ValueError, "`highlight`: no tensor of the graph is named 'x'"),
        ({"highlight": "lost"}, ValueError, "`highlight`: 'lost' does not reach the output"),
        ({"direction": "up"}, ValueError, "`direction` must be 'TB' or 'LR', got 'up'"),
        ({"highlight": 3}, TypeError, "`highlight` must be a tensor or a name, got int"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    w, lost = (torch.ones(1, requires_grad=True) for _ in range(2))
    with pytest.raises(error, match=re.escape(message)):
        make_dot(w.sum(), {"w": w, "lost": lost}, **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"fold": True, "group_by": ("step", "module")}, {"highlight": "lr", "show_saved": True}],
    ids=str,
)
def test_a_graph_is_drawn_as_what_it_was_collected_from(options: dict[str, Any]) -> None:
    out, params, _ = adapted()
    graph = gradient_graph(out, params)
    assert make_dot(graph, **options).source == make_dot(out, params, **options).source


@pytest.mark.parametrize("given", ["params", "recording"])
def test_a_graph_comes_without_params_and_recording(given: str) -> None:
    graph = gradient_graph(torch.ones(1, requires_grad=True).sum())
    with pytest.raises(ValueError, match=rf"`{given}` was given with a Graph.*gradient_graph"):
        make_dot(graph, **{given: {}})  # type: ignore[arg-type]


def test_a_graph_has_no_tensor_to_highlight() -> None:
    w = torch.ones(1, requires_grad=True)
    with pytest.raises(TypeError, match="`highlight` must be a name, with a Graph, got Tensor"):
        make_dot(gradient_graph(w.sum(), {"w": w}), highlight=w)


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs the program dot")
def test_arrows_may_lead_from_left_to_right() -> None:
    out, params, _ = adapted()
    graph = gradient_graph(out, params)
    sizes = {}
    for direction in ("TB", "LR"):
        plain = make_dot(graph, direction=direction).pipe(format="plain").decode()
        places = {
            line.split()[1]: tuple(map(float, line.split()[2:4]))
            for line in plain.splitlines()
            if line.startswith("node n")
        }
        axis = 0 if direction == "LR" else 1
        ends = [line.split()[1:3] for line in plain.splitlines() if line.startswith("edge")]
        along = [places[target][axis] - places[source][axis] for source, target in ends]
        sizes[direction] = all(x > 0 if direction == "LR" else x < 0 for x in along)
    assert sizes == {"TB": True, "LR": True}


def test_a_tensor_that_was_cut_cannot_be_highlighted() -> None:
    w, v = (torch.ones(1, requires_grad=True) for _ in range(2))
    with record() as recording:
        out = w.detach() * v
    with pytest.raises(ValueError, match="`highlight`: 'w' does not reach the output"):
        make_dot(out, {"w": w}, highlight="w", recording=recording)


def test_a_tensor_to_highlight_that_is_not_in_the_graph() -> None:
    w, other = (torch.ones(1, requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="`highlight`: the tensor does not reach the output"):
        make_dot(w.sum(), {"w": w}, highlight=other)
