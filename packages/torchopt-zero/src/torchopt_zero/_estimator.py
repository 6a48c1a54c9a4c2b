"""The interface of estimators, and those that weight perturbations by function values."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from torch import Tensor

from torchopt_zero._noise import Noise
from torchopt_zero._problem import Problem
from torchopt_zero._scratch import Scratch


class Estimator(abc.ABC):
    """Turns values of a function at perturbed arguments into a gradient."""

    @abc.abstractmethod
    def estimate(self, problem: Problem) -> list[Tensor]:
        """Return the gradient, one tensor per leaf of the problem."""


class SampledEstimator(Estimator):
    r"""An estimate :math:`\frac1n \sum_i w_i z_i` with weights that depend on function values."""

    # of the points x + sign * sigma * z at which the function is evaluated for each sample
    signs: ClassVar[tuple[int, ...]]
    # whether the weight of a sample depends on the values of others
    joint: ClassVar[bool] = False

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

    def noise(self, problem: Problem) -> Noise:
        """Return the perturbations to use: the problem's own."""
        return problem.noise

    def estimate(self, problem: Problem) -> list[Tensor]:
        noise = self.noise(problem)
        if self.joint or problem.workers is not None or noise.tile is not None:
            return self._in_two_passes(problem, noise)
        totals = [torch.zeros_like(leaf) for leaf in problem.leaves]
        kept = 0
        scratch = Scratch()
        for samples in problem.chunks(range(problem.num_samples), noise.elements(problem.leaves)):
            drawn = noise.draw(problem.leaves, problem.seed, samples, scratch)
            values = problem.evaluate(noise, drawn, self.signs, scratch)
            weights, keep = self._kept_weights(problem, values)
            kept += int(keep.sum())
            noise.accumulate(totals, drawn, weights.tolist())
        return _mean(totals, kept)

    def _in_two_passes(self, problem: Problem, noise: Noise) -> list[Tensor]:
        scratch = Scratch()
        elements = noise.elements(problem.leaves)
        everything = range(problem.num_samples)
        workers = problem.workers
        share = everything if workers is None else workers.share(problem.num_samples)
        values = torch.zeros(problem.num_samples, len(self.signs), dtype=torch.float64)
        for samples in problem.chunks(share, elements):
            drawn = noise.draw(problem.leaves, problem.seed, samples, scratch)
            values[samples.start : samples.stop] = problem.evaluate(
                noise, drawn, self.signs, scratch
            )
        if workers is not None:
            values = workers.reduce(values)
        weights, keep = self._kept_weights(problem, values)
        totals = [torch.zeros_like(leaf) for leaf in problem.leaves]
        for samples in problem.chunks(everything, elements, noise.tile):
            drawn = noise.draw(problem.leaves, problem.seed, samples, scratch)
            noise.accumulate(totals, drawn, weights[samples.start : samples.stop].tolist())
        return _mean(totals, int(keep.sum()))

    def _kept_weights(self, problem: Problem, values: Tensor) -> tuple[Tensor, Tensor]:
        keep = problem.keep(values)
        weights = torch.zeros(len(values), dtype=torch.float64)
        weights[keep] = self.weights(values[keep], problem.value, problem.sigma)
        return weights, keep


def _mean(totals: list[Tensor], count: int) -> list[Tensor]:
    if count == 0:
        raise FloatingPointError(
            "the objective is not finite at any sample; reduce `sigma` or mend the objective"
        )
    return [total.div_(count) for total in totals]
