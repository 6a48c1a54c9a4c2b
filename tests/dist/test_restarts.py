"""`torchrun --max-restarts` starts ranks again, which find each other and not those before."""

from __future__ import annotations

import pytest

from ._launch import launch

RESTARTS = 3
COLLECTIVES = """
import os
import torch
import torch.distributed as dist
from torchopt_dist import map_tasks, process_group

with process_group(timeout=20.0):
    weight = torch.ones(2, requires_grad=True)
    found = map_tasks(lambda w, i: (w * i).sum(), range(5), weight).grads.tolist()
    assert found == [2.0, 2.0]
    if dist.get_rank() == 1 and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < RESTARTS:
        os._exit(3)
    dist.barrier()
print("came back\\n", end="", flush=True)
"""
RPC = """
import os
import torchopt.distributed as todist

@todist.auto_init_rpc()
def main():
    assert todist.remote_sync_call(len, args=("four",), partitioner=1) == [4]
    if todist.get_rank() == 1 and int(os.environ["TORCHELASTIC_RESTART_COUNT"]) < RESTARTS:
        os._exit(3)

main()
print("came back\\n", end="", flush=True)
"""


@pytest.mark.parametrize(
    "program", [COLLECTIVES, pytest.param(RPC, marks=pytest.mark.slow)], ids=["collectives", "RPC"]
)
def test_ranks_that_are_started_again_find_each_other(program: str) -> None:
    result = launch(program.replace("RESTARTS", f"{RESTARTS}"), 2, restarts=RESTARTS).check()
    assert result.stdout.count("came back") == 2
