"""The meta-training of the few-shot demo finds the same on any number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import torchopt

from . import _digits_program as program
from ._launch import launch


def run(folder: Path, nproc: int | None, deterministic: bool = False) -> list[dict[str, Any]]:
    path = folder / f"{nproc}.pt"
    launch(Path(program.__file__), nproc, args=[str(path), str(deterministic)]).check()
    return torch.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(("nproc", "deterministic"), [((2, 3), True), ((3,), False)])
def test_digits_are_learned_alike(
    nproc: tuple[int, ...], deterministic: bool, tmp_path: Path
) -> None:
    alone = run(tmp_path, None, deterministic)
    for ranks in nproc:
        found = run(tmp_path, ranks, deterministic)
        assert len(found) == program.ITERATIONS
        if deterministic:
            leaves = map(torchopt.pytree.tree_leaves, (found, alone))
            assert all(torch.equal(x, y) for x, y in zip(*leaves, strict=True))
        else:
            torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


def test_digits_are_learned_as_by_a_loop_without_ranks(tmp_path: Path) -> None:
    """The loop of the demo, which accumulates gradients in the leaves of the module."""
    torch.manual_seed(0)
    net = program.make_network()
    classes = program.load_classes((0, 1, 3, 4, 7, 8), symmetries=True)
    outer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    initial = torchopt.extract_state_dict(net)
    for found in run(tmp_path, 2):
        outer.zero_grad()
        losses = []
        for _ in range(program.TASKS):
            task = classes.draw(program.WAYS, program.SHOTS, program.QUERIES, generator)
            loss, _ = program.adapted(net, task)
            (loss / program.TASKS).backward()
            losses.append(loss.detach())
            torchopt.recover_state_dict(net, initial)
        tolerance = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(found["losses"], torch.stack(losses), **tolerance)
        gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
        torch.testing.assert_close(found["grads"], gradients, **tolerance)
        outer.step()
