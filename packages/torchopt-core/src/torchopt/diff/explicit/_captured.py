"""Tensors that a loss reads without being given them: from its closure, or from a module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torchopt.diff.explicit._functorch import graph_time, is_active, is_wrapped, level
from torchopt.diff.explicit._surroundings import Unchanged

__all__ = ["Detect", "Substitute", "leaves_reached"]


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for x in values:
        if isinstance(x, torch.Tensor):
            yield x
        elif isinstance(x, (tuple, list)):
            yield from _tensors(x)
        elif isinstance(x, dict):
            yield from _tensors(x.values())


_NOTHING: Any = object()


class Detect(TorchFunctionMode):
    """Collects what is read in the block and was there before.

    `torch` shows every call of its functions to this mode, except those of
    :class:`torch.autograd.Function`; these :func:`leaves_reached` finds.

    Args:
        known: What is known to be read.
        is_lowered: Whether the block runs below all transforms that were there before, so that
            whatever is wrapped has been made in it.
    """

    def __init__(self, known: Iterable[torch.Tensor], is_lowered: bool = False) -> None:
        super().__init__()
        self._is_lowered = is_lowered
        self._known = {id(x): x for x in known}
        self._time, self._level = graph_time(), level()
        # what functions have returned, kept so that its ids stay its own
        self._made: dict[int, torch.Tensor] = {}
        #: What a derivative may be asked for in, or a transform has wrapped.
        self.active: dict[int, torch.Tensor] = {}
        #: What else was there before.
        self.constant = Unchanged()
        #: Generators of random numbers, with their states before.
        self.generators: dict[int, tuple[torch.Generator, torch.Tensor]] = {}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = _NOTHING
        if getattr(function, "__name__", "") == "__get__":
            result = function(*args, **kwargs)
            if not isinstance(result, torch.Tensor):
                return result  # such as a shape, which has no derivative
        for x in _tensors((args, dict(kwargs))):
            if id(x) not in self._known and id(x) not in self._made:
                self._look(x)
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and id(generator) not in self.generators:
            self.generators[id(generator)] = generator, generator.get_state()
        if result is _NOTHING:
            result = function(*args, **kwargs)
        for x in _tensors((result,)):
            if not (id(x) in self._known or id(x) in self.active or id(x) in self.constant):
                self._made[id(x)] = x
        return result

    def _look(self, x: torch.Tensor) -> None:
        if is_wrapped(x, above=self._level) or (self._is_lowered and is_wrapped(x)):
            return  # a transform within the block has
        node = x.grad_fn
        if node is not None and not is_wrapped(x) and node._sequence_nr() >= self._time:
            self._made[id(x)] = x
        elif is_active(x):
            self.active[id(x)] = x
        else:
            self.constant.note(x)

    def add(self, made: Iterable[torch.Tensor]) -> None:
        """Take tensors as made in the block, though no function that is seen has returned them."""
        self._made.update({id(x): x for x in made})

    def owns(self, x: torch.Tensor) -> bool:
        """Return whether the tensor was made in the block."""
        return id(x) in self._made


class Substitute(TorchFunctionMode):
    """Puts other tensors in the places of some, wherever they are read in the block."""

    def __init__(self, others: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        substituted = self._replaced(args)
        return function(*substituted, **{k: self._replaced(x) for k, x in (kwargs or {}).items()})

    def _replaced(self, x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return self._others.get(id(x), x)
        kind = type(x)
        if kind is tuple or kind is list:
            return kind(map(self._replaced, x))
        if kind is dict:
            return {key: self._replaced(value) for key, value in x.items()}
        return x


def leaves_reached(
    outputs: Sequence[torch.Tensor], stops: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Return the leaves that a graph leads to, not through the given tensors.

    Args:
        outputs: Where the graph begins.
        stops: Tensors of the graph that are not passed; leaves among them are not returned.
    """
    stops = list(stops)
    seen: set[Any] = {x.grad_fn for x in stops if x.grad_fn is not None}
    leaves = {id(x) for x in stops}
    pending = [x.grad_fn for x in outputs if x.grad_fn is not None]
    for x in outputs:
        if x.requires_grad and x.is_leaf and id(x) not in leaves:
            yield x
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, torch.Tensor):
            if id(variable) not in leaves:
                yield variable
            continue
        pending.extend([child for child, _ in node.next_functions if child is not None])
