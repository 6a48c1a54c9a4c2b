"""What a docstring of `torchopt_viz` shows, runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import torchopt_viz

NAMES = [
    "torchopt_viz",
    *(m.name for m in pkgutil.walk_packages(torchopt_viz.__path__, "torchopt_viz.")),
]
EXAMPLES = [
    docstring
    for name in NAMES
    for docstring in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    if docstring.examples
]


@pytest.mark.parametrize("docstring", EXAMPLES, ids=lambda docstring: docstring.name)
def test_examples_run(docstring: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(docstring, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)
