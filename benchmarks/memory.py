"""Whether memory grows over meta-iterations: ``python memory.py ITERATIONS``.

Prints the memory in use after a quarter of the iterations and at the end, as JSON.

A meta-iteration is what a MAML program does: save the network (with BatchNorm) and the inner
optimizer, adapt by five differentiable steps, differentiate the outer loss through them, bring
the saved state back, step the outer optimizer.

Python's cyclic garbage collector is off meanwhile, so that memory held in reference cycles
would show as growth, too.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import torchopt

__all__ = ["Footprint", "footprint", "meta_iterations"]

INNER_STEPS = 5


class Footprint(NamedTuple):
    """Memory in use."""

    #: Tensors that Python knows.
    tensors: int
    #: Resident memory in bytes.
    resident: int


def footprint() -> Footprint:
    """Return the memory in use by this process (Linux)."""
    tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Footprint(tensors, pages * os.sysconf("SC_PAGE_SIZE"))


def meta_iterations(number: int, warm_up: int) -> tuple[Footprint, Footprint]:
    """Return the memory in use after ``warm_up`` and after ``number`` meta-iterations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    inner = torchopt.MetaAdam(net, lr=1e-2)
    outer = torchopt.Adam(net.parameters(), lr=1e-3)
    inputs, targets = torch.randn(2, 8, 16), torch.randint(4, (2, 8))
    loss = nn.functional.cross_entropy
    before = footprint()
    for iteration in range(1, number + 1):
        saved_net = torchopt.extract_state_dict(net)
        saved_inner = torchopt.extract_state_dict(inner)
        for _ in range(INNER_STEPS):
            inner.step(loss(net(inputs[0]), targets[0]))
        outer.zero_grad()
        torch.autograd.backward(loss(net(inputs[1]), targets[1]))
        torchopt.recover_state_dict(net, saved_net)
        torchopt.recover_state_dict(inner, saved_inner)
        outer.step()
        if iteration == warm_up:
            before = footprint()
    return before, footprint()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    number = int(sys.argv[1])
    meta_iterations(3, 3)  # imports, caches
    gc.collect()
    gc.disable()
    before, after = meta_iterations(number, warm_up=number // 4)
    print(json.dumps([before, after]))


if __name__ == "__main__":
    main()
