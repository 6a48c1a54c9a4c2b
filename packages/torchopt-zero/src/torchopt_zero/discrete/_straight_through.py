"""Straight-through estimators: the value of a discrete choice, the gradient of a smooth one."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero.discrete._argmax import one_hot_sample
from torchopt_zero.discrete._check import check_generator, check_logits
from torchopt_zero.discrete._noise import draw_seed, uniform

__all__ = ["straight_through", "straight_through_bernoulli", "straight_through_categorical"]


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    r"""Return the value of one tensor with the derivatives, of any order, of another.

    .. math::
        y = \text{hard}, \qquad \partial y = \partial\, \text{soft}

    The gradient is that of ``soft``, where ``hard`` has none: biased, but of low variance.

    Args:
        hard: The value, e.g. rounded or one-hot. Any dtype. Not differentiated.
        soft: Where derivatives go, of the same shape, finite. Differentiable.

    Returns:
        A tensor of the dtype of ``soft`` that equals ``hard`` exactly.

    Raises:
        TypeError: If an argument is not a tensor, or ``soft`` not a floating-point one.
        ValueError: If their shapes differ.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import straight_through
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> y = straight_through(x.round(), x)
        >>> y.detach()
        tensor([0., 1.])
        >>> torch.autograd.grad(y.sum(), x)
        (tensor([1., 1.]),)

    Reference:
        Bengio, Léonard and Courville, Estimating or propagating gradients through stochastic
        neurons for conditional computation, 2013, sec. 5.
    """
    for name, tensor in (("hard", hard), ("soft", soft)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}")
    if not soft.dtype.is_floating_point:
        raise TypeError(f"`soft` must be a floating-point tensor, got {soft.dtype}")
    if hard.shape != soft.shape:
        raise ValueError(
            f"`hard` must have the shape of `soft`, {tuple(soft.shape)}, got {tuple(hard.shape)}"
        )
    # The difference is exactly 0, where `soft + (hard - soft).detach()` may round.
    return hard.detach().to(soft.dtype) + (soft - soft.detach())


def straight_through_bernoulli(
    logits: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return Bernoulli samples with the gradient of their probabilities.

    .. math::
        y \sim \operatorname{Bernoulli}(\operatorname{sigmoid}(x)),
        \qquad \partial y = \partial \operatorname{sigmoid}(x)

    Without bias where the rest of the objective is linear in each sample.

    Args:
        logits: Log-odds, of any shape. Differentiable.
        generator: Where the seed is drawn from; torch's default generator by default.

    Returns:
        A tensor of zeros and ones, like ``logits``.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor, or ``generator`` not a generator.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import straight_through_bernoulli
        >>> straight_through_bernoulli(torch.tensor([-100.0, 100.0]))
        tensor([0., 1.])

    Reference:
        Bengio, Léonard and Courville, 2013, as for :func:`straight_through`.
    """
    check_logits(logits, dim=0)
    check_generator(generator)
    numbers = uniform(draw_seed(generator, logits.device), 0, 1, logits.shape)[0]
    soft = logits.sigmoid()
    return straight_through(numbers < soft.detach(), soft)


def straight_through_categorical(
    logits: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return one-hot categorical samples with the gradient of their probabilities.

    .. math::
        y \sim \operatorname{Categorical}(\operatorname{softmax}(x)),
        \qquad \partial y = \partial \operatorname{softmax}(x)

    Without bias where the rest of the objective is linear in the sample.

    Args:
        logits: Unnormalized log-probabilities, of shape ``(*batch, n)``; minus infinity rules an
            entry out. Differentiable.
        generator: Where the seed is drawn from; torch's default generator by default.

    Returns:
        A tensor like ``logits``, of one-hot vectors.

    Raises:
        TypeError: If ``logits`` is not a floating-point tensor, or ``generator`` not a generator.
        ValueError: If ``logits`` has no dimension.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import straight_through_categorical
        >>> straight_through_categorical(torch.tensor([0.0, 100.0, 0.0]))
        tensor([0., 1., 0.])

    Reference:
        Bengio, Léonard and Courville, 2013, as for :func:`straight_through`.
    """
    check_logits(logits)
    check_generator(generator)
    numbers = uniform(draw_seed(generator, logits.device), 0, 1, logits.shape[:-1])[0]
    soft = logits.softmax(-1)
    return straight_through(one_hot_sample(soft.detach().double(), numbers), soft)
