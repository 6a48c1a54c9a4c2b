"""Runs programs that have several processes, and leaves none of them behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# the environment of every process of a run has it, also of those in sessions of their own
_MARK = "TORCHOPT_TEST_RUN"


class Result(NamedTuple):
    """What came of a run."""

    returncode: int
    stdout: str
    stderr: str
    # how long it took
    seconds: float
    # processes of the run that did not end soon after the first one, and were killed then
    orphans: list[int]

    def check(self) -> Result:
        """Return this, or fail with what the processes have printed."""
        if self.returncode != 0 or self.orphans:
            raise AssertionError(
                f"returned {self.returncode} after {self.seconds:.1f} s, processes left behind: "
                f"{self.orphans}\n{self.stdout}\n{self.stderr}"
            )
        return self


def launch(
    program: str | Path,
    nproc: int | None = None,
    *,
    timeout: float = 120.0,
    args: Sequence[str] = (),
    env: dict[str, str] | None = None,
    restarts: int = 0,
) -> Result:
    """Run a program and wait for it.

    Args:
        program: The path of a script, or its source.
        nproc: How many processes `torchrun` starts; ``None`` for a plain process, which may start
            others by `torch.multiprocessing`.
        timeout: After how many seconds the run is killed, which is a failure.
        args: Given to the script.
        env: Variables to set. The number of threads is one unless set here.
        restarts: How often `torchrun` may start the processes again.

    Raises:
        AssertionError: If it took too long.
    """
    mark = uuid.uuid4().hex
    threads = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    variables = {**os.environ, **threads, **(env or {}), _MARK: mark}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in (env or {}):
            variables.pop(name, None)
    with tempfile.TemporaryDirectory() as folder:
        script = program
        if isinstance(program, str):
            script = Path(folder, "program.py")
            script.write_text(program)
        command = [sys.executable]
        if nproc is not None:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
            command += [f"--max-restarts={restarts}", "--monitor-interval=0.1"]
        out, err = Path(folder, "stdout"), Path(folder, "stderr")  # pipes would outlive the run
        start = time.monotonic()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [*command, str(script), *args], stdout=stdout, stderr=stderr, env=variables
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
            seconds = time.monotonic() - start
            orphans = _kill(mark, patience=3.0 if seconds < timeout else 0.0)
            returncode = process.wait()
        texts = [file.read_text(errors="replace") for file in (out, err)]
    if seconds >= timeout:
        raise AssertionError(f"still running after {timeout:g} s\n{texts[0]}\n{texts[1]}")
    return Result(returncode, texts[0], texts[1], seconds, orphans)


def _kill(mark: str, patience: float) -> list[int]:
    """Kill the processes of a run that do not end by themselves; return which these were."""
    deadline = time.monotonic() + patience
    while (found := _alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return found


def _alive(mark: str) -> list[int]:
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        # a process that has ended has no environment, nor has one of another user
        with contextlib.suppress(OSError):
            variables = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
            if wanted in variables.split(b"\0"):
                found.append(int(folder.name))
    return found
