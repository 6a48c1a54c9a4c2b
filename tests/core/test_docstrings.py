"""What a docstring of `torchopt` shows, runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import torchopt
from torchopt._extensions import TARGETS

NAMES = [
    "torchopt",
    *(module.name for module in pkgutil.walk_packages(torchopt.__path__, "torchopt.")),
]
# A facade of an extension is that extension's module, which its own tests cover.
MODULES = [importlib.import_module(name) for name in NAMES if name not in TARGETS]
EXAMPLES = [
    docstring
    for module in MODULES
    for docstring in doctest.DocTestFinder(exclude_empty=True).find(module, globs={})
    if docstring.examples
]


@pytest.mark.parametrize("docstring", EXAMPLES, ids=lambda docstring: docstring.name)
def test_examples_run(docstring: doctest.DocTest) -> None:
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(docstring, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)
