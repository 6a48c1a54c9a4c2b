"""Transformations that are not an optimizer's own: scaling, schedules, decay, masks, NaN."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import optree
import torch

from torchopt._mask import mask_positions, resolve_mask
from torchopt._rule import Direction, Rule
from torchopt._validate import check_non_negative, is_scalar_tensor
from torchopt.base import (
    EmptyState,
    GradientTransformation,
    RuleTransformation,
    as_rule,
    check_transformation,
)
from torchopt.optim._descent import ScaleByScheduleState, add_decayed

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves
    from torchopt._workspace import Workspace
    from torchopt.typing import OptState, Params, Scalar, Schedule, TensorTree

__all__ = ["add_decayed_weights", "masked", "nan_to_num", "scale", "scale_by_schedule"]


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

    @property
    def may_raise(self) -> bool:
        """Whether it is a tree, which may not match the parameters'."""
        return not isinstance(self.step_size, (int, float)) and not is_scalar_tensor(self.step_size)

    def init(self, params: Params) -> OptState:
        return EmptyState()

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        if self.may_raise:
            return updates.scaled(
                work.factors(self.step_size, "step_size", updates.numerators)
            ), state
        return updates.scaled(self.step_size), state


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

    @property
    def may_raise(self) -> bool:
        return True

    def init(self, params: Params) -> OptState:
        return ScaleByScheduleState(count=torch.zeros((), dtype=torch.int64))

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        if not isinstance(state, ScaleByScheduleState):
            raise TypeError(
                "the state belongs to another transformation: expected ScaleByScheduleState, "
                f"got {type(state).__name__}"
            )
        scaled = updates.scaled(self.step_size_fn(state.count))
        return scaled, ScaleByScheduleState(count=state.count + 1)


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

    @property
    def may_raise(self) -> bool:
        return self.mask is not None

    def init(self, params: Params) -> OptState:
        return EmptyState()

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        leaves = updates.materialize(work)
        return Direction(add_decayed(leaves, params, self.weight_decay, self.mask, work)), state


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


class MaskedState(NamedTuple):
    """The state of :func:`masked`."""

    # the inner state, with None for the leaves that are masked out
    inner_state: OptState


@dataclasses.dataclass(frozen=True, eq=False)
class _Masked(Rule):
    inner: Rule
    mask: Any

    @property
    def may_raise(self) -> bool:
        return True

    def children(self) -> tuple[Rule, ...]:
        return (self.inner,)

    def init(self, params: Params) -> OptState:
        if self.mask is None:
            return MaskedState(self.inner.init(params))
        mask = self.mask(params) if callable(self.mask) else self.mask
        leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
        selected = resolve_mask(mask, spec)
        kept = [x if keep else None for x, keep in zip(leaves, selected, strict=True)]
        return MaskedState(self.inner.init(optree.tree_unflatten(spec, kept)))

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        if not isinstance(state, MaskedState):
            raise TypeError(
                "the state belongs to another transformation: expected MaskedState, "
                f"got {type(state).__name__}"
            )
        leaves = list(updates.owned(work))
        chosen = mask_positions(self.mask, params if params is not None else leaves, work)
        if not chosen:
            return Direction(leaves, borrowed=False), state
        inner_work = work.restrict(chosen)
        direction, inner_state = self.inner.update(
            Direction([leaves[k] for k in chosen]),
            state.inner_state,
            None if params is None else [params[k] for k in chosen],
            inner_work,
        )
        for k, x in zip(chosen, direction.owned(inner_work), strict=True):
            leaves[k] = x
        return Direction(leaves, borrowed=False), MaskedState(inner_state)


def masked(
    inner: GradientTransformation, mask: Any | Callable[[Params], Any] | None = None
) -> GradientTransformation:
    """Apply a transformation to some leaves; the others pass through, and have no state.

    Args:
        inner: The transformation.
        mask: The leaves it applies to: a tree of bools (or a prefix of it), or a function from the
            tree of parameters (of updates, where ``update`` has no ``params``) to one; all by
            default.

    Example:
        >>> import torch, torchopt
        >>> freeze = torchopt.transform.masked(
        ...     torchopt.transform.scale(0.0), {"a": True, "b": False}
        ... )
        >>> params = {"a": torch.ones(1), "b": torch.ones(1)}
        >>> freeze.update({"a": torch.ones(1), "b": torch.ones(1)}, freeze.init(params))[0]
        {'a': tensor([0.]), 'b': tensor([1.])}
    """
    check_transformation(inner, "`inner`")
    return RuleTransformation(_Masked(as_rule(inner), mask))


@dataclasses.dataclass(frozen=True, eq=False)
class _NanToNum(Rule):
    nan: float
    posinf: float | None
    neginf: float | None

    def init(self, params: Params) -> OptState:
        return EmptyState()

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        cleaned = [
            torch.nan_to_num(g, nan=self.nan, posinf=self.posinf, neginf=self.neginf)
            for g in updates.materialize(work)
        ]
        return Direction(cleaned, borrowed=False), state


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
