"""The docstrings of derived classes: their purpose, and the functional form's hyperparameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

__all__ = ["argument_descriptions", "derived_docstring"]

_SECTION = re.compile(r"^(\w+):\n((?:(?: .*)?\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    \*{0,2}(\w+(?:, \w+)*): ")
# what a class does by itself
_FUNCTIONAL_ONLY = re.compile(r"[;,]\s+needs\s+``params``\s+in\s+``update``")


def _section(docstring: str, title: str) -> str:
    found = dict(_SECTION.findall(inspect.cleandoc(docstring) + "\n"))
    return str(found.get(title, "")).rstrip()


def argument_descriptions(docstring: str) -> dict[str, str]:
    """Return the entries of a docstring's ``Args``, indented, by the argument's name."""
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in _section(docstring, "Args").splitlines():
        if start := _ENTRY.match(line):
            names = start[1].split(", ")
        for name in names:
            entries[name] = f"{entries[name]}\n{line}" if name in entries else line
    return entries


def derived_docstring(
    purpose: str | None, functional: str | None, base: str | None, parameters: Iterable[str]
) -> str | None:
    """Return the docstring of a class that is derived from an optimizer's functional form.

    Args:
        purpose: The docstring of the class as it is written. One that has ``Args`` already stays.
        functional: The docstring of the functional form.
        base: The docstring of what all such classes derive from; its ``Args`` describe the first
            parameter, and what a class does with a hyperparameter beyond the functional form.
        parameters: The names of the class's parameters, in order.
    """
    if functional is None or base is None or "Args:" in (purpose or ""):  # no docstrings, or both
        return purpose
    theirs, ours = argument_descriptions(functional), argument_descriptions(base)
    entries: dict[str, None] = {}
    for name in parameters:
        entry = _FUNCTIONAL_ONLY.sub("", theirs.get(name, ""))
        more = ours.get(name, "")
        if entry and more:
            more = _ENTRY.sub(" " * 8, more)
        entries["\n".join(filter(None, [entry, more]))] = None
    summary = purpose or inspect.cleandoc(functional).partition("\n")[0]
    parts = [inspect.cleandoc(summary), "Args:\n" + "\n".join(filter(None, entries))]
    if raises := _section(functional, "Raises"):
        parts.append(f"Raises:\n{raises}")
    return "\n\n".join(parts) + "\n"
