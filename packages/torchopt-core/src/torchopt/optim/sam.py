"""Sharpness-aware minimization around an optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from torchopt._chain import Chain
from torchopt._context import Context
from torchopt._factory import optimizer
from torchopt._rule import Rule
from torchopt._state import EmptyState
from torchopt._types import Leaves, Scalar
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.base import GradientTransformation, as_rule, check_transformation
from torchopt.optim import _derived

__all__ = ["SAM", "MetaSAM", "sam"]

# added to the norm, as in the authors' implementation
_MARGIN = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class SharpnessAware(Rule):
    """Replaces gradients by those at the worst point nearby; see :func:`sam`."""

    rho: Scalar
    adaptive: bool

    # it evaluates the loss, which may fail; complex parameters are evaluated as they are
    fallible = True
    reevaluates = True
    elementwise = False

    def __post_init__(self) -> None:
        check_non_negative("rho", self.rho)

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def prepare(self, state: Any, context: Context) -> None:
        if context.params is None or context.value_and_grad is None:
            raise ValueError(
                "`sam` evaluates the gradient at other parameters: pass `params=` and "
                "`value_and_grad=` to `update`"
            )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params, evaluate = context.params, context.value_and_grad
        assert params is not None
        assert evaluate is not None
        grads = updates.materialize(context)
        sized = grads
        if self.adaptive:
            sized = [p.abs() * g for p, g in zip(params, grads, strict=True)]
        factor = self.rho / (self._norm(sized, context) + _MARGIN)
        if self.adaptive:
            sized = [p.abs() * x for p, x in zip(params, sized, strict=True)]
        moved = [
            p + (factor.to(p.device) * x).to(p.dtype) for p, x in zip(params, sized, strict=True)
        ]
        _, found = evaluate(moved)
        return FactoredUpdates(found), state

    @staticmethod
    def _norm(leaves: Leaves, context: Context) -> torch.Tensor:
        """Return the norm of all leaves as one vector, whose derivatives at zero are zero."""
        device = leaves[0].device
        squares = [
            (torch.view_as_real(x) if x.is_complex() else x).float().square().sum()
            if x.dtype in (torch.float16, torch.bfloat16)
            else (torch.view_as_real(x) if x.is_complex() else x).square().sum()
            for x in leaves
        ]
        total = torch.stack([x.to(device) for x in squares]).sum()
        return context.fresh.sqrt([total])[0]


@optimizer
def sam(inner: GradientTransformation, rho: Scalar = 0.05, adaptive: bool = False) -> Rule:
    r"""Sharpness-aware minimization: step down the gradient at the worst point nearby.

    .. math::
        \hat\theta = \theta + \rho\, \frac{g}{\lVert g \rVert_2}
        \quad\text{or, adaptive,}\quad
        \hat\theta = \theta + \rho\, \frac{\theta^2 g}{\lVert\, |\theta| g\, \rVert_2},
        \qquad u = u_{inner}(\nabla f(\hat\theta)),

    with :math:`g = \nabla f(\theta)` and the norm over all leaves of a group.

    Every step takes two gradients. The second comes from ``value_and_grad`` in the functional face,
    from the closure given to ``step`` in the stateful one, and from the loss function given to
    ``step`` (in place of a loss) in the differentiable one.

    Args:
        inner: The optimizer, any transformation.
        rho: The radius :math:`\rho \ge 0`; differentiable if a 0-dim tensor.
        adaptive: Whether the neighbourhood scales with the parameters (ASAM).

    Raises:
        TypeError: If ``inner`` is not a transformation.
        ValueError: If ``rho`` is negative, or there is no second gradient to be had.

    Example:
        >>> import torch, torchopt
        >>> w = torch.tensor([1.0], requires_grad=True)
        >>> optim = torchopt.SAM([w], torchopt.sgd(0.1), rho=0.5)
        >>> def closure():
        ...     optim.zero_grad()
        ...     loss = w.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optim.step(closure)
        >>> w  # the gradient is that at 1.5
        tensor([0.7000], requires_grad=True)

    Reference:
        Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
        Generalization", ICLR 2021, Algorithm 1; Kwon, Kim, Park, Choi, "ASAM", ICML 2021.
    """
    check_transformation(inner, "`inner`")
    return Chain((SharpnessAware(rho, adaptive), as_rule(inner)))


class SAM(_derived.SAM, functional=sam):
    """Sharpness-aware minimization as a :class:`torch.optim.Optimizer`; see :func:`sam`."""


class MetaSAM(_derived.MetaSAM, functional=sam):
    """Differentiable sharpness-aware minimization on a module; see :func:`sam`."""
