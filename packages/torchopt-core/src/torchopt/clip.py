"""Clipping of gradients."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from torchopt._arithmetic import HALF
from torchopt._context import Context
from torchopt._rule import Rule
from torchopt._types import Leaves, Scalar
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_flag, check_non_negative
from torchopt.base import EmptyState, GradientTransformation, RuleTransformation

__all__ = ["clip_by_global_norm", "clip_by_value", "clip_grad_norm"]


@dataclasses.dataclass(frozen=True, eq=False)
class _ClipNorm(Rule):
    max_norm: Scalar
    norm_type: float
    error_if_nonfinite: bool
    #: Added to the norm in the quotient.
    margin: float
    norm_requires_grad: bool = True

    def __post_init__(self) -> None:
        check_non_negative("max_norm", self.max_norm)
        check_flag("norm_requires_grad", self.norm_requires_grad)
        if not self.norm_type > 0:
            raise ValueError(f"`norm_type` must be positive, got {self.norm_type}")

    # the norm is that of all leaves
    elementwise = False

    @property
    def fallible(self) -> bool:
        return self.error_if_nonfinite

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        total = self._norm(grads if self.norm_requires_grad else _detached(grads), context)
        if self.error_if_nonfinite and not torch.isfinite(total):
            raise RuntimeError(
                f"the total norm of order {self.norm_type} of the gradients is {total}, so they "
                "cannot be clipped: pass `error_if_nonfinite=False` to scale them all the same"
            )
        # c / max(n, c), which is min(1, c / n) with a finite derivative at n = 0
        total = total + self.margin
        bound = torch.as_tensor(self.max_norm, dtype=total.dtype, device=total.device)
        factor = bound / torch.maximum(total, bound.clamp_min(torch.finfo(total.dtype).tiny))
        borrowed = updates.borrowed and updates.is_plain
        # one factor, which the next rule may combine with its own
        if all(g.device == total.device for g in grads):
            return FactoredUpdates(grads, scale=factor, borrowed=borrowed), state
        factors = [factor.to(g.device) for g in grads]
        return FactoredUpdates(grads, scale=factors, borrowed=borrowed), state

    def _norm(self, grads: Leaves, context: Context) -> torch.Tensor:
        """Return the norm of all leaves as one vector."""
        device = grads[0].device
        if self.norm_type == 2.0 and not context.inplace:
            # torch's norm has no second derivative at zero
            reals = [torch.view_as_real(g) if g.is_complex() else g for g in grads]
            squares = [_at_least_single(g).square().sum().to(device) for g in reals]
            return context.fresh.sqrt([torch.stack(squares).sum()])[0]
        if self.norm_type != math.inf and not any(g.dtype in HALF for g in grads):
            norms = list(torch._foreach_norm(grads, self.norm_type))
        else:  # an empty leaf has no maximum there
            norms = [torch.linalg.vector_norm(_at_least_single(g), self.norm_type) for g in grads]
        total: torch.Tensor = torch.linalg.vector_norm(
            torch.stack([norm.to(device) for norm in norms]), self.norm_type
        )
        return total


def _detached(leaves: Leaves) -> Leaves:
    return [x.detach() for x in leaves]


def _at_least_single(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in a precision in which its square neither vanishes nor overflows."""
    return x.float() if x.dtype in HALF else x


def clip_grad_norm(
    max_norm: Scalar,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    *,
    norm_requires_grad: bool = True,
) -> GradientTransformation:
    r"""Scale all gradients so that their joint norm is at most ``max_norm``.

    .. math::
        u = g \, \min\!\left(1, \frac{c}{\lVert g \rVert_p + 10^{-6}}\right),

    as in :func:`torch.nn.utils.clip_grad_norm_`, with the norm of all leaves as one vector.

    Args:
        max_norm: The bound :math:`c \ge 0`; differentiable if a 0-dim tensor.
        norm_type: The order :math:`p > 0`; ``math.inf`` for the maximum norm.
        error_if_nonfinite: Whether to raise if the norm is NaN or infinite. This reads the norm,
            which stops a compiler and waits for a GPU.
        norm_requires_grad: Whether meta-gradients flow through :math:`\lVert g \rVert_p`. If
            ``False``, they take it as a constant, as in TorchOpt 0.7: the factor of a clipped
            gradient is then no function of the gradient.

    Raises:
        ValueError: If ``max_norm`` is negative or ``norm_type`` not positive.
        RuntimeError: In ``update``, if asked to, for a norm that is not finite.

    Example:
        >>> import torch, torchopt
        >>> clip = torchopt.clip_grad_norm(max_norm=1.0)
        >>> updates, _ = clip.update(torch.tensor([3.0, 4.0]), clip.init(torch.zeros(2)))
        >>> updates
        tensor([0.6000, 0.8000])
    """
    return RuleTransformation(
        _ClipNorm(max_norm, norm_type, error_if_nonfinite, 1e-6, norm_requires_grad)
    )


def clip_by_global_norm(max_norm: Scalar) -> GradientTransformation:
    r"""Scale all gradients so that their joint 2-norm is at most ``max_norm``.

    .. math::
        u = g \, \min\!\left(1, \frac{c}{\lVert g \rVert_2}\right).

    Unlike :func:`clip_grad_norm`, clipped gradients have norm ``max_norm`` exactly.

    Args:
        max_norm: The bound :math:`c \ge 0`; differentiable if a 0-dim tensor.

    Raises:
        ValueError: If ``max_norm`` is negative.

    Example:
        >>> import torch, torchopt
        >>> clip = torchopt.clip_by_global_norm(max_norm=5.0)
        >>> clip.update(torch.tensor([6.0, 8.0]), clip.init(torch.zeros(2)))[0]
        tensor([3., 4.])

    Reference:
        Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks",
        ICML 2013, Algorithm 1.
    """
    return RuleTransformation(_ClipNorm(max_norm, 2.0, error_if_nonfinite=False, margin=0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class _ClipValue(Rule):
    clip_value: Scalar

    def __post_init__(self) -> None:
        check_non_negative("clip_value", self.clip_value)

    def init(self, params: Leaves, context: Context) -> Any:
        return EmptyState()

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        bound: Any = self.clip_value
        clipped = [torch.clamp(g, -bound, bound) for g in updates.materialize(context)]
        return FactoredUpdates(clipped, borrowed=False), state


def clip_by_value(clip_value: Scalar) -> GradientTransformation:
    r"""Clamp every entry of the gradients to :math:`[-c, c]`.

    Args:
        clip_value: The bound :math:`c \ge 0`; differentiable if a 0-dim tensor.

    Raises:
        ValueError: If ``clip_value`` is negative.

    Example:
        >>> import torch, torchopt
        >>> clip = torchopt.clip_by_value(1.0)
        >>> clip.update(torch.tensor([-3.0, 0.5]), clip.init(torch.zeros(2)))[0]
        tensor([-1.0000,  0.5000])
    """
    return RuleTransformation(_ClipValue(clip_value))
