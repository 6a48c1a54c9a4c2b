"""The meta-training loop of the few-shot demo, through both doors."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from ._launch import launch

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "few_shot_distributed.py"


@functools.cache
def losses(door: str, ranks: int | None, *options: str) -> list[str]:
    args = ["--door", door, "--double", "--fast", *options]
    output = launch(EXAMPLE, ranks, args=args).check().stdout
    return [line.split()[3].rstrip(",") for line in output.splitlines() if "loss" in line]


@pytest.mark.parametrize(
    "ranks", [*(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (None, 1, 3)), 2]
)
@pytest.mark.parametrize("door", ["tasks", "rpc"])
def test_losses_are_those_of_the_loop_in_one_process(door: str, ranks: int | None) -> None:
    actual, expected = losses(door, ranks), losses("none", None)
    assert len(actual) == 5
    torch.testing.assert_close(
        [float(loss) for loss in actual],
        [float(loss) for loss in expected],
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.slow
def test_the_inner_optimizer_is_a_choice() -> None:
    adam = losses("tasks", 2, "--inner-optimizer", "adam")
    assert adam != losses("tasks", 2)
    expected = losses("none", None, "--inner-optimizer", "adam")
    torch.testing.assert_close(
        [float(loss) for loss in adam],
        [float(loss) for loss in expected],
        rtol=1e-10,
        atol=1e-10,
    )


@pytest.mark.slow
def test_deterministic_losses_are_the_same_bits_for_any_number_of_ranks() -> None:
    one, three = (losses("tasks", ranks, "--deterministic") for ranks in (1, 3))
    assert one == three
