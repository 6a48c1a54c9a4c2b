"""What has been seen of a computation."""

from __future__ import annotations

import bisect
from typing import Any, NamedTuple

from torch.autograd.graph import GradientEdge

from torchopt_viz._graph import Cause
from torchopt_viz._held import HeldTensors
from torchopt_viz._taken import Step, StepsTaken

__all__ = ["Context", "Cut", "Recording"]


class Context(NamedTuple):
    """Where in the program's modules a node was made."""

    # the modules that were being called, outermost first: path and label
    modules: tuple[tuple[str, str], ...] = ()
    # whether it was made by differentiating a node of these modules
    backward: bool = False


class Cut(NamedTuple):
    """A place where a tensor that requires grad went into something whose result does not."""

    cause: Cause
    # what was called: "detach", "argmax"
    operation: str
    # "train.py:31"
    where: str | None
    # the shape of the tensor
    shape: tuple[int, ...]
    # where in the graph the tensor is
    source: GradientEdge


class Timeline:
    """A value for each node, by runs of the sequence numbers that autograd counts nodes with."""

    def __init__(self, default: Any) -> None:
        self._starts = [0]
        self._values = [default]

    def switch(self, start: int, value: Any) -> None:
        """Set the value from a sequence number on; they come in order."""
        if self._starts[-1] == start:
            self._values[-1] = value
        elif self._values[-1] != value:
            self._starts.append(start)
            self._values.append(value)

    def at(self, number: int) -> Any:
        """Return the value at a sequence number."""
        return self._values[bisect.bisect_right(self._starts, number) - 1]


class Recording:
    """What :func:`record` has seen.

    It holds the nodes where gradients stop, and with them the graphs that these belong to.

    Attributes:
        cuts: Each a :class:`Cut`, in order.
        steps: Of optimizers, by the sequence numbers of the nodes that they made, in order.
    """

    def __init__(self) -> None:
        self.contexts = Timeline(Context())
        self.places = Timeline(None)
        # the cuts, by what tells them apart
        self.found: dict[tuple[Any, ...], Cut] = {}
        # what nodes save that do not show it
        self.held = HeldTensors()
        # the steps of optimizers
        self.taken = StepsTaken()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of optimizers, in order."""
        return tuple(self.taken.steps)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The places where gradients stop, in order."""
        return tuple(self.found.values())

    def context(self, number: int) -> Context:
        """Return in which modules the node with a sequence number was made."""
        found: Context = self.contexts.at(number)
        return found

    def where(self, number: int) -> str | None:
        """Return the line that made the node with a sequence number."""
        found: str | None = self.places.at(number)
        return found

    def __repr__(self) -> str:
        """Return what was seen, in numbers."""
        return f"Recording({len(self.steps)} steps, {len(self.found)} cuts)"
