"""The Gumbel-softmax relaxation of a categorical sample."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero.discrete._argmax import argmax
from torchopt_zero.discrete._check import check_generator, check_logits, check_positive
from torchopt_zero.discrete._noise import NOISES, draw_seed, uniform
from torchopt_zero.discrete._straight_through import straight_through

__all__ = ["gumbel_softmax"]


def gumbel_softmax(
    logits: Tensor,
    tau: float = 1.0,
    hard: bool = False,
    dim: int = -1,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return a categorical sample, relaxed so that it is a smooth function of the logits.

    .. math::
        y = \operatorname{softmax}\big((x + G) / \tau\big),
        \qquad G \sim \operatorname{Gumbel}(0, 1)

    The largest entry of ``y`` is distributed as the categorical distribution of the logits says. As
    ``tau`` goes to 0, ``y`` goes to one-hot and its gradient's variance to infinity. The gradient
    is exact for the relaxed sample, biased for the discrete one.

    Like `torch.nn.functional.gumbel_softmax`, with a ``generator``.

    Args:
        logits: Unnormalized log-probabilities, of shape ``(*batch, n)`` if ``dim`` is -1; minus
            infinity rules an entry out. Differentiable, to any order.
        tau: The temperature, 1.0 by default.
        hard: Whether to return the one-hot sample, with the gradient of the relaxed one: the
            straight-through estimator.
        dim: The dimension of the categories, the last by default.
        generator: Where the seed is drawn from; torch's default generator by default.

    Returns:
        A tensor like ``logits``, which sums to 1 along ``dim``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor, or another argument is of the wrong
            kind.
        ValueError: If ``tau`` is not positive, or ``logits`` has no dimension.
        IndexError: If it has no dimension ``dim``.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import gumbel_softmax
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> sample = gumbel_softmax(logits, tau=0.5, hard=True)
        >>> sorted(sample.tolist())
        [0.0, 0.0, 1.0]
        >>> (sample @ torch.tensor([1.0, 2.0, 3.0])).backward()
        >>> logits.grad.shape
        torch.Size([3])

    Reference:
        Jang, Gu and Poole, Categorical reparameterization with Gumbel-softmax, 2017; Maddison, Mnih
        and Teh, The concrete distribution, 2017.
    """
    check_logits(logits)
    check_positive(tau, "tau")
    check_generator(generator)
    logits = logits.movedim(dim, -1)
    numbers = uniform(draw_seed(generator, logits.device), 0, 1, logits.shape)[0]
    # In half precision entries would be equal that are not, and the first of them be favoured.
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noise = NOISES["gumbel"].icdf(numbers).to(precise.dtype)
    soft = ((precise + noise) / tau).softmax(-1)
    sample = straight_through(argmax()(soft), soft) if hard else soft
    return sample.to(logits.dtype).movedim(-1, dim)
