"""Runs of steps that are taken again in the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torchopt._types import Leaves
from torchopt.diff.explicit._problem import Carry, Layout, Problem
from torchopt.diff.explicit._replay import Pullback, Pure, replay, smooth_among
from torchopt.diff.explicit._schedule import Schedule, Split
from torchopt.diff.explicit._surroundings import Surroundings

__all__ = ["Run", "run_replayed"]


class Run(NamedTuple):
    """What all segments of an unroll have in common."""

    problem: Problem
    #: Whether the losses are outputs.
    losses: bool
    #: Whether carries are stored in host memory.
    on_host: bool


def run_replayed(
    run: Run, carry: Carry, steps: int, schedule: Schedule
) -> tuple[Carry, list[torch.Tensor]]:
    """Take all steps; each segment stores its first carry alone.

    Returns:
        The last carry, and the losses if they are outputs.
    """
    tensors, layout = carry.pack()
    losses: list[torch.Tensor] = []
    start, split = 0, schedule.split(steps)
    while True:
        stop, own = (steps, schedule) if split is None else (start + split.length, split.head)
        segment = Segment(run, start, stop, own, layout, [x.device for x in tensors])
        segment.is_new = True
        found = replay(segment, *segment.stored(tensors), *run.problem.shared)
        layout = segment.end.layout
        tensors, losses = list(found[: layout.size]), [*losses, *found[layout.size :]]
        if split is None:
            return layout.unpack(tensors), losses
        start, schedule = stop, split.tail
        split = schedule.split(steps - start)


class Segment(Pure):
    """Some steps: from the tensors of a carry, and those that all steps share, to the same."""

    #: Whether its first run is the first time that its steps are taken.
    is_new = False

    def __init__(
        self,
        run: Run,
        start: int,
        stop: int,
        schedule: Schedule,
        layout: Layout,
        devices: Sequence[torch.device],
    ) -> None:
        self.run, self.start, self.stop, self.schedule = run, start, stop, schedule
        self.layout, self.devices = layout, list(devices)
        # known to copies, too
        self.surroundings = Surroundings(run.problem.generators)
        self._ends: list[_End] = []

    @property
    def end(self) -> _End:
        """What the last step has left, beside tensors; known after a run."""
        return self._ends[-1]

    def stored(self, tensors: Sequence[torch.Tensor]) -> Leaves:
        """Return the tensors of a carry where they are to be stored."""
        return [x.to("cpu") for x in tensors] if self.run.on_host else list(tensors)

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        problem, number = self.run.problem, self.layout.size
        moved = [x.to(device) for x, device in zip(tensors[:number], self.devices, strict=True)]
        carry, shared = self.layout.unpack(moved), list(tensors[number:])
        is_first = self.is_new and not self._ends
        if not is_first:
            problem.unchanged.check()
        losses = []
        with self.surroundings.restored([*moved, *shared]):
            for index in range(self.start, self.stop):
                step = problem.watched_step if is_first else problem.step
                carry, value = step(index, carry, shared)
                losses.append(value)
        found, layout = carry.pack()
        self._ends[:] = [_End(layout, [x.device for x in found])]
        return [*found, *losses] if self.run.losses else found

    def constants(self) -> range:
        size = self.end.layout.size
        return range(size - len(self.run.problem.target.buffers), size)

    def pullback(self, wanted: Sequence[int], given: Sequence[int]) -> Pullback:
        split = self.schedule.split(self.stop - self.start)
        if split is None:
            return Pullback(self, wanted, given)
        return _SplitPullback(self, wanted, given)

    def head(self, split: Split) -> Segment:
        """Return its first part."""
        middle = self.start + split.length
        part = Segment(self.run, self.start, middle, split.head, self.layout, self.devices)
        part.levels = self.levels
        part.surroundings = self.surroundings.again()
        return part

    def tail(self, split: Split, head: Segment) -> Segment:
        """Return its second part, after the first one has run."""
        layout, devices = head.end
        part = Segment(self.run, head.stop, self.stop, split.tail, layout, devices)
        part._ends = list(self._ends)
        part.surroundings = head.surroundings.following()
        shared = len(self.run.problem.shared)
        part.levels = tuple(
            level._replace(
                batched=(
                    *[flags[k] for flags in head.outputs[: layout.size]],
                    *level.batched[len(level.batched) - shared :],
                )
            )
            for k, level in enumerate(self.levels)
        )
        return part


class _End(NamedTuple):
    layout: Layout
    devices: list[torch.device]


class _SplitPullback(Pullback):
    """The pullback of a segment by those of its two parts, the second one first."""

    def compute(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        own = self.function
        assert isinstance(own, Segment)
        split = own.schedule.split(own.stop - own.start)
        assert split is not None
        number = len(tensors) - len(self.given)
        inputs, cotangents = tensors[:number], tensors[number:]
        size = own.layout.size
        head = own.head(split)
        middle = replay(head, *inputs)[: head.end.layout.size]
        tail = own.tail(split, head)

        # to the tail: its outputs, and losses; to the head: the losses before
        outputs = own.end.layout.size
        tail_given, tail_cotangents, head_given, head_cotangents = [], [], [], []
        for j, g in zip(self.given, cotangents, strict=True):
            if outputs <= j < outputs + split.length:
                head_given.append(len(middle) + j - outputs)
                head_cotangents.append(g)
            else:
                tail_given.append(j if j < outputs else j - split.length)
                tail_cotangents.append(g)

        smooth = smooth_among(middle, head.constants())
        shared = [i - size for i in self.wanted if i >= size]
        found: dict[int, torch.Tensor] = {}
        if tail_given:
            wanted = [*smooth, *[i + len(middle) for i in shared]]
            pullback = tail.pullback(wanted, tail_given)
            pullback.extra = self.extra
            stored = own.stored(middle)
            grads = replay(pullback, *stored, *inputs[size:], *tail_cotangents)
            found = dict(zip(shared, grads[len(smooth) :], strict=True))
            devices = head.end.devices
            head_given = [*smooth, *head_given]
            moved = [g.to(devices[i]) for i, g in zip(smooth, grads, strict=False)]
            head_cotangents = [*moved, *head_cotangents]
        del middle
        pullback = head.pullback(self.wanted, head_given)
        pullback.extra = self.extra
        grads = replay(pullback, *inputs, *head_cotangents)
        return [
            g + found[i - size] if i - size in found else g
            for i, g in zip(self.wanted, grads, strict=True)
        ]
