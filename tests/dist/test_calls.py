"""Calls that end in unusual ways or carry unusual values: an error, or what is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ._launch import launch


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    output = launch(Path(__file__).with_name("_calls_program.py"), 2).check().stdout
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(line)


@pytest.mark.parametrize(("how", "kind"), [("exit", "SystemExit: 3"), ("interrupt", "Keyboard")])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_call_that_exits_ends_the_call_and_not_its_worker(
    found: dict[str, Any], how: str, kind: str, rank: int
) -> None:
    text = found[f"{how} on {rank}"]
    assert text.startswith(f"RemoteError: on worker 'worker{rank}'")
    assert kind in text
    assert "in leave" in text
    assert found["alive"] == [4]


@pytest.mark.parametrize("name", ["lambda", "hidden"])
def test_a_function_that_workers_cannot_find_is_refused(found: dict[str, Any], name: str) -> None:
    assert found[name].startswith("TypeError: a parallelized function must be at the top level")


def test_subclasses_of_tensors_arrive_with_their_gradients(found: dict[str, Any]) -> None:
    assert found["subclass"] == ["Tagged here"]
    assert found["gradient of a subclass"] == [2.0, 2.0]
    assert found["constant"] == ["Tagged constant"]


@pytest.mark.parametrize("name", ["wrapper", "parameter"])
def test_a_gradient_that_would_be_lost_is_an_error(found: dict[str, Any], name: str) -> None:
    assert "the gradient would not come back" in found[name]


def test_what_is_replicated_is_not_split(found: dict[str, Any]) -> None:
    assert found["replicated"] == [15.0, [5.0, 5.0]]
    assert found["to one"] == ["Tensor "]


def test_all_of_uneven_shares_true_is_one(found: dict[str, Any]) -> None:
    assert found["bools"] == 1.0


def test_an_interrupt_does_not_wait_for_the_call(found: dict[str, Any]) -> None:
    assert found["interrupted"]["seconds"] < 4.0
