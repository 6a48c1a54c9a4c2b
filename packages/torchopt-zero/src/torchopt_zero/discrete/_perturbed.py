"""Perturbed optimizers: the expected solution under noise, which is smooth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchopt_zero._functorch import over_batched_gradients
from torchopt_zero.discrete._check import check_generator, check_integer, check_positive
from torchopt_zero.discrete._noise import NOISES, draw_seed, uniform
from torchopt_zero.discrete._solver import Solver

__all__ = ["Perturbed"]


@dataclass(frozen=True)
class Perturbed:
    r"""A solver made smooth: the mean of its solutions for perturbed inputs.

    .. math::
        y_\sigma(x) = \mathbb E[y(x + \sigma Z)]
        \qquad
        \partial y_\sigma(x) = \tfrac{1}{\sigma}\,
            \mathbb E\big[(y(x + \sigma Z) - y(x))\, \nu'(Z)^\top\big]

    for noise with density proportional to :math:`\exp(-\nu(z))`; the constant :math:`y(x)` only
    reduces the variance. Both are estimated with the same samples, without bias. So are derivatives
    of any order, in reverse mode.

    Noise is added in the direction in which a solver maximizes, so that of one that minimizes costs
    is subtracted. It is computed from a seed and the number of a sample, hence the same however
    samples are divided into chunks.

    Args:
        solver: What to smooth. The solutions may be of any shape.
        num_samples: Number of perturbed inputs, 1 by default.
        sigma: Size of the noise, the temperature; 1.0 by default.
        distribution: ``"normal"`` for the standard normal distribution, or ``"gumbel"``, with which
            :func:`argmax` becomes the softmax of ``x / sigma``.
        chunk_size: Number of samples that are solved at once, which bounds memory. Solutions of the
            samples are then not kept for a backward pass, but found again in it. All, and kept, by
            default. A backward pass that can itself be differentiated (``create_graph=True``, or
            `torch.func.grad`) keeps what that takes of all samples.
        generator: Where the seed of a call is drawn from; torch's default generator by default.

    The solver sees perturbed inputs of half precision in float32.

    Returns:
        When called with ``x`` of shape ``(*batch, *event)``: the mean of solutions. Members of a
        batch have independent noise. Under `torch.func.vmap`, its ``randomness`` says whether they
        have.

    Raises:
        TypeError: If an argument is of the wrong kind, e.g. ``x`` is not a floating-point tensor.
        ValueError: If ``num_samples`` or ``chunk_size`` is less than 1, ``sigma`` is not positive,
            ``distribution`` is not known, or ``x`` is not finite.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import Perturbed, argmax
        >>> soft = Perturbed(
        ...     argmax(),
        ...     num_samples=1000,
        ...     distribution="gumbel",
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> y = soft(x)
        >>> bool((y - x.softmax(-1)).abs().max() < 0.05)
        True
        >>> y[0].backward()  # the softmax's derivative is 0.1966 and its negative
        >>> bool(x.grad[0] > 0.1) and bool(x.grad[1] < -0.1)
        True

    Reference:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, Learning with differentiable perturbed
        optimizers, 2020, prop. 3.1.
    """

    solver: Solver
    num_samples: int = 1
    sigma: float = 1.0
    distribution: Literal["normal", "gumbel"] = "normal"
    chunk_size: int | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"`solver` must be a Solver, got {type(self.solver).__name__}; make a function "
                f"into one with `Solver(function, event_dim, maximize)`"
            )
        check_integer(self.num_samples, "num_samples")
        check_positive(self.sigma, "sigma")
        if self.distribution not in NOISES:
            raise ValueError(
                f"`distribution` must be one of {', '.join(map(repr, NOISES))}, got "
                f"{self.distribution!r}"
            )
        if self.chunk_size is not None:
            check_integer(self.chunk_size, "chunk_size")
        check_generator(self.generator)

    def __call__(self, x: Tensor) -> Tensor:
        return self.solve(x).mean

    def solve(self, x: Tensor) -> Solutions:
        """Return what a set of samples says of an input: more than the mean of their solutions."""
        self.solver.check(x)
        # In half precision most of the noise would be rounded away: entries would be equal that are
        # not, and a sum of many solutions would stop to grow.
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        seed = draw_seed(self.generator, x.device)
        mean, value = _Mean.apply(precise, seed, self)[:2]  # type: ignore[no-untyped-call]
        return Solutions(mean.to(x.dtype), value.to(x.dtype))


class Solutions(NamedTuple):
    """What the perturbed solutions of an input say."""

    # of the solutions; differentiable
    mean: Tensor
    # The mean of the optimal values for perturbed inputs, one for each instance, where solutions
    # are of the shape of inputs, else 0; not differentiable.
    value: Tensor


class _Mean(torch.autograd.Function):
    """The mean solution. Its backward is made of differentiable operations, so has its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, seed: Tensor, options: Perturbed) -> tuple[Tensor, ...]:
        total = value = x.new_zeros(())
        kept = []
        for z in _chunks(x, seed, options):
            inputs = _perturb(x, z, options)
            solutions = options.solver(inputs)
            total = _fold(total, solutions)
            if solutions.shape == inputs.shape:
                value = _fold(value, _sums(inputs * solutions, x.ndim - options.solver.event_dim))
            if options.chunk_size is None:
                kept.append(solutions)
        count = options.num_samples
        return total / count, value / count, options.solver(x), *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, seed, ctx.options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, seed, *output[2:])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, seed, baseline, *kept = ctx.saved_tensors

        def gradient(cotangent: Tensor) -> Tensor:
            return _gradient(x, seed, baseline, kept, cotangent, ctx.options)

        return over_batched_gradients(gradient, cotangents[0]), None, None


def _gradient(
    x: Tensor,
    seed: Tensor,
    baseline: Tensor,
    kept: list[Tensor],
    cotangent: Tensor,
    options: Perturbed,
) -> Tensor:
    noise, dim = NOISES[options.distribution], options.solver.event_dim
    batch = x.ndim - dim
    total = torch.zeros_like(x)
    for z in _chunks(x, seed, options):
        solutions = kept[0] if kept else options.solver(_perturb(x, z, options))
        # The perturbed inputs stay where they are, so the noise depends on `x`, and the
        # likelihood of the sample does: a weight whose value is 1 (Foerster et al. 2018, DiCE).
        shift = (x - x.detach()) / options.sigma
        z = z - shift if options.solver.maximize else z + shift
        potential = noise.potential(z)
        weight = torch.exp((potential.detach() - potential).flatten(batch + 1).sum(-1))
        products = _sums((solutions - baseline) * cotangent, batch)
        score = noise.score(z)
        factor = (weight * products).reshape(*score.shape[: batch + 1], *(1,) * dim)
        total = _fold(total, factor * score)
    scale = options.num_samples * options.sigma
    return (total if options.solver.maximize else -total) / scale


def _chunks(x: Tensor, seed: Tensor, options: Perturbed) -> Iterator[Tensor]:
    size = options.chunk_size or options.num_samples
    for first in range(0, options.num_samples, size):
        last = min(first + size, options.num_samples)
        yield NOISES[options.distribution].icdf(uniform(seed, first, last, x.shape)).to(x.dtype)


def _perturb(x: Tensor, z: Tensor, options: Perturbed) -> Tensor:
    return x + (options.sigma if options.solver.maximize else -options.sigma) * z


def _sums(terms: Tensor, batch: int) -> Tensor:
    """Sum over all but the batch; one by one, as how a sum rounds depends on the whole shape."""
    return torch.stack([term.unsqueeze(-1).flatten(batch).sum(-1) for term in terms.unbind()])


def _fold(total: Tensor, terms: Tensor) -> Tensor:
    """Add one term after the other, an order that does not depend on chunks."""
    for term in terms.unbind():
        total = total + term
    return total
