"""What a computation depends on beside its inputs: random numbers, autocast, data that stays."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch

__all__ = ["Surroundings", "Unchanged"]


class Surroundings:
    """Random states and autocast as they are on the first of several runs, for all of them."""

    def __init__(self, generators: Sequence[torch.Generator] = ()) -> None:
        self._generators = list(generators)
        self._states: list[torch.Tensor] | None = None
        self._ended: list[torch.Tensor] = []
        self._autocast: list[tuple[str, torch.dtype, bool]] = []

    def again(self) -> Surroundings:
        """Return the surroundings of something that starts as this did."""
        found = copy.copy(self)
        found._ended = []
        return found

    def following(self) -> Surroundings:
        """Return the surroundings of what comes after this, which has run."""
        found = copy.copy(self)
        found._states, found._ended = self._ended, []
        return found

    @contextlib.contextmanager
    def restored(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Run the block as the first time; the first time, take note.

        Args:
            tensors: On whose devices the block computes.
        """
        is_first = self._states is None
        if is_first:
            self._note(tensors)
        assert self._states is not None
        now = [g.get_state() for g in self._generators]
        _set(self._generators, self._states)
        try:
            with self._casting():
                yield
            pairs = zip(self._generators, self._states, strict=True)
            # most blocks draw no random numbers, and then one state serves all
            self._ended = [_same_or(old, g.get_state()) for g, old in pairs]
        finally:
            if not is_first:
                _set(self._generators, now)

    def _note(self, tensors: Sequence[torch.Tensor]) -> None:
        devices = {x.device for x in tensors}
        found = [torch.default_generator, *self._generators]
        for device in devices:
            if device.type == "cuda":
                index = torch.cuda.current_device() if device.index is None else device.index
                found.append(torch.cuda.default_generators[index])
        self._generators = list({id(g): g for g in found}.values())
        self._states = [g.get_state() for g in self._generators]
        for kind in sorted({"cpu"} | {device.type for device in devices}):
            if torch.amp.is_autocast_available(kind):
                dtype, is_on = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
                self._autocast.append((kind, dtype, is_on))

    @contextlib.contextmanager
    def _casting(self) -> Iterator[None]:
        now = [torch.is_autocast_enabled(kind) for kind, *_ in self._autocast]
        if not any(now) and not any(is_on for *_, is_on in self._autocast):
            yield
            return
        with contextlib.ExitStack() as stack:
            for kind, dtype, is_on in self._autocast:
                # a cast that is cached in a run without a graph would have none for others, either
                context = torch.autocast(kind, dtype, enabled=is_on, cache_enabled=False)
                stack.enter_context(context)
            yield


def _set(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def _same_or(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return old if torch.equal(old, new) else new


class Unchanged:
    """Tensors that are read again, and must not be written to in between."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[torch.Tensor, int]] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._tensors

    def note(self, x: torch.Tensor) -> None:
        """Take a tensor as it is now."""
        if not x.is_inference() and id(x) not in self._tensors:
            self._tensors[id(x)] = x, x._version

    def join(self, other: Unchanged) -> None:
        """Take what another one has taken."""
        self._tensors.update(other._tensors)

    def written(self) -> torch.Tensor | None:
        """Return a tensor that has been written to, if there is one."""
        for x, version in self._tensors.values():
            if x._version != version:
                return x
        return None

    def check(self) -> None:
        """Raise if one has been written to."""
        x = self.written()
        if x is not None:
            raise RuntimeError(
                f"a tensor of shape {tuple(x.shape)} that the inner loss reads has been written to "
                "in place since, but the memory policy evaluates the loss again: give `unroll` a "
                "copy of it, or use `memory=FullGraph()`"
            )
