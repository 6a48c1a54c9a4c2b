"""Type checkers find the mistakes in programs, and none in right ones.

`checked/wrong.py` and `checked/right.py` are the programs; a third is written here, with one wrong
keyword for each name of the front door, so that what is added there is held to it, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchopt.optim.base import DerivedOptimizer

from torchopt._extensions import EXTENSIONS, TARGETS, is_installed
from torchopt.optim._meta import DerivedMetaOptimizer

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).resolve().with_name("checked")
INSTALLED = {name for name in EXTENSIONS if is_installed(name)}
MARK = re.compile(r"  # error(?:: (?P<package>\w+))?$")
# by file, the lines with errors
Errors = dict[str, dict[int, str]]


def wrong_keywords() -> Iterator[str]:
    """Return statements, each of which passes a keyword that does not exist."""
    modules = ["torchopt", "torchopt.optim", "torchopt.optim.meta", "torchopt.transform"]
    modules += [path for path, home in TARGETS.items() if ":" not in home and home in INSTALLED]
    for path in modules:
        module = importlib.import_module(path)
        for name in module.__all__:
            value = getattr(module, name)
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if inspect.isclass(value) and issubclass(value, BaseException):
                continue
            first = ""
            if inspect.isclass(value) and issubclass(value, DerivedOptimizer):
                first = "[torch.zeros(1)], "
                yield f"{value.__module__}.{value.__name__}({first}no_such_option=0)"
            if inspect.isclass(value) and issubclass(value, DerivedMetaOptimizer):
                first = "torch.nn.Linear(1, 1), "
            parameters = inspect.signature(value).parameters.values()
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                yield f"{path}.{name}({first}no_such_option=0)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the programs, away from any settings of a checker."""
    folder = tmp_path_factory.mktemp("programs")
    for program in PROGRAMS.glob("*.py"):
        shutil.copy(program, folder)
    statements = list(wrong_keywords())
    homes = {statement.partition("(")[0].rpartition(".")[0] for statement in statements}
    imports = [f"import {home}" for home in sorted({"torch", *homes})]
    lines = [*imports, *(f"{statement}  # error" for statement in statements)]
    (folder / "keywords.py").write_text("\n".join(lines) + "\n")
    # pyright leaves out what is below a hidden folder, such as an environment of nox
    (folder / "pyrightconfig.json").write_text('{"include": ["."], "exclude": []}')
    return folder


def run(folder: Path, *command: str) -> str:
    checked = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    return checked.stdout


def run_mypy(folder: Path) -> Errors:
    # what comes from a missing extension is Any, which only a strict check objects to
    strict = ["--strict"] if len(INSTALLED) == len(EXTENSIONS) else []
    output = run(folder, "mypy", *strict, "--no-error-summary", "--no-pretty", ".")
    errors: Errors = {}
    for file, line, message in re.findall(r"^(\w+\.py):(\d+): error: (.*)$", output, re.M):
        errors.setdefault(file, {})[int(line)] = message
    return errors


def run_pyright(folder: Path) -> Errors:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    asked = [sys.executable, "-m", "pyright", "--version"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("pyright does not start: it has no Node.js for this machine")
    output = run(folder, "pyright", "--pythonpath", sys.executable, "--outputjson")
    errors: Errors = {}
    for found in json.loads(output)["generalDiagnostics"]:
        if found["severity"] == "error":
            line = found["range"]["start"]["line"] + 1
            errors.setdefault(Path(found["file"]).name, {})[line] = found["message"]
    return errors


@pytest.fixture(scope="module", params=[run_mypy, run_pyright], ids=["mypy", "pyright"])
def errors(request: pytest.FixtureRequest, folder: Path) -> Errors:
    """Return what a checker finds in all programs."""
    found: Errors = request.param(folder)
    return found


def test_right_programs_pass(errors: Errors) -> None:
    assert errors.get("right.py", {}) == {}


@pytest.mark.parametrize("program", ["wrong.py", "keywords.py"])
def test_every_mistake_is_found_and_nothing_else(
    program: str, errors: Errors, folder: Path
) -> None:
    lines = dict(enumerate((folder / program).read_text().splitlines(), 1))
    marks = {number: mark for number, line in lines.items() if (mark := MARK.search(line))}
    expected = {n for n, mark in marks.items() if mark["package"] in {None, *INSTALLED}}
    assert len(expected) > 30
    found = errors.get(program, {})
    assert {n: lines[n] for n in expected - found.keys()} == {}, "not found"
    assert {lines[n]: found[n] for n in found.keys() - expected} == {}, "found without a mark"


def test_the_programs_know_every_extension() -> None:
    marked = {mark["package"] for mark in map(MARK.search, open_lines()) if mark}
    assert marked == {None, *EXTENSIONS}


def open_lines() -> list[str]:
    return (PROGRAMS / "wrong.py").read_text().splitlines()
