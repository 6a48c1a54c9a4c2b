"""Adam's direction, compiled, as a transformation of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchopt.base import GradientTransformation
from torchopt.rules import (
    Context,
    EmptyState,
    FactoredUpdates,
    GradientStep,
    Leaves,
    Rule,
    as_rule,
    prepare,
    transformation,
    update,
)
from torchopt.transform import scale_by_adam

__all__ = ["scale_by_accelerated_adam"]


@dataclasses.dataclass(frozen=True, eq=False)
class AcceleratedDirection(Rule):
    """A direction that insists on its kernel: a step of rate 1, in the other direction."""

    whole: GradientStep

    state_type = object

    def children(self) -> tuple[Rule, ...]:
        return (self.whole,)

    def init(self, params: Leaves, context: Context) -> Any:
        return self.whole.direction.init(params, context)

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        return self.whole.direction.map_state(function, state, *others)

    def prepare(self, state: Any, context: Context) -> Any:
        return prepare(self.whole, (state, EmptyState()), context)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        found, (new, _) = update(self.whole, updates, (state, EmptyState()), context)
        return found.scaled(-1.0), new


@transformation
def _accelerated(direction: GradientTransformation) -> Rule:
    whole = GradientStep(as_rule(direction), lr=1.0, use_accelerated_op=True)
    whole.require_kernel()
    return AcceleratedDirection(whole)


def scale_by_accelerated_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Rescale by Adam's bias-corrected moments, in a compiled kernel.

    The same as :func:`torchopt.transform.scale_by_adam`, in one call for all leaves:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}
                    {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} .

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments, in [0, 1).
        eps: :math:`\epsilon`, added outside of the root.
        eps_root: :math:`\bar\epsilon`, added inside of the root.
        moment_requires_grad: Whether the initial moments require gradients.

    Raises:
        ValueError: If a number is outside of its range.
        NotCoveredError: If a number is a tensor; or in a step, if there is no kernel for its
            inputs.

    Example:
        >>> import torch, torchopt
        >>> adam = torchopt.transform.scale_by_accelerated_adam()
        >>> updates, state = adam.update(torch.tensor([-3.0]), adam.init(torch.zeros(1)))
        >>> updates
        tensor([-1.])

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """
    return _accelerated(scale_by_adam(b1, b2, eps, eps_root, moment_requires_grad))
