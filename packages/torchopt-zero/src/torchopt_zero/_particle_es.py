"""Pairs of particles that carry an unrolled computation on, a piece at each call."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from torchopt_zero._eagerly import eagerly
from torchopt_zero._estimate import Estimate, attach
from torchopt_zero._evaluator import Evaluator
from torchopt_zero._functorch import is_batching, is_differentiated
from torchopt_zero._leaf_vector import LeafVector
from torchopt_zero._leaves import Arguments, check_constants
from torchopt_zero._noise import Gaussian
from torchopt_zero._problem import check_count, check_differentiable, check_scalar
from torchopt_zero._random_numbers import Randomness, check_randomness
from torchopt_zero._reads import Reads
from torchopt_zero._scratch import Scratch
from torchopt_zero._seed import draw_seed

Unroll = Callable[[Any, Any], tuple[Any, Tensor]]


class ParticleES(abc.ABC):
    """Antithetic estimates from pairs of particles, each with a state of its own.

    What a subclass decides is which perturbations an unroll sees, and which ones its loss is held
    against.
    """

    def __init__(
        self,
        unroll: Unroll,
        init: Any,
        *,
        num_samples: int = 1,
        sigma: float = 1.0,
        horizon: int | None = None,
        vectorize: bool | None = None,
        generator: torch.Generator | None = None,
        randomness: Randomness = "same",
    ) -> None:
        check_count("num_samples", num_samples)
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive, got {sigma}")
        if horizon is not None:
            check_count("horizon", horizon)
        check_randomness(randomness)
        self.unroll = unroll
        self.init = init
        self.num_samples = num_samples
        self.sigma = sigma
        self.horizon = horizon
        self.generator = generator
        self._evaluator = Evaluator(vectorize, randomness)
        self.reset()

    def reset(self) -> None:
        """Start the computation again, from the initial state and without past perturbations."""
        self._age = 0
        self._past: list[Tensor] | None = None
        for leaf in optree.tree_leaves(self.init):
            _check_initial(leaf)
        self._states = optree.tree_map(
            lambda x: x.detach().expand(2 * self.num_samples, *x.shape), self.init
        )

    @abc.abstractmethod
    def directions(
        self, past: list[Tensor] | None, draw: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Choose the perturbations of an unroll.

        Args:
            past: What was returned second for the unroll before, ``None`` for the first.
            draw: Draws new noise: for each vector of leaves, ``[particles, size]``.

        Returns:
            The perturbations that the unroll sees, and those that its loss is held against.
        """

    def __call__(self, params: Any) -> Tensor:
        """Carry the computation on by one unroll.

        Args:
            params: A tree of tensors; those that require a gradient are perturbed.

        Returns:
            The mean loss of the particles, whose derivative is the estimate.

        Raises:
            ValueError: If other tensors require a gradient than in the unroll before.
            RuntimeError: If the loss is not a scalar, the unroll uses tensors that derivatives are
                asked for and that are not among `params`, or under `torch.func.vmap`.
        """
        return eagerly(self._unrolled, params)

    def _unrolled(self, params: Any) -> Tensor:
        if is_batching():
            raise RuntimeError(
                f"`{type(self).__name__}` cannot be called under torch.func.vmap: it keeps the "
                f"states of one computation; make one for each member of the batch"
            )
        if self.horizon is not None and self._age == self.horizon:
            self.reset()
        arguments = Arguments((params,), (0,))
        seed = draw_seed(self.generator)
        found = _Step.apply(self, arguments, seed, *arguments.leaves)  # type: ignore[no-untyped-call]
        loss, *gradient = (tensor.detach() for tensor in found)
        return attach(_Given(len(gradient)), loss, seed, [*arguments.leaves, *gradient])

    def step(self, arguments: Arguments, seed: int, leaves: list[Tensor]) -> list[Tensor]:
        """Advance the particles; return their mean loss and the gradient."""
        noise = Gaussian()
        vectors = LeafVector.of(leaves)
        sizes = [vector.size for vector in vectors]
        if self._past is not None and sizes != [xi.shape[1] for xi in self._past]:
            raise ValueError(
                f"`params` must have the tensors that require a gradient of the unrolls before, of "
                f"{[xi.shape[1] for xi in self._past]} entries, got {sizes}; call `reset` first"
            )

        def draw() -> list[Tensor]:
            return noise.draw(leaves, seed, range(self.num_samples), Scratch())

        seen, past = self.directions(self._past, draw)
        particles = noise.perturb(leaves, seen, [self.sigma, -self.sigma], Scratch())

        def advance(point: tuple[list[Tensor], Any]) -> tuple[Any, Tensor]:
            state, loss = self.unroll(arguments.replaced(point[0])[0], point[1])
            check_differentiable(check_scalar(loss))
            return state, loss

        with Reads(particles) as reads:
            states, losses = self._evaluator.map(advance, (particles, self._states), 2, seed)
        check_constants(reads.tensors())
        self._states, self._past = states, past
        self._age += 1
        plus, minus = losses.double().chunk(2)
        weights = (plus - minus) / (2 * self.sigma * self.num_samples)
        gradient: dict[int, Tensor] = {}
        for vector, xi in zip(vectors, past, strict=True):
            gradient.update(zip(vector.members, vector.split(weights.to(xi) @ xi), strict=True))
        return [losses.mean(), *(gradient[i] for i in range(len(leaves)))]


def _check_initial(leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(
            f"`init` must be a tree of tensors, got {type(leaf).__name__}; wrap a number in "
            f"torch.tensor, and let `unroll` close over what is no state"
        )
    if leaf.requires_grad or is_differentiated(leaf):
        raise RuntimeError(
            f"`init` holds a tensor of shape {tuple(leaf.shape)} that derivatives are asked for, "
            f"which would be lost; pass it through `.detach()` to treat it as a constant, or make "
            f"it one of the parameters"
        )


class _Step(torch.autograd.Function):
    """An unroll of plain tensors, whatever transforms are around it."""

    @staticmethod
    def forward(
        es: ParticleES, arguments: Arguments, seed: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(es.step(arguments, int(seed), [leaf.detach() for leaf in leaves]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[None, ...]:
        return (None,) * (len(tangents) - 2)


class _Given(Estimate):
    """A gradient that has been found already."""

    def gradient(self, value: Tensor, seed: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        return [tensor.clone() for tensor in tensors[self.count :]]
