"""Existing programs find every module, name, parameter and default that they rely on."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchopt
from torchopt import _extensions, _paths
from torchopt._extensions import EXTENSIONS, SUBMODULES, TARGETS, is_installed

# The lists are kept beside the repository.
API = Path(__file__).resolve().parents[3] / "shared" / "api"
beside = pytest.mark.skipif(not API.exists(), reason="the lists are not beside the repository")
PATHS = json.loads((API / "paths.json").read_text()) if API.exists() else {}


def belongs_to_missing_extension(path: str) -> bool:
    homes = [home for name, home in TARGETS.items() if f"{path}.".startswith(f"{name}.")]
    return any(not is_installed(home.partition(":")[0].partition(".")[0]) for home in homes)


def is_of_missing_extensions(problem: str) -> bool:
    path, _, what = problem.partition(": ")
    names = what.removeprefix("missing ").split(", ") if what.startswith("missing ") else []
    return belongs_to_missing_extension(path) or (
        bool(names) and all(belongs_to_missing_extension(f"{path}.{name}") for name in names)
    )


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


@beside
@pytest.mark.parametrize("checker", ["check_surface.py", "check_paths.py"])
def test_names_and_paths_are_as_listed(checker: str) -> None:
    checked = run(API / checker)
    assert checked.stdout, checked.stderr
    *problems, summary = checked.stdout.splitlines()
    found = [line for line in problems if line and not is_of_missing_extensions(line)]
    assert not found, "\n".join([*found, summary])


FIRST = """
import json, os, sys
import optree, torch, torch.distributed.rpc, torch.distributed.nn.functional  # these take long
for path, names in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child:
        if os.waitpid(child, 0)[1]:
            print(path)
        continue
    try:
        exec(f"from {path} import {', '.join(names)}")
        exec(f"import {path}")
        import torchopt
        functions = [torchopt.transform.nan_to_num, torchopt.transform.trace, torchopt.alias.adam]
        assert all(map(callable, [*functions, torchopt.schedule.exponential_decay]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)
"""


@beside
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_path_may_be_the_first_that_is_imported() -> None:
    """And functions that have the name of a module of 0.7 stay functions."""
    moved = [f"torchopt.{path}" for path in _paths.CORE]
    moved += [path for path in SUBMODULES if not belongs_to_missing_extension(path)]
    done = run("-u", "-c", FIRST, json.dumps({path: PATHS[path] for path in moved}))
    assert not done.stdout + done.stderr


@pytest.mark.parametrize("path", SUBMODULES)
def test_paths_of_missing_extensions_say_what_to_install(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = SUBMODULES[path].partition(".")[0]
    facade = next(name for name in TARGETS if path.startswith(f"{name}."))
    for name in [*sys.modules]:
        if f"{name}.".startswith((f"{facade}.", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(_extensions, "is_installed", lambda name: False)
    with pytest.raises(ImportError, match=f"pip install {EXTENSIONS[package].distribution}"):
        importlib.import_module(path)


def test_the_forms_of_0_7_for_flat_trees_are_the_functions_themselves() -> None:
    from torchopt.alias.utils import _get_use_chain_flat, _set_use_chain_flat, scale_by_neg_lr
    from torchopt.combine import chain_flat

    _set_use_chain_flat(True)
    assert _get_use_chain_flat() is False
    assert chain_flat is torchopt.chain is torchopt.chain.flat
    assert scale_by_neg_lr.flat is scale_by_neg_lr
    assert torchopt.transform.scale_by_adam.flat is torchopt.transform.scale_by_adam
