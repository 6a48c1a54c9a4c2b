"""The interface of estimators, and those that weight perturbations by function values."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from torchopt_zero._leaf_vector import wide
from torchopt_zero._noise import Noise
from torchopt_zero._problem import Problem
from torchopt_zero._scratch import Scratch


class Estimator(abc.ABC):
    """Turns values of a function at perturbed arguments into a gradient."""

    # whether a gradient with respect to sigma can be had, too
    learns_sigma: ClassVar[bool] = False

    @abc.abstractmethod
    def estimate(self, problem: Problem) -> list[Tensor]:
        """Return the gradient, one tensor per leaf of the problem, and of sigma if it is learned.

        For leaves of half precision it may be of float32, which the product with the cotangent is
        then made in.
        """


class SampledEstimator(Estimator):
    r"""An estimate :math:`\frac1n \sum_i w_i z_i` with weights that depend on function values."""

    # of the points x + sign * sigma * z at which the function is evaluated for each sample
    signs: ClassVar[tuple[int, ...]]
    # whether the weight of a sample depends on the values of others
    joint: ClassVar[bool] = False
    # whether it estimates the gradient of the smoothed function, which sigma is an argument of
    learns_sigma: ClassVar[bool] = True

    @abc.abstractmethod
    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        """Return the weight of each sample.

        Args:
            values: float64 ``[samples, signs]``.
            value: The function at the unperturbed arguments.
            sigma: The scale of the perturbations.

        Returns:
            float64 ``[samples]``.
        """

    def uses_value(self, values: Tensor) -> bool:
        """Return whether the weights depend on the function at the unperturbed arguments."""
        return False

    def noise(self, problem: Problem) -> Noise:
        """Return the perturbations to use: the problem's own."""
        return problem.noise

    def signs_for(self, problem: Problem) -> tuple[int, ...]:
        """Return the signs for a problem: those of the class."""
        return self.signs

    def estimate(self, problem: Problem) -> list[Tensor]:
        noise = self.noise(problem)
        leaves = problem.leaves
        sums = _Sums(self, problem, noise)
        whole = range(problem.num_samples)
        workers = problem.workers
        share = whole if workers is None else workers.share(problem.num_samples)
        joint = self.joint or workers is not None
        signs = self.signs_for(problem)
        if joint:
            noise.check_repeatable(leaves, problem.seed)
        values = torch.zeros(len(whole), len(signs), dtype=torch.float64, device="cpu")
        scratch = Scratch()
        tiles = problem.tiles(noise.elements(leaves))
        drawn = None
        for tile in tiles:
            samples = range(max(tile.start, share.start), min(tile.stop, share.stop))
            if not samples:
                continue
            drawn = noise.draw(leaves, problem.seed, tile, scratch)
            found = problem.evaluate(noise, drawn, tile, samples, signs, scratch)
            if self.signs_for(problem) != signs:  # it took an evaluation to know
                return self.estimate(problem)
            values[samples.start : samples.stop] = found
            if not joint:
                sums.add(drawn, found)
        if joint:
            values = values if workers is None else workers.reduce(values)
            weights, slopes = sums.weigh(values)
            for tile in tiles:
                if drawn is None or len(tiles) > 1:
                    drawn = noise.draw(leaves, problem.seed, tile, scratch)
                sums.add_weighted(
                    drawn, weights[tile.start : tile.stop], slopes[tile.start : tile.stop]
                )
        return sums.mean()


class _Sums:
    """What an estimate is the mean of, summed up tile by tile."""

    def __init__(self, estimator: SampledEstimator, problem: Problem, noise: Noise) -> None:
        self.estimator = estimator
        self.problem = problem
        self.noise = noise
        self.totals = [torch.zeros_like(leaf, dtype=wide(leaf.dtype)) for leaf in problem.leaves]
        self.sigma = torch.zeros((), dtype=torch.float64, device="cpu")
        self.entries = sum(leaf.numel() for leaf in problem.leaves)
        self.kept = 0

    def add(self, drawn: object, values: Tensor) -> None:
        self.add_weighted(drawn, *self.weigh(values))

    def weigh(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of samples, in the gradient and in that of sigma."""
        problem = self.problem
        if self.estimator.uses_value(values):
            problem.check_baseline()
        keep = problem.keep(values)
        kept = values[keep]
        weights, slopes = (torch.zeros_like(values[:, 0]) for _ in range(2))
        weights[keep] = self.estimator.weights(kept, problem.value, problem.sigma)
        if problem.learns_sigma:
            problem.check_baseline()
            # The expectation of |z|^2 - d is 0, so a constant does not matter but for the variance.
            runs = kept[:, : len(self.estimator.signs)].mean(1)
            slopes[keep] = (runs - problem.value) / problem.sigma
        self.kept += len(kept)
        return weights, slopes

    def add_weighted(self, drawn: object, weights: Tensor, slopes: Tensor) -> None:
        self.noise.accumulate(self.totals, drawn, weights)
        if self.problem.learns_sigma:
            self.sigma += slopes @ (self.noise.squared_norms(drawn) - self.entries)

    def mean(self) -> list[Tensor]:
        if self.kept == 0:
            raise FloatingPointError(
                "the objective is not finite at any sample; reduce `sigma` or mend the objective"
            )
        found = [total.div_(self.kept) for total in self.totals]
        return [*found, self.sigma / self.kept] if self.problem.learns_sigma else found
