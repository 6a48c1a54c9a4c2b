"""Rules applied one after the other, and to some of the leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from torchopt._arithmetic import Operand, product
from torchopt._context import Context
from torchopt._rule import Rule
from torchopt._state import EmptyState, Field, Kind, fields_of
from torchopt._types import Leaves
from torchopt._updates import FactoredUpdates
from torchopt.kernels import Formula

__all__ = [
    "Chain",
    "Identity",
    "expand_state",
    "is_same",
    "merge_state",
    "prepare",
    "select_state",
    "step",
    "update",
]


def prepare(rule: Rule, state: Any, context: Context) -> Any:
    """Call :meth:`Rule.prepare`, on a state that fits and with complex leaves as it sees them."""
    if context.complex and rule.elementwise:
        state, context = _viewed(rule, state, context)
    if rule.state_type is not object:
        _check_state(rule, state, context)
    return rule.prepare(state, context)


def update(
    rule: Rule, updates: FactoredUpdates, state: Any, context: Context
) -> tuple[FactoredUpdates, Any]:
    """Call :meth:`Rule.update`, with complex leaves as it sees them."""
    if not (context.complex and rule.elementwise):
        return rule.update(updates, state, context)
    seen = FactoredUpdates(
        _real(updates.materialize(context), context.complex), borrowed=updates.borrowed
    )
    seen_state, seen_context = _viewed(rule, state, context)
    result, new = rule.update(seen, seen_state, seen_context)
    leaves = _as_before(result.materialize(seen_context), context.complex)
    borrowed = result.borrowed and result.is_plain
    return FactoredUpdates(leaves, borrowed=borrowed), _unviewed(rule, new, seen_state, state)


def step(rule: Rule, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
    """Call :meth:`Rule.step`, with complex leaves as it sees them."""
    if not (context.complex and rule.elementwise):
        return rule.step(updates, state, context)
    seen = FactoredUpdates(
        _real(updates.materialize(context), context.complex), borrowed=updates.borrowed
    )
    seen_state, seen_context = _viewed(rule, state, context)
    leaves, new = rule.step(seen, seen_state, seen_context)
    return _as_before(leaves, context.complex), _unviewed(rule, new, seen_state, state)


def _check_state(rule: Rule, state: Any, context: Context) -> None:
    """Raise unless the state is one of the rule's, with moments like the updates."""
    if type(state) is not rule.state_type:
        rule.map_state(lambda field, value: value, state)  # raises
    like = context.like
    if like is None:
        return
    kinds = None
    for field, leaves in zip(fields_of(type(state)), state, strict=True):
        if field.kind is not Kind.MOMENT:
            continue
        if kinds is None:
            kinds = [(x.shape, x.dtype) for x in like]
        try:
            if [(x.shape, x.dtype) for x in leaves] == kinds:
                continue
        except AttributeError:  # None
            pass
        for i, (wanted, x) in enumerate(zip(like, leaves, strict=True)):
            if x is None or x.shape != wanted.shape:
                what = "is None" if x is None else f"has shape {tuple(x.shape)}"
                raise ValueError(
                    f"leaf {context.positions[i]} of `state.{field.name}` {what}, "
                    f"but that of the updates has shape {tuple(wanted.shape)}"
                )
            if x.dtype != wanted.dtype:
                raise ValueError(
                    f"leaf {context.positions[i]} of `state.{field.name}` has dtype {x.dtype}, "
                    f"but that of the updates has dtype {wanted.dtype}"
                )


def _real(leaves: Sequence[Any], positions: frozenset[int]) -> list[Any]:
    """Return the leaves, with those at some positions as real ones if they are complex tensors."""
    return [
        torch.view_as_real(x.resolve_conj())
        if k in positions and isinstance(x, torch.Tensor) and x.is_complex()
        else x
        for k, x in enumerate(leaves)
    ]


def _as_before(leaves: Leaves, positions: frozenset[int]) -> Leaves:
    """Return the leaves, with those at some positions complex again."""
    return [
        torch.view_as_complex(x) if k in positions and not x.is_complex() else x
        for k, x in enumerate(leaves)
    ]


def _viewed(rule: Rule, state: Any, context: Context) -> tuple[Any, Context]:
    """Return state and context with complex leaves as real ones."""
    positions = context.complex

    def view(field: Field, leaves: Any) -> Any:
        return leaves if field.is_shared else _real(leaves, positions)

    return rule.map_state(view, state), context._replace(
        complex=frozenset(),
        viewed=context.viewed | positions,
        params=None if context.params is None else _real(context.params, positions),
        like=None if context.like is None else _real(context.like, positions),
    )


def _unviewed(rule: Rule, new: Any, seen: Any, state: Any) -> Any:
    """Return the new state with those leaves complex that are so in the old one."""

    def restore(field: Field, found: Any, before: Any, native: Any) -> Any:
        if found is before:
            return native
        if field.is_shared:
            return found
        return [
            torch.view_as_complex(x)
            if isinstance(old, torch.Tensor) and old.is_complex() and not x.is_complex()
            else x
            for x, old in zip(found, native, strict=True)
        ]

    return rule.map_state(restore, new, seen, state)


def select_state(rule: Rule, state: Any, chosen: Sequence[int]) -> Any:
    """Return the state of some of the leaves."""

    def select(field: Field, leaves: Any) -> Any:
        return leaves if field.is_shared else [leaves[k] for k in chosen]

    return rule.map_state(select, state)


def is_same(new: Any, old: Any) -> bool:
    """Return whether a state is the very one that it was; a compiler that traces cannot tell."""
    return not torch.compiler.is_compiling() and new is old


def merge_state(rule: Rule, new: Any, selected: Any, state: Any, chosen: Sequence[int]) -> Any:
    """Return the state of all leaves, given the new one of some, as selected before."""
    if is_same(new, selected):
        return state

    def merge(field: Field, found: Any, before: Any, every: Any) -> Any:
        if field.is_shared:
            return found
        if found is before:
            return every
        merged = list(every)
        for k, x in zip(chosen, found, strict=True):
            merged[k] = x
        return merged

    return rule.map_state(merge, new, selected, state)


def expand_state(rule: Rule, state: Any, chosen: Sequence[int], size: int) -> Any:
    """Return the state of ``size`` leaves, with None for all but the chosen ones."""

    def expand(field: Field, leaves: Any) -> Any:
        if field.is_shared:
            return leaves
        every: list[Any] = [None] * size
        for k, x in zip(chosen, leaves, strict=True):
            every[k] = x
        return every

    return rule.map_state(expand, state)


@dataclasses.dataclass(frozen=True, eq=False)
class Identity(Rule):
    """The rule that changes nothing."""

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        return updates, state

    def formula(self) -> Formula:
        return Formula("sgd", lambda t: (), counted=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Chain(Rule):
    """Rules applied one after the other; the state is the tuple of theirs.

    Up to the last rule that is fallible nothing is overwritten, so that a step that fails leaves
    everything as it was.
    """

    rules: tuple[Rule, ...]

    state_type = object
    _facts: ClassVar[tuple[int, bool, bool]]

    def __post_init__(self) -> None:
        # once, and before a compiler traces a step
        rules = self.rules
        head = max([0, *[k + 1 for k, rule in enumerate(rules) if rule.fallible]])
        facts = head, any(x.joint for x in rules), any(x.reevaluates for x in rules)
        object.__setattr__(self, "_facts", facts)

    def children(self) -> tuple[Rule, ...]:
        return self.rules

    @property
    def head(self) -> int:
        """How many rules there are up to the last one that is fallible."""
        return self._facts[0]

    @property
    def joint(self) -> bool:
        return self._facts[1]

    @property
    def reevaluates(self) -> bool:
        return self._facts[2]

    def init(self, params: Leaves, context: Context) -> Any:
        return tuple([rule.init(params, context) for rule in self.rules])

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        self.check_state(state)
        columns = zip(self.rules, state, *others, strict=True)
        return tuple([rule.map_state(function, *states) for rule, *states in columns])

    def check_state(self, state: Any) -> None:
        """Raise unless the state has an entry for each rule."""
        if not isinstance(state, tuple) or len(state) != len(self.rules):
            raise TypeError(
                f"the state belongs to another transformation: expected a tuple of "
                f"{len(self.rules)} states, got {type(state).__name__}"
            )

    def prepare(self, state: Any, context: Context) -> Any:
        self.check_state(state)
        pairs = zip(self.rules, state, strict=True)
        return tuple([prepare(rule, rule_state, context) for rule, rule_state in pairs])

    def begin(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, list[Any]]:
        """Run what may fail, and what comes before it; nothing is overwritten."""
        states: list[Any] = []
        if self.head:
            safe = context.safe
            for k in range(self.head):
                own = safe.planned(context.plan[k])
                updates, new = update(self.rules[k], updates, state[k], own)
                states.append(new)
        return updates, states

    def finish(
        self, updates: FactoredUpdates, states: list[Any], state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        """Run the other rules, on what :meth:`begin` returned."""
        for k in range(self.head, len(self.rules)):
            own = context.planned(context.plan[k])
            updates, new = update(self.rules[k], updates, state[k], own)
            states.append(new)
        return updates, tuple(states)

    def finish_step(
        self, updates: FactoredUpdates, states: list[Any], state: Any, context: Context
    ) -> tuple[Leaves, Any]:
        """Run the other rules, the last of them on the parameters."""
        assert context.params is not None
        last = len(self.rules) - 1
        if self.head > last:
            return updates.add_to(context.params, context), tuple(states)
        for k in range(self.head, last):
            own = context.planned(context.plan[k])
            updates, new = update(self.rules[k], updates, state[k], own)
            states.append(new)
        own = context.planned(context.plan[last])
        leaves, new = step(self.rules[last], updates, state[last], own)
        return leaves, (*states, new)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        updates, states = self.begin(updates, state, context)
        return self.finish(updates, states, state, context)

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        updates, states = self.begin(updates, state, context)
        return self.finish_step(updates, states, state, context)

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        for rule, rule_state in zip(self.rules, state, strict=True):
            params = rule.evaluated_at(params, rule_state, context)
        return params

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        for rule, rule_state in zip(self.rules, state, strict=True):
            evaluated = rule.trained_at(evaluated, rule_state, context)
        return evaluated

    def rate(self, context: Context) -> Operand | None:
        found: Operand | None = None
        for k, rule in enumerate(self.rules):
            rate = rule.rate(context.planned(context.plan[k]))
            if rate is not None:
                found = rate if found is None else product(found, rate)
        return found

    def formula(self) -> Formula | None:
        formulas = [rule.formula() for rule in self.rules]
        known = [formula for formula in formulas if formula is not None]
        if len(known) != len(formulas) or not known:
            return None
        name = "+".join(formula.name for formula in known)
        counted = any(formula.counted for formula in known)
        return Formula(name, lambda t: sum((f.coefficients(t) for f in known), ()), counted)
