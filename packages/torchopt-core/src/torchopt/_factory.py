"""From a rule to a transformation that remembers how it was made."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import optree
import torch
from typing_extensions import ParamSpec

from torchopt._rule import Rule
from torchopt.base import GradientTransformation, RuleTransformation

__all__ = ["Binder", "MadeTransformation", "OptimizerTransformation", "optimizer", "transformation"]

_P = ParamSpec("_P")


class MadeTransformation(RuleTransformation):
    """A transformation that remembers the function and the arguments it was made with.

    So it shows, pickles, and can be made again with other arguments.
    """

    factory: Callable[..., MadeTransformation]
    hyperparameters: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.factory, self.hyperparameters)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{self.factory.__name__}({arguments})"

    def parts(self) -> list[GradientTransformation]:
        leaves = optree.tree_leaves(self._arguments(), is_leaf=_is_part, none_is_leaf=True)
        return [x for x in leaves if _is_part(x)]

    def with_parts(self, parts: list[GradientTransformation]) -> GradientTransformation:
        remaining = iter(parts)
        arguments = optree.tree_map(
            lambda x: next(remaining) if _is_part(x) else x,
            self._arguments(),
            is_leaf=_is_part,
            none_is_leaf=True,
        )
        return self.factory(**{**self.hyperparameters, **arguments})

    def _arguments(self) -> Any:
        """Return the arguments that are transformations or contain some."""
        kept = {}
        for name, value in self.hyperparameters.items():
            leaves: list[Any] = optree.tree_leaves(value, is_leaf=_is_part, none_is_leaf=True)
            if any(map(_is_part, leaves)):
                kept[name] = value
        return kept


class OptimizerTransformation(MadeTransformation):
    """An optimizer in its functional form.

    The stateful and the differentiable form are derived from it, and its arguments are the
    hyperparameters that a parameter group may have for itself.
    """


def _is_part(x: Any) -> bool:
    return isinstance(x, GradientTransformation)


def _make(factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    return factory(**arguments)


def transformation(rule: Callable[_P, Rule]) -> Callable[_P, GradientTransformation]:
    """Turn a function from arguments to a rule into one to a transformation.

    Example:
        >>> import dataclasses, torch, torchopt
        >>> from torchopt.rules import EmptyState, FactoredUpdates, Rule, transformation
        >>> @dataclasses.dataclass(frozen=True, eq=False)
        ... class Power(Rule):
        ...     exponent: float
        ...
        ...     def init(self, params, context):
        ...         return EmptyState()
        ...
        ...     def update(self, updates, state, context):
        ...         grads = updates.materialize(context)
        ...         return FactoredUpdates([g**self.exponent for g in grads]), state
        >>> @transformation
        ... def power(exponent: float) -> Rule:
        ...     return Power(exponent)
        >>> power(2.0).update(torch.tensor([3.0]), power(2.0).init(torch.ones(1)))[0]
        tensor([9.])
    """
    return _made(rule, MadeTransformation)


def optimizer(rule: Callable[_P, Rule]) -> Callable[_P, OptimizerTransformation]:
    """Turn a function from hyperparameters to a rule into an optimizer's functional form."""
    return _made(rule, OptimizerTransformation)


def _made(rule: Callable[_P, Rule], kind: type[Any]) -> Callable[_P, Any]:
    bind = Binder(inspect.signature(rule), rule.__name__)

    @functools.wraps(rule)
    def factory(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        arguments = {name: _plain(value) for name, value in bind(args, kwargs).items()}
        made_rule: Any = rule(**arguments)  # type: ignore[call-arg]
        if not isinstance(made_rule, Rule):
            raise TypeError(f"`{rule.__name__}` must return a Rule, got {type(made_rule).__name__}")
        new: Any = RuleTransformation.__new__
        made = new(kind, made_rule)
        made.factory = factory
        made.hyperparameters = arguments
        return made

    return factory


class Binder:
    """Binds arguments to a signature, as that does, in a fraction of the time."""

    def __init__(self, signature: inspect.Signature, name: str) -> None:
        """Take the signature, and the name of what is called."""
        self.signature, self.name = signature, name
        parameters = signature.parameters.values()
        self._template = {p.name: p.default for p in parameters}
        self._required = [p.name for p in parameters if p.default is p.empty]
        self._positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, with defaults.

        Raises:
            TypeError: If they do not fit the signature; it names what was called.
        """
        given = dict(zip(self._positional, args, strict=False))
        arguments = {**self._template, **given, **kwargs}
        if (
            len(given) == len(args)
            and len(arguments) == len(self._template)
            and not [name for name in kwargs if name in given]
            and not [x for x in self._required if arguments[x] is inspect.Parameter.empty]
        ):
            return arguments
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self.name}() {error}; {self._hint(str(error))}") from None
        bound.apply_defaults()
        return bound.arguments

    def _hint(self, error: str) -> str:
        kinds = inspect.Parameter
        named = [p for p in self.signature.parameters.values() if p.kind is not kinds.VAR_KEYWORD]
        needed = [p.name for p in named if p.default is p.empty and p.kind is not p.VAR_POSITIONAL]
        if needed and "missing" in error:
            return f"call it as `{self.name}({', '.join(needed)}, ...)`"
        return f"it takes {', '.join(p.name for p in named)}"


def _plain(value: Any) -> Any:
    """Return numpy's numbers and 0-dim arrays as Python's, also in a tuple."""
    if value is None or type(value) in (float, int, bool):
        return value
    if type(value) is tuple:
        return tuple(map(_plain, value))
    is_array = hasattr(value, "__array__") and not isinstance(value, torch.Tensor)
    return value.item() if is_array and getattr(value, "ndim", None) == 0 else value
