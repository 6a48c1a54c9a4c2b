"""Two machines, which are two network namespaces with a cable between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from ._launch import Result, launch
from .test_few_shot import EXAMPLE

IP = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""
MASTER = "10.255.77.1"

LISTENS = """
from torchopt_dist._interface import own_interface
print(own_interface(False), own_interface(True))
"""


def ip(*arguments: str) -> None:
    subprocess.run([IP, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """The names of two network namespaces, which are those of their interfaces, too."""
    names = [f"to{os.getpid()}{side}" for side in "ab"]
    with contextlib.ExitStack() as made:
        try:
            for name in names:
                ip("netns", "add", name)
                made.callback(ip, "netns", "del", name)
            ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", b"").decode(errors="replace").strip()
            pytest.skip(f"network namespaces cannot be made here: {error} {reason}")
        for number, name in enumerate(names, start=1):  # what fails from here on is a failure
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{MASTER[:-1]}{number}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def run(machines: list[str], door: str) -> list[Result]:
    """Run the demo on each machine, as a user would who was given their addresses."""
    results: list[Result | BaseException] = [AssertionError("not run"), AssertionError("not run")]

    def run_one(rank: int) -> None:
        options = [f"--node-rank={rank}", f"--master-addr={MASTER}", "--master-port=29500"]
        command = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *options]
        command += [str(EXAMPLE), "--door", door, "--double", "--fast"]
        program = f"""
import subprocess, sys
command = {[IP, "netns", "exec", machines[rank], sys.executable, *command]!r}
sys.exit(subprocess.run(command).returncode)
"""
        try:
            results[rank] = launch(program)
        except AssertionError as error:
            results[rank] = error

    threads = [threading.Thread(target=run_one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result.check() for result in results if isinstance(result, Result)]


@pytest.mark.parametrize("door", ["tasks", pytest.param("rpc", marks=pytest.mark.slow)])
def test_two_machines_find_the_losses_of_one_process(machines: list[str], door: str) -> None:
    first, second = run(machines, door)
    found = [line.split()[3] for line in first.stdout.splitlines() if "loss" in line]
    alone = launch(EXAMPLE, args=["--door", "none", "--double", "--fast"]).check().stdout
    expected = [line.split()[3] for line in alone.splitlines() if "loss" in line]
    assert len(found) == 5
    assert [float(loss.rstrip(",")) for loss in found] == pytest.approx(
        [float(loss.rstrip(",")) for loss in expected], rel=1e-10
    )
    assert "loss" not in second.stdout


def test_the_interface_is_the_one_that_leads_to_the_master(machines: list[str]) -> None:
    for name in machines:
        command = [IP, "netns", "exec", name, sys.executable, "-c", LISTENS]
        environment = {**os.environ, "MASTER_ADDR": MASTER}
        output = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        assert output.decode().split() == [name, "lo"]


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid", None])
def test_otherwise_torch_chooses(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    from torchopt_dist._interface import own_interface

    if address is None:
        monkeypatch.delenv("MASTER_ADDR", raising=False)
    else:
        monkeypatch.setenv("MASTER_ADDR", address)
    assert own_interface(False) is None
