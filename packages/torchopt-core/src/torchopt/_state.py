"""The state of a rule: an immutable record that says of each field what it is.

::

    @record(mu=moment("exp_avg"), count=per_leaf("step"))
    class SomeState(NamedTuple):
        mu: TensorTree
        count: TensorTree

In the functional face each field that belongs to the leaves is a tree like the parameters; a rule
sees it as a list, with an entry for each leaf it works on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

__all__ = [
    "EmptyState",
    "Field",
    "Kind",
    "UninitializedState",
    "declared_fields",
    "fields_of",
    "moment",
    "nested",
    "number",
    "per_leaf",
    "record",
    "shared",
    "weights",
]

_T = TypeVar("_T", bound=type)


class Kind(enum.Enum):
    """To what a field of a state belongs."""

    #: A tensor for each leaf, of its shape.
    MOMENT = enum.auto()
    #: A tensor of any shape, or None, for each leaf.
    PER_LEAF = enum.auto()
    #: One value of any kind for all leaves.
    SHARED = enum.auto()
    #: The state of the rule that this one wraps, its only child.
    NESTED = enum.auto()
    #: The state of a transformation that is a user's own: a tree of any kind.
    OPAQUE = enum.auto()


class Field(NamedTuple):
    """What a field of a state is."""

    kind: Kind
    #: Its name in the state of a stateful optimizer, which is `torch.optim`'s if that has one.
    entry: str
    #: Its name in the record.
    name: str = ""
    #: The labels of the parts it belongs to, from the outermost :func:`torchopt.partition`.
    scope: tuple[Any, ...] = ()
    #: Whether it begins as a copy of the parameters.
    begins_as_params: bool = False
    #: The value where a state dict has the other entries of the record, but not this one.
    missing: float | None = None
    #: Whether it is a number that depends on the steps alone.
    is_number: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether there is one value for all leaves."""
        return self.kind is Kind.SHARED or self.kind is Kind.OPAQUE


def moment(entry: str) -> Field:
    """Declare a field that holds a tensor for each leaf, shaped like it."""
    return Field(Kind.MOMENT, entry)


def weights(entry: str) -> Field:
    """Declare a field that begins as a copy of each leaf.

    It is differentiated with respect to the parameters it began as where a graph is recorded, and
    is no reason to record one.
    """
    return Field(Kind.MOMENT, entry, begins_as_params=True)


def nested() -> Field:
    """Declare the field that holds the state of the rule that is wrapped."""
    return Field(Kind.NESTED, "")


def per_leaf(entry: str, missing: float | None = None) -> Field:
    """Declare a field that holds a tensor of any shape, or None, for each leaf.

    Args:
        entry: The field's name in the state of a stateful optimizer.
        missing: The value to assume where a state dict lacks this entry alone.
    """
    return Field(Kind.PER_LEAF, entry, missing=missing)


def number(entry: str) -> Field:
    """Declare a field that holds a number for each leaf: 0-dim, float64, on the CPU.

    So it is computed in double precision, and read without waiting for a device.
    """
    return Field(Kind.PER_LEAF, entry, is_number=True)


def shared(entry: str) -> Field:
    """Declare a field that holds one value of any kind for all leaves."""
    return Field(Kind.SHARED, entry)


_FIELDS: dict[type, tuple[Field, ...]] = {}


def record(**fields: Field) -> Callable[[_T], _T]:
    """Declare a NamedTuple to be the state of a rule.

    Args:
        **fields: What each field is: :func:`moment`, :func:`per_leaf` or :func:`shared`.

    Raises:
        TypeError: If these are not the fields of the class.
    """

    def declare(kind: _T) -> _T:
        names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
        if set(names) != set(fields):
            raise TypeError(f"{kind.__name__} has the fields {names}, declared are {list(fields)}")
        _FIELDS[kind] = tuple(fields[name]._replace(name=name) for name in names)
        return kind

    return declare


def declared_fields(kind: type) -> tuple[Field, ...] | None:
    """Return what the fields of a class are; None if it was not declared by :func:`record`."""
    return _FIELDS.get(kind)


def fields_of(kind: type) -> tuple[Field, ...]:
    """Return what the fields of a record are.

    Raises:
        TypeError: If it was not declared by :func:`record`.
    """
    try:
        return _FIELDS[kind]
    except KeyError:
        raise TypeError(
            f"{kind.__name__} is not the state of a rule: declare its fields by "
            "`torchopt.rules.record`"
        ) from None


@record()
class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


class UninitializedState(NamedTuple):
    """The state before the parameters are known."""
