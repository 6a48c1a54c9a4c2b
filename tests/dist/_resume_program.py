"""Meta-trains with a checkpoint every few iterations; a run that is killed goes on from there.

Arguments: the checkpoint, where to write the trajectory, before which iteration to be killed (-1:
never), ``True`` for deterministic sums.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_dist import load_checkpoint, map_tasks, process_group, save_checkpoint

EVERY, ITERATIONS = 3, 10


def adapted(net: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
    x, y = task
    inner = torchopt.MetaSGD(net, lr=0.1)
    inner.step(F.mse_loss(net(x), y))
    return F.mse_loss(net(x + 0.01 * torch.randn_like(x)), y)


def main(checkpoint: Path, output: Path, killed_before: int, deterministic: bool) -> None:
    torch.manual_seed(0)
    # no bias before the normalization: its gradient would be nothing but what was rounded, and
    # Adam makes steps of that
    first = nn.Linear(1, 9, bias=False)
    net = nn.Sequential(first, nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 1)).double()
    outer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, ITERATIONS)
    scale = {"scale": torch.ones((), dtype=torch.float64, requires_grad=True)}
    optim = torchopt.adam(0.01)
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Any] = {
        "iteration": 0,
        "losses": [],
        "net": net,
        "outer": outer,
        "schedule": schedule,  # set in place
        "scale": scale,
        "optim": optim.init(scale),  # a functional optimizer
        "tasks": generator,
        "global": torch.default_generator,
    }
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, state)
    for iteration in range(state["iteration"], ITERATIONS):
        if iteration == killed_before and (not dist.is_initialized() or dist.get_rank() == 0):
            os.kill(os.getpid(), signal.SIGKILL)
        scale = state["scale"]
        tasks = [
            (x, torch.sin(x + torch.rand(1, dtype=x.dtype)))  # of the global generator
            for x in torch.rand(5, 8, 1, generator=generator, dtype=torch.float64)
        ]
        result = map_tasks(
            lambda p, task: adapted(p[0], (task[0] * p[1]["scale"], task[1])),
            tasks,
            (net, scale),
            seed=iteration,
            deterministic=deterministic,
        )
        outer.zero_grad()
        result.accumulate_grad((net, scale))
        outer.step()
        schedule.step()
        updates, optim_state = optim.update(result.grads[1], state["optim"])
        scale = torchopt.apply_updates(scale, updates, inplace=False)
        state |= {
            "iteration": iteration + 1,
            "losses": [*state["losses"], result.loss.item()],
            "scale": {name: x.detach().requires_grad_() for name, x in scale.items()},
            "optim": optim_state,
        }
        if state["iteration"] % EVERY == 0:
            save_checkpoint(checkpoint, state)
    if not dist.is_initialized() or dist.get_rank() == 0:
        numbers = [p.sum().item() for p in net.parameters()] + [state["scale"]["scale"].item()]
        output.write_text(json.dumps([x.hex() for x in [*state["losses"], *numbers]]))


if __name__ == "__main__":
    with process_group(timeout=30.0):
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True")
