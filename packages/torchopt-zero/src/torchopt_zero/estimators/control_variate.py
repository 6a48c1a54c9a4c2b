"""Control variates: the other samples' values, or a gradient that is roughly known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from torchopt_zero._estimator import Estimator, SampledEstimator
from torchopt_zero._leaves import like_leaves
from torchopt_zero._problem import Objective, Problem
from torchopt_zero.estimators.antithetic import Antithetic


class LeaveOneOut(SampledEstimator):
    r"""The naive estimator with a control variate: the mean over the other samples.

    .. math::
        g = \frac{1}{n} \sum_i \frac{f(x + \sigma z_i) - \bar f_{-i}}{\sigma} z_i,
        \qquad \bar f_{-i} = \frac{1}{n - 1} \sum_{j \ne i} f(x + \sigma z_j).

    The baseline :math:`\bar f_{-i}` is independent of :math:`z_i`, so the estimate stays unbiased,
    and invariant to a constant added to the objective. A single sample has no others; its baseline
    is :math:`f(x)`.

    References:
        J. Kool, H. van Hoof, M. Welling. Buy 4 REINFORCE samples, get a baseline for free! (2019).
    """

    signs = (1,)
    joint = True

    def uses_value(self, values: Tensor) -> bool:
        return len(values) == 1

    def weights(self, values: Tensor, value: float, sigma: float) -> Tensor:
        fitness = values[:, 0]
        if len(fitness) < 2:
            return (fitness - value) / sigma
        # f_i minus the mean of the others is n / (n - 1) times f_i minus the mean of all
        return (fitness - fitness.mean()) * (len(fitness) / (len(fitness) - 1) / sigma)


class LinearControl(Estimator):
    r"""An estimator of what a known, approximate gradient :math:`h` leaves over.

    .. math::
        g = h + \hat g\left[ x' \mapsto f(x') - h^\top (x' - x) \right].

    For noise of unit covariance estimates of linear functions are unbiased, and so is this one, for
    any :math:`h`; its variance falls as far as :math:`h` explains the objective.

    Args:
        surrogate: :math:`h`: a tree of tensors like the differentiated arguments, e.g. the gradient
            of a model of the objective; or a function without arguments that returns it.
        base: The estimator of the remainder. Default: :class:`~torchopt_zero.Antithetic`.

    Example:
        >>> import torch, torchopt
        >>> from torchopt_zero import LinearControl
        >>> slope = torch.tensor([1.0, 2.0])
        >>> decorate = torchopt.diff.zero_order(
        ...     torch.distributions.Normal(0, 1), method=LinearControl([slope])
        ... )
        >>> x = torch.zeros(2, requires_grad=True)
        >>> decorate(lambda x: x @ slope)(x).backward()
        >>> x.grad
        tensor([1., 2.])
    """

    def __init__(self, surrogate: Any, base: Estimator | None = None) -> None:
        self.surrogate = surrogate
        self.base = Antithetic() if base is None else base

    def estimate(self, problem: Problem) -> list[Tensor]:
        if problem.learns_sigma:
            raise TypeError(
                "`LinearControl` does not estimate the gradient with respect to `sigma`; pass a "
                "`sigma` that does not require a gradient"
            )
        surrogate = self.surrogate() if callable(self.surrogate) else self.surrogate
        slopes = like_leaves(surrogate, problem.leaves, "surrogate")

        def remainder(leaves: list[Tensor]) -> Tensor:
            output = problem.objective(leaves)
            moves = zip(slopes, leaves, problem.leaves, strict=True)
            known = [(slope * (leaf.to(slope) - at.to(slope))).sum() for slope, leaf, at in moves]
            return output - sum(known)

        objective = Objective(remainder, problem.objective.evaluator)
        rest = self.base.estimate(replace(problem, objective=objective))
        return [slope + part for slope, part in zip(slopes, rest, strict=True)]
