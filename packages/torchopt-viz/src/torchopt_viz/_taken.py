"""Which nodes of a computation the steps of an optimizer made."""

from __future__ import annotations

from types import FrameType
from typing import NamedTuple

from torchopt_viz._frames import Place

__all__ = ["Step", "StepsTaken"]


class Step(NamedTuple):
    """The sequence numbers of the nodes that a step made."""

    start: int
    # one more than that of the last node which a watched call made
    end: int
    # that of the first node which is surely not the step's: between the two are fused steps, whose
    # calls are not watched, and what a program does right after the step without a watched call
    limit: int
    # where the program took it, like "train.py:31"
    line: str | None

    def made(self, number: int, is_fused: bool) -> bool:
        """Return whether the step made the node with a sequence number."""
        return self.start <= number < (self.limit if is_fused else self.end)


class StepsTaken:
    """Steps in the order in which they were taken.

    A step is the call of a function, told by its frame: however it was called, and without any
    change to the function, which other threads may be calling.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        # the call that took the last step; kept, so that no other call can be at its address
        self._frame: FrameType | None = None

    def saw(self, place: Place, start: int, end: int) -> None:
        """Take note that a call at a place of the program made the nodes from start to end."""
        if place.step is None:
            self._limit(start)
        elif place.step is self._frame:
            self.steps[-1] = self.steps[-1]._replace(end=end, limit=end)
        else:
            self._limit(start)
            self._frame = place.step
            self.steps.append(Step(start, end, end, place.line))

    def stop(self, number: int) -> None:
        """Forget the last call; the node with this number is not its own."""
        self._limit(number)
        self._frame = None

    def _limit(self, number: int) -> None:
        if self._frame is not None and self.steps[-1].limit == self.steps[-1].end:
            self.steps[-1] = self.steps[-1]._replace(limit=number)

    def line(self, number: int) -> str | None:
        """Return where the step was taken that made the fused step with a sequence number."""
        for step in self.steps:
            if step.made(number, is_fused=True):
                return step.line
        return None
