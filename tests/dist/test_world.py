"""Who is in the world, without starting one, and what is refused."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed

import torchopt
import torchopt.distributed as todist


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set variables as a launcher does."""

    def set_variables(**variables: object) -> None:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    set_variables()
    return set_variables


def test_the_front_door_is_the_package() -> None:
    import torchopt_dist

    assert todist is torchopt_dist
    assert torchopt.distributed.autograd is torchopt_dist.autograd
    assert todist.module_clone is torchopt.module_clone
    assert todist.parallelize_sync is todist.parallelize


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, 1)),
        ({"RANK": 3, "WORLD_SIZE": 4}, (3, 4, 3, 4)),
        (
            {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4},
            (5, 8, 1, 4),
        ),
        ({"LOCAL_RANK": 1}, (0, 1, 0, 1)),
    ],
)
def test_the_world_is_what_the_launcher_says(
    environment: Callable[..., None], variables: dict[str, int], expected: tuple[int, ...]
) -> None:
    environment(**variables)
    info = todist.get_world_info()
    assert info == expected
    assert (
        todist.get_rank(),
        todist.get_world_size(),
        todist.get_local_rank(),
        todist.get_local_world_size(),
    ) == expected
    assert todist.get_world_rank() == info.rank == todist.get_worker_id() == expected[0]
    assert info.worker_name == f"worker{expected[0]}"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": 2}, "sets WORLD_SIZE but not RANK"),
        ({"RANK": 0}, "sets RANK but not WORLD_SIZE"),
        ({"RANK": 2, "WORLD_SIZE": 2}, "rank must be less than the size of its world"),
        ({"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 2}, "rank must be less"),
        ({"RANK": "one", "WORLD_SIZE": 2}, "must be numbers"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(
    environment: Callable[..., None], variables: dict[str, Any], message: str
) -> None:
    environment(**variables)
    with pytest.raises(RuntimeError, match=message):
        todist.get_world_info()


def test_a_process_group_is_a_world(environment: Callable[..., None], tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        assert todist.get_world_info() == (0, 1, 0, 1)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("world", "expected"),
    [((0, 1, 0, 1), "worker0"), ((3, 10, 3, 10), "worker03"), ((7, 100, 0, 1), "worker007")],
)
def test_names_sort_like_ranks(world: tuple[int, ...], expected: str) -> None:
    assert todist.default_worker_name_format(*world) == expected


RANKED = [
    ("on_rank(0)", todist.on_rank(0), {0}),
    ("on_rank(0, 2)", todist.on_rank(0, 2), {0, 2}),
    ("not_on_rank(1)", todist.not_on_rank(1), {0, 2}),
    ("not_on_rank()", todist.not_on_rank(), {0, 1, 2}),
    ("on_rank()", todist.on_rank(), set()),
    ("rank_zero_only", todist.rank_zero_only, {0}),
    ("rank_non_zero_only", todist.rank_non_zero_only, {1, 2}),
]


@pytest.mark.parametrize(("name", "decorator", "ranks"), RANKED, ids=[row[0] for row in RANKED])
def test_a_function_runs_on_the_chosen_ranks_only(
    environment: Callable[..., None], name: str, decorator: Any, ranks: set[int]
) -> None:
    def add(a: int, *, b: int) -> int:
        """Add."""
        return a + b

    decorated = decorator(add)
    assert (decorated.__name__, decorated.__doc__) == ("add", "Add.")
    assert inspect.signature(decorated) == inspect.signature(add)
    for rank in range(3):
        environment(RANK=rank, WORLD_SIZE=3)
        assert decorated(1, b=2) == (3 if rank in ranks else None)


@pytest.mark.parametrize("decorator", [todist.on_rank, todist.not_on_rank])
@pytest.mark.parametrize("rank", [-1, "0", 1.0, True, None])
def test_a_rank_is_a_number(decorator: Any, rank: Any) -> None:
    with pytest.raises(ValueError, match="`ranks` must be non-negative ints"):
        decorator(rank)


def double(x: Any) -> Any:
    return 2 * x


parallel = todist.parallelize()(double)
BEFORE = {
    "barrier": lambda: todist.barrier(),
    "remote_sync_call": lambda: todist.remote_sync_call(double, args=(1,)),
    "remote_async_call": lambda: todist.remote_async_call(double, args=(1,)),
    "parallelize": lambda: parallel(1),
    "get_worker_id": lambda: todist.get_worker_id("worker0"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_before_rpc_is_up_everything_says_how_to_start_it(
    environment: Callable[..., None], name: str
) -> None:
    with pytest.raises(RuntimeError, match="function that `auto_init_rpc` decorates"):
        BEFORE[name]()


@pytest.mark.parametrize(
    "name",
    [*BEFORE, "auto_init_rpc", "autograd.backward", "autograd.grad", "autograd.context"],
)
def test_without_rpc_in_torch_everything_says_so(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.distributed.rpc, "is_available", lambda: False)
    weight = torch.ones((), requires_grad=True)
    calls = BEFORE | {
        "auto_init_rpc": lambda: todist.auto_init_rpc(),
        "autograd.backward": lambda: todist.autograd.backward(0, weight * 1),
        "autograd.grad": lambda: todist.autograd.grad(0, weight * 1, weight),
        "autograd.context": lambda: todist.autograd.context().__enter__(),
    }
    assert not todist.is_available()
    with pytest.raises(todist.RpcUnavailableError, match="this build of torch has no RPC"):
        calls[name]()


WITHOUT_RPC = """
import importlib.machinery
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torch._C":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_without_rpc(module):
            load(module)
            del module._rpc_init, module._dist_autograd_init

        spec.loader.exec_module = load_without_rpc
        return spec

sys.meta_path.insert(0, Finder())

import torch
import torchopt.distributed as todist
from torchopt.distributed import *
from torchopt.distributed.autograd import *

assert not todist.is_available() and not todist.autograd.is_available()
assert todist.rpc is torch.distributed.rpc
weight = torch.ones((), requires_grad=True)
assert todist.map_tasks(lambda w, k: w * k, range(3), weight).grads == 1
for entry in (auto_init_rpc, get_gradients, DistAutogradContext, context().__enter__, barrier):
    try:
        entry()
    except todist.RpcUnavailableError:
        continue
    raise AssertionError(entry)
"""


def test_a_build_of_torch_without_rpc_has_everything_else() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_RPC], check=True)


def in_a_world(func: Callable[[], Any]) -> Any:
    return todist.auto_init_rpc()(func)()


REFUSED = [
    ("`func` must be callable", TypeError, lambda: todist.remote_sync_call(3)),
    (
        "`timeout` must be a number of seconds, 0 or more, got -2",
        ValueError,
        lambda: todist.remote_sync_call(double, args=(1,), timeout=-2),
    ),
    (
        "must be a rank from 0 to 0, got 3",
        ValueError,
        lambda: todist.remote_sync_call(double, args=(1,), partitioner=3),
    ),
    (
        "must be one of the workers worker0, got 'someone'",
        ValueError,
        lambda: todist.remote_sync_call(double, args=(1,), partitioner="someone"),
    ),
    (
        "`partitioner` made no call",
        ValueError,
        lambda: todist.remote_sync_call(double, args=(1,), partitioner=lambda *_, **__: []),
    ),
    (
        "cannot be sent to another worker",
        TypeError,
        lambda: todist.remote_sync_call(lambda x: x, args=(1,)),
    ),
    (
        "cannot be sent to another worker",
        TypeError,
        lambda: todist.remote_sync_call(double, args=((i for i in "ab"),)),
    ),
    (
        "`worker_names` must be some of worker0, got 'x' among them",
        ValueError,
        lambda: todist.barrier(["x"]),
    ),
    ("`worker_names` must include this worker", ValueError, lambda: todist.barrier([])),
    ("RPC is up already", RuntimeError, lambda: in_a_world(lambda: None)),
]


@pytest.mark.parametrize(("message", "error", "call"), REFUSED)
def test_bad_calls_are_refused(
    environment: Callable[..., None], message: str, error: type[Exception], call: Any
) -> None:
    def main() -> None:
        with pytest.raises(error, match=message):
            call()

    in_a_world(main)


def test_a_result_that_cannot_be_sent_is_an_error_there(environment: Callable[..., None]) -> None:
    def main() -> None:
        with pytest.raises(TypeError, match="cannot be sent to another worker") as caught:
            todist.remote_sync_call(make_generator, partitioner=0)
        assert isinstance(caught.value.__cause__, todist.RemoteError)

    in_a_world(main)


def make_generator() -> Any:
    return (i for i in "ab")


BAD_GRADIENTS = [
    ("`inputs` must be leaves", lambda c, w: todist.autograd.backward(c, w * 1, inputs=w * 1)),
    ("gradients go back from scalars", lambda c, w: todist.autograd.backward(c, w.expand(2))),
    ("requires_grad=False", lambda c, w: todist.autograd.backward(c, w.detach())),
    ("`tensors` must be a tensor or", lambda c, w: todist.autograd.backward(c, [])),
    ("`inputs` must require gradients", lambda c, w: todist.autograd.grad(c, w * 1, w.detach())),
    (
        r"do not depend on `inputs\[0\]`",
        lambda c, w: todist.autograd.grad(c, w * 1, torch.ones(1, requires_grad=True)),
    ),
]


@pytest.mark.parametrize(("message", "call"), BAD_GRADIENTS)
def test_bad_gradients_are_refused(
    environment: Callable[..., None], message: str, call: Any
) -> None:
    def main() -> None:
        weight = torch.ones((), requires_grad=True)
        with todist.autograd.context() as context_id, pytest.raises(ValueError, match=message):
            call(context_id, weight)

    in_a_world(main)


def test_the_main_function_keeps_its_signature_and_errors(environment: Callable[..., None]) -> None:
    @todist.auto_init_rpc(worker_name_format=lambda rank, *_: f"node{rank}")
    def main(fail: bool) -> str:
        if fail:
            raise KeyError("why")
        return todist.get_world_info().worker_name

    assert main.__name__ == "main"
    assert main(False) == "node0"
    with pytest.raises(KeyError, match="why"):
        main(True)
    assert main(fail=False) == "node0"  # a world may follow another


def test_sys_exit_ends_a_world_well(environment: Callable[..., None]) -> None:
    assert in_a_world(lambda: exit_with(0)) is None
    assert in_a_world(lambda: todist.remote_sync_call(double, args=(2,), partitioner=0)) == [4]


def exit_with(code: int) -> None:
    raise SystemExit(code)


@pytest.mark.parametrize("argument", ["worker_init_fn", "worker_name_format"])
def test_what_is_to_be_called_must_be_callable(argument: str) -> None:
    with pytest.raises(TypeError, match=f"`{argument}` must be callable"):
        todist.auto_init_rpc(**{argument: 3})
