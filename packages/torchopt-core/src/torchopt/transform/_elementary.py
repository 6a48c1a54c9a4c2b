"""Transformations that are not an optimizer's own: scaling, schedules, decay, masks, NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt._arithmetic import Operand
from torchopt._context import Context
from torchopt._gradient_step import (
    ScaleByScheduleState,
    add_decayed,
    chosen_leaves,
    first_count,
)
from torchopt._rule import Rule
from torchopt._types import Leaves, Params, Scalar, Schedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_mask, check_non_negative, check_rate, is_scalar_tensor
from torchopt.base import (
    EmptyState,
    GradientTransformation,
    RuleTransformation,
)

__all__ = ["add_decayed_weights", "nan_to_num", "scale", "scale_by_schedule"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale(Rule):
    step_size: Scalar | TensorTree

    def __post_init__(self) -> None:
        step_size: Any = self.step_size
        leaves: list[Any] = optree.tree_leaves(step_size)
        if not leaves or not all(isinstance(x, (int, float, torch.Tensor)) for x in leaves):
            raise TypeError(
                "`step_size` must be a number, a 0-dim tensor, or a tree of tensors shaped like "
                f"the parameters, got {self.step_size!r}"
            )
        if any(isinstance(x, float) and not math.isfinite(x) for x in leaves):
            raise ValueError(f"`step_size` must be finite, got {self.step_size}")

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def prepare(self, state: Any, context: Context) -> Operand:
        """Return the factor, or one for each leaf."""
        if isinstance(self.step_size, (int, float)) or is_scalar_tensor(self.step_size):
            return self.step_size
        return context.factors(self.step_size, "step_size", context.like or [])

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        return updates.scaled(context.plan), state


def scale(step_size: Scalar | TensorTree) -> GradientTransformation:
    """Multiply the updates by a factor.

    Args:
        step_size: A number, a 0-dim tensor, or a tree of tensors shaped like the parameters;
            tensors receive gradients. Negative to descend.

    Example:
        >>> import torch, torchopt
        >>> half = torchopt.transform.scale(0.5)
        >>> half.update(torch.ones(1), half.init(torch.ones(1)))[0]
        tensor([0.5000])
    """
    return RuleTransformation(_Scale(step_size))


@dataclasses.dataclass(frozen=True, eq=False)
class _ScaleBySchedule(Rule):
    step_size_fn: Schedule

    def __post_init__(self) -> None:
        if not callable(self.step_size_fn):
            raise TypeError(f"`step_size_fn` must be callable, got {self.step_size_fn!r}")

    state_type = ScaleByScheduleState

    def init(self, params: Leaves, context: Context) -> ScaleByScheduleState:
        return first_count()

    def prepare(self, state: Any, context: Context) -> Any:
        return check_rate("`step_size_fn`", self.step_size_fn(state.count)), state.count + 1

    def rate(self, context: Context) -> Operand:
        factor: Operand = context.plan[0]
        return factor

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        factor, count = context.plan
        return updates.scaled(factor), ScaleByScheduleState(count)


def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Multiply the updates by a function of the number of updates so far.

    Args:
        step_size_fn: From the count, a 0-dim int64 tensor that starts at zero, to the factor; for
            example one of :mod:`torchopt.schedule`.

    Example:
        >>> import torch, torchopt
        >>> decay = torchopt.transform.scale_by_schedule(lambda count: 0.5**count)
        >>> state = decay.init(torch.ones(1))
        >>> for _ in range(3):
        ...     updates, state = decay.update(torch.ones(1), state)
        >>> updates
        tensor([0.2500])
    """
    return RuleTransformation(_ScaleBySchedule(step_size_fn))


@dataclasses.dataclass(frozen=True, eq=False)
class _AddDecayedWeights(Rule):
    weight_decay: Scalar
    mask: Any

    def __post_init__(self) -> None:
        check_non_negative("weight_decay", self.weight_decay)
        check_mask(self.mask)

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def prepare(self, state: Any, context: Context) -> Any:
        return chosen_leaves(self.mask, context)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        leaves = updates.materialize(context)
        return FactoredUpdates(add_decayed(leaves, self.weight_decay, context.plan, context)), state


def add_decayed_weights(
    weight_decay: Scalar = 0.0, mask: Any | Callable[[Params], Any] | None = None
) -> GradientTransformation:
    r"""Add the decayed parameters to the updates, :math:`u = g + \lambda \theta`.

    Args:
        weight_decay: :math:`\lambda \ge 0`; differentiable if a 0-dim tensor. ``update`` needs
            ``params``.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.

    Raises:
        ValueError: If ``weight_decay`` is negative.

    Example:
        >>> import torch, torchopt
        >>> decay = torchopt.transform.add_decayed_weights(0.1)
        >>> params = torch.ones(1)
        >>> decay.update(torch.zeros(1), decay.init(params), params=params)[0]
        tensor([0.1000])
    """
    return RuleTransformation(_AddDecayedWeights(weight_decay, mask))


@dataclasses.dataclass(frozen=True, eq=False)
class _NanToNum(Rule):
    nan: float
    posinf: float | None
    neginf: float | None

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        cleaned = [
            torch.nan_to_num(g, nan=self.nan, posinf=self.posinf, neginf=self.neginf)
            for g in updates.materialize(context)
        ]
        return FactoredUpdates(cleaned, borrowed=False), state


def nan_to_num(
    nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> GradientTransformation:
    """Replace NaN and infinities in the updates, with :func:`torch.nan_to_num`'s arguments.

    Example:
        >>> import torch, torchopt
        >>> clean = torchopt.nan_to_num()
        >>> clean.update(torch.tensor([1.0, float("nan")]), clean.init(torch.ones(2)))[0]
        tensor([1., 0.])
    """
    return RuleTransformation(_NanToNum(nan, posinf, neginf))
