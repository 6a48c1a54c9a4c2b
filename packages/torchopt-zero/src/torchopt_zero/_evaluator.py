"""One function evaluated at many points: batched or in a loop, with which random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from torchopt_zero._random_numbers import GENERATORS, Randomness, RandomNumbers
from torchopt_zero._seed import counter_seed

# A function of more numbers than this gains nothing from being batched.
LARGEST_BATCHED = 2**23


class Evaluator:
    """Evaluates a function at many points, and remembers between its calls how.

    Args:
        vectorize: ``True`` for one `torch.func.vmap` per chunk, ``False`` for a loop, ``None`` for
            `vmap` until it fails, which makes it ``False``.
        randomness: Whether the evaluations of one sample draw the same random numbers.
    """

    def __init__(self, vectorize: bool | None, randomness: Randomness) -> None:
        self.vectorize = vectorize
        self.randomness: Randomness = randomness
        # whether the function has been seen to draw random numbers
        self.draws = False

    def map(
        self,
        function: Callable[[Any], Any],
        points: Any,
        runs: int,
        seed: int,
        start: int = 0,
        elements: int = 0,
    ) -> Any:
        """Evaluate a function at each slice, along the first dimension, of a tree of tensors.

        Random numbers are seeded by the number of a sample, and torch's global generators are left
        as they were.

        Args:
            function: From a slice to a tree of tensors.
            points: First the points of all samples in the first run, then those in the second, ....
            runs: How often each sample occurs.
            seed: The seed of the estimate.
            start: The number of the first sample.
            elements: How many numbers a slice stands for.

        Returns:
            The outputs, stacked.
        """
        job = _Job(function, points, runs, seed, start, self.randomness)
        if self.vectorize is False or (self.vectorize is None and elements > LARGEST_BATCHED):
            return self._loop(job)
        try:
            return self._batched(job)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if self.vectorize:
                raise
            values = self._loop(job)  # raises again what is not vmap's to blame
            self.vectorize = False
            return values

    def _batched(self, job: _Job) -> Any:
        if not self.draws:
            try:
                return job.batched("error")
            except RuntimeError as error:
                if "randomness" not in str(error):  # what torch says of `randomness="error"`
                    raise
        found = job.batched_with_random_numbers()
        self.draws = True
        return found

    def _loop(self, job: _Job) -> Any:
        if not self.draws:
            random = RandomNumbers(job.leaves)
            with GENERATORS:
                state = random.state()
                found = job.loop(None)
                if not random.drawn_since(state):
                    return found
                random.restore(state)
                self.draws = True
        with RandomNumbers(job.leaves) as random:
            return job.loop(random)


class _Job:
    """The evaluations that one call asks for."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        points: Any,
        runs: int,
        seed: int,
        start: int,
        randomness: Randomness,
    ) -> None:
        self.function = function
        self.points = points
        self.runs = runs
        self.seed = seed
        self.start = start
        self.paired = randomness == "same"
        self.leaves: list[Tensor] = optree.tree_leaves(points)
        self.count = len(self.leaves[0]) // runs

    def batched(self, randomness: str, run: int | None = None) -> Any:
        """Evaluate all points, or those of one run, at once."""
        points, count = self.points, self.count * self.runs
        if run is not None:
            count = self.count
            points = _map(lambda x: x[run * count : (run + 1) * count], points)
        if count == 1:  # kernels for one matrix round differently than those for a batch of them
            points = _map(lambda x: x.expand(2, *x.shape[1:]), points)
        outputs = torch.func.vmap(self.function, randomness=randomness)(points)
        return outputs if count > 1 else _map(lambda x: x[:1], outputs)

    def batched_with_random_numbers(self) -> Any:
        with RandomNumbers(self.leaves) as random:
            if not self.paired:
                random.seed(self._key(self.start))
                return self.batched("different")
            outputs = []
            for run in range(self.runs):
                random.seed(self._key(self.start))
                outputs.append(self.batched("different", run))
            return _map(lambda *x: torch.cat(x), *outputs)

    def loop(self, random: RandomNumbers | None) -> Any:
        """Evaluate one point after the other."""
        outputs: list[Any] = [None] * (self.count * self.runs)
        for i in range(self.count):
            for run in range(self.runs):
                if random is not None and (self.paired or run == 0):
                    random.seed(self._key(self.start + i))
                at = run * self.count + i
                outputs[at] = self.function(_map(lambda x, at=at: x[at], self.points))
        return _map(lambda *x: torch.stack(x), *outputs)

    def _key(self, sample: int) -> int:
        return counter_seed(~self.seed & (2**62 - 1), sample)


def _map(function: Callable[..., Tensor], *trees: Any) -> Any:
    return optree.tree_map(function, *trees)
