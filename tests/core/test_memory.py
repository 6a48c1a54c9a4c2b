"""Long runs neither collect tensors nor grow."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

import torchopt

MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc's


def live_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


class Mallinfo(ctypes.Structure):
    """What ``mallinfo2`` returns."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    ]


def allocated_bytes() -> int:
    """Return how much is allocated, which free memory in the allocator's arenas does not hide."""
    MALLINFO.restype = Mallinfo
    info = MALLINFO()
    return info.uordblks + info.hblkhd


def maml() -> Callable[[], None]:
    """Return one meta-iteration: two inner steps, an outer step, back to the start."""
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    inner = torchopt.MetaAdam(net, lr=0.1)
    outer = torchopt.Adam(net.parameters(), lr=1e-3)

    def iterate() -> None:
        params = torchopt.extract_state_dict(net, detach_buffers=True)
        state = torchopt.extract_state_dict(inner)
        x, y = torch.randn(8, 4), torch.randn(8, 1)
        for _ in range(2):
            inner.step(nn.functional.mse_loss(net(x), y))
        loss = nn.functional.mse_loss(net(x), y)
        outer.zero_grad()
        loss.backward()
        torchopt.recover_state_dict(net, params)
        torchopt.recover_state_dict(inner, state)
        outer.step()

    return iterate


def online() -> Callable[[], None]:
    """Return one iteration that goes on from the last one, with the graph cut in between."""
    net = nn.Linear(4, 1)
    rate = torch.tensor(0.01, requires_grad=True)
    inner = torchopt.MetaOptimizer(
        net, torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(rate))
    )
    outer = torchopt.SGD([rate], lr=1e-4)

    def iterate() -> None:
        x, y = torch.randn(8, 4), torch.randn(8, 1)
        inner.step(nn.functional.mse_loss(net(x), y))
        outer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        outer.step()
        torchopt.stop_gradient(net)
        torchopt.stop_gradient(inner)

    return iterate


@pytest.mark.skipif(not MALLINFO, reason="needs glibc")
@pytest.mark.parametrize("make", [pytest.param(maml, marks=pytest.mark.slow), online])
def test_two_thousand_meta_iterations_do_not_grow(make: Callable[[], Callable[[], None]]) -> None:
    iterate = make()
    for _ in range(500):  # caches settle
        iterate()
    tensors, allocated, blocks = live_tensors(), allocated_bytes(), sys.getallocatedblocks()
    for _ in range(2000):
        iterate()
    assert live_tensors() == tensors
    # the smallest tensor takes hundreds of bytes; caches of the interpreter some KiB altogether
    assert allocated_bytes() - allocated < 2000 * 32
    # Python's objects have an allocator of their own; less than one an iteration
    assert sys.getallocatedblocks() - blocks < 2000


def test_a_stateful_optimizer_does_not_keep_gradients_alive() -> None:
    net = nn.Linear(4, 1)
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    tensors = live_tensors()
    for _ in range(20):
        net(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert live_tensors() == tensors


def test_a_graph_is_freed_with_the_module_it_led_to() -> None:
    tensors = live_tensors()
    net = nn.Linear(4, 1)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    for _ in range(3):
        optimizer.step(net(torch.randn(8, 4)).sum())
    assert live_tensors() > tensors
    del net, optimizer
    assert live_tensors() == tensors
