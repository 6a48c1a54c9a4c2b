"""Make the checkpoints beside this file; to be run with TorchOpt 0.7.3, once.

    python make.py

Each holds the states of the three faces after some steps, the parameters there (on which the faces
agree), and the parameters after going on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import torchopt

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from _cases_0_7 import (  # noqa: E402
    AFTER,
    BEFORE,
    CASES,
    make_module,
    step_functional,
    step_meta,
    step_stateful,
)

FIRST, REST = range(BEFORE), range(BEFORE, BEFORE + AFTER)


def copied(state: object) -> object:
    return torchopt.pytree.tree_map(
        lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, state
    )


def checkpoint(name: str) -> dict[str, object]:
    """Return the checkpoint of a case."""
    module = make_module()
    params = {key: p.detach().clone() for key, p in module.named_parameters()}
    transformation = CASES[name]()
    params, state = step_functional(
        name, transformation, params, transformation.init(params), FIRST
    )
    packed = {"params": params, "functional": copied(state)}
    expected, _ = step_functional(name, transformation, params, state, REST)
    packed["expected"] = expected

    optimizer = torchopt.Optimizer(module.parameters(), CASES[name]())
    step_stateful(name, optimizer, module, FIRST)
    packed["stateful"] = copied(optimizer.state_dict())
    step_stateful(name, optimizer, module, REST)
    agree(name, module, expected)

    module = make_module()
    meta = torchopt.MetaOptimizer(module, CASES[name]())
    step_meta(name, meta, module, FIRST)
    packed["meta"] = copied(torchopt.extract_state_dict(meta, by="reference"))
    step_meta(name, meta, module, REST)
    agree(name, module, expected)
    return packed


def agree(name: str, module: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    for key, p in expected.items():
        difference = (getattr(module, key) - p).abs().max().item()
        assert difference < 1e-12, (name, key, difference)


if __name__ == "__main__":
    assert torchopt.__version__.startswith("0.7."), torchopt.__version__
    torch.set_default_dtype(torch.float64)  # in which 0.7 computes bias corrections and schedules
    for name in CASES:
        torch.save(checkpoint(name), FOLDER / f"{name}.pt")
