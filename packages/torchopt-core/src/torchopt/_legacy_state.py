"""States of TorchOpt 0.7, and what they are in this version.

In 0.7 an optimizer was a chain of transformations of flat lists: its state is the tuple of theirs,
``(EmptyState, ScaleByAdamState, EmptyState)`` for Adam with weight decay, in which links that did
nothing are left out. A field is a list with an entry for each leaf, in the order of `optree`, or
None for leaves without a gradient; under a mask it has the entries of the chosen leaves alone. A
transformation of trees keeps trees, with ``MaskedNode()`` in the place of the others. A schedule
counts for each leaf.

The classes are what checkpoints of 0.7 refer to. Nothing else makes them, so they tell a state of
0.7 from one of this version, which may look the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import optree
import torch

from torchopt._chain import Chain
from torchopt._driver import init
from torchopt._rule import Rule
from torchopt._state import EmptyState, Field, Kind, fields_of

__all__ = [
    "MaskedNode",
    "Order",
    "ScaleByAdadeltaState",
    "ScaleByAdamState",
    "ScaleByAdamaxState",
    "ScaleByRAdamState",
    "ScaleByRStdDevState",
    "ScaleByRmsState",
    "ScaleByRssState",
    "ScaleByScheduleState",
    "TraceState",
    "converted",
    "is_legacy",
]


class MaskedNode(NamedTuple):
    """What stands for a leaf that is masked out."""


class ScaleByAdamState(NamedTuple):
    """First and second moments, and the steps of each leaf."""

    mu: Any
    nu: Any
    count: Any


class ScaleByAdamaxState(NamedTuple):
    """First and infinity moments, and the number of the next step."""

    mu: Any
    nu: Any
    t: int


class ScaleByRAdamState(NamedTuple):
    """First and second moments, and the number of the next step."""

    mu: Any
    nu: Any
    t: int


class ScaleByAdadeltaState(NamedTuple):
    """Moving averages of squared gradients and of squared updates."""

    mu: Any
    nu: Any


class ScaleByRssState(NamedTuple):
    """Sums of squared gradients."""

    sum_of_squares: Any


class ScaleByRmsState(NamedTuple):
    """Moving averages of squared gradients."""

    nu: Any


class ScaleByRStdDevState(NamedTuple):
    """Moving averages of gradients and of squared gradients."""

    mu: Any
    nu: Any


class TraceState(NamedTuple):
    """The momentum buffer."""

    trace: Any


class ScaleByScheduleState(NamedTuple):
    """The steps of each leaf."""

    count: Any


_MOMENTS = (
    ScaleByAdamState,
    ScaleByAdamaxState,
    ScaleByRAdamState,
    ScaleByAdadeltaState,
    ScaleByRssState,
    ScaleByRmsState,
    ScaleByRStdDevState,
    TraceState,
)
_RECORDS = (*_MOMENTS, ScaleByScheduleState)


class Order(NamedTuple):
    """Where the leaves are in the lists of 0.7."""

    #: The position of each leaf.
    positions: Sequence[int]
    #: How many entries there are: more than leaves if some are shared.
    size: int


def is_legacy(state: Any) -> bool:
    """Return whether a state was made by TorchOpt 0.7."""
    if isinstance(state, _RECORDS):
        return True
    parts = _parts(state)
    if type(state) is tuple and len(parts) == 1 and isinstance(parts[0], EmptyState):
        return True  # of an optimizer that remembers nothing; here these are two states
    return any(map(is_legacy, parts))


def _parts(state: Any) -> Sequence[Any]:
    """Return the states in a tuple of some, or in that of a mask."""
    if type(state) in (tuple, list) or getattr(state, "_fields", None) == ("inner_state",):
        found: Sequence[Any] = state
        return found
    return ()


def _is_nothing(state: Any) -> bool:
    """Return whether a state remembers nothing."""
    if isinstance(state, EmptyState):
        return True
    parts = _parts(state)
    return bool(parts) and all(map(_is_nothing, parts))


def converted(
    rule: Rule,
    state: Any,
    leaves: Sequence[torch.Tensor | None],
    spec: optree.PyTreeSpec,
    tree: Any,
    order: Order | None = None,
) -> Any:
    """Return a state of 0.7 as one of this version, with a list of all leaves for each field.

    What 0.7 lost or did not keep is as before the first step.

    Args:
        rule: The rule that it is to be a state of.
        state: The state.
        leaves: The parameters; or the updates, which do as well but for what they lack.
        spec: The structure of their tree.
        tree: Their tree.
        order: Where the leaves are in the lists of 0.7, if the tree here is a list that was a tuple
            or a module there; by default the tree is as it was.

    Raises:
        ValueError: If it belongs to another transformation or to other parameters.
    """
    fresh = init(rule, leaves, spec, tree)
    return _converted(rule, state, fresh, order, len(leaves))


def _converted(rule: Rule, state: Any, fresh: Any, order: Order | None, size: int) -> Any:
    if isinstance(rule, Chain) and type(state) is tuple:
        links = [k for k, own in enumerate(fresh) if not _is_nothing(own)]
        states = [x for x in state if not _is_nothing(x)]
        if len(links) != len(states):
            raise ValueError(
                f"the state of TorchOpt 0.7 belongs to another transformation: {len(states)} of "
                f"its links have a state, in this one {len(links)}"
            )
        found = list(fresh)
        for k, own in zip(links, states, strict=True):
            found[k] = _converted(rule.rules[k], own, fresh[k], order, size)
        return tuple(found)
    if _wraps(rule):
        if getattr(state, "_fields", None) != ("inner_state",):
            raise ValueError(
                "the state of TorchOpt 0.7 belongs to another transformation: expected "
                f"{rule.state_type.__name__}, got {type(state).__name__}"
            )
        (inner,) = rule.children()
        return rule.state_type(_converted(inner, state[0], fresh[0], order, size))
    kinds: list[Kind] = []
    rule.map_state(lambda field, value: kinds.append(field.kind), fresh)
    if kinds == [Kind.OPAQUE]:
        return state if order is None else _reordered(state, order)
    return _Optimizer(state, order or Order(range(size), size)).converted(rule, fresh)


def _wraps(rule: Rule) -> bool:
    """Return whether the state of a rule is that of another one, and nothing else."""
    kind = rule.state_type
    return kind is not object and [x.kind for x in fields_of(kind)] == [Kind.NESTED]


def _reordered(state: Any, order: Order) -> Any:
    """Return the state of a user's transformation of a tuple of leaves, in another order."""

    def is_column(x: Any) -> bool:
        return type(x) in (tuple, list) and len(x) == order.size

    return optree.tree_map(
        lambda x: type(x)([x[place] for place in order.positions]) if is_column(x) else x,
        state,
        is_leaf=is_column,
        none_is_leaf=True,
    )


class _Optimizer:
    """The state of an optimizer of 0.7, or of one transformation, from which fields are taken."""

    def __init__(self, state: Any, order: Order) -> None:
        self.order = order
        records = list(_records(state))
        self._schedules = [x.count for x in records if isinstance(x, ScaleByScheduleState)]
        self._moments = [x for x in records if isinstance(x, _MOMENTS)]
        # the fields of the present record that have not been taken, and the last that has
        self._fields: dict[str, Any] = {}
        self._last: list[Any] = []

    def converted(self, rule: Rule, fresh: Any) -> Any:
        found = rule.map_state(self._take, fresh)
        left = [*self._fields, *(type(x).__name__ for x in self._moments)]
        if left:
            raise ValueError(
                "the state of TorchOpt 0.7 belongs to another transformation: this one has no "
                f"{', '.join(left)}"
            )
        return found

    def _take(self, field: Field, fresh: Any) -> Any:
        if field.is_shared:
            return self._steps(field)
        if field.name == "count":
            return self._counts(field, fresh)
        if not self._fields:
            if not self._moments:
                raise self._lacks(field)
            record = self._moments.pop(0)
            self._fields = record._asdict()
        if field.name not in self._fields:
            raise self._lacks(field)
        self._last = self._leaves(field, self._fields.pop(field.name), fresh)
        return self._last

    def _lacks(self, field: Field) -> ValueError:
        return ValueError(
            "the state of TorchOpt 0.7 belongs to another transformation: it has no "
            f"`{field.name}` where this one has it"
        )

    def _steps(self, field: Field) -> torch.Tensor:
        """Return the steps of a schedule: those of the leaf that has made the most."""
        if field.name != "count" or not self._schedules:
            raise self._lacks(field)
        counts = [x for x in _flat(self._schedules[-1]) if x is not None]
        return _count(max(map(int, counts), default=0))

    def _counts(self, field: Field, fresh: list[Any]) -> list[Any]:
        """Return the steps of each leaf, given that its other fields are taken before.

        Where 0.7 did not count them, a schedule beside did; where there is none they matter for
        dampening alone, which asks whether there were any.
        """
        found: list[Any]
        if "count" in self._fields:
            found = self._leaves(field, self._fields.pop("count"), fresh)
        elif "t" in self._fields:
            found = [self._fields.pop("t") - 1] * len(fresh)
        elif self._schedules:
            found = self._leaves(field, self._schedules[0], fresh)
        else:
            begun = field.missing or 0
            found = [begun if x is not None and bool(x.any()) else 0 for x in self._last]
        pairs = zip(found, self._last, strict=True)
        return [None if x is None or steps is None else _count(steps) for steps, x in pairs]

    def _leaves(self, field: Field, value: Any, fresh: list[Any]) -> list[Any]:
        """Return the entry of each leaf."""
        found = _flat(value)
        positions, size = self.order
        chosen = [k for k, x in enumerate(fresh) if x is not None]
        if len(found) == size:
            entries = [found[position] for position in positions]
        elif len(found) == len(chosen):  # those that a mask leaves
            every = dict(zip(sorted(positions[k] for k in chosen), found, strict=True))
            entries = [every.get(position) for position in positions]
        else:
            raise ValueError(
                f"the state of TorchOpt 0.7 belongs to other parameters: `{field.name}` has "
                f"{len(found)} entries, for {size} parameters"
            )
        for k, x in enumerate(fresh):
            if entries[k] is None:
                entries[k] = x
            elif field.kind is Kind.MOMENT and x is not None and entries[k].shape != x.shape:
                raise ValueError(
                    f"the state of TorchOpt 0.7 belongs to other parameters: leaf {k} of "
                    f"`{field.name}` has shape {tuple(entries[k].shape)}, the parameter has "
                    f"{tuple(x.shape)}"
                )
        return entries


def _records(state: Any) -> Iterator[Any]:
    """Yield what is not empty in a state of 0.7."""
    if isinstance(state, _RECORDS):
        yield state
    elif not isinstance(state, EmptyState):
        parts = _parts(state)
        if not parts:
            raise ValueError(f"{type(state).__name__} is no state of TorchOpt 0.7")
        for part in parts:
            yield from _records(part)


def _flat(value: Any) -> list[Any]:
    """Return the leaves of a field, with None for what is masked out."""
    leaves = optree.tree_leaves(
        value, is_leaf=lambda x: isinstance(x, MaskedNode), none_is_leaf=True
    )
    return [None if isinstance(x, MaskedNode) else x for x in leaves]


def _count(steps: Any) -> torch.Tensor:
    """Return a step count as it is kept here."""
    if isinstance(steps, torch.Tensor):
        return steps.detach().to("cpu", torch.int64, copy=True)
    return torch.tensor(int(steps), dtype=torch.int64, device="cpu")
