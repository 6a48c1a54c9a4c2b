"""The hyperparameters of the optimizer inside a transformation, wherever it is."""

from __future__ import annotations

import operator
from typing import Any

from torchopt._factory import MadeTransformation, OptimizerTransformation
from torchopt._partition import Partition
from torchopt._rule import same
from torchopt.base import GradientTransformation, RuleTransformation, as_rule

__all__ = ["Hyperparameters", "find_partition", "unchanged"]


class Hyperparameters:
    """The hyperparameters of a transformation, if it has one optimizer.

    An optimizer around another one (`lookahead`, `sam`) counts as one with it: its own options are
    among the hyperparameters, by the name ``schedule_free_momentum`` where the inner one has a
    ``momentum``, too.
    """

    def __init__(self, impl: GradientTransformation) -> None:
        """Find the hyperparameters of ``impl``."""
        self.impl = impl
        #: The hyperparameters by name; none if there is no optimizer, or more than one.
        self.values: dict[str, Any] = _values(impl) or {}

    def transformation(self, values: dict[str, Any]) -> GradientTransformation:
        """Return the transformation with other hyperparameters."""
        return _remade(self.impl, values) if self.values else self.impl


def _own(impl: GradientTransformation) -> dict[str, Any]:
    """Return the arguments of an optimizer that contain no transformation."""
    if not isinstance(impl, OptimizerTransformation):
        return {}
    parts = impl._arguments()
    return {name: value for name, value in impl.hyperparameters.items() if name not in parts}


def _values(impl: GradientTransformation) -> dict[str, Any] | None:
    """Return the hyperparameters of the one optimizer; None if there are several."""
    found: dict[str, Any] = {}
    for part in impl.parts() if isinstance(impl, RuleTransformation) else []:
        values = _values(part)
        if values is None or (values and found):
            return None
        found = values or found
    own = _own(impl)
    return {**{_free_name(impl, name, found): value for name, value in own.items()}, **found}


def _free_name(impl: GradientTransformation, name: str, taken: dict[str, Any]) -> str:
    """Return the name of an option beside those of the inner optimizer."""
    assert isinstance(impl, MadeTransformation)
    while name in taken:
        name = f"{impl.factory.__name__}_{name}"
    return name


def _remade(impl: GradientTransformation, values: dict[str, Any]) -> GradientTransformation:
    if not isinstance(impl, RuleTransformation) or not _values(impl):
        return impl
    parts = impl.parts()
    inner: dict[str, Any] = {}
    if parts:
        remade = [_remade(part, values) for part in parts]
        for part in parts:
            inner.update(_values(part) or {})
        impl = impl.with_parts(remade)
    own = _own(impl)
    if not own:
        return impl
    assert isinstance(impl, MadeTransformation)
    changed = {name: values[_free_name(impl, name, inner)] for name in own}
    return impl.factory(**{**impl.hyperparameters, **changed})


def has_optimizers(impl: GradientTransformation) -> bool:
    """Return whether there is any optimizer in a transformation."""
    if isinstance(impl, OptimizerTransformation):
        return True
    return isinstance(impl, RuleTransformation) and any(map(has_optimizers, impl.parts()))


def find_partition(impl: GradientTransformation) -> tuple[int, ...] | None:
    """Return the way to the one partition in a transformation, as positions of parts."""
    if not isinstance(impl, RuleTransformation):
        return None
    if isinstance(impl, MadeTransformation) and isinstance(impl.rule, Partition):
        return ()
    found = [(k, find_partition(part)) for k, part in enumerate(impl.parts())]
    ways = [(k, *way) for k, way in found if way is not None]
    return ways[0] if len(ways) == 1 else None


def at(impl: GradientTransformation, way: tuple[int, ...]) -> MadeTransformation:
    """Return the part of a transformation at the end of a way."""
    for k in way:
        assert isinstance(impl, RuleTransformation)
        impl = impl.parts()[k]
    assert isinstance(impl, MadeTransformation)
    return impl


def with_part(
    impl: GradientTransformation, way: tuple[int, ...], part: GradientTransformation
) -> GradientTransformation:
    """Return the transformation with another part at the end of a way."""
    if not way:
        return part
    assert isinstance(impl, RuleTransformation)
    parts = impl.parts()
    parts[way[0]] = with_part(parts[way[0]], way[1:], part)
    return impl.with_parts(parts)


def unchanged(values: dict[str, Any], options: dict[str, Any]) -> bool:
    """Return whether options still have these hyperparameters."""
    if all(map(operator.is_, values.values(), map(options.__getitem__, values))):
        return True
    for name, value in values.items():
        now = options[name]
        if now is value:
            continue
        if type(now) is not type(value) or not isinstance(now, (int, float, str, bool)):
            if isinstance(now, tuple) and isinstance(value, tuple) and same(now, value):
                continue
            return False
        if now != value:
            return False
    return True


def name_of(impl: GradientTransformation) -> str:
    """Return what a transformation is, up to its hyperparameters."""
    if not isinstance(impl, RuleTransformation):
        return "Foreign"
    parts = impl.parts()
    if not isinstance(impl, MadeTransformation):
        if parts:
            return " -> ".join(map(name_of, parts))
        return type(as_rule(impl)).__name__.lstrip("_")
    inner = ", ".join(map(name_of, parts))
    return impl.factory.__name__ + (f"({inner})" if parts else "")
