"""Cutting modules, states and trees out of the graph, and copying modules."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeAlias, TypeVar

import optree
import torch
from torch import nn

from torchopt._module_state import (
    ModuleState,
    carrier,
    carry_tree,
    containers,
    reject_target,
)
from torchopt._submodules import submodules
from torchopt.base import GradientTransformation
from torchopt.nn._meta_gradient_module import MetaGradientModule
from torchopt.optim.meta import MetaOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchopt._module_state import By
    from torchopt.typing import Device, TensorTree

__all__ = ["module_clone", "module_detach_", "stop_gradient"]

Target = TypeVar("Target")
_Carry: TypeAlias = "Callable[[torch.Tensor], torch.Tensor]"


def stop_gradient(target: ModuleState | nn.Module | MetaOptimizer | TensorTree) -> None:
    """Cut a module, a meta-optimizer, a state or a tree of tensors out of the graph, in place.

    Values and ``requires_grad`` stay as they are; what was computed before is no longer reached by
    gradients. The tensors are detached themselves, so states that were extracted by reference are
    cut with them, with one exception: a view cannot be detached in place, so the module,
    meta-optimizer or state that holds it gets a detached tensor instead.

    Args:
        target: What to cut: modules, meta-optimizers, states from
            :func:`~torchopt.extract_state_dict`, tensors, or any tree of them.

    Raises:
        TypeError: ``target`` is nothing of the above.
        ValueError: A tree holds a view directly, where it cannot be replaced; nothing is changed.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torchopt.MetaSGD(net, lr=0.1)
        >>> optimizer.step(net(torch.ones(1, 2)).sum())
        >>> torchopt.stop_gradient(net)
        >>> net.weight.is_leaf, net.weight.requires_grad
        (True, True)
    """
    tree: Any = target
    leaves = optree.tree_leaves(tree, is_leaf=_is_holder, none_is_leaf=True)
    known = target is None or _is_holder(target) or isinstance(target, torch.Tensor)
    if leaves and leaves[0] is target and not known:
        raise reject_target(target, "a module, a MetaOptimizer, a state or a tree of tensors")
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if any(not tensor.is_leaf and tensor._is_view() for tensor in tensors):
        raise ValueError(
            "`target` holds a view of another tensor, which cannot be detached in place: build a "
            "new tree with `tensor.detach()`"
        )
    for tensor in tensors:
        _cut(tensor)
    for holder in filter(_is_holder, leaves):
        _cut_holder(holder)


def _is_holder(x: Any) -> bool:
    return isinstance(x, (ModuleState, nn.Module, MetaOptimizer))


def _cut_holder(holder: ModuleState | nn.Module | MetaOptimizer) -> None:
    cut = functools.cache(_cut)
    if isinstance(holder, MetaOptimizer):
        holder.load_state_dict(tuple(carry_tree(cut, state) for state in holder.state_dict()))
        return
    dicts: list[Any]
    if isinstance(holder, ModuleState):
        dicts = [*holder.params, *holder.buffers]
    else:
        params, buffers = containers(holder)
        dicts = [container.entries for container in [*params, *buffers]]
    for entries in dicts:
        entries.update({k: cut(x) for k, x in entries.items() if x is not None})


def _cut(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_leaf:
        return tensor
    detached = tensor.detach() if tensor._is_view() else tensor.detach_()
    return detached.requires_grad_()


def module_detach_(target: Target) -> Target:
    """Cut ``target`` out of the graph with :func:`stop_gradient`, and return it.

    Example:
        >>> import torch, torchopt
        >>> net = torchopt.module_clone(torch.nn.Linear(2, 1), by="copy")
        >>> torchopt.module_detach_(net).weight.is_leaf
        True
    """
    stop_gradient(target)
    return target


def module_clone(
    target: Target,
    *,
    by: By = "reference",
    detach_buffers: bool = False,
    device: Device | None = None,
) -> Target:
    """Return a copy of a module whose tensors are references, clones or detached copies.

    Unlike :func:`copy.deepcopy`, this copies modules whose parameters are not leaves, as they are
    after a differentiable step. What is shared inside ``target`` (tied parameters, a module used
    twice) is shared inside the copy. The meta-parameters and meta-modules of a
    :class:`~torchopt.nn.MetaGradientModule` belong to others: the copy refers to the same ones.

    Args:
        target: A module, a meta-optimizer, or a tuple, list or dict of them and of tensors. A
            meta-optimizer is copied together with its modules, so clone them in one call:
            ``net, optimizer = module_clone((net, optimizer))``.
        by: How the tensors are copied; see :func:`~torchopt.extract_state_dict`.
        detach_buffers: Whether buffers are detached copies, whatever ``by`` says.
        device: Where the copy is to live; ``None`` leaves every tensor where it is.

    Raises:
        TypeError: ``target`` is nothing of the above.
        ValueError: ``by`` is unknown.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> clone = torchopt.module_clone(net, by="copy")
        >>> clone(torch.ones(1, 2)).sum().backward()
        >>> net.weight.grad
        tensor([[1., 1.]])
    """
    carry = carrier(by, device)
    carry_buffer = carrier("deepcopy", device) if detach_buffers else carry
    if not (_is_holder(target) or isinstance(target, (torch.Tensor, tuple, list, dict))):
        raise reject_target(target, "a module, a MetaOptimizer, or a tree of them and tensors")
    copier = _Copier(target, carry, carry_buffer)
    if detach_buffers or _has_meta_parameters(target):
        copier.prepare()
    found: Target = copier.copied(target)
    return found


# what `copy.deepcopy` does not look into
_ATOMIC = (type, FunctionType, ModuleType)
# by which a class says how it is copied
_COPYING = {"__deepcopy__", "__getstate__", "__new__", "__reduce__", "__reduce_ex__"}
_COPYING |= {"__setstate__", "__slots__"}
# what a module does not take along
_COMPILED = "_compiled_call_impl"
_OWN_CONTAINERS = {name for name, x in vars(nn.Module()).items() if isinstance(x, (dict, set))}
_IMMUTABLE = {type(None), bool, int, float, complex, str, bytes, type, FunctionType}


class _Copier:
    """Copies what :func:`copy.deepcopy` copies, tensors in a way of its own, and modules sooner."""

    def __init__(self, target: Any, carry: _Carry, carry_buffer: _Carry) -> None:
        self.target, self.carry, self.carry_buffer = target, carry, carry_buffer
        self.memo: dict[int, Any] = {}
        self._is_prepared = False

    def prepare(self) -> None:
        """Carry over all tensors of the target, and leave what it refers to only as it is.

        So `copy.deepcopy` finds them wherever it comes upon them.
        """
        if self._is_prepared:
            return
        self._is_prepared = True
        reached = _reach(self.target)
        self.memo.update({id(other): other for other in reached.others})
        for tensor in reached.tensors:
            carry = self.carry_buffer if id(tensor) in reached.buffers else self.carry
            if id(tensor) not in self.memo:
                self.memo[id(tensor)] = carry(tensor)

    def copied(self, x: Any) -> Any:
        """Return a copy."""
        kind: Any = type(x)
        memo = self.memo
        if kind in _IMMUTABLE:
            return x
        if id(x) in memo:
            return memo[id(x)]
        if isinstance(x, torch.Tensor):
            return memo.setdefault(id(x), self.carry(x))
        if kind is dict or kind is OrderedDict:
            entries = memo[id(x)] = kind()
            for key, value in x.items():
                entries[self.copied(key)] = self.copied(value)
            return entries
        if kind is set and not x:
            return memo.setdefault(id(x), set())
        if isinstance(x, nn.Module) and _is_copied_by_attributes(kind):
            module = memo[id(x)] = kind.__new__(kind)
            copied, attributes = self.copied, module.__dict__
            for name, value in vars(x).items():
                if type(value) in _IMMUTABLE:
                    attributes[name] = value
                elif name in _OWN_CONTAINERS and not value:  # a module has a dozen of these
                    attributes[name] = type(value)()
                else:
                    attributes[name] = copied(value)
            attributes.pop(_COMPILED, None)
            return module
        self.prepare()
        return copy.deepcopy(x, memo)


def _has_meta_parameters(target: Any) -> bool:
    """Return whether some of what is to be copied refers to the meta-parameters of others."""
    if not isinstance(target, nn.Module):
        return True  # perhaps
    return any(isinstance(module, MetaGradientModule) for module in submodules(target))


@functools.lru_cache(maxsize=256)
def _is_copied_by_attributes(kind: type[nn.Module]) -> bool:
    """Return whether a class of modules says nothing of its own on how it is copied."""
    torch_own = (object, nn.Module, Generic)
    own = set().union(*[vars(base) for base in kind.__mro__ if base not in torch_own])
    return own.isdisjoint(_COPYING)


class _Reached(NamedTuple):
    # what the target holds
    tensors: list[torch.Tensor]
    # the ids of those that are buffers
    buffers: set[int]
    # what it refers to only
    others: list[Any]


def _reach(target: Any) -> _Reached:
    tensors: list[torch.Tensor] = []
    buffers: set[int] = set()
    others: list[Any] = []
    seen: set[int] = set()
    stack = [target]
    while stack:
        x = stack.pop()
        if isinstance(x, GradientTransformation):
            others.append(x)
            continue
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            tensors.append(x)
        elif isinstance(x, dict):
            stack.extend(x.values())
        elif isinstance(x, (list, tuple, set)):
            stack.extend(x)
        elif hasattr(x, "__dict__") and not isinstance(x, _ATOMIC):
            attributes = dict(vars(x))
            if isinstance(x, MetaGradientModule):
                others.extend(attributes.pop("_meta_inputs"))
                others.extend(attributes.pop("_meta_parameters").values())
                others.extend(attributes.pop("_meta_modules").values())
            if isinstance(x, nn.Module):
                buffers.update(map(id, x._buffers.values()))
            stack.extend([v for v in attributes.values() if type(v) not in _IMMUTABLE])
    return _Reached(tensors, buffers, [x for x in others if id(x) not in seen])
