"""A real browser without a window and without a network, for the tests of the HTML page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from torchopt_viz import Graph
from torchopt_viz._page import save_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def times(label: str, count: int) -> str:
    """Return the title of a folded box."""
    return f"{label} \N{MULTIPLICATION SIGN} {count}"


@contextmanager
def browser(downloads: Path, *arguments: str) -> Iterator[Any]:
    """Start a headless Chromium; skip the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,800",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        *arguments,
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver_program)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """An opened page, and what a person does with it."""

    def __init__(self, driver: Any, file: Path) -> None:
        self.driver = driver
        driver.get_log("browser")
        driver.get(file.as_uri())
        self.wait(lambda: self.script("return window.torchopt?.ready"), "the page to open")

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60).until(lambda _: condition(), f"waiting for {what}")

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def get(self, name: str) -> Any:
        return self.script(f"return window.torchopt.{name}")

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def elements(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        return str(self.element(selector).text)

    @property
    def boxes(self) -> dict[str, dict[str, Any]]:
        """What is drawn, by title."""
        return {box["title"]: box for box in self.get("boxes")}

    def place(self, title: str) -> tuple[int, int]:
        """Return where to point at to meet a box, or the title of an open one, in the window."""
        box = self.boxes[title]
        scale = self.get("view.scale")
        height = 30 * scale if box["open"] else box["height"]
        return round(box["x"] + box["width"] / 2), round(box["y"] + height / 2)

    def mouse(self, *steps: tuple[str, int, int]) -> None:
        """Do ("move" | "press" | "release", x, y) in the window, one after another."""
        from selenium.webdriver.common.action_chains import ActionBuilder

        actions = ActionBuilder(self.driver, duration=20)
        pointer = actions.pointer_action
        for what, x, y in steps:
            pointer.move_to_location(x, y)
            if what == "press":
                pointer.pointer_down()
            elif what == "release":
                pointer.pointer_up()
        actions.perform()

    def hover(self, title: str) -> str:
        """Point at a box, and return what is told about it."""
        self.mouse(("move", *self.place(title)))
        return self.text("#tip")

    def click(self, title: str) -> None:
        x, y = self.place(title)
        self.mouse(("press", x, y), ("release", x, y))

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        middle = ((start[0] + end[0]) // 2, (start[1] + end[1]) // 2)
        self.mouse(("press", *start), ("move", *middle), ("release", *end))

    def wheel(self, x: int, y: int, amount: int) -> None:
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

        origin = ScrollOrigin.from_viewport(x, y)
        ActionChains(self.driver).scroll_from_origin(origin, 0, amount).perform()

    def keys(self, selector: str, *keys: str) -> None:
        self.element(selector).send_keys(*keys)

    def open_all(self, graph: Graph) -> None:
        """Open all groups, and fit the page to them."""
        for key in range(1, len(graph.groups)):
            self.script("torchopt.expand(torchopt.group(arguments[0]))", key)
        self.element("#fit").click()


class Show:
    """Opens graphs as pages."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def __call__(self, graph: Graph, title: str = "graph") -> Page:
        return Page(self.driver, save_html(graph, path=self.folder / "graph.html", title=title))

    def errors(self) -> list[str]:
        """Return what the console has been told since the last page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]
