"""Optimizers of other libraries, recorded: ours take the same steps."""

from __future__ import annotations

import functools
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from _table import run_functional, run_torch

import torchopt

PEERS = Path(__file__).parent / "peers"
RECORDER = runpy.run_path(str(PEERS / "record_shelf.py"))
ROWS = [
    pytest.param(name, row, id=f"{name}-{path.stem.removeprefix('shelf_')}")
    for path in sorted(PEERS.glob("shelf_*.json"))
    for name, row in json.loads(path.read_text())["rows"].items()
]


def tensors(seed: int) -> list[torch.Tensor]:
    """The same numbers as those that were recorded with."""
    shapes, numbers = RECORDER["SHAPES"], RECORDER["numbers"]
    return [
        torch.tensor(numbers(seed + i, shape), dtype=torch.float64).reshape(shape)
        for i, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_takes_the_steps_that_were_recorded_of_another_library(name: str, row: Any) -> None:
    kwargs = {k: tuple(x) if isinstance(x, list) else x for k, x in row["kwargs"].items()}
    grads = [tensors(10 * (t + 1)) for t in range(RECORDER["STEPS"])]
    transformation = getattr(torchopt, name)(**kwargs)
    expected = [
        torch.tensor(x, dtype=torch.float64).reshape(shape)
        for x, shape in zip(row["params"], RECORDER["SHAPES"], strict=True)
    ]
    close = functools.partial(torch.testing.assert_close, rtol=row["rtol"], atol=row["rtol"] / 10)
    close(run_functional(transformation, tensors(0), grads), expected)
    params = [p.requires_grad_() for p in tensors(0)]
    close(run_torch(torchopt.Optimizer(params, transformation), params, grads), expected)
