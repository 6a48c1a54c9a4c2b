"""What ranks say to each other in a meta-step, and how much of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ._launch import launch

COUNT = """
import json, sys
import torch
import torch.distributed as dist
from torchopt_dist import TaskError, map_tasks, process_group

def fn(p, index):
    if index == failing:
        raise ArithmeticError
    return (p["w"].square().sum() * index + p["b"].double().sum()), {"index": index}

params = {"w": torch.ones(50, dtype=torch.float64), "b": torch.ones(3), "unused": torch.ones(7)}
params = {name: leaf.requires_grad_() for name, leaf in params.items()}
activities = [torch.profiler.ProfilerActivity.CPU]
counts = {}
with process_group(timeout=30.0):
    for deterministic in (False, True):
        for failing in (None, 3):
            with torch.profiler.profile(activities=activities) as profile:
                try:
                    map_tasks(
                        fn, range(7), params, deterministic=deterministic, metrics=("index",)
                    )
                except TaskError:
                    pass
            names = [event.name for event in profile.events() if event.name.startswith("c10d::")]
            counts[f"{deterministic} {failing}"] = names
    if dist.get_rank() == 0:
        print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def counts() -> dict[str, list[str]]:
    return json.loads(launch(COUNT, 3).check().stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("deterministic", "collectives"),
    [
        (False, ["c10d::allreduce_"]),
        (True, ["c10d::alltoall_base_", "c10d::allgather_"]),
    ],
)
def test_a_meta_step_is_a_header_and_one_sum(
    counts: dict[str, list[str]], deterministic: bool, collectives: list[str]
) -> None:
    expected = ["c10d::allgather_", *collectives]
    assert counts[f"{deterministic} None"] == expected
    # only then are there tracebacks to tell, too
    assert counts[f"{deterministic} 3"][: len(expected)] == expected
    assert len(counts[f"{deterministic} 3"]) > len(expected)


GROUPS = """
import os, time
import torch
import torch.distributed as dist
from torchopt_dist import map_tasks, process_group

def mean():
    return map_tasks(lambda w, i: w * i, range(4), torch.ones((), requires_grad=True)).loss

assert not dist.is_initialized()
before = dict(os.environ)
for _ in range(2):  # it can be left and entered again
    with process_group(timeout=30.0):
        assert dist.get_backend() == "gloo" and dist.get_world_size() == 2
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert mean() == 1.5
        try:
            with process_group():
                pass
        except RuntimeError as error:
            message = str(error)
        assert "already" in message, message
    assert not dist.is_initialized()
assert dict(os.environ) == before

dist.init_process_group("gloo")  # one that the user made does as well
assert mean() == 1.5
only = dist.new_group([1])
if dist.get_rank() == 0:
    try:
        map_tasks(lambda w, i: w * i, range(4), torch.ones((), requires_grad=True), group=only)
    except ValueError as error:
        print(error)
dist.destroy_process_group()
"""


def test_a_process_group_is_entered_and_left() -> None:
    assert "must have rank 0" in launch(GROUPS, 2).check().stdout


THREADS = """
from pathlib import Path
import torch
from torchopt_dist import map_tasks, process_group

def threads():
    return [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]

with process_group(timeout=30.0):
    weight = torch.ones((), requires_grad=True)
    map_tasks(lambda w, i: w * i, range(4), weight).accumulate_grad(weight)
    torch.optim.Adam([weight]).step()  # imports torch._dynamo, which imports torch.distributed.nn
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to list threads")
def test_no_thread_of_gloo_is_left_to_abort_the_process_at_its_exit() -> None:
    launch(THREADS, 2).check()


SPAWN = """
import tempfile
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchopt_dist import map_tasks

def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    w = torch.ones(3, requires_grad=True)
    result = map_tasks(lambda w, i: (w * i).sum(), range(5), w)
    assert result.grads.tolist() == [2.0] * 3
    print("found\\n", end="")
    dist.destroy_process_group()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(folder,), nprocs=2)
"""


def test_processes_may_come_from_torch_multiprocessing() -> None:
    assert launch(SPAWN).check().stdout.count("found") == 2
