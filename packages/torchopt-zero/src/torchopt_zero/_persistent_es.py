"""Evolution strategies for computations that are unrolled in pieces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from torchopt_zero._cotangent import scale_gradient
from torchopt_zero._leaves import Arguments
from torchopt_zero._noise import Gaussian
from torchopt_zero._problem import Batching, check_scalar
from torchopt_zero._scratch import Scratch
from torchopt_zero._seed import draw_seed

Unroll = Callable[[Any, Any], tuple[Any, Tensor]]


class PersistentES:
    r"""Unbiased gradients of long computations from short unrolls.

    A computation :math:`s_{t+1}, L_t = \text{unroll}(\theta, s_t)` is carried on by pairs of
    particles, each with its own state. Every unroll perturbs each pair anew by :math:`\pm \sigma
    z_{it}`, and what a loss is held against is the sum of all its perturbations so far:

    .. math::
        g_t = \frac{1}{n} \sum_i \frac{L_t^{i+} - L_t^{i-}}{2 \sigma} \xi_{it},
        \qquad \xi_{it} = \sum_{\tau \le t} z_{i\tau}.

    So an unroll of one step sees the influence of :math:`\theta` through all steps before it, which
    truncated estimates lack. States and :math:`\xi` of the particles are kept between calls.

    Args:
        unroll: From the parameters, a tree, and a state, a tree of tensors, to the next state and a
            scalar loss.
        init: The state that a computation starts from.
        num_samples: How many pairs of particles. Default: 1.
        sigma: The scale of the perturbations. Default: 1.0.
        horizon: After how many unrolls the computation starts again. Default: never.
        vectorize: ``True`` to advance the particles in one `torch.func.vmap`, ``False`` for a loop,
            ``None`` (default) for `vmap` until it fails.
        generator: Draws the seed of each call. Default: torch's CPU generator.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> from torchopt_zero import PersistentES
        >>> def unroll(rate, state):
        ...     state = state * rate
        ...     return state, (state - 1).square().sum()
        >>> persistent = PersistentES(
        ...     unroll, torch.tensor([2.0]), num_samples=100, sigma=0.01, horizon=3
        ... )
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> for _ in range(3):
        ...     persistent(rate).backward()
        >>> rate.grad.shape
        torch.Size([])

    References:
        P. Vicol, L. Metz, J. Sohl-Dickstein. Unbiased gradient estimation in unrolled computation
        graphs with persistent evolution strategies. ICML (2021), algorithm 2.
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
    ) -> None:
        if num_samples < 1:
            raise ValueError(f"`num_samples` must be at least 1, got {num_samples}")
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive, got {sigma}")
        if horizon is not None and horizon < 1:
            raise ValueError(f"`horizon` must be at least 1, got {horizon}")
        self.unroll = unroll
        self.init = init
        self.num_samples = num_samples
        self.sigma = sigma
        self.horizon = horizon
        self.generator = generator
        self._batching = Batching(vectorize)
        self.reset()

    def reset(self) -> None:
        """Start the computation again, from the initial state and without past perturbations."""
        self._age = 0
        self._past: list[Tensor] | None = None
        self._states = optree.tree_map(
            lambda x: x.detach().expand(2 * self.num_samples, *x.shape), self.init
        )

    def __call__(self, params: Any) -> Tensor:
        """Carry the computation on by one unroll.

        Args:
            params: A tree of tensors; those that require a gradient are perturbed.

        Returns:
            The mean loss of the particles, whose backward is the estimate.

        Raises:
            RuntimeError: If the loss is not a scalar.
        """
        if self.horizon is not None and self._age == self.horizon:
            self.reset()
        arguments = Arguments((params,), (0,))
        leaves = [leaf.detach() for leaf in arguments.leaves]
        noise = Gaussian()
        drawn = noise.draw(leaves, draw_seed(self.generator), range(self.num_samples), Scratch())
        particles = noise.perturb(leaves, drawn, [self.sigma, -self.sigma], Scratch())

        def advance(leaves: list[Tensor], state: Any) -> tuple[Any, Tensor]:
            state, loss = self.unroll(arguments.replaced(leaves)[0], state)
            return state, check_scalar(loss)

        with torch.no_grad():
            self._states, losses = self._advance(advance, particles)
            moves = noise.perturb(
                [torch.zeros_like(leaf) for leaf in leaves], drawn, [1.0], Scratch()
            )
            past = self._past or [torch.zeros_like(move) for move in moves]
            self._past = [old + move for old, move in zip(past, moves, strict=True)]
            self._age += 1
            plus, minus = losses.double().chunk(2)
            weights = (plus - minus) / (2 * self.sigma * self.num_samples)
            gradient = [torch.tensordot(weights.to(xi), xi, 1) for xi in self._past]
        result: Tensor = _Estimated.apply(  # type: ignore[no-untyped-call]
            losses.mean(), gradient, *arguments.leaves
        )
        return result

    def _advance(self, advance: Any, particles: list[Tensor]) -> tuple[Any, Tensor]:
        if self._batching.vectorize is not False:
            try:
                batched = torch.func.vmap(advance, randomness="different")
                result: tuple[Any, Tensor] = batched(particles, self._states)
                return result
            except Exception:
                if self._batching.vectorize:
                    raise
        results = [
            advance(
                [leaf[i] for leaf in particles], optree.tree_map(lambda x, i=i: x[i], self._states)
            )
            for i in range(2 * self.num_samples)
        ]
        self._batching.vectorize = False
        states = optree.tree_map(lambda *x: torch.stack(x), *[state for state, _ in results])
        return states, torch.stack([loss for _, loss in results])


class _Estimated(torch.autograd.Function):
    """A value with a given gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.gradient = gradient
        ctx.save_for_backward(*leaves)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *scale_gradient(cotangent, ctx.gradient, ctx.saved_tensors)
