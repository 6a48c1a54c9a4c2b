"""Discrete estimators are reached through `torchopt`, and importing them is light."""

from __future__ import annotations

import subprocess
import sys

import torchopt
import torchopt_zero.discrete


def test_torchopt_leads_to_the_same_module() -> None:
    import torchopt.diff.zero_order.discrete as reached

    assert reached is torchopt_zero.discrete
    assert torchopt.diff.zero_order.discrete is torchopt_zero.discrete


def test_scipy_is_imported_when_it_is_used() -> None:
    code = "import sys, torchopt_zero.discrete; print([n for n in sys.modules if n == 'scipy'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
