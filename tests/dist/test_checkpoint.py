"""Checkpoints are whole or not there, and any number of ranks goes on from them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt_dist import load_checkpoint, save_checkpoint

from ._launch import launch

PROGRAM = Path(__file__).with_name("_resume_program.py")


def same(x: Any, y: Any) -> bool:
    pairs = zip(*(torchopt.pytree.tree_leaves(tree) for tree in (x, y)), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_trees_of_tensors_and_plain_values_come_back(tmp_path: Path) -> None:
    params = {"w": torch.randn(3, requires_grad=True), "b": torch.randn((), dtype=torch.float64)}
    optim = torchopt.adam(0.1)
    state = {
        "params": params,
        "optim": optim.init(params),
        "view": torch.arange(1000)[::500],
        "plain": {"count": 3, "name": "run", "none": None, "flag": True, "z": 1j},
        "losses": [0.5, 0.25],
        "nested": [torch.ones(2), 4, None],
    }
    path = tmp_path / "state.pt"
    save_checkpoint(path, state)
    fresh = torchopt.pytree.tree_map(
        lambda x: torch.zeros_like(x) if isinstance(x, torch.Tensor) else x, state
    )
    fresh["params"]["w"].requires_grad_()
    fresh |= {"plain": dict.fromkeys(state["plain"]), "losses": []}
    loaded = load_checkpoint(path, fresh)
    assert same(loaded, state)
    assert loaded["plain"] == state["plain"]
    assert type(loaded["optim"]) is type(state["optim"])
    assert loaded["params"]["w"].requires_grad
    assert not loaded["params"]["b"].requires_grad
    assert path.stat().st_size < 12_000  # of the storage of the view only what is seen


OPTIMIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "torch.optim.Adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.1),
    "torch.optim.SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
    "torchopt.Adam": lambda net: torchopt.Adam(net.parameters(), lr=0.1),
    "torchopt.RMSProp": lambda net: torchopt.RMSProp(net.parameters(), lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_objects_and_generators_go_on_where_they_were(name: str, tmp_path: Path) -> None:
    generator = torch.Generator()

    def setup() -> dict[str, Any]:
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        return {
            "net": net,
            "outer": (outer := OPTIMIZERS[name](net)),
            "schedule": torch.optim.lr_scheduler.MultiStepLR(outer, [1, 3]),
            "generators": {"own": generator, "global": torch.default_generator},
        }

    def train(state: dict[str, Any]) -> None:
        for _ in range(3):
            state["outer"].zero_grad()
            x = torch.randn(4, 2) + torch.randn(4, 2, generator=generator)
            state["net"](x).exp().sum().backward()
            state["outer"].step()
            state["schedule"].step()

    state = setup()
    train(state)
    save_checkpoint(tmp_path / "a.pt", state)
    train(state)
    other = setup()
    loaded = load_checkpoint(tmp_path / "a.pt", other)
    assert loaded["net"] is other["net"]
    train(other)
    assert same(other["net"].state_dict(), state["net"].state_dict())
    assert other["schedule"].get_last_lr() == state["schedule"].get_last_lr()


def test_a_crash_while_writing_hurts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": torch.ones(3)})
    whole = path.read_bytes()

    def crash(*_: Any) -> None:
        raise OSError("no space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, crash)
            with pytest.raises(OSError, match="no space"):
                save_checkpoint(path, {"x": torch.zeros(3)})
        assert path.read_bytes() == whole
        assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
    (tmp_path / "a.pt.tmp").write_bytes(whole[:100])  # as a killed process leaves it
    assert load_checkpoint(path, {"x": torch.zeros(3)})["x"].sum() == 3
    save_checkpoint(path, {"x": torch.full((3,), 2.0)})
    assert load_checkpoint(path, {"x": torch.zeros(3)})["x"].sum() == 6
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


class Migrating(nn.Module):
    """A module whose parameter was stored negated before version 2."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *args: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = -state[f"{prefix}weight"]
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_modules_that_migrate_old_states_know_their_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nn.Sequential(Migrating())
    save_checkpoint(tmp_path / "new.pt", {"net": net})
    with monkeypatch.context() as patch:
        patch.setattr(Migrating, "_version", 1)
        save_checkpoint(tmp_path / "old.pt", {"net": net})
    load_checkpoint(tmp_path / "new.pt", {"net": net})
    assert net[0].weight.item() == 1.0
    load_checkpoint(tmp_path / "old.pt", {"net": net})
    assert net[0].weight.item() == -1.0


def test_loading_changes_all_or_nothing(tmp_path: Path) -> None:
    def state(width: int) -> dict[str, Any]:
        net = nn.Linear(2, 2)
        outer = torch.optim.Adam(net.parameters())
        net(torch.ones(2)).sum().backward()
        outer.step()
        b = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, width))
        return {
            "a": net,
            "b": b,
            "count": 1,
            "g": torch.Generator(),
            "outer": outer,
            "x": Refusing(),
        }

    for width, name in ((4, "b"), (5, "x")):
        save_checkpoint(tmp_path / "a.pt", {**state(5), "g": torch.Generator().manual_seed(7)})
        mine = state(width)
        before = {k: v.state_dict() for k, v in mine.items() if hasattr(v, "state_dict")}
        before = torchopt.pytree.tree_map(
            lambda x: x.clone() if isinstance(x, torch.Tensor) else x, before
        )
        generator = mine["g"].get_state()
        with pytest.raises(ValueError, match=f"'{name}' refused what was saved"):
            load_checkpoint(tmp_path / "a.pt", mine)
        assert torch.equal(mine["g"].get_state(), generator)
        after = {k: v.state_dict() for k, v in mine.items() if hasattr(v, "state_dict")}
        assert same(after, before)


class Refusing:
    """Loads its own state of before, and no other."""

    def __init__(self) -> None:
        self.number = torch.rand(())

    def state_dict(self) -> Any:
        return {"number": self.number}

    def load_state_dict(self, state: Any) -> None:
        if state["number"] != self.number:
            raise KeyError("number")


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchopt_dist import load_checkpoint, process_group, save_checkpoint

with process_group(timeout=20.0):
    net = torch.nn.Linear(4, 4)
    save_checkpoint(sys.argv[1], {"net": net})
    dist.barrier()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    outer = torch.optim.SGD(net.parameters(), lr=0.1)
    for call in (
        lambda: save_checkpoint(sys.argv[1], {"net": net}),
        lambda: save_checkpoint(sys.argv[1], {"weight": net.weight}),
        lambda: load_checkpoint(sys.argv[1], {"net": net}),
    ):
        try:
            call()
        except TypeError as error:
            print(f"rank {dist.get_rank()}: {error}\\n", end="", flush=True)
"""


def test_sharded_modules_are_refused_in_words_on_every_rank(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    lines = launch(SHARDED, 2, args=[str(path)]).check().stdout.splitlines()
    for rank in range(2):
        found = [line for line in lines if line.startswith(f"rank {rank}: ")]
        assert len(found) == 3, lines
        assert all("DTensor" in line and "torch.distributed.checkpoint" in line for line in found)
    load_checkpoint(path, {"net": nn.Linear(4, 4)})  # still the whole one


class Strange:
    def state_dict(self) -> Any:
        return {"x": Strange}

    def load_state_dict(self, state: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("match", "leaf"),
    [("got object at 'deep/0'", object()), ("state_dict\\(\\) is made of", Strange())],
)
def test_what_cannot_be_read_is_not_written(match: str, leaf: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, {"x": 1})
    with pytest.raises(TypeError, match=match):
        save_checkpoint(path, {"deep": [leaf]})
    assert load_checkpoint(path, {"x": 0}) == {"x": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize(
    ("match", "state"),
    [
        (r"got 'y' beyond those saved, and 'x' missing", {"y": torch.ones(3)}),
        (
            r"got \(2,\), torch.float32 at 'x', where the checkpoint has \(3,\)",
            {"x": torch.ones(2)},
        ),
        (r"got \(3,\), torch.float64", {"x": torch.ones(3, dtype=torch.float64)}),
        (r"beyond those saved, and 'x' missing", {"x": [torch.ones(3)]}),
    ],
)
def test_another_structure_is_an_error(match: str, state: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "a.pt", {"x": torch.ones(3)})
    with pytest.raises(ValueError, match=match):
        load_checkpoint(tmp_path / "a.pt", state)


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path, {})
    save_checkpoint(path, {"x": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path, {"x": torch.ones(3)})
    torch.save({"x": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="not written by save_checkpoint"):
        load_checkpoint(path, {"x": torch.ones(3)})


def run(folder: Path, nproc: int | None, killed_before: int, deterministic: bool) -> Any:
    arguments = [str(folder / "a.pt"), str(folder / "out.json"), str(killed_before)]
    return launch(PROGRAM, nproc, args=[*arguments, str(deterministic)])


def trajectory(folder: Path) -> list[float]:
    return [float.fromhex(x) for x in json.loads((folder / "out.json").read_text())]


@pytest.mark.parametrize(
    ("nproc", "deterministic"), [pytest.param(None, False, marks=pytest.mark.slow), (3, True)]
)
def test_a_killed_run_goes_on_with_another_number_of_ranks(
    nproc: int | None, deterministic: bool, tmp_path: Path
) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run(undisturbed, 2, -1, deterministic).check()
    expected = trajectory(undisturbed)
    killed = run(tmp_path, 2, 8, deterministic)
    assert killed.returncode != 0
    assert f"exitcode: -{int(signal.SIGKILL)}" in killed.stderr
    assert killed.orphans == []
    assert load_iteration(tmp_path / "a.pt") == 6
    run(tmp_path, nproc, -1, deterministic).check()
    found = trajectory(tmp_path)
    if deterministic:
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=1e-10)


def load_iteration(path: Path) -> int:
    content = torch.load(path, weights_only=True)
    return int(content["leaves"][content["names"].index("iteration")])
