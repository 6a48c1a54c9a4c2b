"""The page on phones, tablets and desktops, light and dark, by mouse, fingers and keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ._browser import Page, Show, browser
from ._page_graphs import flat, marked, unrolled


class Screen(NamedTuple):
    """A window, and whether it is touched."""

    width: int
    height: int
    touch: bool
    scheme: str


SCREENS = [
    Screen(width, height, touch, scheme)
    for width, height, touch in [(390, 844, True), (768, 1024, True), (1440, 900, False)]
    for scheme in ("light", "dark")
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("downloads")) as driver:
        yield driver


@pytest.fixture
def show(driver: Any, tmp_path: Path) -> Iterator[Show]:
    showing = Show(driver, tmp_path)
    yield showing
    assert showing.errors() == []


def emulate(driver: Any, screen: Screen) -> None:
    size = {"width": screen.width, "height": screen.height, "deviceScaleFactor": 1}
    metrics = {**size, "mobile": screen.touch}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    touch = {"enabled": screen.touch, "maxTouchPoints": 2 if screen.touch else 1}
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", touch)
    features = [{"name": "prefers-color-scheme", "value": screen.scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture(params=SCREENS, ids=lambda s: f"{s.width} {s.scheme}")
def screen(request: pytest.FixtureRequest, driver: Any) -> Screen:
    emulate(driver, request.param)
    chosen: Screen = request.param
    return chosen


def phone(driver: Any) -> Screen:
    emulate(driver, SCREENS[0])
    return SCREENS[0]


def touch(page: Page, kind: str, *places: tuple[float, float]) -> None:
    points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
    page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


def tap(page: Page, title: str) -> None:
    touch(page, "touchStart", page.place(title))
    touch(page, "touchEnd")


def reach(page: Page, selector: str) -> bool:
    """Return whether the middle of an element can be touched: it is in the window, and on top."""
    return bool(
        page.script(
            """
            const found = document.querySelector(arguments[0]);
            const { left, top, width, height } = found.getBoundingClientRect();
            const hit = document.elementFromPoint(left + width / 2, top + height / 2);
            return hit === found || found.contains(hit);
            """,
            selector,
        )
    )


def test_the_graph_has_most_of_the_window(show: Show, screen: Screen) -> None:
    canvas = show(marked()).element("#canvas").rect
    assert canvas["width"] >= (screen.width if screen.width < 700 else 0.6 * screen.width)
    assert canvas["height"] == screen.height


def test_every_button_can_be_reached_with_and_without_the_panel(show: Show, screen: Screen) -> None:
    page = show(marked())
    buttons = [f"#{button.get_attribute('id')}" for button in page.elements("#tools button")]
    shown = []
    for _ in range(2):
        assert [button for button in buttons if not reach(page, button)] == []
        shown.append(page.element("#panel").is_displayed())
        expanded = page.element("#toggle-panel").get_attribute("aria-expanded")
        assert expanded == str(shown[-1]).lower()
        page.element("#toggle-panel").click()
    assert sorted(shown) == [False, True]
    assert shown[0] == (screen.width > 700)


def test_nothing_is_wider_than_the_window(show: Show, screen: Screen) -> None:
    page = show(unrolled(3))
    page.script("document.getElementById('panel').hidden = false")
    wide = page.script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide == [screen.width, screen.width]
    assert page.element("#panel").rect["width"] <= screen.width
    assert page.element("#canvas").rect["width"] > 0


def test_tall_graphs_begin_at_full_size(show: Show, screen: Screen) -> None:
    page = show(flat(30))
    assert max(box["y"] + box["height"] for box in page.get("boxes")) > screen.height
    assert page.get("view.scale") == 1
    assert min(box["y"] for box in page.get("boxes")) > page.element("#tools").rect["height"]


def test_opens_and_selects_and_searches_by_mouse_or_finger(show: Show, screen: Screen) -> None:
    page = show(unrolled(3))
    press = tap if screen.touch else Page.click
    press(page, "inner step 1")
    assert page.boxes["inner step 1"]["open"]
    page.script("torchopt.collapse(torchopt.group(1)); torchopt.fit()")
    press(page, "layers.0.weight")
    assert page.get("selected") == page.boxes["layers.0.weight"]["id"]
    assert page.element("#tip").is_displayed() == screen.touch
    page.keys("#canvas", "/")
    assert page.driver.switch_to.active_element.get_attribute("id") == "query"
    page.keys("#query", "step2.layers.1.bias", "\n")
    focused = page.get("focused")
    (box,) = (box for box in page.get("boxes") if box["id"] == focused)
    canvas = page.element("#canvas").rect
    assert box["title"] == "step2.layers.1.bias"
    assert 0 <= box["x"] <= canvas["width"]
    assert 0 <= box["y"] <= canvas["height"]


def test_two_fingers_zoom_about_their_middle(show: Show, driver: Any) -> None:
    phone(driver)
    page = show(marked())
    x, y = page.place("MulBackward0")
    before = page.boxes["MulBackward0"]["width"]
    touch(page, "touchStart", (x - 20, y), (x + 20, y))
    for apart in (25, 30, 35, 40):
        touch(page, "touchMove", (x - apart, y), (x + apart, y))
    touch(page, "touchEnd")
    assert page.boxes["MulBackward0"]["width"] == pytest.approx(2 * before, rel=0.02)
    assert page.place("MulBackward0") == (pytest.approx(x, abs=3), pytest.approx(y, abs=3))
    assert page.get("selected") is None
    touch(page, "touchStart", (x - 40, y), (x + 40, y))
    touch(page, "touchMove", (x - 20, y), (x + 20, y))
    touch(page, "touchEnd")
    assert page.boxes["MulBackward0"]["width"] == pytest.approx(before, rel=0.02)


def test_one_finger_pans_and_two_move_together(show: Show, driver: Any) -> None:
    phone(driver)
    page = show(marked())
    scale = page.get("view.scale")
    places = [page.boxes["weight"]["x"]]
    touch(page, "touchStart", (100, 600))
    touch(page, "touchMove", (130, 640))
    touch(page, "touchEnd")
    places.append(page.boxes["weight"]["x"])
    touch(page, "touchStart", (100, 600), (200, 600))
    touch(page, "touchMove", (130, 600), (230, 600))
    touch(page, "touchEnd")
    places.append(page.boxes["weight"]["x"])
    assert places[1] - places[0] == pytest.approx(30, abs=1)
    assert places[2] - places[1] == pytest.approx(30, abs=1)
    assert page.get("view.scale") == pytest.approx(scale)


def test_fingers_have_room_on_buttons(show: Show, driver: Any) -> None:
    phone(driver)
    page = show(unrolled(3))
    page.element("#toggle-panel").click()
    buttons = [b for b in page.elements("button") if b.is_displayed() and b.is_enabled()]
    assert buttons
    assert all(min(b.rect["width"], b.rect["height"]) >= 39.5 for b in buttons)


def test_the_graph_fits_again_when_the_window_changes(show: Show, driver: Any) -> None:
    emulate(driver, SCREENS[-1])
    page = show(unrolled(3))
    phone(driver)
    page.wait(lambda: page.script("return innerWidth") == 390, "the window")
    canvas = page.element("#canvas").rect
    for box in page.get("boxes"):
        assert 0 <= box["x"] <= box["x"] + box["width"] <= canvas["width"]
