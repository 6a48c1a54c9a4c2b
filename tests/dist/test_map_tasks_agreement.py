"""Ranks agree on what they are about to do: where they do not, there is an error, and no result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchopt_dist import map_tasks
from torchopt_dist._checksum import content_digest, tensor_checksum

from ._agreement_program import CASES
from ._launch import launch

Found = dict[str, list[Any]]
SIZE = 2


@pytest.fixture(scope="module")
def found() -> Found:
    """What each rank found in each case."""
    output = launch(Path(__file__).with_name("_agreement_program.py"), SIZE).check().stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert all(row["sound"] == [2.0, 2.0] for row in rows)
    by_case: Found = {name: [None] * SIZE for name in CASES}
    for row in rows:
        by_case[row["case"]][row["rank"]] = row["found"]
    return by_case


DIFFERENCES = {
    "counts_differ": r"number of tasks must be equal .* 4 on rank 0, 5 on rank 1; .*whole",
    "tasks_differ": "the tasks must be equal .* variant 1 on rank 0, variant 2 on rank 1; .*seeded",
    "tasks_in_trees_differ": "the tasks must be equal",
    "orthogonal_matrices_differ": "values of `params` must be equal .*broadcast",
    "signs_differ": "values of `params` must be equal",
    "places_differ": "values of `params` must be equal",
    "one_bit_of_bfloat16_differs": "values of `params` must be equal",
    "one_of_many_numbers_differs": "values of `params` must be equal",
    "buffers_differ": "values of `params` must be equal",
    "shapes_differ": "structure of `params` must be equal",
    "options_differ": "`deterministic` must be equal .*same arguments",
    "weights_differ": "`weights` must be equal",
    "replicas_over_busy_ranks": r"DistributedDataParallel spreads .*pass the plain module",
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_difference_is_an_error_on_every_rank(found: Found, name: str) -> None:
    for text in found[name]:
        assert re.match(f"ValueError: .*{DIFFERENCES[name]}", text), text


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("one_rank_has_no_tasks", "ValueError: `tasks` must not be empty"),
        ("one_rank_has_no_weights", "TypeError: 'int' object is not iterable"),
    ],
)
def test_bad_arguments_of_one_rank_are_an_error_on_every_rank(
    found: Found, name: str, error: str
) -> None:
    first, second = found[name]
    assert first == "ValueError: map_tasks was called with bad arguments on rank 1; see its error"
    assert second == error


def test_inner_tasks_are_evaluated_where_the_outer_task_is(found: Found) -> None:
    # twice sum_i over i = 0..k, of two weights
    expected = [2.0 * k * (k + 1) for k in range(5)]
    assert found["within_a_task"] == [expected, expected]


def test_inner_tasks_do_not_go_to_busy_ranks(found: Found) -> None:
    for failures in found["within_a_task_over_busy_ranks"]:
        assert len(failures) == SIZE
        assert all("must not have ranks that evaluate other tasks" in text for text in failures)


def test_a_second_thread_does_not_meet_another_task(found: Found) -> None:
    for messages in found["from_another_thread"]:
        assert messages
        assert all("another thread" in text for text in messages)


def test_a_failure_is_told_whatever_its_subtrees(found: Found) -> None:
    assert found["a_failed_prefix_has_more_subtrees"] == [[1, 15], [1, 15]]


def test_a_checksum_depends_on_every_bit_and_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(70_001, dtype=torch.float64, generator=generator)
    sums = {int(tensor_checksum([base]))}
    flips = (-base, base.flip(0), base.roll(1), base.abs(), base.view(torch.int64) + 1)
    for changed in flips:
        sums.add(int(tensor_checksum([changed])))
    for place in (0, 1, 32_767, 32_768, 70_000):
        bits = base.view(torch.int64).clone()
        for bit in (0, 31, 52, 63):
            bits[place] ^= 1 << bit if bit < 63 else -(1 << 63)
            sums.add(int(tensor_checksum([bits])))
            bits[place] ^= 1 << bit if bit < 63 else -(1 << 63)
    assert len(sums) == 1 + 5 + 5 * 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(()),
        torch.empty(0, 3),
        torch.ones(3, dtype=torch.bool),
        torch.ones(5, dtype=torch.bfloat16),
        torch.ones(2, 3, dtype=torch.complex64).conj(),
        torch.arange(6.0).view(2, 3).T,
        torch.ones(3).to_sparse(),
        torch.arange(9, dtype=torch.uint8)[3:],
        torch.ones(1).expand(4),
    ],
    ids=str,
)
def test_any_tensor_has_a_checksum(tensor: torch.Tensor) -> None:
    assert int(tensor_checksum([tensor])) == int(tensor_checksum([tensor.clone()]))


def test_what_is_known_of_tasks_is_compared() -> None:
    def tasks(last: Any) -> Any:
        return [(torch.zeros(2), {"a": np.ones(3), "b": [last]})]

    values = [
        1,
        1.0,
        True,
        "1",
        b"1",
        None,
        1j,
        np.float32(1),
        np.arange(2),
        torch.ones(1),
        range(3),
    ]
    digests = [content_digest(tasks(value)) for value in values]
    assert len(set(digests)) == len(values)
    assert digests == [content_digest(tasks(value)) for value in values]
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    assert content_digest(cyclic) == content_digest(cyclic)
    assert content_digest({1: object()}) == content_digest({1: object()})  # unknown, by its class


def test_the_ranks_are_not_asked_where_there_is_one() -> None:
    class Lazy:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> float:
            return 1.0

    net = nn.Linear(2, 1)
    assert map_tasks(lambda net, x: net.weight.sum() * x, Lazy(), net).losses.shape == (2,)
