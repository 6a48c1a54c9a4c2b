"""One, two, three and four ranks find the same, and each rank what the others find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optree
import pytest
import torch

from ._launch import launch
from ._map_tasks_program import CASES

PROGRAM = Path(__file__).with_name("_map_tasks_program.py")
Found = list[dict[tuple[str, bool], dict[str, Any]]]


def run(folder: Path, nproc: int | None) -> Found:
    launch(PROGRAM, nproc, args=[str(folder)]).check()
    return [torch.load(folder / f"{rank}.pt") for rank in range(nproc or 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process finds without `torchrun`."""
    return run(tmp_path_factory.mktemp("alone"), None)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=pytest.mark.slow if n in (1, 4) else (), id=f"{n} ranks")
        for n in (1, 2, 3, 4)
    ],
)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank finds under `torchrun`."""
    return run(tmp_path_factory.mktemp("together"), request.param)


def leaves(result: dict[str, Any]) -> list[Any]:
    return optree.tree_leaves(result, none_is_leaf=True)


@pytest.mark.parametrize("name", CASES)
def test_ranks_find_what_one_process_finds(name: str, alone: Found, together: Found) -> None:
    expected = leaves(alone[0][name, False])
    assert any(x is not None and x.any() for x in expected[1:])
    for found in together:
        for x, y in zip(leaves(found[name, False]), expected, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                # one rounding of bfloat16, float32; in float64 what is promised
                eps = {torch.bfloat16: 8e-3, torch.float32: 1e-6}.get(x.dtype, 1e-10)
                torch.testing.assert_close(x, y, rtol=eps, atol=eps)


@pytest.mark.parametrize("name", CASES)
def test_deterministic_changes_no_bit(name: str, alone: Found, together: Found) -> None:
    expected = leaves(alone[0][name, True])
    for found in together:
        for x, y in zip(leaves(found[name, True]), expected, strict=True):
            assert (x is None) == (y is None)
            assert x is None or (x.dtype == y.dtype and torch.equal(x, y))


@pytest.mark.parametrize("name", CASES)
def test_deterministic_agrees_to_rounding(name: str, alone: Found) -> None:
    for x, y in zip(*(leaves(alone[0][name, flag]) for flag in (True, False)), strict=True):
        if x is not None:
            torch.testing.assert_close(x, y)
