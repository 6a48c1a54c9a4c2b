"""How the state of a rule lies in the state of a stateful optimizer: by parameter and name."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree

from torchopt._chain import Chain
from torchopt._driver import init
from torchopt._gradient_step import SCHEDULE_STEP
from torchopt._rule import Rule
from torchopt._state import Field, Kind
from torchopt._structure import tuple_structure
from torchopt.base import Foreign

__all__ = ["Entry", "Layout", "contains"]


class Entry(NamedTuple):
    """One entry of the state: a column with a value for each parameter, or one for all."""

    name: str
    is_shared: bool
    #: Whether it has the shape of its parameter.
    is_moment: bool
    #: The value where the other entries of a parameter are there, but not this one.
    missing: float | None
    #: Whether it is the number of steps of a schedule.
    counts_steps: bool = False
    #: Whether it is a number that depends on the steps alone.
    is_number: bool = False


class _Opaque(NamedTuple):
    """How the state of a user's transformation is taken apart."""

    spec: optree.PyTreeSpec
    names: list[str]
    # for each leaf what it is if it has an entry for each parameter, a tuple or a list
    kinds: list[type | None]


class Layout:
    """The entries of a chain's state, for a given number of parameters.

    The state of a transformation that is a user's own is taken apart where it is a tuple or a list
    with an entry for each parameter, as one is that was made of the tuple of parameters.
    """

    def __init__(
        self,
        chain: Chain,
        params: Sequence[Any],
        tree: Any,
        spec: optree.PyTreeSpec | None = None,
    ) -> None:
        """Find the entries; the structure is that of the tree, a tuple by default."""
        self.chain = chain
        self.size = len(params)
        self.spec = tuple_structure(self.size) if spec is None else spec
        self._opaque: list[_Opaque] = []
        self._has_opaque = contains(chain, Foreign)
        found: list[tuple[Entry, tuple[Any, ...]]] = []
        #: A state of the chain, for its structure.
        self.template = init(
            chain, params, self.spec, tree, active=None if self._has_opaque else []
        )

        def visit(field: Field, value: Any) -> Any:
            if field.kind is Kind.OPAQUE:
                found.extend((entry, ()) for entry in self._open(value, field.scope))
                return value
            name = field.entry
            if field.is_shared and field.scope:
                name = ".".join(map(str, (*field.scope, name)))
            is_moment = field.kind is Kind.MOMENT
            is_schedule = field.entry == SCHEDULE_STEP
            entry = Entry(
                name, field.is_shared, is_moment, field.missing, is_schedule, field.is_number
            )
            found.append((entry, field.scope))
            return value

        chain.map_state(visit, self.template)
        self.entries = _unique(found)
        self._take, self._read = _take_apart(chain, self.template)
        self.names = [(entry.name, entry.is_shared) for entry in self.entries]
        self.has_shared = any(entry.is_shared for entry in self.entries)
        #: Whether some entries belong to some of the parameters alone.
        self.is_partitioned = chain.partial

    def _is_column(self, node: Any) -> bool:
        return type(node) in (tuple, list) and len(node) == self.size

    def _open(self, value: Any, scope: tuple[Any, ...]) -> list[Entry]:
        accessors, leaves, _ = optree.tree_flatten_with_accessor(value, is_leaf=self._is_column)
        spec = optree.tree_structure(value, is_leaf=self._is_column)
        kinds = [type(leaf) if self._is_column(leaf) else None for leaf in leaves]
        names = [
            ".".join(str(getattr(part, "field", part.entry)) for part in accessor) or "state"
            for accessor in accessors
        ]
        self._opaque.append(_Opaque(spec, names, kinds))
        return [
            # of one part alone: it may look at the entries of all parameters
            Entry(".".join(map(str, (*scope, name))), kind is None, False, None)
            for name, kind in zip(names, kinds, strict=True)
        ]

    def columns(self, state: Any) -> list[Any]:
        """Return the value of each entry: a list for all parameters, or what they share."""
        if not self._has_opaque:
            return [read(state) for read in self._read]
        found: list[Any] = []
        opaque = iter(self._opaque)

        def visit(field: Field, value: Any) -> Any:
            if field.kind is Kind.OPAQUE:
                found.extend(next(opaque).spec.flatten_up_to(value))
            else:
                found.append(value)
            return value

        self.chain.map_state(visit, state)
        return found

    def rows(self, state: Any) -> list[dict[str, Any]]:
        """Return the entries of each parameter, with those that all share at the first."""
        rows: list[dict[str, Any]] = [{} for _ in range(self.size)]
        for entry, column in zip(self.entries, self.columns(state), strict=True):
            if entry.is_shared:
                rows[0][entry.name] = column
                continue
            for row, x in zip(rows, column, strict=True):
                if x is not None:
                    row[entry.name] = x
        return rows

    def state(self, columns: Sequence[Any]) -> Any:
        """Return the state with these values."""
        if not self._has_opaque:
            return self._take(columns)
        remaining = iter(columns)
        opaque = iter(self._opaque)

        def take(field: Field, value: Any) -> Any:
            if field.kind is not Kind.OPAQUE:
                return next(remaining)
            spec, _, kinds = next(opaque)
            leaves = [next(remaining) if kind is None else kind(next(remaining)) for kind in kinds]
            return optree.tree_unflatten(spec, leaves)

        return self.chain.map_state(take, self.template)

    def initial(self, params: Sequence[Any], tree: Any, active: list[int]) -> list[Any]:
        """Return the values before the first step of some parameters."""
        if self._has_opaque:
            return self.columns(init(self.chain, params, self.spec, tree))
        return self.columns(init(self.chain, params, self.spec, tree, active))


class _Slot(NamedTuple):
    """Stands for the value of a field, in the order in which `map_state` visits them."""

    position: int


def _take_apart(
    chain: Chain, template: Any
) -> tuple[Callable[[Sequence[Any]], Any], list[Callable[[Any], Any]]]:
    """Return a function from the values of all fields to the state, and one back for each field."""
    count = itertools.count()
    marked = chain.map_state(lambda field, value: _Slot(next(count)), template)
    reads: dict[int, Callable[[Any], Any]] = {}
    take = _builder(marked, lambda state: state, reads)
    return take, [reads[k] for k in range(len(reads))]


def _builder(
    node: Any, read: Callable[[Any], Any], reads: dict[int, Callable[[Any], Any]]
) -> Callable[[Sequence[Any]], Any]:
    """Return a function from values to a node of a state; note how those are found in a state."""
    if type(node) is _Slot:
        reads[node.position] = read
        return operator.itemgetter(node.position)
    before = len(reads)
    if isinstance(node, dict):
        items = {key: _builder(x, _then(read, key), reads) for key, x in node.items()}
        if len(reads) > before:
            return lambda columns: {key: build(columns) for key, build in items.items()}
    elif isinstance(node, tuple):
        parts = [_builder(x, _then(read, k), reads) for k, x in enumerate(node)]
        if len(reads) > before:
            make = getattr(type(node), "_make", tuple)
            return lambda columns: make([build(columns) for build in parts])
    return lambda columns: node


def _then(read: Callable[[Any], Any], key: Any) -> Callable[[Any], Any]:
    return lambda state: read(state)[key]


def contains(rule: Rule, *kinds: type[Rule]) -> bool:
    """Return whether a rule, or one that it is made of, is of some kind."""
    return isinstance(rule, kinds) or any(contains(child, *kinds) for child in rule.children())


def _unique(found: list[tuple[Entry, tuple[Any, ...]]]) -> list[Entry]:
    """Return the entries with names that are unique for each parameter.

    Those of different parts of a partition belong to different parameters.
    """
    taken: dict[str, list[tuple[Any, ...]]] = {}
    entries = []
    for entry, scope in found:
        name, k = entry.name, 1
        while any(_overlap(scope, other) for other in taken.get(name, ())):
            k += 1
            name = f"{entry.name}_{k}"
        taken.setdefault(name, []).append(scope)
        entries.append(entry._replace(name=name))
    return entries


def _overlap(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(x == y for x, y in zip(one, other, strict=False))
