"""Threads: torch's number of them, none for small tensors, and none in each other's way."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from _table import FAMILIES, Case, assert_same, every_family, every_kernel_case, tensors_in

import torchopt
from torchopt_accel import _native

from ._accel import assert_rounds_alike, run_alone, stateful

TASKS = Path("/proc/self/task")
HAS_THREADS = _native.load("cpu").HAS_THREADS


def sizes(total: int) -> list[int]:
    """Return sizes of leaves that no equal share and no cache line is a multiple of."""
    return [1, 777, 0, total // 3 + 5, 2, total - total // 3, 31]


def trained(case: Case, total: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return updates, state and derivatives after a step in place and a differentiable one."""
    torch.manual_seed(0)
    params = [torch.randn(n).to(dtype) for n in sizes(total)]
    grads = [p.cos() for p in params]
    transformation = case.functional(use_accelerated_op=True)
    _, state = transformation.update(grads, transformation.init(params), params=params)
    inputs = [g.requires_grad_() for g in grads]
    found = transformation.update(inputs, state, params=params, inplace=False)
    updates = [x for x in tensors_in(found) if x.requires_grad]
    weights = [x.detach().sin() for x in updates]
    slopes = torch.autograd.grad(updates, inputs, weights)
    return [x.detach() for x in (*updates, *slopes)]


@every_kernel_case
def test_results_do_not_depend_on_the_number_of_threads(
    case: Case, set_threads: Callable[[int], None]
) -> None:
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(trained(case, 220_000, torch.float32))
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_nor_do_those_of_other_dtypes(
    dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    case = Case("adam", FAMILIES["adam"], {"weight_decay": 0.1}, lambda params: None, 0.1)
    found = []
    for threads in (1, 2):
        set_threads(threads)
        found.append(trained(case, 220_000, dtype))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("threads", [1, 2])
@every_family
def test_tensors_beyond_the_caches_are_stepped_alike(
    family: object, threads: int, set_threads: Callable[[int], None]
) -> None:
    """Such results are written around the caches."""
    set_threads(threads)
    case = Case("large", family, {}, lambda params: None, 0.1)  # type: ignore[arg-type]
    params = [torch.randn(n) for n in sizes(1_200_000)]
    grads = [p.cos() for p in params]
    found = []
    for accelerated in (True, False):
        transformation = case.functional(use_accelerated_op=accelerated)
        state = transformation.init(params)
        found.append(transformation.update(grads, state, params=params, inplace=False))
    assert_rounds_alike(*found)


def test_python_threads_step_different_optimizers_at_once() -> None:
    jobs = [
        (Case(name, family, {"weight_decay": 0.1}, lambda params: None, 0.1), seed)
        for seed, (name, family) in enumerate(FAMILIES.items())
    ]

    def work(job: tuple[Case, int]) -> object:
        case, seed = job
        generator = torch.Generator().manual_seed(seed)
        params = [torch.randn(n, generator=generator) for n in (3, 700, 5000)]
        grads = [[torch.randn(p.shape, generator=generator) for p in params] for _ in range(60)]
        return stateful(case, params, grads, True)

    expected = [work(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for actual in (list(pool.map(work, jobs)) for _ in range(3)):
            assert_same(actual, expected)


def test_python_threads_differentiate_different_steps_at_once() -> None:
    def work(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(40, generator=generator).requires_grad_()
        adam = torchopt.adam(0.1, use_accelerated_op=True)
        params, state = start, adam.init(start)
        for _ in range(10):
            updates, state = adam.update(params.cos(), state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        (slope,) = torch.autograd.grad(params.square().sum(), start)
        return [params.detach(), slope]

    expected = [work(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert_same(list(pool.map(work, range(8))), expected)


def test_other_python_threads_run_during_a_step() -> None:
    """In the middle half of one: not while Python prepares it, nor after it."""
    param = torch.randn(3_000_000, requires_grad=True)
    param.grad = torch.randn(3_000_000)
    optimizer = torchopt.Adam([param], use_accelerated_op=True)
    optimizer.step()
    stamps: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0)

    other = threading.Thread(target=tick)
    other.start()
    try:
        for _ in range(200):
            stamps.clear()
            begin = time.perf_counter()
            optimizer.step()
            end = time.perf_counter()
            quarter = (end - begin) / 4
            if any(begin + quarter < x < end - quarter for x in list(stamps)):
                return
    finally:
        done.set()
        other.join()
    pytest.fail("no other thread ran while the kernel did")


# torch's own operations may start threads, and hang in a forked child: here they only make zeros
PREPARE = """
import os, torch, torchopt
torch.set_num_threads({threads})

def prepared(size):
    param = torch.zeros(size, requires_grad=True)
    param.grad = torch.zeros(size)
    param.grad.numpy()[:] = 0.5
    return param, torchopt.Adam([param], 0.1, use_accelerated_op=True)

def stepped(param, optimizer):
    for _ in range(3):
        optimizer.step()
    return param.detach().numpy().copy()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.skipif(sys.platform == "darwin", reason="torch itself is not safe after fork here")
def test_a_forked_child_steps_small_tensors() -> None:
    """Also if its parent has had threads."""
    printed = run_alone(
        PREPARE.format(threads=2)
        + """
expected = stepped(*prepared(100))
stepped(*prepared(300_000))
child = os.fork()
if child == 0:
    os._exit(0 if (stepped(*prepared(100)) == expected).all() else 1)
_, status = os.waitpid(child, 0)
print("child", os.waitstatus_to_exitcode(status), (stepped(*prepared(100)) == expected).all())
""",
        OMP_NUM_THREADS="2",
    )
    assert printed.split() == ["child", "0", "True"]


@pytest.mark.skipif(not TASKS.exists(), reason="/proc, which lists threads, is missing")
def test_small_tensors_start_no_thread_and_large_ones_do() -> None:
    printed = run_alone(
        PREPARE.format(threads=4)
        + """
from torchopt_accel import _native
count = lambda: len(os.listdir("/proc/self/task"))
module, rows = _native.load("cpu"), [(1.0, 0.0, 1.0, -0.1, 0.0)]
large = torch.empty(300_000)
small = prepared(30_000)
counts = [count()]
stepped(*small)
counts.append(count())
module.run(0, module.RULES["sgd"], rows, None, [[large], [large]], [[large]], 1)
counts.append(count())
module.run(0, module.RULES["sgd"], rows, None, [[large], [large]], [[large]], 4)
counts.append(count())
print(*counts)
""",
        OMP_NUM_THREADS="4",
    )
    before, small, alone, together = map(int, printed.split())
    assert small == before
    assert alone == before
    assert together == before + (3 if HAS_THREADS else 0)


def test_the_number_of_threads_is_torch_s(
    monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    module = _native.load("cpu")
    seen, run = [], module.run

    def spied(*arguments: object) -> object:
        seen.append(arguments[-1])
        return run(*arguments)

    monkeypatch.setattr(module, "run", spied)
    sgd = torchopt.sgd(0.1, use_accelerated_op=True)
    grad = torch.ones(2)
    for threads in (2, 1, 3):
        set_threads(threads)
        sgd.update([grad], sgd.init([grad]))
    assert seen == [2, 1, 3]


def test_coefficients_of_many_rows_reach_their_leaves() -> None:
    """With leaves cut between threads, each keeps the row of its own step count."""
    previous = torch.get_num_threads()
    adam = torchopt.adam(0.1, use_accelerated_op=True)
    grads = [torch.randn(n) for n in (9_000, 50_001, 3, 80_000, 1)]
    state = adam.init(grads)
    counts = [torch.tensor(t) for t in (0, 3, 0, 8, 100)]
    state = (state[0]._replace(count=counts), *state[1:])
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(adam.update(grads, state, inplace=False))
    finally:
        torch.set_num_threads(previous)
    assert_same(*found)
    for i, (grad, count) in enumerate(itertools.zip_longest(grads, counts)):
        one = adam.init([grad])
        one = (one[0]._replace(count=[count]), *one[1:])
        assert_same(adam.update([grad], one, inplace=False)[0][0], found[0][0][i])
