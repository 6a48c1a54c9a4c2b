"""Lends these tests the core's conformance table, and what several of them need."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

CORE_TESTS = str(Path(__file__).resolve().parent.parent / "core")
if CORE_TESTS not in sys.path:
    sys.path.append(CORE_TESTS)

from ._accel import Spy  # noqa: E402


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Count the calls of the kernels."""
    return Spy(monkeypatch)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Return a way to set the number of threads for one test."""
    previous = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(previous)
