"""Calls on other workers: results and gradients are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import torchopt

from ._launch import launch
from ._rpc_program import MODELS, OBJECTIVES, PARTITIONERS, SIZES, local_gradients

PROGRAM = Path(__file__).with_name("_rpc_program.py")
# one process without torchrun, and what torchrun starts
WORLDS = (None, pytest.param(2, marks=pytest.mark.slow), 3)


@pytest.fixture(scope="module", params=WORLDS, ids=lambda n: f"{n or 'no launcher, 1'} workers")
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the program prints, and the number of workers as ``"size"``."""
    output = launch(PROGRAM, request.param).check().stdout
    found: dict[str, Any] = {"size": request.param or 1}
    for line in output.splitlines():
        if line.startswith("{"):
            found.update(json.loads(line))
    return found


def test_every_worker_knows_its_place_and_is_initialized_once(report: dict[str, Any]) -> None:
    size = report["size"]
    for rank in range(size):
        assert report[f"place {rank}"] == [rank, size, rank, size, f"worker{rank}", rank]


def test_the_main_function_returns_on_every_worker(report: dict[str, Any]) -> None:
    assert [report[f"returned {rank}"] for rank in range(report["size"])] == [
        *range(report["size"])
    ]


def expected(size: int) -> dict[str, Any]:
    """The results, written out by hand."""
    last = size - 1
    return {
        "by rank": [f"{last}: a"],
        "by name": f"{last}: a",
        "keyword": [f"{last}: 3"],
        "no tensors": ["0: None"],
        "split": {
            1: [[-0.0, -1, -2, -3, -4]],
            2: [[-0.0, -1], [-2, -3, -4]],
            3: [[-0.0], [-1, -2], [-3, -4]],
        }[size],
        "future": ["0: b"],
        "async": 10.0,
        "decorated twice": [2],
        "method": [8],
        "partitioner of 0.7": [f"{last}: a", "0: 1", f"{last}: named"],
        "undecorated": [0.0],
        "grad mode": [True],
        "no_grad": [False],
        "id of name": last,
        "parameter": "Parameter",
        "outside a context": False,
    }


@pytest.mark.parametrize("name", expected(1))
def test_results_are_those_of_the_call(report: dict[str, Any], name: str) -> None:
    assert report["results"][name] == expected(report["size"])[name]


def test_parallelize_averages_by_default(report: dict[str, Any]) -> None:
    shares = torch.arange(6.0).mul(3).view(report["size"], -1)
    assert report["results"]["mean by default"] == shares.mean(dim=0).tolist()


def test_remote_references_are_arguments_and_results(report: dict[str, Any]) -> None:
    size, last = report["size"], report["size"] - 1
    x = torch.arange(6.0)
    found = report["references"]
    assert found["argument"] == x.mul(3).view(size, -1).mean(dim=0).tolist()
    assert found["another's"] == x.mul(-2).view(size, -1).mean(dim=0).tolist()
    assert found["result"] == found["both ways"] == (x + last).tolist()
    assert found["owners"] == [True, 0, 0, last, last]


def test_rpc_is_torchs_own() -> None:
    assert torchopt.distributed.rpc is torch.distributed.rpc


def test_workers_listen_on_the_loopback_interface_only(report: dict[str, Any]) -> None:
    (addresses,) = report["results"]["listening"]
    assert addresses
    assert {address[-8:] for address in addresses} == {"0100007F"}


@pytest.mark.parametrize("partitioner", PARTITIONERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS)
def test_loss_and_gradients_of_parameters_are_those_of_one_process(
    report: dict[str, Any], model: str, objective: str, size: int, partitioner: str, float64: None
) -> None:
    actual = report["gradients"][f"{model}, {objective}, {size}, {partitioner}"]
    for ours, reference in zip(actual, local_gradients(model, objective, size), strict=True):
        torch.testing.assert_close(
            torch.tensor(ours), torch.tensor(reference), rtol=1e-10, atol=1e-10
        )


def test_passes_over_one_graph_add_up_and_grad_leaves_grad_alone(report: dict[str, Any]) -> None:
    # d/dw sum (3 w)^2 = 18 w at w = (1, 2)
    once, middle = [18.0, 36.0], [6.0, 12.0]
    assert report["passes"] == {
        "once": once,
        "twice": [36.0, 72.0],
        "grad": [once, middle],
        "unused": None,
        "after grad": [36.0, 72.0],
        "in context": [72.0, 144.0],
    }
