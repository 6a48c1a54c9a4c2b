"""`python -m torchopt` prints what a bug report needs."""

from __future__ import annotations

import platform
import subprocess
import sys
import types
from pathlib import Path

import optree
import pytest
import torch

from torchopt import _extensions
from torchopt._report import report

EXTENSIONS = ["accel", "implicit", "zero", "dist", "viz"]


def rows(text: str) -> dict[str, str]:
    """Split the report's lines at the first run of two spaces."""
    pairs = [line.strip().partition("  ") for line in text.splitlines()]
    return {name: value.strip() for name, _, value in pairs}


def install_metadata(folder: Path, distribution: str, version: str) -> None:
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {distribution}\nVersion: {version}\n")


def set_accel(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "torchopt_accel", module)
    monkeypatch.setattr(_extensions, "_optional", {})


def test_the_command_prints_the_report() -> None:
    command = [sys.executable, "-m", "torchopt"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert result.stdout.startswith("torchopt report\n")
    assert rows(result.stdout)["torch"] == torch.__version__


def test_versions_of_what_it_runs_on() -> None:
    values = rows(report())
    assert values["python"].startswith(platform.python_version())
    assert values["platform"] == platform.platform()
    assert values["torch"] == torch.__version__
    assert values["threads"] == str(torch.get_num_threads())
    assert values["optree"] == optree.__version__
    assert ("no device" in values["cuda"] or "not in" in values["cuda"]) != (
        torch.cuda.is_available()
    )


@pytest.mark.parametrize("name", ["core", *EXTENSIONS])
def test_versions_of_installed_distributions(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_metadata(tmp_path, f"torchopt-{name}", "98.7.6")
    monkeypatch.syspath_prepend(tmp_path)
    assert rows(report())[f"torchopt-{name}"] == "98.7.6"


@pytest.mark.parametrize("name", EXTENSIONS)
def test_distributions_that_are_not_installed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert rows(report())[f"torchopt-{name}"] == "not installed"


def test_the_distribution_with_the_same_import_name_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "warning" not in report()
    install_metadata(tmp_path, "torchopt", "0.7.3")
    text = report()
    assert "`torchopt` 0.7.3 is installed too" in text
    assert "pip uninstall -y torchopt torchopt-core" in text
    assert "pip install torchopt-core" in text


def test_kernels_are_live_device_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    accel = types.ModuleType("torchopt_accel")
    accel.is_available = lambda device: device == "cpu"  # type: ignore[attr-defined]
    set_accel(monkeypatch, accel)
    values = rows(report())
    assert (values["kernels on cpu"], values["kernels on cuda"]) == ("live", "not live")


def test_kernels_without_their_distribution_are_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_accel(monkeypatch, None)
    values = rows(report())
    assert (values["kernels on cpu"], values["kernels on cuda"]) == ("not installed",) * 2


def test_a_broken_kernel_does_not_keep_the_report_from_printing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accel = types.ModuleType("torchopt_accel")

    def is_available(device: str) -> bool:
        raise OSError(f"libgomp.so.1: cannot open shared object file for {device}")

    accel.is_available = is_available  # type: ignore[attr-defined]
    set_accel(monkeypatch, accel)
    assert rows(report())["kernels on cpu"].startswith("broken: OSError('libgomp.so.1")
