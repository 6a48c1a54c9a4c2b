"""Tasks that are larger than a rank: a mesh of tasks x model finds what one process finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ._launch import launch
from ._mesh_program import COUNT, FORMS

PROGRAM = Path(__file__).with_name("_mesh_program.py")


def run(nproc: int | None) -> list[dict[str, Any]]:
    output = launch(PROGRAM, nproc).check().stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted(rows, key=lambda row: row["rank"])


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return run(None)[0]["reference"]


@pytest.fixture(scope="module")
def together() -> list[dict[str, Any]]:
    return run(4)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_mesh_trains_as_one_process(
    form: str, deterministic: bool, alone: list[Any], together: list[dict[str, Any]]
) -> None:
    for row in together:
        for x, y in zip(row[f"{form} {deterministic}"], alone, strict=True):
            x, y = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
            torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_task_that_raises_on_a_row_raises_on_every_rank(
    form: str, together: list[dict[str, Any]]
) -> None:
    for rank, row in enumerate(together):
        assert row[f"{form} fails"] == [COUNT - 1, [2 + rank % 2]]


def test_a_module_over_all_ranks_is_refused(together: list[dict[str, Any]]) -> None:
    for row in together:
        assert "DTensor spreads over ranks [0, 1, 2, 3]" in row["refused"]
        assert "group=mesh" in row["refused"]


def test_inner_steps_on_shards_are_those_on_the_whole(together: list[dict[str, Any]]) -> None:
    for row in together:
        for x, y in zip(row["first order"], row["expected"], strict=True):
            x, y = (torch.tensor(v, dtype=torch.float64) for v in (x, y))
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
            assert y.any()


def test_a_gradient_that_hooks_would_lose_is_an_error(together: list[dict[str, Any]]) -> None:
    for row in together:
        assert "`params` must be leaves of the graph next to a module" in row["computed"]
