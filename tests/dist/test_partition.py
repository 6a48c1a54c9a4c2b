"""Splitting arguments over workers, and reducing results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchopt.distributed as todist
from torchopt.distributed import TensorDimensionPartitioner, dim_partitioner
from torchopt_dist._partition import whole
from torchopt_dist._reduce import Results

sizes = st.integers(1, 12)


@given(samples=sizes, workers=sizes, dim=st.sampled_from([0, 1, -1]))
def test_shares_are_consecutive_nearly_equal_and_all_there_is(
    samples: int, workers: int, dim: int, monkeypatch_module: None
) -> None:
    x = torch.arange(samples * 2).view(samples, 2).movedim(0, dim)
    split = dim_partitioner(dim, workers=list(range(workers)))
    calls = split(x, "same", scale={"y": x})
    assert [call.worker for call in calls] == list(range(min(samples, workers)))
    assert max(call.size for call in calls) - min(call.size for call in calls) <= 1
    assert sum(call.size for call in calls) == samples
    torch.testing.assert_close(torch.cat([call.args[0] for call in calls], dim=dim), x)
    for call in calls:
        torch.testing.assert_close(call.kwargs["scale"]["y"], call.args[0])
        assert call.args[1] == "same"
        assert call.args[0].shape[dim] == call.size


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    """A world of twelve workers, as far as a partitioner asks."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": 0, "WORLD_SIZE": 12}.items():
            patch.setenv(name, str(value))
        yield


@pytest.mark.parametrize(
    ("keepdim", "shapes"), [(True, [(1, 2)] * 3), (False, [(2,)] * 3)], ids=["kept", "dropped"]
)
def test_exclusive_deals_single_samples_out_in_turn(
    monkeypatch_module: None, keepdim: bool, shapes: list[tuple[int, ...]]
) -> None:
    split = dim_partitioner(exclusive=True, keepdim=keepdim, workers=[4, 1])
    calls = split(torch.zeros(3, 2))
    assert [call.worker for call in calls] == [4, 1, 4]
    assert [tuple(call.args[0].shape) for call in calls] == shapes


def test_all_workers_take_part_by_default(monkeypatch_module: None) -> None:
    assert len(todist.batch_partitioner(torch.zeros(30))) == 12
    assert len(todist.exclusive_batch_partitioner(torch.zeros(30))) == 30


def test_arguments_without_tensors_make_one_call(monkeypatch_module: None) -> None:
    assert dim_partitioner(workers=[3, 2])(1, k=None) == [(3, (1,), {"k": None}, 1)]


def test_modules_go_to_every_worker(monkeypatch_module: None) -> None:
    net = torch.nn.Linear(1, 1)
    calls = dim_partitioner(workers=[0, 1])(net, torch.zeros(2))
    assert [call.args[0] for call in calls] == [net, net]


def test_a_partitioner_is_told_from_its_representation() -> None:
    partitioner = TensorDimensionPartitioner(1, exclusive=True, workers=["worker0", 1])
    assert repr(partitioner) == (
        "TensorDimensionPartitioner(1, exclusive=True, keepdim=False, workers=('worker0', 1))"
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TensorDimensionPartitioner(0), ValueError, "needs `exclusive=True`"),
        (lambda: dim_partitioner("0"), TypeError, "`dim` must be an int, got '0'"),
        (lambda: dim_partitioner(workers=[]), ValueError, "`workers` must be a sequence of ranks"),
        (lambda: dim_partitioner(workers="worker0"), ValueError, "got 'worker0'"),
        (
            lambda: dim_partitioner(2)(torch.zeros(3, 2)),
            ValueError,
            r"must have a dimension 2 .* shape \(3, 2\)",
        ),
        (lambda: dim_partitioner()(torch.zeros(())), ValueError, "must have a dimension 0"),
        (
            lambda: dim_partitioner()(torch.zeros(3), torch.zeros(4)),
            ValueError,
            r"Batch size mismatch on dim=0: .* got sizes \[3, 4\]",
        ),
        (lambda: dim_partitioner()(torch.zeros(0, 3)), ValueError, "the batch is empty on dim=0"),
        (
            lambda: dim_partitioner(workers=["worker0"])(torch.zeros(3)),
            RuntimeError,
            "names exist only while RPC is up",
        ),
    ],
)
def test_bad_partitions_are_refused(
    monkeypatch_module: None, make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("reducer", "expected"), [(todist.mean_reducer, 2.0), (todist.sum_reducer, 6.0)]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: torch.tensor(x),
        float,
        lambda x: {"loss": torch.tensor([x, x]), "more": (torch.tensor(x),)},
    ],
    ids=["tensors", "numbers", "trees"],
)
def test_results_are_reduced_leaf_by_leaf(reducer: Any, expected: float, wrap: Any) -> None:
    reduced = reducer(iter([wrap(1.0), wrap(2.0), wrap(3.0)]))
    leaves = torch.utils._pytree.tree_leaves(reduced)
    assert all((leaf == expected).all() for leaf in leaves)


@pytest.mark.parametrize("reducer", [todist.mean_reducer, todist.sum_reducer])
@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "`results` must not be empty"),
        ([torch.zeros(2), torch.zeros(3)], r"must have one shape.*\[\(2,\), \(3,\)\]"),
    ],
)
def test_results_that_cannot_be_reduced_are_refused(
    reducer: Any, results: list[torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        reducer(results)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 2, 2]])
@pytest.mark.parametrize(
    ("results", "expected", "dtype"),
    [
        ([True, True, True], 1.0, torch.float32),
        ([4, 4, 4], 4.0, torch.float32),
        ([6e4, 6e4, 6e4], 6e4, torch.float16),
        ([2.0, 2.0, 2.0], 2.0, torch.bfloat16),
        ([1 + 1j, 1 + 1j, 1 + 1j], 1 + 1j, torch.complex64),
        ([0.1, 0.1, 0.1], 0.1, torch.float64),
    ],
)
def test_a_mean_is_right_in_every_dtype(
    results: list[Any], expected: Any, dtype: torch.dtype, sizes: list[int]
) -> None:
    whole = isinstance(results[0], int)
    tensors = [torch.tensor(x, dtype=None if whole else dtype) for x in results]
    reduced = todist.mean_reducer(Results(tensors, sizes))
    assert reduced.dtype == dtype
    torch.testing.assert_close(reduced, torch.tensor(expected, dtype=dtype))


def test_sizes_beyond_half_precision_weigh_as_they_are() -> None:
    tensors = [torch.tensor(x, dtype=torch.float16) for x in (1.0, 3.0)]
    assert todist.mean_reducer(Results(tensors, [300_000, 100_000])).item() == 1.5


def test_marked_arguments_go_to_all_as_they_are() -> None:
    split = todist.dim_partitioner(workers=[0, 1])
    w = torch.ones(3)
    calls = split(torch.arange(4), {"w": [todist.Replicated(w)]})
    assert [call.args[0].tolist() for call in calls] == [[0, 1], [2, 3]]
    assert all(whole(call.args)[1]["w"][0] is w for call in calls)
    with pytest.raises(ValueError, match="Batch size mismatch"):
        split(torch.arange(4), {"w": [w]})
