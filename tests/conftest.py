"""What every test shares: the installed package under test, one seed, and default dtypes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import torchopt

# places below tests/ where one worker runs all tests, one after another
ONE_WORKER = (
    "tests/dist/",  # processes that work together, which need the cores, and share what they found
    "accel/test_emulated_cuda.py",  # what is compiled
    "viz/test_page_panel.py",  # a browser
    "viz/test_page_view.py",
    "viz/test_seed_script.py",  # what an example has found
)
PACKAGES = Path(__file__).resolve().parent.parent / "packages"

hypothesis.settings.register_profile("torchopt", deadline=None, derandomize=True)
hypothesis.settings.load_profile("torchopt")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start


def pytest_configure() -> None:
    location = Path(torchopt.__file__).resolve()
    allowed = os.environ.get("TORCHOPT_TESTS_ALLOW_SOURCE") == "1"
    if location.is_relative_to(PACKAGES) and not allowed:
        raise pytest.UsageError(
            f"the tests must run against the installed torchopt, but it was imported from the "
            f"source tree ({location}); run `nox -s tests`, or set TORCHOPT_TESTS_ALLOW_SOURCE=1"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {}
    if not torch.cuda.is_available():
        lacking["cuda"] = "no CUDA device"
    if torch.__version__ < (2, 13):
        lacking["compile"] = "torch.compile sees into trees with torch 2.13 or later"
    for item in items:
        for marker, reason in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker one test at a time, but all of `ONE_WORKER` to one worker.

    (The groups of pytest-xdist 3.8 are none under pytest 9.2, which has other names of tests.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return next((place for place in ONE_WORKER if f"/{place}" in f"/{path}"), nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype for one test."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)
