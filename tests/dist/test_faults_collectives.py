"""Ranks that raise, die or hang: the others say which, end in time, and leave no process behind."""

from __future__ import annotations

import re

import pytest

from ._launch import Result, launch

slow = pytest.mark.slow

TIMEOUT = 4.0
# what ends by itself does so long before the tasks that hang would, also on a busy machine
LIMIT = 60.0

RAISES = """
import sys
import torch
import torch.distributed as dist
from torchopt_dist import TaskError, map_tasks, process_group

def the_culprit(index):
    raise ValueError(f"bad task {index}")

def fn(w, index):
    if index in failing:
        the_culprit(index)
    return w.sum() * index

w = torch.ones(3, requires_grad=True)
with process_group(timeout=60.0):
    rank = dist.get_rank()
    failing = [4]
    try:
        map_tasks(fn, range(6), w, deterministic=sys.argv[1] == "True")
    except TaskError as error:
        text, cause = str(error), type(error.__cause__).__name__
        assert "the_culprit" in text and "ValueError: bad task 4" in text, text
        print(f"rank {rank}: task {error.task} on {error.rank}, {cause}\\n", end="", flush=True)
    failing = [0, 1, 5]
    try:
        map_tasks(fn, range(6), w)
    except TaskError as error:
        found = [failure[:2] for failure in error.failures]
        print(f"rank {rank}: all {found}\\n", end="", flush=True)
    failing = []
    again = map_tasks(fn, range(6), w, reduction="sum")  # the ranks are in step
    assert again.grads.tolist() == [15.0] * 3
    failing = [4]
    map_tasks(fn, range(6), w)
"""


@pytest.mark.parametrize("deterministic", [False, pytest.param(True, marks=slow)])
def test_a_task_that_raises_raises_on_every_rank(deterministic: bool) -> None:
    result = launch(RAISES, 3, args=[str(deterministic)])
    lines = result.stdout.splitlines()
    for rank, cause in enumerate(["NoneType", "NoneType", "ValueError"]):
        assert f"rank {rank}: task 4 on 2, {cause}" in lines, result
        assert f"rank {rank}: all [(0, 0), (2, 5)]" in lines, result
    # uncaught, it ends the program, long before the timeout of the process group
    assert result.returncode != 0
    assert result.orphans == []
    assert result.seconds < LIMIT
    assert "torchopt_dist._errors.TaskError: task 4 raised on rank 2" in result.stderr


FAULTS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exits": "os._exit(3)",
    "hangs": "time.sleep(600)",
    "stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}
BODY = """
import os, signal, sys, tempfile, time
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchopt_dist import LostRankError, map_tasks, process_group

def steps(lost, deterministic):
    def fn(w, index):
        if step == 3 and dist.get_rank() == lost:
            FAULT
        return w.sum() * index

    w = torch.ones(3, requires_grad=True)
    for step in range(5):
        start = time.monotonic()
        try:
            map_tasks(fn, range(8), w, deterministic=deterministic)
        except LostRankError as error:
            seconds = time.monotonic() - start
            ranks = ",".join(map(str, error.ranks))
            print(f"rank {dist.get_rank()} in {seconds:.1f}: lost [{ranks}]\\n", end="", flush=True)
            print(f"{error}\\n", end="", flush=True)
            # lets the others say so, too, before the launcher ends them
            time.sleep(2.0)
            raise
"""
TORCHRUN = """
with process_group(timeout=TIMEOUT):
    steps(int(sys.argv[1]), sys.argv[2] == "True")
"""
MULTIPROCESSING = """
def work(rank, port, lost, deterministic):
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", MASTER_PORT=port)
    with process_group(timeout=TIMEOUT):
        steps(lost, deterministic)

if __name__ == "__main__":
    import socket
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    arguments = (port, int(sys.argv[1]), sys.argv[2] == "True")
"""
SPAWN = """
    mp.spawn(work, args=arguments, nprocs=3)
"""
# as on machines whose launchers know nothing of each other: who survives has to find out
UNSUPERVISED = """
    context = mp.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, *arguments)) for rank in range(3)]
    for process in processes:
        process.start()
    for rank, process in enumerate(processes):
        if rank != arguments[1]:
            process.join()
    processes[arguments[1]].kill()
    sys.exit(any(process.exitcode for process in processes))
"""


def run(main: str, fault: str, lost: int, deterministic: bool = False) -> Result:
    nproc = 3 if main == TORCHRUN else None
    source = BODY + main if main == TORCHRUN else BODY + MULTIPROCESSING + main
    source = source.replace("FAULT", FAULTS[fault]).replace("TIMEOUT", str(TIMEOUT))
    result = launch(source, nproc, args=[str(lost), str(deterministic)])
    assert result.returncode != 0
    assert result.orphans == []
    assert result.seconds < LIMIT
    return result


def check_reports(result: Result, lost: int) -> None:
    """Check that the other ranks have named the lost one, in time."""
    reports = re.findall(r"^rank (\d) in ([\d.]+): lost \[([\d,]*)\]$", result.stdout, re.MULTILINE)
    reports = [report for report in reports if report[0] != str(lost)]
    ranks = {rank for rank, _, _ in reports}
    assert ranks == {str(rank) for rank in range(3) if rank != lost}, result
    for _, seconds, ranks in reports:
        assert ranks == str(lost), result
        assert float(seconds) < LIMIT, result


@pytest.mark.parametrize(("lost", "deterministic"), [pytest.param(0, False, marks=slow), (1, True)])
def test_a_hung_rank_is_named_under_torchrun(lost: int, deterministic: bool) -> None:
    check_reports(run(TORCHRUN, "hangs", lost, deterministic), lost)


@slow
def test_a_hung_rank_is_named_under_multiprocessing() -> None:
    check_reports(run(SPAWN, "hangs", 1), 1)


@pytest.mark.parametrize(
    ("fault", "lost", "deterministic"),
    [
        ("killed", 0, False),
        pytest.param("killed", 2, True, marks=slow),
        pytest.param("exits", 1, False, marks=slow),
        pytest.param("stopped", 0, True, marks=slow),
    ],
)
def test_a_dead_rank_is_named_by_those_left(fault: str, lost: int, deterministic: bool) -> None:
    check_reports(run(UNSUPERVISED, fault, lost, deterministic), lost)


@pytest.mark.parametrize(
    ("fault", "code", "lost"), [("killed", -9, 1), pytest.param("exits", 3, 0, marks=slow)]
)
def test_torchrun_names_a_dead_rank_and_ends_the_others(fault: str, code: int, lost: int) -> None:
    result = run(TORCHRUN, fault, lost)
    assert f"failed (exitcode: {code}) local_rank: {lost}" in result.stderr, result
    assert result.seconds < LIMIT


@slow
def test_multiprocessing_names_a_dead_rank_and_ends_the_others() -> None:
    assert "process 2 terminated with signal SIGKILL" in run(SPAWN, "killed", 2).stderr


LATE = """
import time
import torch
import torch.distributed as dist
from torchopt_dist import LostRankError, map_tasks, process_group

def fn(w, index):
    time.sleep(6.0 * (index == 1))
    return w.sum()

with process_group(timeout=2.0):
    rank = dist.get_rank()
    try:
        map_tasks(fn, range(2), torch.ones(3, requires_grad=True))
    except LostRankError as error:
        print(f"rank {rank}: {error.ranks} {error}\\n", end="", flush=True)
    time.sleep(4.0)
"""


@slow
def test_a_late_rank_learns_that_it_was_given_up() -> None:
    result = launch(LATE, 2).check()
    assert "rank 0: (1,) rank 1 of 2 did not take part" in result.stdout, result
    assert "rank 1: (1,) this rank, 1, took part in a reduction later than" in result.stdout, result
