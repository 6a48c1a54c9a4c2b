"""The demo in its fast mode: it runs, says what it found, and draws it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "few_shot_digits.py"


@pytest.mark.parametrize("inner_optimizer", ["sgd", pytest.param("adam", marks=pytest.mark.slow)])
def test_demo_adapts_to_unseen_digits_and_draws_them(tmp_path: Path, inner_optimizer: str) -> None:
    picture = tmp_path / "digits.png"
    run = subprocess.run(
        [
            *(sys.executable, str(DEMO), "--fast", "--output", str(picture)),
            *("--inner-optimizer", inner_optimizer),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = dict(
        re.findall(r"^  (before|after|random start, same).*?([\d.]+)% ± ", run.stdout, re.M)
    )
    assert float(found["after"]) > float(found["before"]) + 30
    assert float(found["after"]) > float(found["random start, same"])
    assert "margin over the random start" in run.stdout
    assert "meta-training: 100%" in run.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
