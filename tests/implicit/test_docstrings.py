"""What a docstring of `torchopt_implicit` shows, runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import torchopt_implicit

NAMES = [
    "torchopt_implicit",
    *(m.name for m in pkgutil.walk_packages(torchopt_implicit.__path__, "torchopt_implicit.")),
]
EXAMPLES = [
    docstring
    for name in NAMES
    for docstring in doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(name), globs={}
    )
    if docstring.examples
]


@pytest.mark.parametrize("docstring", EXAMPLES, ids=lambda docstring: docstring.name)
def test_examples_run(docstring: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(docstring, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)
