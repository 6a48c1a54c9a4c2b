"""Which carries a backward pass stores, and from which ones it runs again."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import NamedTuple

__all__ = ["AtOnce", "Every", "Revolve", "Schedule"]


class Split(NamedTuple):
    """A run of steps in two: the carry in between is stored while the second part is worked on."""

    #: The number of steps in the first part.
    length: int
    head: Schedule
    tail: Schedule


class Schedule(abc.ABC):
    """How to differentiate a run of steps whose first carry is stored."""

    @abc.abstractmethod
    def split(self, steps: int) -> Split | None:
        """Return the two parts to take one after the other, the last one first.

        None stands for a graph of all steps at once.
        """


@dataclasses.dataclass(frozen=True)
class AtOnce(Schedule):
    """One graph of all steps."""

    def split(self, steps: int) -> Split | None:
        return None


@dataclasses.dataclass(frozen=True)
class Every(Schedule):
    """A carry every few steps."""

    every: int
    within: Schedule

    def split(self, steps: int) -> Split | None:
        if steps <= self.every:
            return self.within.split(steps)
        return Split(self.every, self.within, self)


@dataclasses.dataclass(frozen=True)
class Revolve(Schedule):
    r"""As many carries as there are slots, where they save most.

    With :math:`s` slots, the first of which holds the first carry, :math:`n` steps take
    :math:`t(n, s) = \min_m m + t(m, s) + t(n - m, s - 1)` steps forward, beside the one that makes
    the graph of each. If :math:`\beta(s, r - 1) < n \le \beta(s, r)`, where
    :math:`\beta(s, r) = \binom{s + r}{s}`, no step is taken more than :math:`r` times, and every
    :math:`m \le \beta(s, r - 1)` with :math:`n - m \le \beta(s - 1, r)` that leaves both parts at
    least :math:`\beta(s, r - 2)` and :math:`\beta(s - 1, r - 1)` steps is a minimum.
    """

    slots: int

    def split(self, steps: int) -> Split | None:
        if steps == 1:
            return None
        if self.slots == 1:
            return Split(steps - 1, self, AtOnce())
        r = 1
        while math.comb(self.slots + r, r) < steps:
            r += 1
        shortest_tail = math.comb(self.slots + r - 2, r - 1)
        length = min(math.comb(self.slots + r - 1, r - 1), steps - shortest_tail)
        return Split(max(length, 1), self, Revolve(self.slots - 1))
