"""Evolution strategies for computations that are unrolled in pieces, with one noise."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchopt_zero._particle_es import ParticleES


class NoiseReuseES(ParticleES):
    r"""Unbiased gradients of long computations, with one perturbation for all of a computation.

    A computation :math:`s_{t+1}, L_t = \text{unroll}(\theta, s_t)` is carried on by pairs of
    particles, each with its own state. A pair keeps its perturbation :math:`\pm \sigma z_i` until
    the computation starts again:

    .. math::
        g_t = \frac{1}{n} \sum_i \frac{L_t^{i+} - L_t^{i-}}{2 \sigma} z_i.

    The sum over a computation is the estimate that evolution strategies make of the whole
    computation, from evaluations of pieces. :class:`PersistentES` draws anew in each piece, so its
    variance has the influence of :math:`\theta` through every piece by itself; this one's has that
    of their sum, which is smaller, above all where they oppose each other.

    Args:
        unroll: From the parameters, a tree, and a state, a tree of tensors, to the next state and a
            scalar loss.
        init: The state that a computation starts from.
        horizon: After how many unrolls the computation starts again, with new noise. Default:
            never, so that :meth:`reset` has to be called: without it every estimate lies in the
            span of the same `num_samples` perturbations.
        num_samples, sigma, vectorize, generator, randomness: As for :class:`PersistentES`.

    Raises:
        TypeError: If `init` holds something other than tensors, or a count is not an integer.
        ValueError: If a number is out of range.
        RuntimeError: If `init` holds a tensor that requires a gradient, which would be lost.

    Example:
        >>> import torch
        >>> from torchopt_zero import NoiseReuseES
        >>> def unroll(rate, state):
        ...     state = state * rate
        ...     return state, (state - 1).square().sum()
        >>> reuse = NoiseReuseES(
        ...     unroll, torch.tensor([2.0]), num_samples=100, sigma=0.01, horizon=3
        ... )
        >>> rate = torch.tensor(0.5, requires_grad=True)
        >>> for _ in range(3):
        ...     reuse(rate).backward()
        >>> rate.grad.shape
        torch.Size([])

    References:
        O. Li, J. Harrison, J. Sohl-Dickstein, V. Smith, L. Metz. Variance-reduced gradient
        estimation via noise-reuse in online evolution strategies. NeurIPS (2023), algorithm 2.
    """

    def directions(
        self, past: list[Tensor] | None, draw: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        kept = draw() if past is None else past
        return kept, kept
