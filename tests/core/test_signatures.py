"""The derived classes say what they take: in their docstrings, and in the stubs that editors read.

The stubs are written by a program; what they say is held against the classes themselves.
"""

from __future__ import annotations
import __future__

import ast
import importlib.util
import inspect
import math
import pydoc
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt.optim._stateful import DerivedOptimizer

PACKAGE = Path(torchopt.__file__).parent
WRITER = Path(__file__).resolve().parents[2] / "packages" / "torchopt-core" / "stubs.py"


def load_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stubs", WRITER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STUBS = load_writer()
CLASSES: list[type[Any]] = STUBS.derived_classes()


def shape(signature: inspect.Signature) -> list[tuple[str, Any, Any]]:
    parameters = signature.parameters.values()
    return [(p.name, p.kind, _shown(p.default)) for p in parameters if p.name != "self"]


def _shown(default: Any) -> Any:
    """A default as a stub shows it: three dots where it is no literal."""
    is_literal = default == default and default not in (math.inf, torch.bfloat16)
    return default if is_literal else ...


def typed_constructors() -> dict[str, inspect.Signature]:
    """Return the signatures in the stub, by class, read by Python itself."""
    tree = ast.parse((PACKAGE / "optim" / "_derived.pyi").read_text())
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in classes:
        node.bases = []
    flags = __future__.annotations.compiler_flag
    names: dict[str, Any] = {}
    module = ast.Module(body=list(classes), type_ignores=[])
    exec(compile(module, "_derived.pyi", "exec", flags=flags, dont_inherit=True), names)
    return {node.name: inspect.signature(names[node.name].__init__) for node in classes}


@pytest.mark.parametrize("place", STUBS.STUBS)
def test_stubs_are_as_they_would_be_written_now(place: str) -> None:
    if "zero_order" in place:
        pytest.importorskip("torchopt_zero")
    written = (PACKAGE / place).read_text(encoding="utf-8")
    assert written == STUBS.STUBS[place](), f"{place} is out of date: run `nox -s stubs`"


def test_every_exported_class_is_among_them() -> None:
    classes = {getattr(torchopt, name) for name in torchopt.__all__} & set(CLASSES)
    assert {torchopt.Adam, torchopt.SGD, torchopt.MetaAdamW} <= classes
    assert {cls.__name__ for cls in CLASSES} == set(typed_constructors())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_base_of_a_class_is_the_one_that_types_it(cls: type[Any]) -> None:
    statement = inspect.getsource(cls).partition(":\n")[0]
    assert f"_derived.{cls.__name__}," in statement, "write `class Name(_derived.Name, ...)`"


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_typed_constructor_takes_what_the_class_takes(cls: type[Any]) -> None:
    assert shape(typed_constructors()[cls.__name__]) == shape(inspect.signature(cls))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_docstring_describes_every_argument_once(cls: type[Any]) -> None:
    documentation = inspect.getdoc(cls) or ""
    purpose, _, arguments = documentation.partition("\n\nArgs:\n")
    assert "\n" not in purpose
    for name in inspect.signature(cls).parameters:
        assert arguments.count(f"\n    {name}: ") + arguments.startswith(f"    {name}: ") == 1
    assert "needs ``params``" not in documentation  # which is for the functional form
    assert "Example" not in documentation


def test_help_lists_the_hyperparameters() -> None:
    page = pydoc.plain(pydoc.render_doc(torchopt.MetaAdam))
    assert "MetaAdam(module, lr: 'ScalarOrSchedule | TensorTree' = 0.001, betas:" in page
    assert "module: The module to optimize." in page
    assert "eps: :math:`\\epsilon`, added outside of the root." in page
    assert "A dict gives every parameter its own, by name." in page
    assert "by name" not in pydoc.render_doc(torchopt.Adam)


def test_only_what_the_class_takes_is_described() -> None:
    assert "moment_requires_grad:" in str(torchopt.MetaAdam.__doc__)
    assert "moment_requires_grad:" not in str(torchopt.Adam.__doc__)


def test_a_class_of_ones_own_is_documented_too() -> None:
    class Nameless(DerivedOptimizer, functional=torchopt.sgd): ...

    class Documented(DerivedOptimizer, functional=torchopt.sgd):
        """Mine.

        Args:
            params: What is optimized.
        """

    class Further(torchopt.Adam):
        """Adam, further."""

    assert str(Nameless.__doc__).startswith("Stochastic gradient descent with momentum, as in")
    assert "dampening: " in str(Nameless.__doc__)
    assert str(Documented.__doc__).strip().endswith("What is optimized.")
    assert Further.__doc__ == "Adam, further."
    assert Further(nn.Linear(1, 1).parameters(), lr=0.5).param_groups[0]["lr"] == 0.5
