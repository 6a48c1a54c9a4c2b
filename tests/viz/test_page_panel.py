"""What the HTML page tells in words: hover, search, bytes, cuts, unreached parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._browser import Page, Show, browser, times
from ._page_graphs import UNFRIENDLY, marked, unrolled


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads: Path) -> Iterator[Any]:
    with browser(downloads) as driver:
        yield driver


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Show]:
    showing = Show(driver, tmp_path)
    yield showing
    assert showing.errors() == []


def rows(page: Page, selector: str) -> dict[str, int]:
    """Return the rows of a list of bytes: what they are called, and their bytes."""
    labels = page.elements(f"{selector} > li > .row > .go > span:first-child")
    return {
        label.text: int(row.get_attribute("data-bytes"))
        for label, row in zip(labels, page.elements(f"{selector} > li"), strict=True)
    }


def test_search_finds_names_labels_and_modules(show: Show) -> None:
    page = show(unrolled(64))
    for text, count in [
        ("step7.layers.1.bias", 1),
        ("TANHBACKWARD0", 128),
        ("layers.1 (linear)", 128),
        ("no such thing", 0),
    ]:
        assert page.script("return torchopt.search(arguments[0])", text) == count


def test_search_box_opens_what_hides_a_hit_and_centres_it(show: Show) -> None:
    page = show(unrolled(64))
    page.keys("#canvas", "/")
    query = page.driver.switch_to.active_element
    assert query.get_attribute("id") == "query"
    query.send_keys("step7.layers", "\n")
    assert page.text("#hits") == "1 of 4"
    seen = []
    for _ in range(5):
        focused = page.get("focused")
        (box,) = (box for box in page.get("boxes") if box["id"] == focused)
        seen.append(box["title"])
        canvas = page.element("#canvas").rect
        assert box["x"] + box["width"] / 2 == pytest.approx(canvas["width"] / 2, abs=2)
        assert box["y"] + box["height"] / 2 == pytest.approx(canvas["height"] / 2, abs=2)
        query.send_keys("\n")
    names = ["layers.1.bias", "layers.1.weight", "layers.0.bias", "layers.0.weight"]
    assert sorted(seen[:4]) == sorted(f"step7.{name}" for name in names)
    assert seen[4] == seen[0]
    page.element("#previous").click()
    assert page.text("#hits") == "1 of 4"
    assert "step8.layers.0.bias" not in page.boxes


def test_search_jumps_to_the_first_hit_when_typing_stops(show: Show) -> None:
    page = show(unrolled(8))
    page.keys("#query", "step3")
    page.wait(lambda: page.text("#hits") == "1 of 4", "the first hit")
    page.keys("#query", "x")
    page.wait(lambda: page.text("#hits") == "none", "no hit")


def test_search_closes_what_it_opened_for_the_last_hit(show: Show) -> None:
    page = show(unrolled(8))
    page.keys("#query", "SumBackward step", "\b" * 16, "MseLossBackward0", "\n")
    first = {box["title"] for box in page.get("boxes") if box["open"]}
    page.keys("#query", "\n")
    second = {box["title"] for box in page.get("boxes") if box["open"]}
    assert first - second == {"inner step 0"}
    assert second - first == {"inner step 1"}


def test_hover_tells_shapes_bytes_and_lines(show: Show) -> None:
    graph = unrolled(1)
    page = show(graph)
    page.open_all(graph)
    tip = page.hover("AddmmBackward0")
    for text in [
        *("AddmmBackward0", "saved[0]", "(64) float32 · 256 B", "(250) float32 · 1000 B"),
        *(
            "inner step 0 / layers.1 (Linear)",
            "net.py:11",
        ),
    ]:
        assert text in tip
    tip = page.hover("step0.layers.1.bias")
    for text in ["step0.layers.1.bias", "Tensor", "shape\n(8, 4)", "dtype\nfloat32"]:
        assert text in tip
    assert "alpha\n1" in page.hover("AddBackward0")
    assert "contains\n" in page.hover("layers.0 (Linear)")
    page.mouse(("move", 5, 640))
    assert not page.element("#tip").is_displayed()


def test_bytes_by_step_sum_to_the_total(show: Show) -> None:
    graph = unrolled(5, layers=3)
    memory = graph.memory()
    page = show(graph)
    assert page.get("totalBytes") == memory.total
    assert int(page.element("#total").get_attribute("data-bytes")) == memory.total
    top = rows(page, "#by-step")
    assert sum(top.values()) == memory.total
    steps = rows(page, "#by-step > li > ul")
    assert steps == {
        group.label: memory.inclusive[group.key] for group in graph.groups if group.kind == "step"
    }
    assert sum(steps.values()) == top[times("inner step", 5)]
    page.element("#by-step > li > ul > li .twist").click()
    inside = rows(page, "#by-step > li > ul > li > ul")
    assert sum(inside.values()) == steps["inner step 0"]
    assert inside["the rest"] == memory.own[1]


def test_bytes_by_module_sum_to_the_total(show: Show) -> None:
    graph = unrolled(5, layers=3)
    page = show(graph)
    page.element("#tab-modules").click()
    assert not page.element("#by-step").is_displayed()
    modules = rows(page, "#by-module")
    memory = graph.memory()
    expected = {"not in a module": 0} | {f"layers.{i} (Linear)": 0 for i in range(3)}
    for group in graph.groups:
        row = group.label if group.kind == "module" else "not in a module"
        expected[row] += memory.own[group.key]
    assert modules == expected
    assert sum(modules.values()) == memory.total


def test_bytes_of_many_steps_are_folded(show: Show) -> None:
    page = show(unrolled(64))
    assert not page.element("#by-step > li > ul").is_displayed()
    page.element("#by-step .twist").click()
    assert len(rows(page, "#by-step > li > ul")) == 64


def test_functions_that_torch_does_not_show_the_tensors_of_are_told(show: Show) -> None:
    page = show(marked())
    assert "Not counted: tensors of 1 function that torch does not show" in page.text("#unseen")
    assert "not shown by torch, not counted" in page.hover("SumBackward0")
    assert "not shown" not in page.hover("MulBackward0")
    assert show(unrolled(2)).text("#unseen") == ""


def test_row_of_bytes_leads_to_its_group(show: Show) -> None:
    page = show(unrolled(5))
    page.element("#by-step > li > ul > li:nth-child(3) .go").click()
    focused = page.get("focused")
    assert page.boxes["inner step 2"]["id"] == focused


def test_cuts_are_listed_with_cause_and_line_and_lead_there(show: Show) -> None:
    page = show(marked())
    assert page.text("#cuts .count") == "4"
    buttons = page.elements("#cuts button")
    assert [button.text for button in buttons] == [
        "detached detach · train.py:4",
        "in-place add_ · train.py:5",
        "no_grad mul · train.py:6",
        "integer argmax · train.py:7",
    ]
    page.element("#collapse").click()
    buttons[3].click()
    assert page.get("selected") == page.boxes["argmax"]["id"]
    assert "turned into integers" in page.text("#selection")
    assert "the output is not reached" in page.text("#selection")


def test_unreached_parameters_are_listed(show: Show) -> None:
    page = show(marked())
    assert page.text("#unreached .count") == "2"
    names = [row.text for row in page.elements("#unreached li")]
    assert names == ["head.bias", f"{UNFRIENDLY}2"]
    page = show(unrolled(2))
    assert page.text("#unreached p") == "None."
    assert page.text("#cuts p") == "None found."


def test_legend_names_the_kinds_that_are_there(show: Show) -> None:
    page = show(marked())
    legend = [row.text for row in page.elements("#legend li")]
    assert "Fused optimizer step" in legend
    assert "Place where a gradient is cut" in legend
    assert "Leaf without a name" not in legend


def test_unfriendly_names_are_text_everywhere(show: Show) -> None:
    page = show(marked(), title=UNFRIENDLY)
    assert page.text("h1") == UNFRIENDLY
    assert page.hover(UNFRIENDLY).splitlines()[0] == UNFRIENDLY
    page.click(UNFRIENDLY)
    assert page.text("#selection strong") == UNFRIENDLY
    assert page.elements("main b, aside section b:not(.count):not(#total)") == []
    assert page.script("return torchopt.search(arguments[0])", UNFRIENDLY) == 1


def test_panel_can_be_hidden(show: Show) -> None:
    page = show(marked())
    width = page.element("#canvas").rect["width"]
    page.element("#toggle-panel").click()
    assert not page.element("#panel").is_displayed()
    assert page.element("#canvas").rect["width"] > width + 300
    page.element("#toggle-panel").click()
    assert page.element("#panel").is_displayed()
