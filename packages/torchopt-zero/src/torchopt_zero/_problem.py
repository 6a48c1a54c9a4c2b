"""One estimate to be made: the objective at its arguments, and how it may be sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torchopt_zero._noise import Noise
from torchopt_zero._scratch import Scratch
from torchopt_zero._workers import Workers

OnNonFinite = Literal["propagate", "ignore", "raise"]

# Noise of one chunk, in numbers, where `chunk_size` is left to us: what stays in a CPU's cache, and
# what fills a GPU.
_CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**25}
# A function of more numbers than this gains nothing from being batched.
_LARGEST_BATCHED = 2**23


class Batching:
    """How a function is evaluated at many points, which is remembered between its calls.

    Args:
        vectorize: ``True`` for one `torch.func.vmap` per chunk, ``False`` for a loop, ``None`` for
            `vmap` until it fails, which makes it ``False``.
    """

    def __init__(self, vectorize: bool | None) -> None:
        self.vectorize = vectorize


class Objective:
    """A scalar function of leaves that is evaluated at many points.

    Args:
        function: Takes the leaves as a list, returns a scalar tensor.
        batching: How it is evaluated.
    """

    def __init__(self, function: Callable[[list[Tensor]], Any], batching: Batching) -> None:
        self.function = function
        self.batching = batching

    def __call__(self, leaves: list[Tensor]) -> Tensor:
        return check_scalar(self.function(leaves))

    def values(
        self, build: Callable[[Any], list[Tensor]], perturbed: list[Any], elements: int
    ) -> Tensor:
        """Evaluate at each slice, along the first dimension, of a tree of tensors.

        Args:
            build: Makes the leaves from a slice.
            perturbed: The tree, a list of tensors or of tuples of them.
            elements: How many numbers a slice stands for.

        Returns:
            float64 ``[count]``, on the CPU.
        """
        vectorize = self.batching.vectorize
        if vectorize is False or (vectorize is None and elements > _LARGEST_BATCHED):
            return self._loop(build, perturbed)
        try:
            return self._batched(build, perturbed)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if vectorize:
                raise
            values = self._loop(build, perturbed)  # raises again what is not vmap's to blame
            self.batching.vectorize = False
            return values

    def _batched(self, build: Callable[[Any], list[Tensor]], perturbed: list[Any]) -> Tensor:
        count = _count(perturbed)
        # Kernels for one matrix round differently than those for a batch of them.
        batch = _map(lambda x: x.expand(2, *x.shape[1:]), perturbed) if count == 1 else perturbed
        values = torch.func.vmap(lambda one: self(build(one)), randomness="different")(batch)
        return values[:count].to("cpu", torch.float64)

    def _loop(self, build: Callable[[Any], list[Tensor]], perturbed: list[Any]) -> Tensor:
        values = []
        for i in range(_count(perturbed)):
            values.append(self(build(_map(partial(torch.select, dim=0, index=i), perturbed))))
        return torch.stack(values).to("cpu", torch.float64)


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

    def chunks(self, samples: range, elements: int, size: int | None = None) -> Iterator[range]:
        """Cut samples into ranges that fit the bound on memory."""
        if size is None:
            size = self.chunk_size
        if size is None:
            kind = self.leaves[0].device.type
            size = max(2, _CHUNK_ELEMENTS.get(kind, 2**20) // max(1, elements))
        for start in range(samples.start, samples.stop, size):
            yield range(start, min(start + size, samples.stop))

    def evaluate(self, noise: Noise, drawn: Any, signs: Sequence[int], scratch: Scratch) -> Tensor:
        """Return ``f(x + sign * sigma * z)`` for every sample and sign, ``[samples, signs]``."""
        elements = sum(leaf.numel() for leaf in self.leaves)
        scales = [sign * self.sigma for sign in signs]
        perturbed = noise.perturb(self.leaves, drawn, scales, scratch)
        values = self.objective.values(
            lambda one: noise.assemble(self.leaves, one), perturbed, elements
        )
        return values.view(len(signs), -1).T

    def keep(self, values: Tensor) -> Tensor:
        """Return which rows of values enter the estimate."""
        if self.on_non_finite == "ignore":
            return values.isfinite().all(dim=1)
        self.check_finite(values)
        return torch.ones(len(values), dtype=torch.bool)

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


def _map(function: Callable[[Tensor], Tensor], tree: list[Any]) -> list[Any]:
    return [
        tuple(map(function, item)) if isinstance(item, tuple) else function(item) for item in tree
    ]


def _count(tree: list[Any]) -> int:
    first = tree[0]
    return len(first[0] if isinstance(first, tuple) else first)
