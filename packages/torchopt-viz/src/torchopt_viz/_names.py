"""The names of tensors, from whatever they are given by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from torchopt.utils import ModuleState
from torchopt_viz._graph import uncompiled

__all__ = ["Names", "Params", "read_names"]

Pairs: TypeAlias = "Mapping[str, Tensor] | Mapping[Tensor, str] | Iterable[tuple[str, Tensor]]"
One: TypeAlias = "nn.Module | ModuleState | Pairs"
Params: TypeAlias = "One | Iterable[One] | None"


class Names(NamedTuple):
    """What tensors are called. Several may have one name, as in states without a prefix."""

    # each tensor's names
    of: dict[Tensor, tuple[str, ...]]
    # each tensor's name without the prefix of its state: "layers.0.weight"
    local: dict[Tensor, str]
    # the tensors of which one wants to know whether they reach the output, each name apart
    wanted: list[tuple[str, Tensor]]
    # of each inner step, the parameters that it ends with
    steps: list[list[Tensor]]


class _Element(NamedTuple):
    """One dict or one state."""

    pairs: list[tuple[str, Tensor]]
    # the ids of buffers, which need not reach anything
    buffers: set[int]
    is_state: bool


def read_names(params: Params) -> Names:
    """Return the names that ``params`` gives.

    Raises:
        TypeError: If it is none of the accepted kinds.
        ValueError: If a state has no names.
    """
    elements = [
        element._replace(pairs=[(uncompiled(name), x) for name, x in element.pairs])
        for element in _elements(params)
    ]
    found = list(dict.fromkeys(pair for element in elements for pair in element.pairs))
    of: dict[Tensor, list[str]] = {}
    for name, tensor in found:
        of.setdefault(tensor, []).append(name)
    local: dict[Tensor, str] = {}
    steps = []
    for element in elements:
        prefix = _prefix(element, elements)
        cut = len(prefix) + 1 if prefix else 0
        for name, tensor in element.pairs:
            local.setdefault(tensor, name[cut:])
        if prefix is not None and _is_computed(element):
            steps.append([x for _, x in element.pairs if x.grad_fn is not None])
    buffers = {number for element in elements for number in element.buffers}
    return Names(
        of={tensor: tuple(names) for tensor, names in of.items()},
        local=local,
        wanted=[(name, x) for name, x in found if x.requires_grad or id(x) not in buffers],
        steps=steps,
    )


def _elements(params: Any) -> Iterator[_Element]:
    if params is None:
        return
    if isinstance(params, nn.Module):
        params = dict(params.named_parameters())
    if isinstance(params, ModuleState):
        if params.visual_contents is None:
            raise ValueError(
                "`params` has a state without names; extract it by "
                "extract_state_dict(..., enable_visual=True, visual_prefix=...)"
            )
        buffers = {id(x) for tensors in params.buffers for x in tensors.values()}
        yield _Element([(name, x) for x, name in params.visual_contents.items()], buffers, True)
    elif isinstance(params, Mapping):
        items = [(v, k) if isinstance(k, Tensor) else (k, v) for k, v in params.items()]
        for name, tensor in items:
            _check_pair(name, tensor)
        yield _Element(items, set(), False)
    elif isinstance(params, Iterable) and not isinstance(params, (str, bytes, Tensor)):
        pairs: list[tuple[str, Tensor]] = []
        for item in params:
            if _is_pair(item):
                _check_pair(*item)
                pairs.append(item)
            else:
                yield from _elements(item)
        if pairs:
            yield _Element(pairs, set(), False)
    else:
        raise TypeError(
            "`params` must be a dict of named tensors, a module, a state from "
            "extract_state_dict(..., enable_visual=True), (name, tensor) pairs, or a sequence of "
            f"these, got {type(params).__name__}"
        )


def _is_pair(item: Any) -> bool:
    if not isinstance(item, tuple) or isinstance(item, ModuleState) or len(item) != 2:
        return False
    return isinstance(item[0], str) or isinstance(item[1], Tensor)


def _check_pair(name: object, tensor: object) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"`params` must name tensors by strings, got a name of type {type(name).__name__}"
        )
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`params` must name tensors, but {name!r} is a {type(tensor).__name__}")


def _prefix(element: _Element, elements: Sequence[_Element]) -> str | None:
    """Return what the names of a state start with, before the dot; None for no state.

    The states of one module have the same names after their prefixes.
    """
    for other in elements:
        if other is element or len(other.pairs) != len(element.pairs):
            continue
        if element.is_state or _is_computed(element) or _is_computed(other):
            prefixes = {
                _before_common_end(mine.split("."), theirs.split("."))
                for (mine, _), (theirs, _) in zip(element.pairs, other.pairs, strict=True)
            }
            if len(prefixes) == 1 and None not in prefixes:
                return prefixes.pop()
    if not element.is_state:
        return None
    names = [name for name, _ in element.pairs]
    first, last = min(names, default=""), max(names, default="")
    return first.rpartition(".")[0] if first == last else _common_start(first, last)


def _is_computed(element: _Element) -> bool:
    return any(tensor.grad_fn is not None for _, tensor in element.pairs)


def _before_common_end(mine: list[str], theirs: list[str]) -> str | None:
    common = 0
    while common < min(len(mine), len(theirs)) and mine[-1 - common] == theirs[-1 - common]:
        common += 1
    return ".".join(mine[: len(mine) - common]) if common else None


def _common_start(first: str, last: str) -> str:
    parts = []
    for mine, theirs in zip(first.split(".")[:-1], last.split(".")[:-1], strict=False):
        if mine != theirs:
            break
        parts.append(mine)
    return ".".join(parts)
