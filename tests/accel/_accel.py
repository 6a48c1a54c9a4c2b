"""What the tests of the compiled steps share: layouts, the three faces, and tolerances."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import optree
import pytest
import torch
from _table import CASES, Bag, Case, tensors_in

import torchopt
import torchopt_accel
from torchopt_accel._step import Step

Grads = Sequence[Sequence["torch.Tensor | None"]]

# For what has to do with a kernel, and not with the hyperparameters it is called with: a case for
# each kernel, where parameters are among its inputs if they can be, and one where the rate is.
NAMED = {case.name: case for case in CASES}
EVERY_KERNEL = [
    NAMED[name]
    for name in (
        *("sgd", "sgd-nesterov", "adam-decay", "adamw-maximize", "radam-decay", "adagrad-decay"),
        *("adadelta-decay", "adamax-decay", "rmsprop", "rmsprop-momentum", "rmsprop-centered"),
        "rmsprop-all",
    )
]
every_kernel = pytest.mark.parametrize("case", EVERY_KERNEL, ids=lambda case: case.name)

FULL = [torch.float64, torch.float32]
HALF = [torch.bfloat16, torch.float16]


def twin(x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Return a copy in memory of its own with the same strides."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, **kwargs).copy_(x.detach())


def _plain(*shape: int) -> Callable[[torch.dtype], torch.Tensor]:
    return lambda dtype: torch.randn(shape).to(dtype)


def _transposed(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(4, 3).to(dtype).t()


def _channels_last(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5).to(dtype).contiguous(memory_format=torch.channels_last)


# how a parameter lies in memory, and how its gradients do
LAYOUTS: dict[str, tuple[Callable[[torch.dtype], torch.Tensor], ...]] = {
    "contiguous": (_plain(3, 4), _plain(3, 4)),
    "several-chunks": (_plain(2, 1031), _plain(2, 1031)),
    "transposed": (_transposed, _transposed),
    "transposed-gradients": (_plain(3, 4), _transposed),
    "sliced": (lambda dtype: _plain(6, 4)(dtype)[::2], lambda dtype: _plain(6, 4)(dtype)[::2]),
    "expanded-gradients": (_plain(3, 4), lambda dtype: _plain(4)(dtype).expand(3, 4)),
    "channels-last": (_channels_last, _channels_last),
    "channels-last-parameters": (_channels_last, _plain(2, 3, 4, 5)),
    "0-dim": (_plain(), _plain()),
    "0-dim-expanded-gradients": (_plain(1, 1), lambda dtype: _plain()(dtype).expand(1, 1)),
    "zero-size": (_plain(0, 3), _plain(0, 3)),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def every_kernel_in(first: torch.dtype, second: torch.dtype) -> pytest.MarkDecorator:
    """Try every kernel in one dtype, and that with the most states in another one, too."""
    rows = [*((case, first) for case in EVERY_KERNEL), (NAMED["rmsprop-all"], second)]
    ids = [f"{case.name}-{dtype}" for case, dtype in rows]
    return pytest.mark.parametrize(("case", "dtype"), rows, ids=ids)


def laid_out(
    layout: str, dtype: torch.dtype, steps: int
) -> tuple[list[torch.Tensor], list[list[torch.Tensor | None]]]:
    """Return two parameters, and gradients for each step."""
    param, grad = LAYOUTS[layout]
    params = [param(dtype), param(dtype)]
    return params, [[grad(dtype), grad(dtype)] for _ in range(steps)]


def functional(
    case: Case, params: Any, grads: Any, accelerated: bool | None, *, inplace: bool
) -> tuple[Any, Any]:
    """Step the functional face. Returns parameters and state."""
    transformation = case.functional(use_accelerated_op=accelerated)
    params = optree.tree_map(twin, params)
    state = transformation.init(params)
    for step in grads:
        updates, state = transformation.update(step, state, params=params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params, state


def stateful(case: Case, params: Any, grads: Grads, accelerated: bool | None) -> tuple[Any, Any]:
    """Step the stateful face. Returns parameters and state."""
    leaves = [twin(p).requires_grad_() for p in params]
    optimizer = case.stateful(leaves, use_accelerated_op=accelerated)
    for step in grads:
        for leaf, grad in zip(leaves, step, strict=True):
            leaf.grad = grad
        optimizer.step()
    return [x.detach() for x in leaves], list(optimizer.state_dict()["state"].values())


def meta(case: Case, params: Any, grads: Grads, accelerated: bool | None) -> tuple[Any, Any]:
    """Step the differentiable face. Returns parameters and state."""
    module = Bag([twin(p) for p in params])
    optimizer = case.meta(module, use_accelerated_op=accelerated)
    for step in grads:
        optimizer.step(module.loss(step))
    return detached((module.tensors(), optimizer.state_dict()))


FACES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "functional": functools.partial(functional, inplace=False),
    "functional-inplace": functools.partial(functional, inplace=True),
    "stateful": stateful,
    "meta": meta,
}
every_face = pytest.mark.parametrize("face", FACES.values(), ids=FACES)


def detached(tree: Any) -> Any:
    """Return a tree of tensors outside of any graph."""
    return optree.tree_map(torch.Tensor.detach, tree)


def to_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Return a tree with its floating point tensors in another dtype."""
    return optree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def assert_rounds_alike(actual: Any, expected: Any, ulps: float = 64) -> None:
    """Assert that two trees differ by rounding alone.

    Both evaluate one formula, in another order and with or without fused multiply-adds: a few
    units in the last place an operation, and no more than some tens of operations. Numbers are of
    order one before they cancel, so the same number of units of one is allowed.
    """
    mine, theirs = tensors_in(actual), tensors_in(expected)
    assert len(mine) == len(theirs) > 0
    for x, y in zip(mine, theirs, strict=True):
        rounded = y.is_floating_point() or y.is_complex()
        tolerance = ulps * torch.finfo(y.dtype).eps if rounded else 0.0
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, equal_nan=True)


def assert_rounded(actual: Any, exact: Any) -> None:
    """Assert that a tree is another one, in float32, rounded to 16 bits.

    The two float32 numbers may lie on both sides of a tie, so the results may be neighbours: one
    unit in the last place apart, among subnormal numbers too; plus what float32 itself rounds.
    """
    mine, theirs = tensors_in(actual), tensors_in(exact)
    assert len(mine) == len(theirs) > 0
    single = 64 * torch.finfo(torch.float32).eps
    for x, y in zip(mine, theirs, strict=True):
        if not x.is_floating_point():
            assert torch.equal(x, y)
            continue
        limits = torch.finfo(x.dtype)
        apart = max(single, limits.smallest_normal * limits.eps)
        wanted = y.to(x.dtype)
        torch.testing.assert_close(x, wanted, rtol=limits.eps, atol=apart, equal_nan=True)


class Spy:
    """Counts the calls of the kernels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.operations: list[int] = []
        run = Step.run

        def counted(step: Step, operation: int, *args: Any) -> None:
            self.operations.append(operation)
            run(step, operation, *args)

        monkeypatch.setattr(Step, "run", counted)


def run_alone(script: str, **environment: str) -> str:
    """Run a script in a fresh interpreter that sees the same packages. Returns what it prints."""
    paths = [os.path.dirname(os.path.dirname(m.__file__)) for m in (torchopt, torchopt_accel)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
