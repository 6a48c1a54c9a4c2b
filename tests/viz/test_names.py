"""Names with any characters, and names of compiled modules."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from torch import nn

import torchopt
from torchopt_viz import gradient_graph, make_dot, record, save_html

ODD = ["a, b", "a\x00b", "bell\x07", "two\nlines", "tab\t", "\x1b[31m", "\ud800", "\u202e", "\\N"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_any_name_is_found(name: str) -> None:
    w, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    out = (w.exp() * other).sum()
    names = [(name, w), ("second", w), ("a", other), ("b", other)]
    graph = gradient_graph(out, names)
    node = graph.nodes[graph.find(name)]
    assert node.names == (name, "second")
    assert node.name == f"{name}, second"
    assert graph.find("second") == node.key
    assert graph.nodes[graph.find("b")].names == ("a", "b")
    assert "penwidth" in make_dot(out, names, highlight=name).source


def test_two_names_in_one_are_no_name() -> None:
    w = torch.ones(2, requires_grad=True)
    graph = gradient_graph(w.sum(), [("a", w), ("b", w)])
    with pytest.raises(KeyError, match="no tensor of the graph is named 'a, b'; there are"):
        graph.find("a, b")


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs the program dot")
@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_graphviz_draws_any_name(name: str) -> None:
    w, lost = (torch.ones(2, requires_grad=True) for _ in range(2))
    module = nn.Sequential(nn.Tanh())
    with record() as recording:
        out = module(w).sum()
    names = {name: w, f"lost {name}": lost}
    dot = make_dot(out, names, group_by="module", recording=recording, highlight=name)
    root = ElementTree.fromstring(dot.pipe(format="svg"))
    texts = " ".join(x.text or "" for x in root.iter("{http://www.w3.org/2000/svg}text"))
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()
    assert shown in texts
    assert f"lost {shown}" in texts.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_page_takes_any_name_and_title(name: str, tmp_path: Path) -> None:
    w = torch.ones(2, requires_grad=True)
    file = save_html(w.sum(), {name: w}, path=tmp_path / "graph.html", title=name)
    text = file.read_text(encoding="utf-8")
    (title,) = re.findall(r"<title>(.*?)</title>", text, flags=re.DOTALL)
    assert title.isprintable()


@pytest.mark.parametrize("how", ["module", "dict", "states"])
def test_names_of_compiled_modules_are_those_of_the_module(how: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    compiled = torch.compile(module, backend="eager")
    assert next(compiled.named_parameters())[0] == "_orig_mod.0.weight"  # type: ignore[attr-defined]
    out = module(torch.ones(1, 2)).sum()
    if how == "states":
        params = torchopt.extract_state_dict(compiled, enable_visual=True, visual_prefix="step0.")
    else:
        params = compiled if how == "module" else dict(compiled.named_parameters())  # type: ignore[attr-defined]
    prefix = "step0." if how == "states" else ""
    graph = gradient_graph(out, params)
    names = {name for node in graph.nodes for name in node.names}
    assert names == {f"{prefix}0.weight", f"{prefix}0.bias", "output"}
    assert graph.find(f"{prefix}_orig_mod.0.weight") == graph.find(f"{prefix}0.weight")
    if how != "states":
        assert [group.label for group in graph.groups] == ["graph", "0"]


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
@pytest.mark.parametrize("is_given", [False, True])
def test_recordings_know_compiled_modules_by_their_own_names(is_given: bool) -> None:
    inner = torch.compile(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), backend="eager")
    module = nn.Sequential(inner, nn.Linear(3, 1))
    torch.compiler.set_stance("force_eager")
    try:
        with record(module if is_given else None) as recording:
            out = module(torch.ones(1, 2)).sum()
    finally:
        torch.compiler.set_stance("default")
    found = [group.label for group in gradient_graph(out, recording=recording).groups]
    outer = [] if is_given else ["Sequential"]
    assert found == [
        *("graph", *outer, "0 (Sequential)", "0.0 (Linear)", "0.1 (Tanh)", "1 (Linear)")
    ]
