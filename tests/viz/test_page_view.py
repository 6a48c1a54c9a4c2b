"""The graph on the HTML page in a real browser, driven by mouse and keyboard."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._browser import Show, browser, times
from ._page_graphs import UNFRIENDLY, Builder, beside, flat, marked, there_and_back, unrolled


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


def test_page_shows_a_small_graph_at_once(show: Show) -> None:
    page = show(marked(), title="Two steps")
    assert page.driver.title == page.text("h1") == "Two steps"
    assert page.text("#summary") == "10 nodes, 10 edges"
    assert set(page.boxes) == {
        *("weight", UNFRIENDLY, "inner step 0", "MulBackward0", "FusedAdam", "detach", "add_"),
        *("mul", "argmax", "SumBackward0", "loss"),
    }


def test_boxes_do_not_overlap(show: Show) -> None:
    graph = unrolled(2, layers=3)
    page = show(graph)
    page.open_all(graph)
    boxes = [box for box in page.get("boxes") if not box["open"]]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert (
                one["x"] + one["width"] <= other["x"] + 1
                or other["x"] + other["width"] <= one["x"] + 1
                or one["y"] + one["height"] <= other["y"] + 1
                or other["y"] + other["height"] <= one["y"] + 1
            ), (one, other)


def test_data_flows_downwards(show: Show) -> None:
    page = show(marked())
    boxes = page.boxes
    for link in page.get("links"):
        source, target = boxes[link["from"]], boxes[link["to"]]
        assert source["y"] + source["height"] < target["y"]


def test_drag_pans(show: Show) -> None:
    page = show(marked())
    before = page.boxes["weight"]
    page.drag((200, 500), (290, 440))
    after = page.boxes["weight"]
    assert after["x"] - before["x"] == pytest.approx(90, abs=1)
    assert after["y"] - before["y"] == pytest.approx(-60, abs=1)
    assert after["width"] == before["width"]


def test_wheel_zooms_about_the_pointer(show: Show) -> None:
    page = show(marked())
    x, y = page.place("MulBackward0")
    before = page.boxes["MulBackward0"]
    page.wheel(x, y, -300)
    after = page.boxes["MulBackward0"]
    assert after["width"] > 1.3 * before["width"]
    assert page.place("MulBackward0") == (pytest.approx(x, abs=2), pytest.approx(y, abs=2))
    page.wheel(x, y, 600)
    assert page.boxes["MulBackward0"]["width"] < before["width"]


@pytest.mark.parametrize(("button", "key"), [("#zoom-in", "+"), ("#zoom-out", "-")])
def test_buttons_and_keys_zoom(show: Show, button: str, key: str) -> None:
    page = show(marked())
    scales = [page.get("view.scale")]
    page.element(button).click()
    scales.append(page.get("view.scale"))
    page.keys("#canvas", key)
    scales.append(page.get("view.scale"))
    assert scales == sorted(scales, reverse=key == "-")
    assert len(set(scales)) == 3


@pytest.mark.parametrize("how", ["button", "key"])
def test_fit_shows_everything(show: Show, how: str) -> None:
    graph = unrolled(4)
    page = show(graph)
    page.open_all(graph)
    page.drag((200, 500), (700, 100))
    if how == "button":
        page.element("#fit").click()
    else:
        page.keys("#canvas", "0")
    canvas = page.element("#canvas").rect
    for box in page.get("boxes"):
        assert 0 <= box["x"] <= box["x"] + box["width"] <= canvas["width"]
        assert 0 <= box["y"] <= box["y"] + box["height"] <= canvas["height"]


def test_click_opens_and_closes_a_group_in_place(show: Show) -> None:
    page = show(unrolled(3))
    assert "TanhBackward0" not in page.boxes
    before = page.boxes["inner step 1"]
    page.click("inner step 1")
    opened = page.boxes
    assert opened["inner step 1"]["open"]
    assert "step1.layers.0.weight" in opened
    assert opened["inner step 1"]["y"] == pytest.approx(before["y"], abs=1)
    page.click("inner step 1")
    assert not page.boxes["inner step 1"]["open"]
    assert "step1.layers.0.weight" not in page.boxes
    assert page.boxes["inner step 1"]["y"] == pytest.approx(before["y"], abs=1)


def test_group_stays_under_the_pointer_when_its_row_shrinks(show: Show) -> None:
    page = show(beside())
    before = page.boxes["short"]
    page.click("short")
    after = page.boxes["short"]
    assert (before["open"], after["open"]) == (True, False)
    assert after["y"] == pytest.approx(before["y"], abs=1)
    page.click("short")
    assert page.boxes["short"] == {**before, "y": pytest.approx(before["y"], abs=1)}


def test_links_back_to_a_group_are_drawn_upwards(show: Show) -> None:
    page = show(there_and_back())
    page.element("#collapse").click()
    boxes = page.boxes
    links = {(link["from"], link["to"]): link["points"] for link in page.get("links")}
    assert set(links) == {
        *(("x", "outer"), ("late", "outer"), ("outer", "inner"), ("inner", "outer")),
        ("outer", "y"),
    }
    bottom = boxes["outer"]["y"] + boxes["outer"]["height"]
    assert bottom < boxes["inner"]["y"]
    for start, end in [("outer", "inner"), ("inner", "outer")]:
        points = links[start, end]
        ends = {"outer": bottom, "inner": boxes["inner"]["y"]}
        assert points[0]["y"] == pytest.approx(ends[start])
        assert points[-1]["y"] == pytest.approx(ends[end])
    assert boxes["late"]["y"] == pytest.approx(boxes["x"]["y"])


def test_links_end_at_their_boxes(show: Show) -> None:
    for graph in [there_and_back(), unrolled(2, layers=3), marked()]:
        page = show(graph)
        page.open_all(graph)
        boxes: dict[str, list[dict[str, float]]] = {}
        for box in page.get("boxes"):
            boxes.setdefault(box["title"], []).append(box)
        for link in page.get("links"):
            for title, point in [
                (link["from"], link["points"][0]),
                (link["to"], link["points"][-1]),
            ]:
                assert any(
                    box["x"] - 1 <= point["x"] <= box["x"] + box["width"] + 1
                    and min(abs(box["y"] - point["y"]), abs(box["y"] + box["height"] - point["y"]))
                    < 1
                    for box in boxes[title]
                )


def test_links_between_closed_groups_are_merged_with_a_count(show: Show) -> None:
    page = show(unrolled(3))
    links = {(link["from"], link["to"]): link["count"] for link in page.get("links")}
    # each of 4 parameters is used forward and by its update
    assert links["inner step 0", "inner step 1"] == 8
    assert links["inner step 2", "MeanBackward0"] == 4


def test_collapse_all_closes_every_group(show: Show) -> None:
    page = show(unrolled(3))
    page.click("inner step 1")
    page.element("#collapse").click()
    assert not any(box["open"] for box in page.get("boxes"))
    assert times("inner step", 3) in page.boxes


def test_repeated_steps_are_folded_and_open(show: Show) -> None:
    page = show(unrolled(64))
    assert times("inner step", 64) in page.boxes
    assert "inner step 7" not in page.boxes
    page.click(times("inner step", 64))
    assert {f"inner step {step}" for step in range(64)} <= set(page.boxes)
    page.click(times("inner step", 64))
    assert "inner step 7" not in page.boxes


def test_click_marks_the_paths_to_the_output(show: Show) -> None:
    graph = marked()
    page = show(graph)
    page.click("weight")
    names = {graph.nodes[key].name or graph.nodes[key].label for key in graph.path("weight")}
    on_path = {title for title, box in page.boxes.items() if box["onPath"]}
    assert on_path == names
    links = {(link["from"], link["to"]) for link in page.get("links") if link["onPath"]}
    assert links == {
        *(("weight", "MulBackward0"), ("weight", "FusedAdam"), ("MulBackward0", "FusedAdam")),
        *(("FusedAdam", "SumBackward0"), ("SumBackward0", "loss")),
    }
    assert f"{len(names)} nodes on the way to the output" in page.text("#selection")
    page.click("weight")
    assert not any(box["onPath"] for box in page.get("boxes"))
    assert not page.element("#selection").is_displayed()


def test_paths_stay_marked_when_groups_close(show: Show) -> None:
    page = show(unrolled(3))
    page.click("layers.0.weight")
    page.element("#collapse").click()
    assert {title for title, box in page.boxes.items() if box["onPath"]} == {
        *("layers.0.weight", times("inner step", 3), "MeanBackward0", "loss")
    }


def test_keyboard_moves_opens_and_selects(show: Show) -> None:
    from selenium.webdriver.common.keys import Keys

    page = show(unrolled(3))
    titles = {box["id"]: box["title"] for box in page.get("boxes")}
    page.keys("#canvas", Keys.ARROW_DOWN)
    assert titles[page.get("focused")] in titles.values()
    for _ in range(10):
        if titles[page.get("focused")] == "inner step 1":
            break
        page.keys("#canvas", Keys.ARROW_DOWN)
    assert page.element("#announce").get_attribute("textContent").startswith("inner step 1, ")
    page.keys("#canvas", Keys.ENTER)
    assert page.boxes["inner step 1"]["open"]
    page.keys("#canvas", Keys.ENTER)
    assert not page.boxes["inner step 1"]["open"]
    for _ in range(3):
        page.keys("#canvas", Keys.ARROW_DOWN)
    page.keys("#canvas", Keys.ENTER)
    assert page.boxes["loss"]["id"] == page.get("selected")
    page.keys("#canvas", Keys.ESCAPE)
    assert page.get("selected") is None


def test_saved_picture_shows_what_is_on_the_page(show: Show, downloads: Path) -> None:
    page = show(marked(), title="a picture")
    page.element("#export").click()
    file = page.wait(lambda: next(iter(downloads.glob("*.svg")), None), "the file")
    text = file.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"weight", "inner step 0", "FusedAdam", "loss", "(8, 4)"} <= texts
    paths = list(root.iter("{http://www.w3.org/2000/svg}path"))
    assert len(paths) == 2 * len(page.get("links"))
    assert not re.search(r"NaN|undefined|null", text)


def test_long_lists_of_nodes_are_shown_in_parts(show: Show) -> None:
    page = show(flat(5000))
    assert set(page.boxes) == {f"part {i} of 5" for i in range(1, 6)}
    page.click("part 2 of 5")
    assert len(page.get("boxes")) == 5 + 1000
    assert page.script("return torchopt.search('y')") == 1


def test_too_many_boxes_are_refused_with_a_message(show: Show) -> None:
    page = show(flat(9000))
    opened = [page.script("return torchopt.expand(9000 + arguments[0])", i) for i in range(1, 10)]
    assert opened == [True] * 5 + [False] * 4
    assert "6,000 at most: close a group first" in page.text("#status")
    page.keys("#query", "y", "\n")
    page.wait(lambda: page.text("#hits") == "1 of 1", "the hit")
    assert "y" in page.boxes
    assert "Other groups were closed" in page.text("#status")


def test_many_parameters_are_one_box(show: Show) -> None:
    page = show(unrolled(2, layers=10))
    assert "parameters" in page.boxes
    assert "layers.3.bias" not in page.boxes
    page.click("parameters")
    assert "layers.3.bias" in page.boxes
    links = {(link["from"], link["to"]) for link in page.get("links")}
    assert ("layers.3.bias", "inner step 0") in links


def test_many_learning_rates_are_not_among_the_parameters(show: Show) -> None:
    build = Builder()
    out = []
    for i in range(14):
        weight = build.node("parameter", "Parameter", name=f"layers.{i}.weight")
        rate = build.node("parameter", "Tensor", name=f"lr.{i}")
        used = build.node("function", "AddmmBackward0", weight)
        out.append(build.node("function", "MulBackward0", rate, used))
    build.node("output", "Tensor", build.node("function", "StackBackward0", *out), name="y")
    page = show(build.graph())
    assert {"parameters", "parameters: tensors into Mul"} <= set(page.boxes)
    page.click("parameters")
    assert "layers.3.weight" in page.boxes
    assert "lr.3" not in page.boxes


def test_page_of_100_000_nodes_opens(show: Show) -> None:
    graph = unrolled(64, layers=12, depth=60)
    page = show(graph)
    assert page.text("#summary") == f"{len(graph.nodes):,} nodes, {len(graph.edges):,} edges"
    assert set(page.boxes) == {"parameters", times("inner step", 64), "MeanBackward0", "loss"}
    assert page.get("totalBytes") == graph.memory().total
    page.click(times("inner step", 64))
    page.keys("#query", "step63.layers.11.weight", "\n")
    assert page.boxes["step63.layers.11.weight"]["id"] == page.get("focused")
    page.click("step63.layers.11.weight")
    count = len(graph.path("step63.layers.11.weight"))
    assert f"{count} nodes on the way to the output" in page.text("#selection")


def test_expanding_2_000_nodes_at_once_draws_them_all(show: Show) -> None:
    graph = unrolled(1, layers=1, depth=960)
    page = show(graph)
    page.open_all(graph)
    assert sum(not box["open"] for box in page.get("boxes")) == len(graph.nodes)


def test_colours_follow_the_system(show: Show) -> None:
    page = show(marked())
    for scheme, back in [("light", "#f7f7f5"), ("dark", "#15171c"), ("light", "#f7f7f5")]:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.wait(lambda back=back: f'fill="{back}"' in page.script("return torchopt.svg()"), back)
        assert scheme == page.script(
            "return matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light'"
        )


def test_canvas_is_drawn_on(show: Show) -> None:
    page = show(marked())
    count = """
        const canvas = document.getElementById("canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const colours = new Map();
        for (let i = 0; i < data.length; i += 4) {
            const colour = data.slice(i, i + 3).join();
            colours.set(colour, (colours.get(colour) ?? 0) + 1);
        }
        return Object.fromEntries(colours);
    """
    output_fill, cut_fill, nowhere = "217,239,212", "251,224,218", "1,2,3"
    for _ in range(100):  # the browser draws when it gets to it
        pixels = page.script(count)
        if output_fill in pixels:
            break
        time.sleep(0.1)
    area = page.boxes["loss"]["width"] * page.boxes["loss"]["height"]
    assert 0.5 * area < pixels[output_fill] < area
    assert pixels[cut_fill] > 2 * area
    assert nowhere not in pixels


def test_nothing_is_loaded_from_elsewhere(show: Show) -> None:
    page = show(marked())
    assert page.script("return performance.getEntriesByType('resource').map((e) => e.name)") == []
