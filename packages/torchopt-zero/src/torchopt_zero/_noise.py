"""Sources of perturbations: the interface, and noise that fills whole tensors."""

from __future__ import annotations

import abc
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from torchopt.typing import Samplable, SampleFunc
from torchopt_zero._scratch import Scratch
from torchopt_zero._seed import Layout

_global_generators = threading.Lock()


class Noise(abc.ABC):
    """A source of perturbations with zero mean and unit covariance, one per sample.

    A perturbation is a pure function of (seed, sample), so any worker regenerates any of them, in
    chunks of any size. Leaves are perturbed independently of each other.
    """

    # Samples are accumulated in groups of this size where the order of a sum has to be fixed.
    tile: int | None = None

    @abc.abstractmethod
    def elements(self, leaves: Sequence[Tensor]) -> int:
        """Return how many numbers one sample takes."""

    @abc.abstractmethod
    def draw(self, leaves: Sequence[Tensor], seed: int, samples: range, scratch: Scratch) -> Any:
        """Return the perturbations of some samples, in a form of the class's choice."""

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
    def accumulate(self, totals: list[Tensor], drawn: Any, weights: Sequence[float]) -> None:
        """Add the perturbations, weighted, to tensors like the leaves."""


class DenseNoise(Noise):
    """Noise that has an entry for every entry of the leaves.

    Leaves of one dtype and device share one row of a matrix ``[samples, size]``.
    """

    @abc.abstractmethod
    def fill(self, rows: Tensor, layout: Layout, seed: int, samples: range) -> None:
        """Write the noise of each sample into its row."""

    def elements(self, leaves: Sequence[Tensor]) -> int:
        return sum(leaf.numel() for leaf in leaves)

    def draw(
        self, leaves: Sequence[Tensor], seed: int, samples: range, scratch: Scratch
    ) -> list[Tensor]:
        drawn = []
        for layout in Layout.of(leaves):
            first = leaves[layout.members[0]]
            rows = scratch.take(("noise", layout.members[0]), len(samples), layout.size, first)
            self.fill(rows, layout, seed, samples)
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
        for layout, rows in zip(Layout.of(leaves), drawn, strict=True):
            count = len(rows)
            moved = scratch.take(
                ("moved", layout.members[0]), count * len(scales), layout.size, rows
            )
            flat = layout.flatten(leaves)
            for part, scale in zip(torch.split(moved, count), scales, strict=True):
                torch.add(flat, rows, alpha=scale, out=part)
            batched.update(zip(layout.members, layout.split(moved), strict=True))
        return [batched[i] for i in range(len(leaves))]

    def assemble(self, leaves: Sequence[Tensor], perturbed: list[Tensor]) -> list[Tensor]:
        return perturbed

    def accumulate(
        self, totals: list[Tensor], drawn: list[Tensor], weights: Sequence[float]
    ) -> None:
        for layout, rows in zip(Layout.of(totals), drawn, strict=True):
            # One by one: a matrix product would round by how the samples are chunked.
            flat = layout.flatten(totals)
            for row, weight in zip(rows.unbind(), weights, strict=True):
                flat.add_(row, alpha=weight)
            for position, part in zip(layout.members, layout.split(flat), strict=True):
                totals[position].copy_(part)


class Gaussian(DenseNoise):
    r"""Independent normal noise, :math:`z_j \sim \mathcal{N}(\text{loc}, \text{scale}^2)`.

    Args:
        loc: The mean, 0.0 by default.
        scale: The standard deviation, 1.0 by default. Estimates are scaled by its square.

    Example:
        >>> import torch
        >>> from torchopt_zero._noise import Gaussian, Scratch
        >>> leaves = [torch.zeros(2, 3)]
        >>> whole = Gaussian().draw(leaves, 3, range(4), Scratch())
        >>> part = Gaussian().draw(leaves, 3, range(2, 4), Scratch())
        >>> torch.equal(whole[0][2:], part[0])
        True
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0) -> None:
        self.loc = loc
        self.scale = scale

    def fill(self, rows: Tensor, layout: Layout, seed: int, samples: range) -> None:
        generator = torch.Generator(layout.device)
        for row, sample in zip(rows.unbind(), samples, strict=True):
            generator.manual_seed(layout.seed(seed, sample))
            row.normal_(generator=generator)
        if self.scale != 1.0:
            rows.mul_(self.scale)
        if self.loc != 0.0:
            rows.add_(self.loc)


class Rademacher(DenseNoise):
    """Independent signs, each +1 or -1 with probability 1/2."""

    def fill(self, rows: Tensor, layout: Layout, seed: int, samples: range) -> None:
        generator = torch.Generator(layout.device)
        for row, sample in zip(rows.unbind(), samples, strict=True):
            generator.manual_seed(layout.seed(seed, sample))
            row.random_(0, 2, generator=generator)
        rows.mul_(2).sub_(1)


class Sampled(DenseNoise):
    """Noise from a user's distribution or function, which draws from torch's global generators.

    Args:
        sample: Called with the shape of a leaf, once per leaf and sample.
    """

    def __init__(self, sample: SampleFunc) -> None:
        self.sample = sample

    def fill(self, rows: Tensor, layout: Layout, seed: int, samples: range) -> None:
        cuda = layout.device.type == "cuda"
        devices = [layout.device] if cuda else []
        with _global_generators, torch.random.fork_rng(devices):
            for row, sample in zip(rows.unbind(), samples, strict=True):
                for index, part in enumerate(layout.split(row)):
                    key = layout.seed(seed, sample, index)
                    torch.default_generator.manual_seed(key)
                    if cuda:
                        with torch.cuda.device(layout.device):
                            torch.cuda.manual_seed(key)
                    noise: Any = self.sample(part.shape)
                    _check_noise(noise, part)
                    part.copy_(noise)


def _check_noise(noise: Any, leaf: Tensor) -> None:
    if not isinstance(noise, Tensor):
        raise TypeError(
            f"`distribution` must sample tensors, got {type(noise).__name__}; return a tensor of "
            f"the shape it is called with"
        )
    if noise.shape != leaf.shape:
        raise ValueError(
            f"`distribution` must sample the shape it is asked for, {tuple(leaf.shape)}, got "
            f"{tuple(noise.shape)}; use a distribution of scalars, whose batch and event shapes "
            f"are empty"
        )
    half = leaf.dtype in (torch.float16, torch.bfloat16) and noise.dtype == torch.float32
    wider = torch.promote_types(noise.dtype, leaf.dtype) != leaf.dtype
    if not noise.is_floating_point() or (wider and not half):
        raise TypeError(
            f"`distribution` must sample floating-point noise no wider than the perturbed tensor, "
            f"{leaf.dtype}, got {noise.dtype}; convert the noise or the tensor"
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
    if isinstance(distribution, Samplable):
        return Sampled(distribution.sample)
    if callable(distribution):
        return Sampled(distribution)
    raise TypeError(
        f"`distribution` must be a callable or an instance of `Samplable`, got "
        f"{type(distribution).__name__}; pass a torch.distributions.Distribution or a function of "
        f"the sample's shape"
    )
