"""Meta-trains on digits, as examples/few_shot_digits.py does, in float64; saves what it found.

Arguments: where to save, ``True`` for deterministic sums.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_dist import map_tasks, process_group

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from _digits import Task, load_classes

WAYS, SHOTS, QUERIES, INNER_STEPS, TASKS, ITERATIONS = 4, 5, 10, 5, 4, 4


def make_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(32, WAYS),
    ).double()


def adapted(net: nn.Module, task: Task) -> tuple[Tensor, dict[str, Any]]:
    """Return MAML's loss and the accuracy of the adapted network on a task."""
    inner = torchopt.MetaSGD(net, lr=0.3)
    for _ in range(INNER_STEPS):
        inner.step(F.cross_entropy(net(task.support.double()), task.support_labels))
    scores = net(task.query.double())
    accuracy = (scores.argmax(-1) == task.query_labels).double().mean()
    return F.cross_entropy(scores, task.query_labels), {"accuracy": accuracy}


def main(output: Path, deterministic: bool) -> None:
    torch.manual_seed(0)
    net = make_network()
    classes = load_classes((0, 1, 3, 4, 7, 8), symmetries=True)
    outer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(ITERATIONS):
        tasks = [classes.draw(WAYS, SHOTS, QUERIES, generator) for _ in range(TASKS)]
        result = map_tasks(adapted, tasks, net, metrics=("accuracy",), deterministic=deterministic)
        found.append(result._asdict())
        outer.zero_grad()
        result.accumulate_grad(net)
        outer.step()
    if not dist.is_initialized() or dist.get_rank() == 0:
        torch.save(found, output)


if __name__ == "__main__":
    with process_group(timeout=60.0):
        main(Path(sys.argv[1]), sys.argv[2] == "True")
