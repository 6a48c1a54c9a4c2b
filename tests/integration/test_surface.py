"""Existing programs find every name, parameter and default that they rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torchopt._extensions import TARGETS, is_installed

# The list of names is kept beside the repository, shared with the distributions still to come.
CHECKER = Path(__file__).resolve().parents[3] / "shared" / "api" / "check_surface.py"


def belongs_to_missing_extension(path: str) -> bool:
    homes = [home for name, home in TARGETS.items() if f"{path}.".startswith(f"{name}.")]
    return any(not is_installed(home.partition(":")[0].partition(".")[0]) for home in homes)


@pytest.mark.skipif(not CHECKER.exists(), reason="the list of names is not beside the repository")
def test_public_surface_is_as_listed() -> None:
    checked = subprocess.run([sys.executable, CHECKER], capture_output=True, text=True, check=False)
    assert checked.stdout, checked.stderr
    *problems, summary = checked.stdout.splitlines()
    open_problems = [
        line
        for line in problems
        if line and not belongs_to_missing_extension(line.partition(":")[0])
    ]
    assert not open_problems, "\n".join([*open_problems, summary])
