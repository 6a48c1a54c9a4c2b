"""Programs written for TorchOpt 0.7 run unchanged, and print the numbers that they print with it.

What a program printed with it is in the file of its name: of TorchOpt 0.7.3, torch 2.13, on a CPU,

    python -W ignore NAME.py > NAME.txt

and ``python -m torch.distributed.run --standalone --nproc-per-node=2`` for the distributed one.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dist._launch import launch

HERE = Path(__file__).parent
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
# what rounding may do to 14 digits of float64, over some dozen steps
USUAL = 1e-9
TOLERANCES = {
    # rounding times the squared condition number of the Hessian, which 5 steps of CG do not reduce
    "imaml_functional": 1e-6,
    "imaml_modules": 1e-6,
    # float32, and four printed digits of numbers below one
    "mgrl": 1e-3,
    # one line has 6 digits, as 0.7's derivative of the accelerated step is not exact
    "published_explicit": 2e-6,
}
DISTRIBUTED = ["maml_distributed"]
PROGRAMS = sorted(path.stem for path in HERE.glob("*.txt") if path.stem not in DISTRIBUTED)


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Undo what a program does to the default dtype."""
    previous = torch.get_default_dtype()
    yield
    torch.set_default_dtype(previous)


def assert_as_recorded(name: str, printed: str) -> None:
    recorded = (HERE / f"{name}.txt").read_text()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", recorded)
    tolerance = TOLERANCES.get(name, USUAL)
    expected = torch.tensor([float(number) for number in NUMBER.findall(recorded)]).double()
    actual = torch.tensor([float(number) for number in NUMBER.findall(printed)]).double()
    assert len(expected) > 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0.1 * tolerance)


def test_every_program_has_a_record() -> None:
    names = {path.stem for path in HERE.glob("*.py")} - {"__init__", "test_programs"}
    assert names == {*PROGRAMS, *DISTRIBUTED}


@pytest.mark.filterwarnings(r"ignore:[\s\S]*`functorch\.\w+` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", PROGRAMS)
def test_program_prints_what_it_printed_with_the_predecessor(
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(HERE / f"{name}.py"), run_name="__main__")
    assert_as_recorded(name, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTED)
def test_distributed_program_prints_what_it_printed_with_the_predecessor(name: str) -> None:
    assert_as_recorded(name, launch(HERE / f"{name}.py", 2).check().stdout)
