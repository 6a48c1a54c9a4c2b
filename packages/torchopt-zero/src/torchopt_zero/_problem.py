"""One estimate to be made: the objective at its arguments, and how it may be sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optree
import torch
from torch import Tensor

from torchopt_zero._evaluator import LARGEST_BATCHED, Evaluator
from torchopt_zero._functorch import may_lose_derivatives
from torchopt_zero._leaves import check_constants
from torchopt_zero._noise import Noise
from torchopt_zero._reads import Reads
from torchopt_zero._scratch import Scratch
from torchopt_zero._workers import Workers

OnNonFinite = Literal["propagate", "ignore", "raise"]

# What is worked on at once, in numbers: what stays in a CPU's cache, and what fills a GPU.
_BUDGETS = {"cuda": 2**24}
_BUDGET = 2**20


class Objective:
    """A scalar function of leaves that is evaluated at many points.

    Args:
        function: Takes the leaves as a list, returns a scalar tensor.
        evaluator: How it is evaluated.
    """

    def __init__(self, function: Callable[[list[Tensor]], Any], evaluator: Evaluator) -> None:
        self.function = function
        self.evaluator = evaluator

    def __call__(self, leaves: list[Tensor]) -> Tensor:
        return check_scalar(self.function(leaves))


@dataclass(frozen=True)
class Problem:
    """What an estimator is given; the arguments of `zero_order` are described there."""

    objective: Objective
    leaves: list[Tensor]
    # f at the leaves
    value: float
    noise: Noise
    num_samples: int
    sigma: float
    seed: int
    chunk_size: int | None = None
    on_non_finite: OnNonFinite = "propagate"
    workers: Workers | None = None
    # whether the gradient with respect to sigma is asked for
    learns_sigma: bool = False
    # how many numbers the function computes at once, at a point
    largest: int = 0
    # what the function was seen to read besides, which derivatives do not get lost in
    constants: Sequence[Tensor] = ()

    def tiles(self, elements: int, count: int | None = None) -> list[range]:
        """Cut the samples into the ranges whose noise is drawn, and summed up, in one go.

        They depend on what is perturbed alone, so that bits do not depend on `chunk_size`.

        Args:
            elements: How many numbers a sample takes.
            count: How many there are. Default: `num_samples`.
        """
        count = self.num_samples if count is None else count
        size = max(2 if elements <= LARGEST_BATCHED else 1, self._budget // max(1, elements))
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def pieces(self, samples: range, runs: int) -> Iterator[range]:
        """Cut samples into the ranges that are evaluated at once, each so many times."""
        size = self.chunk_size or max(2, self._budget // max(1, self.largest * runs))
        for start in range(samples.start, samples.stop, size):
            yield range(start, min(start + size, samples.stop))

    @property
    def _budget(self) -> int:
        return _BUDGETS.get(self.leaves[0].device.type, _BUDGET)

    def evaluate(
        self,
        noise: Noise,
        drawn: Any,
        tile: range,
        samples: range,
        signs: Sequence[int],
        scratch: Scratch,
    ) -> Tensor:
        """Return ``f(x + sign * sigma * z)`` for every sign and some samples of a tile.

        Returns:
            float64 ``[samples, signs]``, on the CPU.
        """
        scales = [sign * self.sigma for sign in signs]
        values = []
        for piece in self.pieces(samples, len(signs)):
            part = drawn
            if piece != tile:
                rows = slice(piece.start - tile.start, piece.stop - tile.start)
                part = optree.tree_map(lambda x, rows=rows: x[rows], drawn)
            points = noise.perturb(self.leaves, part, scales, scratch)
            found = self.values(
                lambda one: noise.assemble(self.leaves, one), points, len(signs), piece.start
            )
            values.append(found.view(len(signs), -1).T)
        return torch.cat(values)

    def values(
        self, build: Callable[[Any], list[Tensor]], points: Any, runs: int, start: int
    ) -> Tensor:
        """Evaluate at points from which leaves can be built; see :meth:`Evaluator.map`.

        Returns:
            float64 ``[points]``, on the CPU.
        """
        given = [*self.leaves, *self.constants, *optree.tree_leaves(points)]
        with Reads(given, only=may_lose_derivatives()) as reads:
            found: Tensor = self.objective.evaluator.map(
                lambda one: self.objective(build(one)),
                points,
                runs,
                self.seed,
                start,
                elements=sum(leaf.numel() for leaf in self.leaves),
            )
        check_constants(reads.tensors())
        return found.to("cpu", torch.float64)

    def keep(self, values: Tensor) -> Tensor | slice:
        """Return which rows of values enter the estimate."""
        if self.on_non_finite == "ignore":
            return values.isfinite().all(dim=1)
        self.check_finite(values)
        return slice(None)

    def check_finite(self, values: Tensor) -> None:
        """Raise, if that is asked for, at rows of values that are not finite."""
        if self.on_non_finite != "raise":
            return
        bad = int((~values.isfinite().all(dim=1)).sum())
        if bad:
            raise FloatingPointError(
                f"the objective is not finite at {bad} of {len(values)} samples; reduce `sigma`, "
                f"now {self.sigma}, or leave such samples out with `on_non_finite='ignore'`"
            )

    def check_baseline(self) -> None:
        """Raise if the value at the leaves, which samples are held against, is not finite."""
        if self.on_non_finite != "propagate" and self.value - self.value != 0:
            raise FloatingPointError(
                f"the objective is {self.value} at the unperturbed arguments, which every sample "
                f"is held against; use a method that does not, as 'antithetic' or 'leave-one-out'"
            )


def check_scalar(output: Any) -> Tensor:
    """Return the output of an objective.

    Raises:
        RuntimeError: If it is not a scalar tensor of real numbers.
    """
    if not isinstance(output, Tensor):
        raise RuntimeError(
            f"`output` must be a tensor. The objective returned {type(output).__name__}; wrap the "
            f"number in torch.tensor"
        )
    if output.ndim != 0:
        raise RuntimeError(
            f"`output` must be a scalar tensor. The objective returned shape "
            f"{tuple(output.shape)}; reduce it, e.g. by .mean()"
        )
    if output.is_complex():
        raise RuntimeError(f"`output` must be a real tensor, got {output.dtype}")
    return output


def check_differentiable(output: Tensor) -> None:
    """Raise if the output of an objective cannot have a derivative.

    Raises:
        RuntimeError: If it is not floating-point.
    """
    if not output.is_floating_point():
        raise RuntimeError(
            f"`output` must be a floating-point tensor for a gradient to reach it. The objective "
            f"returned {output.dtype}; convert it, e.g. by .float()"
        )


def check_count(name: str, count: Any) -> None:
    """Raise unless an argument is an integer of at least 1."""
    if type(count) is not int:
        raise TypeError(f"`{name}` must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}")
