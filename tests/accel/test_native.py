"""The compiled modules: what they link, what they refuse, and CUDA."""

from __future__ import annotations

import shutil
import subprocess
from types import ModuleType
from typing import Any

import optree
import pytest
import torch
from _table import Case, every_case

import torchopt
from torchopt_accel import _native

from ._accel import (
    FULL,
    HALF,
    assert_rounds_alike,
    functional,
    laid_out,
    run_alone,
)

CPU = _native.load("cpu")


def output_of(tool: str, *arguments: str) -> str:
    """Return what a tool of the system prints about the module."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"this system has no {tool}")
    command = [found, *arguments, str(CPU.__file__)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"{tool} cannot read the module: {done.stderr}")
    return done.stdout


@pytest.mark.parametrize("tool", [("ldd",), ("readelf", "-d")], ids=["ldd", "readelf"])
def test_links_no_libtorch(tool: tuple[str, ...]) -> None:
    printed = output_of(*tool)
    assert "libc" in printed
    for library in ("torch", "libc10", "cudart", "libcuda"):
        assert library not in printed


def test_needs_no_symbol_of_torch() -> None:
    undefined = output_of("nm", "-D", "-C", "--undefined-only")
    assert "PyObject" in undefined
    for name in ("c10::", "at::", "torch::", "THPVariable"):
        assert name not in undefined


def test_exports_no_symbol_but_its_entry() -> None:
    defined = output_of("nm", "-D", "--defined-only")
    assert "PyInit__cpu" in defined
    assert "torchopt" not in defined


WITHOUT_EXCHANGE = """
import torch, torchopt
from torchopt_accel import _native
module = _native.load("cpu")
if {without}:
    module.lend_exchange(None, (torch.Tensor, torch.nn.Parameter))
torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    params = [torch.randn(6, 4).to(dtype)[::2], torch.randn(3, 2).to(dtype).t(), torch.ones(())]
    for functional in (torchopt.sgd, torchopt.adam, torchopt.rmsprop, torchopt.radam):
        optimizer = functional(0.1, use_accelerated_op=True)
        state = optimizer.init(params)
        for inplace in (True, False, True):
            grads = [p.cos().requires_grad_(not inplace) for p in params]
            updates, state = optimizer.update(grads, state, params=params, inplace=inplace)
            print([x.tolist() for x in updates])
            if not inplace:
                slopes = torch.autograd.grad(sum(u.sum() for u in updates), grads)
                print([x.tolist() for x in slopes])
                state = torchopt.pytree.tree_map(torch.Tensor.detach, state)
    try:
        optimizer.update([x.to(torch.int64) for x in params], state)
    except Exception as error:
        print(type(error).__name__)
try:
    big = [torch.ones(*[1] * 9)]
    torchopt.sgd(0.1, use_accelerated_op=True).update(big, torchopt.sgd(0.1).init(big))
    print("nine dimensions")
except torchopt.accelerated_op.NotCoveredError:
    print("nine dimensions")
"""


def test_without_the_exchange_of_dlpack_results_are_the_same() -> None:
    """torch before 2.10 does not lend it."""
    lent = run_alone(WITHOUT_EXCHANGE.format(without=False))
    assert lent.count("\n") > 50
    assert run_alone(WITHOUT_EXCHANGE.format(without=True)) == lent


ROW = (1.0, 0.0, 1.0, -0.1, 0.0)
ONE = torch.ones(2)


def run(module: ModuleType = CPU, **changes: Any) -> Any:
    """Call the kernel of SGD, with some arguments changed."""
    arguments = {
        "operation": _native.FORWARD,
        "rule": CPU.RULES["sgd"],
        "coefficients": [ROW],
        "rows": None,
        "inputs": [[ONE], [ONE]],
        "outputs": [[torch.zeros(2)]],
        "threads": 1,
    }
    return module.run(**{**arguments, **changes})


def test_runs_what_it_is_asked() -> None:
    out = torch.zeros(2)
    assert run(outputs=[[out]]) is None
    assert torch.equal(out, torch.full((2,), 0.9))


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few inputs": ({"inputs": [[ONE]]}, RuntimeError, "expected 2 inputs and 1 outputs"),
    "too many inputs": ({"inputs": [[ONE]] * 3}, RuntimeError, "got 3 and 1"),
    "no outputs": ({"outputs": []}, RuntimeError, "got 2 and 0"),
    "no rule": ({"rule": len(CPU.RULES)}, RuntimeError, "no such rule"),
    "negative rule": ({"rule": -1}, RuntimeError, "no such rule"),
    "no operation": ({"operation": 4}, RuntimeError, "no such rule or operation"),
    "no coefficients": ({"coefficients": []}, RuntimeError, "coefficients"),
    "long row": ({"coefficients": [(0.0,) * 14]}, RuntimeError, "at most 13"),
    "row out of range": ({"rows": [1]}, RuntimeError, "there are 1 rows"),
    "negative row": ({"rows": [-1]}, RuntimeError, "rows"),
    "too few rows": ({"rows": []}, RuntimeError, "an entry for each leaf"),
    "streams of unequal length": ({"inputs": [[ONE], [ONE, ONE]]}, RuntimeError, "2 leaves"),
    "short output": ({"outputs": [[]]}, RuntimeError, "0 leaves, expected 1"),
    "stream that is none": ({"inputs": [{}, [ONE]]}, RuntimeError, "a list, a tuple or None"),
    "missing gradient": ({"inputs": [[None], [ONE]]}, ValueError, "None"),
    "missing parameter": ({"inputs": [[ONE], [None]]}, ValueError, "None"),
    "number": ({"inputs": [[1.0], [ONE]]}, TypeError, "expected a torch.Tensor"),
    "integers": ({"inputs": [[ONE.int()], [ONE]]}, TypeError, "dtype"),
    "complex": ({"inputs": [[ONE.to(torch.complex64)], [ONE]]}, TypeError, "dtype"),
    "other shape": ({"inputs": [[torch.ones(3)], [ONE]]}, ValueError, "differ"),
    "other shape of the output": ({"outputs": [[torch.ones(1)]]}, ValueError, "differ"),
    "other dtype": ({"inputs": [[ONE.double()], [ONE]]}, ValueError, "differ"),
    "other dtype of the output": ({"outputs": [[ONE.half()]]}, ValueError, "differ"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(**changes)
    assert torch.equal(ONE, torch.ones(2))


def test_returns_the_tensors_that_lie_differently_and_runs_nothing() -> None:
    """Each as its stream, its leaf, and what it has to lie like: a result, if that is dense."""
    strided, out = torch.ones(4)[::2], torch.zeros(2)
    outputs = [[out, torch.zeros(2)]]
    found = run(inputs=[[ONE, strided], [ONE, ONE]], outputs=outputs)
    assert [(stream, leaf) for stream, leaf, _ in found] == [(0, 1)]
    assert found[0][2] is outputs[0][1]
    assert torch.equal(out, torch.zeros(2))


def test_of_a_leaf_only_what_lies_differently_is_returned() -> None:
    def channels_last() -> torch.Tensor:
        return torch.ones(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)

    plain, expanded = torch.ones(2, 3, 4, 5), torch.ones(()).expand(2, 3, 4, 5)
    sliced = torch.ones(4, 3, 4, 5)[::2]
    cases = [
        ([channels_last(), channels_last(), channels_last()], []),
        ([channels_last(), plain, channels_last()], [(1, 2)]),
        ([plain, plain, channels_last()], [(0, 2), (1, 2)]),
        ([expanded, plain, plain], [(0, 2)]),
        ([expanded, plain, sliced], [(0, 1), (2, 1)]),
        ([expanded, expanded, sliced], [(0, None), (1, None), (2, None)]),
    ]
    for (grad, param, out), expected in cases:
        tensors = [grad, param, out]
        found = run(inputs=[[grad], [param]], outputs=[[out]]) or []
        assert len(found) == len(expected)
        for (stream, leaf, like), (position, wanted) in zip(found, expected, strict=True):
            assert (stream, leaf) == (position, 0)
            assert like is (None if wanted is None else tensors[wanted])


@pytest.mark.parametrize("count", [torch.zeros(1), torch.zeros(()), ONE.long()], ids=str)
def test_step_counts_are_0_dim_integers(count: torch.Tensor) -> None:
    for function in (CPU.counts, CPU.increment):
        with pytest.raises(TypeError, match="0-dim int64"):
            function([count])


def on_cuda(tree: Any) -> Any:
    """Return a tree with its floating point tensors on the device; step counts stay."""
    return optree.tree_map(lambda x: x.cuda() if x.is_floating_point() else x, tree)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [*FULL, *HALF], ids=str)
@every_case
def test_cuda_equals_the_cpu(case: Case, dtype: torch.dtype) -> None:
    for layout in ("contiguous", "several-chunks", "sliced", "channels-last", "0-dim"):
        params, grads = laid_out(layout, dtype, 3)
        for inplace in (True, False):
            expected = functional(case, params, grads, True, inplace=inplace)
            actual = functional(case, on_cuda(params), on_cuda(grads), True, inplace=inplace)
            actual = optree.tree_map(torch.Tensor.cpu, actual)
            # each of three steps may round 16 bits to a neighbour
            assert_rounds_alike(actual, expected, ulps=64 if dtype in FULL else 8)


@pytest.mark.cuda
@every_case
def test_cuda_derivatives_equal_those_of_the_cpu(case: Case) -> None:
    params, (grads,) = laid_out("several-chunks", torch.float64, 1)
    found = []
    for move in (lambda x: x, on_cuda):
        own, inputs = move(params), [g.requires_grad_() for g in move([g.detach() for g in grads])]
        transformation = case.functional(use_accelerated_op=True)
        updates, _ = transformation.update(
            inputs, transformation.init(own), params=own, inplace=False
        )
        first = torch.autograd.grad(sum(u.sin().sum() for u in updates), inputs, create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), inputs)
        found.append([x.detach().cpu() for x in (*first, *second)])
    assert_rounds_alike(*found, ulps=1e4)


@pytest.mark.cuda
def test_cuda_runs_on_the_current_stream() -> None:
    """A step on a stream that waits sees what is written before it is its turn."""
    stream = torch.cuda.Stream()
    grad = torch.zeros(1000, device="cuda")
    adam = torchopt.sgd(1.0, use_accelerated_op=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        grad.fill_(1.0)
        updates, _ = adam.update(grad, adam.init(grad), inplace=False)
    stream.synchronize()
    assert torch.equal(updates.cpu(), -torch.ones(1000))


@pytest.mark.cuda
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_step_in_place_is_captured_in_a_cuda_graph(momentum: float) -> None:
    """Of optimizers whose coefficients do not change from step to step."""
    param = torch.ones(100, device="cuda", requires_grad=True)
    param.grad = torch.full_like(param, 0.5)
    optimizer = torchopt.SGD([param], 0.1, momentum=momentum, use_accelerated_op=True)
    expected = torch.ones(100, requires_grad=True)
    expected.grad = torch.full_like(expected, 0.5)
    reference = torch.optim.SGD([expected], 0.1, momentum=momentum)
    for _ in range(2):
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
    for _ in range(5):
        reference.step()
    assert_rounds_alike(param.detach().cpu(), expected.detach())
