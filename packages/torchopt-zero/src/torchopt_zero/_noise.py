"""Sources of perturbations: the interface, and noise that fills whole tensors."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from torchopt.typing import Samplable, SampleFunc
from torchopt_zero._leaf_vector import LeafVector, wide
from torchopt_zero._random_numbers import RandomNumbers
from torchopt_zero._scratch import Scratch


class Noise(abc.ABC):
    """A source of perturbations with zero mean and unit covariance, one per sample.

    Perturbations are drawn by tiles, ranges of samples: a tile is a pure function of the seed, its
    first sample and its length, so any worker regenerates any of them. Noise for half precision is
    of float32. What :meth:`draw` returns is a tree of tensors with a first dimension of samples.
    """

    @abc.abstractmethod
    def elements(self, leaves: Sequence[Tensor]) -> int:
        """Return how many numbers one sample takes."""

    @abc.abstractmethod
    def draw(self, leaves: Sequence[Tensor], seed: int, samples: range, scratch: Scratch) -> Any:
        """Return the perturbations of one tile, valid until the next is drawn in this scratch."""

    @abc.abstractmethod
    def perturb(
        self, leaves: Sequence[Tensor], drawn: Any, scales: Sequence[float], scratch: Scratch
    ) -> Any:
        """Return a tree of tensors for :meth:`assemble`, batched along the first dimension.

        The batch holds all samples moved by the first scale, then all moved by the second.
        """

    @abc.abstractmethod
    def assemble(self, leaves: Sequence[Tensor], perturbed: Any) -> list[Tensor]:
        """Return the leaves as one sample sees them, from its slice of :meth:`perturb`."""

    @abc.abstractmethod
    def accumulate(self, totals: list[Tensor], drawn: Any, weights: Tensor) -> None:
        """Add the perturbations of a tile, weighted, to tensors like the leaves.

        Args:
            totals: In float32 for leaves of half precision.
            drawn: The tile.
            weights: float64 ``[samples]``, on the CPU.
        """

    def squared_norms(self, drawn: Any) -> Tensor:
        r"""Return :math:`|z|^2` of standard normal noise, for each sample of a tile.

        Returns:
            float64 ``[samples]``, on the CPU.

        Raises:
            TypeError: If the noise is no standard normal noise.
        """
        raise TypeError(
            f"a gradient with respect to `sigma` needs normal noise of mean zero, got "
            f"{type(self).__name__}; pass torch.distributions.Normal(0, 1), or a `sigma` that does "
            f"not require a gradient"
        )

    def check_repeatable(self, leaves: Sequence[Tensor], seed: int) -> None:
        """Raise if noise cannot be drawn a second time."""
        some = range(max(1, 64 // max(1, self.elements(leaves))))
        first, second = (
            optree.tree_leaves(self.draw(leaves, seed, some, Scratch())) for _ in range(2)
        )
        if not all(map(torch.equal, first, second)):
            raise ValueError(
                "`distribution` must draw from torch's global generators, which are seeded for it: "
                "this method draws noise twice, and it was other noise the second time. A sampler "
                "with a generator of its own can be used with methods that draw once, without "
                "`workers`"
            )


class DenseNoise(Noise):
    """Noise that has an entry for every entry of the leaves.

    Leaves of one dtype and device share one row of a matrix ``[samples, size]``.
    """

    @abc.abstractmethod
    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        """Write the noise of each sample of a tile into its row."""

    def elements(self, leaves: Sequence[Tensor]) -> int:
        return sum(leaf.numel() for leaf in leaves)

    def draw(
        self, leaves: Sequence[Tensor], seed: int, samples: range, scratch: Scratch
    ) -> list[Tensor]:
        drawn = []
        for vector in LeafVector.of(leaves):
            name = ("noise", vector.members[0])
            rows = scratch.take(name, len(samples), vector.size, wide(vector.dtype), vector.device)
            self.fill(rows, vector, seed, samples)
            drawn.append(rows)
        return drawn

    def perturb(
        self,
        leaves: Sequence[Tensor],
        drawn: list[Tensor],
        scales: Sequence[float],
        scratch: Scratch,
    ) -> list[Tensor]:
        batched: dict[int, Tensor] = {}
        for vector, rows in zip(LeafVector.of(leaves), drawn, strict=True):
            count = len(rows)
            moved = scratch.take(
                ("moved", vector.members[0]),
                count * len(scales),
                vector.size,
                vector.dtype,
                vector.device,
            )
            flat = vector.flatten(leaves).to(rows.dtype)
            for part, scale in zip(torch.split(moved, count), scales, strict=True):
                torch.add(flat, rows, alpha=scale, out=part)
            batched.update(zip(vector.members, vector.split(moved), strict=True))
        return [batched[i] for i in range(len(leaves))]

    def assemble(self, leaves: Sequence[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        return perturbed

    def accumulate(self, totals: list[Tensor], drawn: list[Tensor], weights: Tensor) -> None:
        for vector, rows in zip(LeafVector.of(totals), drawn, strict=True):
            summed = weights.to(rows.device, rows.dtype) @ rows
            for position, part in zip(vector.members, vector.split(summed), strict=True):
                totals[position].add_(part)


def squared_norms(drawn: list[Tensor], scale: float = 1.0) -> Tensor:
    """Return the squared norm of each row of some matrices, over a squared scale."""
    parts = [(rows.double() / scale).square().sum(1).cpu() for rows in drawn]
    return torch.stack(parts).sum(0)


class Gaussian(DenseNoise):
    r"""Independent normal noise, :math:`z_j \sim \mathcal{N}(\text{loc}, \text{scale}^2)`.

    Args:
        loc: The mean, 0.0 by default.
        scale: The standard deviation, 1.0 by default. Estimates are scaled by its square.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        self.loc = loc
        self.scale = scale

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        rows.normal_(generator=vector.generator(seed, samples.start))
        if self.scale != 1.0:
            rows.mul_(self.scale)
        if self.loc != 0.0:
            rows.add_(self.loc)

    def squared_norms(self, drawn: list[Tensor]) -> Tensor:
        return squared_norms(drawn, self.scale) if self.loc == 0 else super().squared_norms(drawn)


class Rademacher(DenseNoise):
    """Independent signs, each +1 or -1 with probability 1/2."""

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        rows.random_(0, 2, generator=vector.generator(seed, samples.start)).mul_(2).sub_(1)


class Sampled(DenseNoise):
    """Noise from a user's distribution or function, which draws from torch's global generators.

    Args:
        sample: Called with the shape of a leaf, once per leaf and sample; or with that of a whole
            tile.
        whole: Whether it may be called with any shape, as scalar distributions may.
    """

    def __init__(self, sample: SampleFunc, whole: bool = False) -> None:
        self.sample = sample
        self.whole = whole

    def fill(self, rows: Tensor, vector: LeafVector, seed: int, samples: range) -> None:
        with RandomNumbers([rows]) as random:
            random.seed(vector.generator(seed, samples.start).initial_seed())
            if self.whole:
                self._sample_into(rows, vector.dtype)
                return
            for row in rows.unbind():
                for part in vector.split(row):
                    self._sample_into(part, vector.dtype)

    def _sample_into(self, part: Tensor, dtype: torch.dtype) -> None:
        noise: Any = self.sample(part.shape)
        _check_noise(noise, part.shape, dtype)
        part.copy_(noise)


def _check_noise(noise: Any, shape: torch.Size, dtype: torch.dtype) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(
            f"`distribution` must sample tensors, got {type(noise).__name__}; return a tensor of "
            f"the shape it is called with"
        )
    if noise.shape != shape:
        raise ValueError(
            f"`distribution` must sample the shape it is asked for, {tuple(shape)}, got "
            f"{tuple(noise.shape)}; use a distribution of scalars, whose batch and event shapes "
            f"are empty"
        )
    wider = torch.promote_types(noise.dtype, wide(dtype)) != wide(dtype)
    if not noise.is_floating_point() or wider:
        raise TypeError(
            f"`distribution` must sample floating-point noise no wider than the perturbed tensor, "
            f"{dtype}, got {noise.dtype}; convert the noise or the tensor"
        )


def as_noise(distribution: Any) -> Noise:
    """Return the noise that a user's `distribution` argument stands for.

    Raises:
        TypeError: If it is neither a distribution nor callable.
    """
    if isinstance(distribution, Noise):
        return distribution
    if type(distribution) is Normal and distribution.batch_shape == torch.Size():
        return Gaussian(float(distribution.loc), float(distribution.scale))
    if isinstance(distribution, Distribution):
        scalar = not distribution.batch_shape and not distribution.event_shape
        return Sampled(distribution.sample, whole=scalar)
    if isinstance(distribution, Samplable):
        return Sampled(distribution.sample)
    if callable(distribution):
        return Sampled(distribution)
    raise TypeError(
        f"`distribution` must be a callable or an instance of `Samplable`, got "
        f"{type(distribution).__name__}; pass a torch.distributions.Distribution or a function of "
        f"the sample's shape"
    )
