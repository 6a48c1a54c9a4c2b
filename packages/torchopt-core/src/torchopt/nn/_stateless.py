"""Running a module with other tensors in the place of its parameters and buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from types import NoneType
from typing import Any

import torch
from torch import nn

__all__ = ["reparameterize", "reparametrize", "swap_state"]

# stands for "no such attribute" in what `swap_state` returns: swapped in, it removes the attribute
_MISSING: Any = object()


@contextlib.contextmanager
def reparametrize(
    module: nn.Module,
    named_tensors: dict[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    allow_missing: bool = False,
) -> Generator[nn.Module, None, None]:
    """Run the module with the given tensors inside a ``with`` block.

    Gradients flow to the given tensors, also under :mod:`torch.func` transforms. The module's own
    tensors are back after the block, however it ends. A tensor given under one name of a tied
    parameter stands in for all its names that are not given.

    Args:
        module: The module.
        named_tensors: Tensors by the dotted names of parameters and buffers, as in
            ``module.named_parameters()``; those left out stay.
        allow_missing: Whether a name the module lacks becomes an attribute inside the block,
            rather than an error.

    Yields:
        The module.

    Raises:
        TypeError: ``module`` is not a module, or a value is not a tensor.
        ValueError: The module lacks a name and ``allow_missing`` is ``False``.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> weight = torch.ones(1, 2, requires_grad=True)
        >>> with torchopt.nn.reparametrize(net, {"weight": weight, "bias": torch.zeros(1)}):
        ...     net(torch.tensor([3.0, 4.0])).backward()
        >>> weight.grad
        tensor([[3., 4.]])
        >>> net.weight is weight
        False
    """
    tensors = _with_ties(module, _by_name(module, named_tensors))
    places = _find(module, tensors, allow_missing)
    originals = _exchange(places, tensors)
    try:
        yield module
    finally:
        _exchange(places, originals)


reparameterize = reparametrize


def swap_state(
    module: nn.Module,
    named_tensors: dict[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    allow_missing: bool = False,
) -> dict[str, torch.Tensor]:
    """Put the given tensors into the module, and return those whose place they took.

    Swapping what is returned back in undoes the swap. Only the given names change, so tied
    parameters are no longer tied unless all their names are given. After an error, nothing has
    changed.

    Args:
        module: The module.
        named_tensors: Tensors by the dotted names of parameters and buffers. ``None`` stands for
            a parameter that is absent, such as the bias of a layer without one.
        allow_missing: Whether a name the module lacks becomes an attribute, rather than an error.

    Returns:
        The tensors that were there, by name.

    Raises:
        TypeError: ``module`` is not a module, or a value is not a tensor.
        ValueError: The module lacks a name and ``allow_missing`` is ``False``.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> own = torchopt.nn.swap_state(net, {"bias": torch.ones(1)})
        >>> net.bias
        tensor([1.])
        >>> _ = torchopt.nn.swap_state(net, own)
        >>> isinstance(net.bias, torch.nn.Parameter)
        True
    """
    tensors = _by_name(module, named_tensors)
    return _exchange(_find(module, tensors, allow_missing), tensors)


def _by_name(
    module: nn.Module, named_tensors: dict[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be an nn.Module, got {type(module).__name__}")
    tensors = dict(named_tensors)
    for name, tensor in tensors.items():
        if not (tensor is None or tensor is _MISSING or isinstance(tensor, torch.Tensor)):
            raise TypeError(
                f"`named_tensors[{name!r}]` must be a tensor, got {type(tensor).__name__}"
            )
    return tensors


def _with_ties(module: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``tensors``, also under the other names of tied parameters and buffers."""
    held = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    substitutes = {own: tensors[name] for name, own in held if name in tensors}
    ties = {
        name: substitutes[own] for name, own in held if own in substitutes and name not in tensors
    }
    # the given ones last: two names may lead to one place, in a module that is used twice
    return ties | tensors


def _find(
    module: nn.Module, names: Iterable[str], allow_missing: bool
) -> dict[str, dict[str, Any]]:
    """Return for each name the dict that holds, or is to hold, the tensor."""
    places = {name: _place(module, name, allow_missing) for name in names}
    unknown = [name for name, entries in places.items() if entries is None]
    if unknown:
        raise ValueError(
            f"`named_tensors` names what {type(module).__name__} does not have: "
            f"{', '.join(map(repr, unknown))}; use the names of its named_parameters() and "
            "named_buffers()"
        )
    return {name: entries for name, entries in places.items() if entries is not None}


def _place(module: nn.Module, name: str, allow_missing: bool) -> dict[str, Any] | None:
    path, _, key = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return None
    attributes = vars(owner)
    for kind in ("_parameters", "_buffers", "_meta_parameters"):
        members: dict[str, Any] = attributes.get(kind, {})
        if key in members:
            return members
    if key in attributes:
        return attributes if isinstance(attributes[key], (torch.Tensor, NoneType)) else None
    return attributes if allow_missing and not hasattr(owner, key) else None


def _exchange(
    places: dict[str, dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    keys = {name: name.rpartition(".")[2] for name in places}
    originals = {name: entries.get(keys[name], _MISSING) for name, entries in places.items()}
    for name, entries in places.items():
        if tensors[name] is _MISSING:
            entries.pop(keys[name], None)
        else:
            entries[keys[name]] = tensors[name]
    return originals
