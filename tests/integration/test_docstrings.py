"""What a docstring shows, runs: those of every installed package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

from torchopt._extensions import EXTENSIONS, TARGETS, is_installed

PACKAGES = ["torchopt", *filter(is_installed, EXTENSIONS)]
NAMES = [
    name
    for package in PACKAGES
    for name in [
        package,
        *(
            module.name
            for module in pkgutil.walk_packages(
                importlib.import_module(package).__path__, f"{package}."
            )
        ),
    ]
    if name not in TARGETS  # a facade is the extension's own module
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
