"""What becomes of a world of workers when one of them raises, dies or hangs."""

from __future__ import annotations

import itertools
import socket

import pytest

from ._launch import Result, launch

slow = pytest.mark.slow

PROGRAM = """
import os, signal, sys, time
import torchopt.distributed as todist

what, where, guilty = sys.argv[1], sys.argv[2], int(sys.argv[3])

def misbehave(number):
    if what == "raises":
        raise LookupError(f"bad luck {number}")
    if what == "raises an odd error":
        raise Odd(1, 2)
    if what == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exits":
        os._exit(0)
    while what == "hangs":
        time.sleep(0.1)
    return number

class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"odd {a + b}")

@todist.auto_init_rpc()
def main():
    rank = todist.get_rank()
    if where == "main" and rank == guilty:
        misbehave(7)
    if where == "call" and rank == 0:
        try:
            todist.remote_sync_call(misbehave, args=(7,), partitioner=guilty, timeout=2)
        except Exception as error:
            cause = error.__cause__
            print(f"caught {type(error).__name__}: {error}", flush=True)
            print(f"from rank {getattr(cause, 'rank', getattr(error, 'rank', None))}: {cause}")
            if sys.argv[4] == "go on":
                print(todist.remote_sync_call(len, args=("four",), partitioner=guilty))
                return
            raise
    if where == "barrier" and rank != guilty:
        todist.barrier()

main()
print(f"rank {os.environ['RANK']} ended well", flush=True)
"""

# `torchrun` ends the others when one fails; `multiprocessing` does nothing of the kind
STARTERS = ("torchrun", "multiprocessing")
SPAWN = """
import os, pathlib, sys
import torch.multiprocessing as mp

def run(rank, size, port, program, args):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    sys.argv[1:] = args
    path = pathlib.Path(program)
    namespace = sys.modules["__main__"].__dict__
    namespace.update(__name__="__main__")
    exec(compile(path.read_text(), path, "exec"), namespace)

if __name__ == "__main__":
    size, port, program, *args = sys.argv[1:]
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=run, args=(rank, int(size), int(port), program, args))
        for rank in range(int(size))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(max(abs(worker.exitcode) for worker in workers))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory):
    """Run the program on three workers, started in either way."""

    def run(starter: str, what: str, where: str, guilty: int, then: str = "stop") -> Result:
        args = [what, where, str(guilty), then]
        if starter == "torchrun":
            return launch(PROGRAM, 3, args=args, timeout=55)
        program = tmp_path_factory.mktemp("program") / "program.py"
        program.write_text(PROGRAM)
        return launch(SPAWN, args=["3", str(free_port()), str(program), *args], timeout=55)

    return run


def test_a_world_without_faults_ends_well(run) -> None:
    for starter in STARTERS:
        result = run(starter, "is fine", "call", 1).check()
        assert all(f"rank {rank} ended well" in result.stdout for rank in range(3))


FAILURES = {
    "raises": ("LookupError: bad luck 7", 'raise LookupError(f"bad luck {number}")'),
    "raises an odd error": ("RemoteError: on worker 'worker1' (rank 1)", "Odd: odd 3"),
    "dies": ("WorkerLostError: worker 'worker1' (rank 1) cannot be reached", ""),
    "exits": ("WorkerLostError: worker 'worker1' (rank 1) cannot be reached", ""),
    "hangs": ("WorkerTimeoutError: worker 'worker1' (rank 1) did not answer in time", ""),
}
# what every run tries: one that is told, one that is seen, one that is waited for
QUICK = {("torchrun", "raises"), ("multiprocessing", "dies"), ("multiprocessing", "hangs")}


@pytest.mark.parametrize(
    ("starter", "what"),
    [
        pytest.param(*row, marks=() if row in QUICK else slow)
        for row in itertools.product(STARTERS, FAILURES)
    ],
)
def test_a_failed_call_names_the_worker_and_ends_all(run, starter: str, what: str) -> None:
    error, reason = FAILURES[what]
    result = run(starter, what, "call", 1)
    if starter == "multiprocessing" or what not in ("dies", "exits"):
        # (torchrun, which sees that a process has died, ends the others before they can say so)
        assert f"caught {error}" in result.stdout
        assert "from rank 1" in result.stdout
        assert reason in result.stdout
    assert "ended well" not in result.stdout
    assert result.returncode != 0
    assert not result.orphans


@pytest.mark.parametrize("what", ["raises", pytest.param("raises an odd error", marks=slow)])
def test_a_caller_may_catch_the_error_and_go_on(run, what: str) -> None:
    result = run("torchrun", what, "call", 1, "go on").check()
    assert "[4]" in result.stdout


@slow
def test_a_call_that_hangs_does_not_keep_its_worker_for_ever(run) -> None:
    result = run("multiprocessing", "hangs", "call", 1, "go on")
    assert "[4]" in result.stdout
    assert "rank 0 ended well" in result.stdout
    assert "a call that its caller has given up still runs on this worker" in result.stderr
    assert result.returncode == 1
    assert not result.orphans


@pytest.mark.parametrize(
    ("what", "guilty", "starter"),
    [  # every pair of these
        pytest.param("raises", 0, "multiprocessing", marks=slow),
        ("raises", 1, "torchrun"),
        pytest.param("dies", 0, "torchrun", marks=slow),
        ("dies", 1, "multiprocessing"),
        pytest.param("exits", 0, "multiprocessing", marks=slow),
        pytest.param("exits", 1, "torchrun", marks=slow),
    ],
)
def test_a_worker_that_fails_by_itself_ends_all(run, starter: str, what: str, guilty: int) -> None:
    result = run(starter, what, "main", guilty)
    assert "ended well" not in result.stdout
    assert result.returncode != 0 or what == "exits"
    assert not result.orphans
    if what == "raises":
        assert "LookupError: bad luck 7" in result.stderr


BARRIER = """
import time
import torch.distributed.rpc as rpc
import torchopt.distributed as todist

options = rpc.TensorPipeRpcBackendOptions(
    rpc_timeout=2, init_method="env://", _transports=["uv"]
)

@todist.auto_init_rpc(rpc_backend_options=options)
def main():
    todist.barrier()
    if todist.get_rank() != 2:
        try:
            todist.barrier()
        except todist.WorkerTimeoutError as error:
            print(f"rank {todist.get_rank()}: {error}")

main()
"""


def test_a_barrier_names_who_did_not_come() -> None:
    result = launch(BARRIER, 3, timeout=55).check()
    for rank in (0, 1):
        assert (
            f"rank {rank}: the barrier was not passed in time: worker 'worker2' (rank 2) did not "
            f"come"
        ) in result.stdout
