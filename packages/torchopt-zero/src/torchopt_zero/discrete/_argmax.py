"""The largest entry of a vector."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt_zero.discrete._solver import Solver

__all__ = ["argmax"]


def argmax() -> Solver:
    r"""Return the solver that picks the largest entry of a vector, as a one-hot vector.

    .. math::
        y(x) = \operatorname{arg\,max}_{y \in \{e_1, \dots, e_n\}} \langle y, x \rangle

    Of equal entries it picks the first.

    Returns:
        A :class:`Solver` from ``(*batch, n)`` to ``(*batch, n)``, with ``n`` at least 1.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import argmax
        >>> argmax()(torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 5.0]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """
    return Solver(_argmax, event_dim=1, maximize=True)


def _argmax(x: Tensor) -> Tensor:
    if x.shape[-1] == 0:
        raise ValueError(f"`x` must have at least one entry to pick, got shape {tuple(x.shape)}")
    # `Tensor.argmax` may return any of equal entries.
    is_largest = x == x.amax(-1, keepdim=True)
    first = is_largest & (is_largest.cumsum(-1) == 1)
    return first.to(x.dtype)


def one_hot_sample(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the one-hot entry in which a uniform number falls; leading dimensions are batch."""
    total = probabilities.cumsum(-1)
    index = (total <= uniform.unsqueeze(-1) * total[..., -1:]).sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index.clamp(max=total.shape[-1] - 1), 1)
