"""A transformation of some of the leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._chain import expand_state, is_same, merge_state, prepare, select_state, step, update
from torchopt._context import Context
from torchopt._factory import transformation
from torchopt._mask import mask_positions
from torchopt._rule import Rule
from torchopt._state import nested, record
from torchopt._types import Leaves, OptState, Params
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_mask
from torchopt.base import GradientTransformation, as_rule, check_transformation

__all__ = ["Masked", "MaskedState", "masked"]


@record(inner_state=nested())
class MaskedState(NamedTuple):
    """The state of :func:`masked`."""

    # the inner state, with None for the leaves that are masked out
    inner_state: OptState


class _MaskedPlan(NamedTuple):
    # the positions of the leaves that are not masked out; None: all
    chosen: list[int] | None
    # the context of these leaves, before it is known how to compute
    context: Context
    # their state
    selected: Any
    # what the inner rule prepared
    plan: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Masked(Rule):
    """The rule of :func:`masked`."""

    inner: Rule
    mask: Any

    state_type = MaskedState
    partial = True

    def __post_init__(self) -> None:
        check_mask(self.mask)

    def children(self) -> tuple[Rule, ...]:
        return (self.inner,)

    def init(self, params: Leaves, context: Context) -> Any:
        chosen = mask_positions(self.mask, context)
        inner = self.inner.init([params[k] for k in chosen], context.restrict(chosen))
        return MaskedState(expand_state(self.inner, inner, chosen, len(params)))

    def check_params(self, params: Leaves, context: Context) -> None:
        chosen = mask_positions(self.mask, context)
        self.inner.check_params([params[k] for k in chosen], context.restrict(chosen))

    def prepare(self, state: Any, context: Context) -> _MaskedPlan:
        chosen = mask_positions(self.mask, context)
        if len(chosen) == context.size:
            inner = state.inner_state
            return _MaskedPlan(None, context, inner, prepare(self.inner, inner, context))
        selected = select_state(self.inner, state.inner_state, chosen)
        own = context.restrict(chosen)
        return _MaskedPlan(chosen, own, selected, prepare(self.inner, selected, own))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        chosen, restricted, selected, plan = context.plan
        own = context.part(restricted, plan)
        if chosen is None:
            updates, new = update(self.inner, updates, selected, own)
            return updates, MaskedState(new)
        if not chosen:
            return updates, state
        leaves = list(updates.owned(context))
        mine = FactoredUpdates([leaves[k] for k in chosen])
        found, new = update(self.inner, mine, selected, own)
        for k, x in zip(chosen, found.owned(own), strict=True):
            leaves[k] = x
        merged = merge_state(self.inner, new, selected, state.inner_state, chosen)
        return FactoredUpdates(leaves, borrowed=False), MaskedState(merged)

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        chosen, restricted, selected, plan = context.plan
        own = context.part(restricted, plan)
        if chosen is None:
            leaves, new = step(self.inner, updates, selected, own)
            return leaves, state if is_same(new, selected) else MaskedState(new)
        params = context.params
        assert params is not None
        result = list(params)
        passing = sorted(set(range(len(params))) - set(chosen))
        if passing:
            stepped = updates.of(passing).add_to([params[k] for k in passing], context)
            for k, x in zip(passing, stepped, strict=True):
                result[k] = x
        if not chosen:
            return result, state
        leaves, new = step(self.inner, updates.of(chosen), selected, own)
        for k, x in zip(chosen, leaves, strict=True):
            result[k] = x
        merged = merge_state(self.inner, new, selected, state.inner_state, chosen)
        return result, state if is_same(new, selected) else MaskedState(merged)

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        return self._swapped(self.inner.evaluated_at, params, state, context)

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        return self._swapped(self.inner.trained_at, evaluated, state, context)

    def _swapped(
        self, swap: Callable[..., Leaves], params: Leaves, state: Any, context: Context
    ) -> Leaves:
        chosen = mask_positions(self.mask, context)
        selected = select_state(self.inner, state.inner_state, chosen)
        result = list(params)
        found = swap([params[k] for k in chosen], selected, context.restrict(chosen))
        for k, x in zip(chosen, found, strict=True):
            result[k] = x
        return result


@transformation
def masked(
    inner: GradientTransformation, mask: Any | Callable[[Params], Any] | None = None
) -> Rule:
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
    return Masked(as_rule(inner), mask)
