"""Programs written for TorchOpt 0.7 run, and give what one process gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from . import _published_program
from ._launch import launch


def reference() -> list[float]:
    """The losses of the published program, by a loop without workers."""
    torch.manual_seed(0)
    model = _published_program.build_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(60, 4, dtype=torch.float64)
    data = torch.cat([x, x.prod(dim=1, keepdim=True).sin()], dim=1)
    losses = []
    for _ in range(2):
        for batch in torch.utils.data.DataLoader(data, batch_size=7):
            loss = F.mse_loss(model(batch[:, :-1]), batch[:, -1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "workers", [*(pytest.param(n, marks=pytest.mark.slow) for n in (None, 1, 3)), 2]
)
def test_the_published_distributed_program_trains_as_one_process(workers: int | None) -> None:
    output = launch(Path(_published_program.__file__), workers).check().stdout
    losses = [float(line.split()[-1]) for line in output.splitlines() if "loss" in line]
    torch.testing.assert_close(losses, reference(), rtol=1e-10, atol=1e-10)
    assert losses[-1] < losses[0]


TREES_OF_REFERENCES = """
import tempfile
import torch
from torch.distributed import rpc
from torchopt import pytree

with tempfile.NamedTemporaryFile() as file:
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{file.name}")
    rpc.init_rpc("alone", rank=0, world_size=1, rpc_backend_options=options)
    tree = {"a": torch.ones(2), "b": (torch.zeros(1),)}
    references = pytree.tree_as_rref(tree)
    for found in (pytree.tree_local_value(references), pytree.tree_to_here(references)):
        assert found["a"] is tree["a"]
        assert found["b"][0] is tree["b"][0]
    rpc.shutdown()
    print("done")
"""


def test_trees_of_remote_references_give_their_values_where_they_are_owned() -> None:
    assert launch(TREES_OF_REFERENCES).check().stdout == "done\n"
