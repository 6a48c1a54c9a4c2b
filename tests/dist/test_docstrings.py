"""What a docstring of `torchopt_dist` shows, runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import torchopt_dist

NAMES = [
    "torchopt_dist",
    *(m.name for m in pkgutil.walk_packages(torchopt_dist.__path__, "torchopt_dist.")),
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
