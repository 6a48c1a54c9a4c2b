"""Where the page leads links: past boxes that are not theirs, and across few others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from torchopt_viz import Graph

from ._browser import Page, Show, browser
from ._page_graphs import beside, conv4, marked, there_and_back, unrolled

# counted in the browser, which has the points of the links
MEASURE = """
const { links, boxes } = torchopt;
const parents = torchopt.parents;
const around = (id) => {
    const found = new Set();
    for (let at = id; at !== undefined; at = parents[at]) found.add(at);
    return found;
};
const side = (p, q, r) => (q.x - p.x) * (r.y - p.y) - (q.y - p.y) * (r.x - p.x);
const cross = (a, b, c, d) =>
    side(a, b, c) * side(a, b, d) < 0 && side(c, d, a) * side(c, d, b) < 0;
const meets = (a, b, box) => {
    let [from, to] = [0, 1];
    const slack = 0.01 * Math.min(box.width, box.height);
    const sides = [
        [a.x - b.x, a.x - box.x - slack], [b.x - a.x, box.x + box.width - slack - a.x],
        [a.y - b.y, a.y - box.y - slack], [b.y - a.y, box.y + box.height - slack - a.y],
    ];
    for (const [p, q] of sides) {
        if (p === 0 && q < 0) return false;
        if (p < 0) from = Math.max(from, q / p);
        if (p > 0) to = Math.min(to, q / p);
    }
    return to - from > 1e-9;
};
const pieces = links.flatMap(({ points }, link) =>
    points.slice(1).map((end, i) => ({ link, start: points[i], end })));
let crossings = 0;
for (let i = 0; i < pieces.length; i++) {
    for (let j = 0; j < i; j++) {
        const [one, other] = [pieces[i], pieces[j]];
        if (one.link !== other.link) {
            crossings += cross(one.start, one.end, other.start, other.end);
        }
    }
}
const foreign = links.filter(({ source, target, points }) => {
    const own = new Set([...around(source), ...around(target)]);
    return boxes.some((box) => !own.has(box.id) &&
        points.slice(1).some((end, i) => meets(points[i], end, box)));
}).map(({ from, to }) => `${from} > ${to}`);
return { crossings, foreign, links: links.length };
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Show]:
    showing = Show(driver, tmp_path)
    yield showing
    assert showing.errors() == []


def measure(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.script(MEASURE)
    return found


def test_conv4_all_open_has_few_crossings(show: Show) -> None:
    graph = conv4(steps=2)
    page = show(graph)
    page.open_all(graph)
    page.script("for (const box of torchopt.boxes) torchopt.expand(box.id)")
    found = measure(page)
    assert found["links"] > 300
    assert found["foreign"] == []
    assert found["crossings"] <= 500


@pytest.mark.parametrize(
    "graph",
    [
        marked(),
        beside(),
        there_and_back(),
        unrolled(3),
        unrolled(2, layers=10),
        unrolled(1, depth=60),
    ],
    ids=["marked", "beside", "there and back", "steps", "many parameters", "deep"],
)
def test_no_link_leads_through_a_box_that_is_not_its_own(show: Show, graph: Graph) -> None:
    page = show(graph)
    assert measure(page)["foreign"] == []
    page.open_all(graph)
    page.script("for (const box of torchopt.boxes) torchopt.expand(box.id)")
    assert measure(page)["foreign"] == []


def test_no_line_is_behind_the_rows_of_open_parameters(show: Show) -> None:
    page = show(unrolled(2, layers=20))
    page.click("parameters")
    found = measure(page)
    assert len({box["y"] for box in page.get("boxes") if box["title"].startswith("layers")}) > 1
    assert found["foreign"] == []
