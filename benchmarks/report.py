"""The tables that a run prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from compare import Spread

__all__ = ["AT_LEAST", "AT_MOST", "Bound", "Row", "render"]

AT_LEAST, AT_MOST = ">=", "<="


class Bound(NamedTuple):
    """What a measurement is aimed at."""

    sense: str
    value: float

    def met(self, measured: float) -> bool:
        """Return whether ``measured`` is within the bound."""
        return measured <= self.value if self.sense == AT_MOST else measured >= self.value


class Row(NamedTuple):
    """One line of a table: measurements of one thing in several circumstances."""

    what: str
    measured: Sequence[Spread | float]
    #: One for each measurement; None: it is shown for information.
    bounds: Sequence[Bound | None]

    def cells(self, circumstances: Sequence[str]) -> list[str]:
        """Return the line's cells as text."""
        values = [x.median if isinstance(x, Spread) else x for x in self.measured]
        bounded = [
            (bound, bound.met(value), name)
            for bound, value, name in zip(self.bounds, values, circumstances, strict=True)
            if bound is not None
        ]
        numbers = [f"{bound.value:g}" for bound, _, _ in bounded]
        target = bounded[0][0].sense + " " if bounded else ""
        target += ", ".join(numbers if len(set(numbers)) > 1 else numbers[:1])
        missed = [name for _, met, name in bounded if not met]
        met = ("NO: " + ", ".join(missed)) if missed else "yes" if bounded else ""
        return [self.what, *map(_text, self.measured), target, met]


def _text(measured: Spread | float) -> str:
    if isinstance(measured, Spread):
        return f"{measured.median:.2f} ({measured.low:.2f}-{measured.high:.2f})"
    return str(measured) if isinstance(measured, int) else f"{measured:.2f}"


def render(title: str, what: str, circumstances: Sequence[str], rows: Sequence[Row]) -> str:
    """Return an aligned table with a column for each circumstance.

    Args:
        title: What the numbers are.
        what: The name of the first column.
        circumstances: The names of the columns of measurements.
        rows: The lines.
    """
    lines = [[what, *circumstances, "target", "met"], *(row.cells(circumstances) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    last = len(circumstances)
    table = [
        "  ".join(
            cell.rjust(width) if 1 <= k <= last else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([title, "", *table, ""])
