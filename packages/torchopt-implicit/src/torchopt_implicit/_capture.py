"""Tensors that a function has from elsewhere: which they are, and others in their place.

An autograd function differentiates in its arguments alone. A matvec that closes over a matrix or a
module becomes a function of these, too, by watching what torch's functions are called with. What a
function writes to elsewhere, as normalization to its running statistics, is kept from happening.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function

from torchopt_implicit._functorch import (
    age_of,
    depth,
    is_wrapped,
    level_of,
    rewrap,
    unwrap_above,
    unwrap_dead,
)

__all__ = ["Captured", "capture", "has_derivatives", "pure", "substitute"]

Tensors = tuple[torch.Tensor, ...]


class Captured(NamedTuple):
    """What a function uses without being given it, as far as derivatives may be asked for."""

    #: in whose place others may be put
    tensors: Tensors
    #: with a graph of their own, which the function differentiates: out of reach
    hidden: Tensors
    #: whether the function calls `torch.autograd.grad`, and so needs graphs of what it computes
    differentiates: bool
    #: all that it has from elsewhere and does not write to
    read: Tensors
    #: whether it writes to what it has from elsewhere
    writes: bool
    #: whether the function hands any of them to a transform of `torch.func`
    is_transformed: bool


def capture(function: Callable[..., Any], *examples: Any) -> Captured:
    """Return the tensors with derivatives that a function has from elsewhere.

    Those are tensors that require gradients, have tangents, or belong to a transform of
    `torch.func` at work. The function is called once, and once more where there are any, both times
    without effect on other tensors.

    Args:
        function: A function of tensors.
        *examples: What to call it with.
    """
    first = _Search(examples)
    with first:
        function(*examples)
    if not (first.found or first.hidden):
        return Captured((), (), first.differentiates, first.read, first.writes, False)
    # what the function computes unseen by the mode is another tensor each time
    second = _Search(examples)
    with second:
        function(*examples)
    return Captured(
        tuple(x for key, x in first.found.items() if key in second.found),
        tuple(x for key, x in first.hidden.items() if key in second.hidden),
        first.differentiates,
        tuple(x for x in first.read if id(x) in second.outside),
        first.writes,
        first.is_transformed,
    )


def pure(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that writes to elsewhere as one that does not."""

    def without_effects(*args: Any) -> Any:
        with _Pure(args):
            return function(*args)

    return without_effects


def substitute(
    function: Callable[..., Any],
    old: Sequence[torch.Tensor],
    new: Sequence[torch.Tensor],
    *,
    is_transformed: bool = False,
) -> Callable[..., Any]:
    """Return the function with other tensors in the place of captured ones.

    Args:
        function: The function.
        old: Those that it has.
        new: Those in their place.
        is_transformed: As :class:`Captured` says.
    """
    if all(x is y for x, y in zip(old, new, strict=True)):
        return function

    def substituted(*args: Any) -> Any:
        # a transform inside of the function wraps tensors of lower levels only
        missing = max(map(level_of, old)) - depth()
        with _Substitution(old, new):
            return (_nested(function, missing) if is_transformed else function)(*args)

    return substituted


def _nested(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Return the function, called within so many transforms."""
    for _ in range(count):
        function = _value_of_vjp(function)
    return function


def _value_of_vjp(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: torch.func.vjp(function, *args)[0]


def has_derivatives(x: torch.Tensor) -> bool:
    """Return whether what is computed from the tensor may be differentiated in it."""
    x = _current(x)
    if x.requires_grad or is_wrapped(x):
        return True
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return tangent is not None


def _current(x: torch.Tensor) -> torch.Tensor:
    """Return what substitutions around the caller put in the place of the tensor."""
    if has_torch_function((x,)):
        replaced: torch.Tensor = handle_torch_function(_current, (x,), x)
        return replaced
    return x


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (x for x in optree.tree_leaves(tree) if isinstance(x, torch.Tensor))


class _Pure(TorchFunctionMode):
    """Calls torch's functions such that none writes to a tensor that is no result of theirs.

    A copy is written to, and is read from then on. Normalization by the statistics of a batch goes
    without the running ones, which it does not read.
    """

    def __init__(self, given: Any) -> None:
        super().__init__()
        # holding on to them keeps their ids from being used again
        self.known = {id(x): x for x in _tensors(given)}
        self.copies: dict[int, torch.Tensor] = {}
        self.writes = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _current:  # asks about a tensor, and computes nothing of it
            return func(*args)
        if getattr(func, "__name__", "") == "__get__":
            value = func(*args, **kwargs)
            if not isinstance(value, torch.Tensor):  # a shape, a dtype: nothing is computed
                return value
        if func in _NORMALIZATIONS:
            args, kwargs = self._without_statistics(func, args, kwargs)
        if self.copies:
            args, kwargs = optree.tree_map(self._current, (args, kwargs))  # type: ignore[arg-type]
        written = self._written(func, args, kwargs)
        is_outside = written is not None and id(written) not in self.known
        self.look_at(func, args, kwargs)
        if written is not None and is_outside:
            self.writes = True
            copy = self.copies[id(written)] = written.clone()
            self.known.update({id(written): written, id(copy): copy})
            args, kwargs = optree.tree_map(self._current, (args, kwargs))  # type: ignore[arg-type]
        result = func(*args, **kwargs)
        self.known.update((id(x), x) for x in _tensors(result))
        return result

    def look_at(self, func: Any, args: Any, kwargs: Any) -> None:
        """See a call that is about to be made."""

    def _current(self, x: Any) -> Any:
        return self.copies.get(id(x), x)

    @staticmethod
    def _written(func: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        name = getattr(func, "__name__", "")
        is_inplace = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
        if (is_inplace or name in _ASSIGNMENTS) and args and isinstance(args[0], torch.Tensor):
            return args[0]
        out = kwargs.get("out")
        return out if isinstance(out, torch.Tensor) else None

    def _without_statistics(self, func: Any, args: Any, kwargs: Any) -> Any:
        bound = _NORMALIZATIONS[func].bind(*args, **kwargs)
        bound.apply_defaults()
        flag = "training" if "training" in bound.arguments else "use_input_stats"
        if bound.arguments[flag] and bound.arguments["running_mean"] is not None:
            self.writes = True
            bound.arguments.update(running_mean=None, running_var=None)
        return bound.args, bound.kwargs


_ASSIGNMENTS = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
_NORMALIZATIONS = {
    function: inspect.signature(function)
    for function in (torch.nn.functional.batch_norm, torch.nn.functional.instance_norm)
}


class _Search(_Pure):
    """Sees what torch's functions are called with that is no result of theirs."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.level = depth()
        with torch.enable_grad():
            self.start = age_of(torch.zeros((), device="cpu", requires_grad=True).view(()))
        self.found: dict[int, torch.Tensor] = {}
        self.hidden: dict[int, torch.Tensor] = {}
        self.outside: dict[int, torch.Tensor] = {}
        self.differentiates = False
        self.is_transformed = False

    @property
    def read(self) -> Tensors:
        return tuple(x for key, x in self.outside.items() if key not in self.copies)

    def look_at(self, func: Any, args: Any, kwargs: Any) -> None:
        if func is torch.autograd.grad:
            self._look_at_grad(*args, **kwargs)
        else:
            for x in _tensors((args, kwargs)):
                self._look_at(x, self.found)

    def _look_at(self, x: torch.Tensor, into: dict[int, torch.Tensor]) -> None:
        if id(x) in self.known:
            return
        self.known[id(x)] = x
        # a transform inside of the function wraps what it is given
        base = unwrap_above(x, self.level)
        # the wrapper of a transform that has ended is what an outer substitution knows
        if _current(base) is base:
            base = unwrap_dead(base)
        if age_of(base) > self.start:  # computed unseen, as what torch.func.grad returns
            return
        if id(base) in self.known and base is not x:
            self.is_transformed |= id(base) in into
        else:
            self.known[id(base)] = base
            self.outside[id(base)] = base
            if has_derivatives(base):
                self.is_transformed |= base is not x
                into[id(base)] = base

    def _look_at_grad(
        self,
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        retain_graph: Any = None,
        create_graph: bool = False,
        **_: Any,
    ) -> None:
        self.differentiates = True
        for x in _tensors(grad_outputs):
            self._look_at(x, self.found)
        for x in _tensors((outputs, inputs)) if create_graph else ():
            self._look_at(x, self.hidden)


class _Substitution(TorchFunctionMode):
    """Calls torch's functions with other tensors."""

    def __init__(self, old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.level = depth()
        self.new = {id(x): y for x, y in zip(old, new, strict=True)}
        self.kept: list[Any] = list(old)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = optree.tree_map(self._replace, (args, kwargs or {}))  # type: ignore[arg-type]
        return func(*args, **kwargs)

    def _replace(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in self.new:
            return self.new[id(x)]
        if not is_wrapped(x, above=self.level):
            return x
        # one wrapper for each, so that torch.func finds its inputs again
        wrapped = rewrap(x, self._replace)
        if wrapped is not x:
            self.new[id(x)] = wrapped
            self.kept.append(x)
        return wrapped
