"""Evolution strategies for computations that are unrolled in pieces, with fresh noise in each."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchopt_zero._particle_es import ParticleES


class PersistentES(ParticleES):
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
        randomness: Whether the particles of a pair draw the same random numbers in `unroll`
            (``"same"``, the default) or ``"different"`` ones.

    Raises:
        TypeError: If `init` holds something other than tensors, or a count is not an integer.
        ValueError: If a number is out of range.
        RuntimeError: If `init` holds a tensor that requires a gradient, which would be lost.

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

    def directions(
        self, past: list[Tensor] | None, draw: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        seen = draw()
        if past is None:
            return seen, seen
        return seen, [old + new for old, new in zip(past, seen, strict=True)]
