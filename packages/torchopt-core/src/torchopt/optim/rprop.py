"""Rprop."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import pick
from torchopt._context import Context, counts_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.optim import _derived

__all__ = ["MetaRprop", "Rprop", "rprop"]


@record(prev=moment("prev"), step_size=moment("step_size"), count=per_leaf("step"))
class RpropState(NamedTuple):
    """The state of :func:`rprop`; every field changes in every step."""

    # the gradients of the last step, zero where their sign had changed; a tree like the parameters
    prev: TensorTree
    # step sizes, a tree like the parameters
    step_size: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class RpropDirection(Rule):
    """The rule of Rprop, learning rate included; see :func:`rprop`."""

    eta_minus: Scalar
    eta_plus: Scalar
    min_size: Scalar
    max_size: Scalar

    absorbs_rate = True
    state_type = RpropState

    def __post_init__(self) -> None:
        low, high = self.eta_minus, self.eta_plus
        check_non_negative("etas[0]", low)
        check_non_negative("etas[1]", high)
        numbers = not isinstance(low, torch.Tensor) and not isinstance(high, torch.Tensor)
        if numbers and not 0 < low < 1 < high:
            raise ValueError(
                f"Invalid eta values: {low}, {high}; expected 0 < etas[0] < 1 < etas[1]"
            )
        check_non_negative("step_sizes[0]", self.min_size)
        check_non_negative("step_sizes[1]", self.max_size)

    def init(self, params: Leaves, context: Context) -> RpropState:
        return RpropState(zeros_like(params), zeros_like(params), counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        signs = context.fresh.sign(grads)
        # of signs, since the product of small gradients may vanish
        agreement = context.fresh.mul(signs, context.fresh.sign(state.prev))
        sizes = self._sizes(state, context)
        sizes = [self._resized(x, a) for x, a in zip(sizes, agreement, strict=True)]
        kept = [torch.where(a < 0, 0.0, g) for g, a in zip(grads, agreement, strict=True)]
        moved = [torch.where(a < 0, 0.0, s) for s, a in zip(signs, agreement, strict=True)]
        count = context.reuse.add(state.count, 1)
        if context.inplace:
            torch._foreach_copy_(state.prev, kept)
            torch._foreach_copy_(state.step_size, sizes)
            kept, sizes = state.prev, state.step_size
        direction = context.fresh.mul(moved, sizes)
        return FactoredUpdates(direction, borrowed=False), RpropState(kept, sizes, count)

    def _sizes(self, state: Any, context: Context) -> Leaves:
        """Return the step sizes before this step: the learning rate before the first one."""
        sizes: Leaves = state.step_size
        assert context.lr is not None
        started = [c.to(x.device) > 0 for c, x in zip(state.count, sizes, strict=True)]
        rates = [_of_leaf(context.lr, k) for k in range(len(sizes))]
        return [
            torch.where(s, x, _beside(rate, x))
            for s, x, rate in zip(started, sizes, rates, strict=True)
        ]

    def _resized(self, size: torch.Tensor, agreement: torch.Tensor) -> torch.Tensor:
        grown, shrunk = _beside(self.eta_plus, size), _beside(self.eta_minus, size)
        factor = torch.where(agreement > 0, grown, torch.where(agreement < 0, shrunk, 1.0))
        bounds = [_beside(x, size) for x in (self.min_size, self.max_size)]
        return torch.minimum(torch.maximum(size * factor.to(size.dtype), bounds[0]), bounds[1])


def _of_leaf(operand: Any, k: int) -> Any:
    """Return what an operand is for one leaf."""
    picked = pick(operand, [k])
    if isinstance(picked, (int, float, torch.Tensor)):
        return picked
    return picked.values[0] if hasattr(picked, "values") else picked[0]


def _beside(value: Any, x: torch.Tensor) -> torch.Tensor:
    """Return a number as a tensor that changes no dtype beside ``x``."""
    if isinstance(value, torch.Tensor):
        return value.to(x.device, x.dtype)
    return torch.tensor(value, dtype=x.dtype, device=x.device)


@optimizer
def rprop(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    etas: tuple[Scalar, Scalar] = (0.5, 1.2),
    step_sizes: tuple[Scalar, Scalar] = (1e-6, 50.0),
    *,
    maximize: bool = False,
) -> Rule:
    r"""Rprop, resilient backpropagation, as in :class:`torch.optim.Rprop`.

    Every element has a step size of its own, :math:`\eta` in its first step. With
    :math:`s_t = g_{t-1} g_t`,

    .. math::
        \eta_t = \begin{cases}
            \min(\eta_{t-1} \eta_+,\, \eta_{\max}) & s_t > 0, \\
            \max(\eta_{t-1} \eta_-,\, \eta_{\min}) & s_t < 0, \text{ and } g_t \leftarrow 0, \\
            \eta_{t-1} & s_t = 0,
        \end{cases} \qquad
        \theta_t = \theta_{t-1} - \eta_t \operatorname{sign}(g_t) .

    It is made for gradients of the whole data. Derivatives reach the parameters through the step
    sizes: the learning rate and the factors can be learned, gradients of gradients are zero.

    Args:
        lr: The first step size :math:`\eta`, in every form that :func:`~torchopt.adam` takes; later
            changes have no effect.
        etas: :math:`(\eta_-, \eta_+)` with :math:`0 < \eta_- < 1 < \eta_+`.
        step_sizes: :math:`(\eta_{\min}, \eta_{\max})`.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.rprop(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Riedmiller, Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
        Algorithm", ICNN 1993.
    """
    for name, pair in (("etas", etas), ("step_sizes", step_sizes)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"`{name}` must be a pair of numbers, got {pair!r}")
    return GradientStep(direction=RpropDirection(*etas, *step_sizes), lr=lr, maximize=maximize)


class Rprop(_derived.Rprop, functional=rprop):
    """Rprop as a :class:`torch.optim.Optimizer`; see :func:`rprop`."""


class MetaRprop(_derived.MetaRprop, functional=rprop):
    """Differentiable Rprop on a module; see :func:`rprop`."""
