"""The HTML file of a graph: self-contained, compact, and safe for any name."""

from __future__ import annotations

import html
import json
import re
import struct
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchopt_viz import Graph, _page, gradient_graph, record
from torchopt_viz._page import save_html

from ._page_graphs import UNFRIENDLY, Builder, flat, marked, unrolled


def decode(text: str) -> dict[str, Any]:
    """Return the records in a page: nodes, edges and groups, read as the page reads them."""
    match = re.search(r'<script type="application/octet-stream" id="data">([^<]*)</script>', text)
    assert match is not None
    data = zlib.decompress(b64decode(match[1]))
    (length,) = struct.unpack_from("<I", data)
    head = json.loads(data[4 : 4 + length])
    at = 4 + length
    columns = {}
    for name, count, width in head["columns"]:
        planes = [data[at + plane * count : at + (plane + 1) * count] for plane in range(width)]
        columns[name] = [
            sum(plane[i] << 8 * place for place, plane in enumerate(planes)) for i in range(count)
        ]
        at += width * count
    assert at == len(data)
    edges = []
    target = 0
    for step, zigzag in zip(columns["targetStep"], columns["sourceOffset"], strict=True):
        target += step
        edges.append((target - (-(zigzag + 1) // 2 if zigzag % 2 else zigzag // 2), target))
    return {**head, **columns, "edges": edges}


class Elements(HTMLParser):
    """Lists the elements of a page, and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize("graph", [unrolled(3), marked(), flat(2500)], ids=len)
def test_file_holds_the_whole_graph(tmp_path: Path, graph: Graph) -> None:
    page = decode(save_html(graph, path=tmp_path / "graph.html").read_text(encoding="utf-8"))
    strings = page["strings"]
    for column in ("kind", "label", "name", "dtype", "where", "cause"):
        found = [strings[i] or None for i in page[column]]
        assert found == [getattr(node, column) for node in graph.nodes]
    assert page["group"] == [node.group for node in graph.nodes]
    assert sorted(page["edges"]) == sorted(graph.edges)
    assert page["groups"] == [[group.parent, group.kind, group.label] for group in graph.groups]
    assert page["repeats"] == [list(repeat.groups) for repeat in graph.repeats]
    assert page["unreached"] == list(graph.unreached)
    assert page["unseen"] == list(graph.unseen)
    assert page["savedBytes"] == [saved.nbytes for node in graph.nodes for saved in node.saved]
    assert sum(page["savedBytes"]) == graph.memory().total


def test_file_holds_numbers_of_any_size_and_edges_in_any_direction(tmp_path: Path) -> None:
    build = Builder()
    first = build.node("function", "A", saved=(2**40 + 7, 0, 255, 256))
    second = build.node("function", "B", first)
    build.edges.append((second, first))
    page = decode(
        save_html(build.graph(), path=tmp_path / "graph.html").read_text(encoding="utf-8")
    )
    assert page["savedBytes"] == [2**40 + 7, 0, 255, 256]
    assert page["edges"] == [(1, 0), (0, 1)]


def test_file_refers_to_nothing_outside(tmp_path: Path) -> None:
    text = save_html(marked(), path=tmp_path / "graph.html").read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(text)
    assert elements.references == []
    assert not {"link", "img", "iframe", "base", "object"} & set(elements.tags)
    assert "default-src 'none'" in text
    assert "sourceMappingURL" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    # the name of the SVG format, which no browser looks up
    assert set(re.findall(r"https?://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("title", ["plain", UNFRIENDLY, "<!--{data}-->", r"\1 \g<0>"])
def test_title_is_shown_as_text(tmp_path: Path, title: str) -> None:
    text = save_html(marked(), path=tmp_path / "graph.html", title=title).read_text(
        encoding="utf-8"
    )
    elements = Elements()
    elements.feed(text)
    plain = Elements()
    plain.feed(save_html(marked(), path=tmp_path / "plain.html").read_text(encoding="utf-8"))
    assert elements.tags == plain.tags


def test_file_of_100_000_nodes_has_few_megabytes(tmp_path: Path) -> None:
    graph = unrolled(64, layers=12, depth=60)
    assert 98_000 < len(graph.nodes) < 102_000
    file = save_html(graph, path=tmp_path / "graph.html")
    assert file.stat().st_size < 2 * 2**20


def test_returns_the_path_of_the_file(tmp_path: Path) -> None:
    assert save_html(marked(), path=str(tmp_path / "graph.html")) == tmp_path / "graph.html"


def test_takes_what_make_dot_takes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    names = dict(net.named_parameters())
    with record(net) as recording:
        hidden = net(torch.ones(4, 2))
        loss = hidden.mean() + hidden.detach().sum()
    graph = gradient_graph(loss, names, recording=recording)
    page = decode(save_html(graph, path=tmp_path / "graph.html").read_text(encoding="utf-8"))
    assert page == decode(
        save_html(loss, names, path=tmp_path / "loss.html", recording=recording).read_text("utf-8")
    )
    assert {"0.weight", "0 (Linear)", "cut", "detached"} <= {
        *page["strings"],
        *(label for _, _, label in page["groups"]),
    }


def test_tensor_without_a_graph_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no graph"):
        save_html(torch.ones(2), path=tmp_path / "graph.html")
    assert not (tmp_path / "graph.html").exists()


@pytest.mark.parametrize("given", ["params", "recording"])
def test_graph_takes_no_params_or_recording(tmp_path: Path, given: str) -> None:
    with pytest.raises(ValueError, match=rf"`{given}` was given with a Graph.*gradient_graph"):
        save_html(marked(), path=tmp_path / "graph.html", **{given: {}})
    assert not (tmp_path / "graph.html").exists()


def test_notebooks_show_the_page() -> None:
    shown = marked()._repr_html_()
    frame = Elements()
    frame.feed(shown)
    assert frame.tags == ["iframe"]
    (source,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert decode(html.unescape(source))["unreached"] == ["head.bias", f"{UNFRIENDLY}2"]
    assert "allow-same-origin" not in shown


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        save_html(marked(), path=tmp_path / "missing" / "graph.html")


def test_scripts_of_the_page_are_packaged() -> None:
    viewer = _page.resources.files("torchopt_viz") / "viewer"
    packaged = {file.name for file in viewer.iterdir() if file.name.endswith(".js")}
    assert packaged == set(_page._SCRIPTS)
