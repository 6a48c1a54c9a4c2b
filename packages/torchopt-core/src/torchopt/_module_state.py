"""Extracting the state of modules and meta-optimizers, and recovering it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import optree
import torch
from torch import nn

from torchopt._submodules import submodules
from torchopt.optim.meta import MetaOptimizer

if TYPE_CHECKING:
    from torchopt.typing import Device, OptState

__all__ = ["ModuleState", "extract_state_dict", "recover_state_dict"]

By = Literal["reference", "ref", "copy", "clone", "deepcopy", "deepclone"]


class ModuleState(NamedTuple):
    """The tensors of a module at one moment, as :func:`extract_state_dict` returns them."""

    # one dict for each submodule that has parameters, in the order of `module.modules()`
    params: tuple[dict[str, torch.Tensor], ...]
    # likewise for buffers; empty if they were left out
    buffers: tuple[dict[str, torch.Tensor], ...]
    # the names of the tensors for a picture of the graph, if asked for
    visual_contents: dict[torch.Tensor, str] | None = None
    # whether the buffers are detached copies, whatever the parameters are
    detach_buffers: bool = False


def reject_target(target: object, expected: str) -> TypeError:
    """Return the error for a target that has no state of the kinds handled here."""
    remedy = ""
    if hasattr(target, "state_dict"):
        remedy = "; for that, use its own state_dict() and load_state_dict()"
    return TypeError(f"`target` must be {expected}, got {type(target).__name__}{remedy}")


def carrier(by: By, device: Device | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the function that carries tensors over, and the same tensor to the same one."""
    if by in ("reference", "ref"):
        if device is None:
            return _same
        carry = _refer
    elif by in ("copy", "clone"):
        carry = _copy
    elif by in ("deepcopy", "deepclone"):
        carry = _detached_copy
    else:
        raise ValueError(
            "`by` must be 'reference' (or 'ref'), 'copy' (or 'clone') or 'deepcopy' (or "
            f"'deepclone'), got {by!r}"
        )
    return functools.cache(functools.partial(carry, device=device))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _refer(tensor: torch.Tensor, device: Device | None) -> torch.Tensor:
    return tensor if device is None else tensor.to(device)


def _copy(tensor: torch.Tensor, device: Device | None) -> torch.Tensor:
    moved = _refer(tensor, device)
    return moved.clone() if moved is tensor else moved


def _detached_copy(tensor: torch.Tensor, device: Device | None) -> torch.Tensor:
    copied = _copy(tensor.detach(), device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)


class Container(NamedTuple):
    """The parameters or the buffers of one submodule."""

    # the module that the submodule is in, for its name
    module: nn.Module
    submodule: nn.Module
    # the submodule's own dict: what is written here is written to the module
    entries: dict[str, torch.Tensor | None]

    @property
    def path(self) -> str:
        """The dotted name of the submodule."""
        names = {submodule: path for path, submodule in self.module.named_modules()}
        return str(names[self.submodule])

    @property
    def owner(self) -> str:
        """The submodule, for messages."""
        kind, path = type(self.submodule).__name__, self.path
        return f"{kind} '{path}'" if path else kind

    @property
    def prefix(self) -> str:
        """What the names of the tensors start with."""
        path = self.path
        return f"{path}." if path else ""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the entries that are not ``None``."""
        return {name: x for name, x in self.entries.items() if x is not None}

    def carried(self, carry: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the entries that are not ``None``, carried over."""
        return {name: carry(x) for name, x in self.tensors().items()}


def containers(module: nn.Module) -> tuple[list[Container], list[Container]]:
    """Return what holds parameters and what holds buffers, in the order of the modules."""
    params: list[Container] = []
    buffers: list[Container] = []
    for submodule in submodules(module):
        kinds: Any = (submodule._parameters, params), (submodule._buffers, buffers)
        for entries, found in kinds:
            if entries and not all(x is None for x in entries.values()):
                found.append(Container(module, submodule, entries))
    return params, buffers


@overload
def extract_state_dict(
    target: nn.Module,
    *,
    by: By = "reference",
    device: Device | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> ModuleState: ...


@overload
def extract_state_dict(
    target: MetaOptimizer,
    *,
    by: By = "reference",
    device: Device | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> tuple[OptState, ...]: ...


def extract_state_dict(
    target: nn.Module | MetaOptimizer,
    *,
    by: By = "reference",
    device: Device | None = None,
    with_buffers: bool = True,
    detach_buffers: bool = False,
    enable_visual: bool = False,
    visual_prefix: str = "",
) -> ModuleState | tuple[OptState, ...]:
    """Return the state of a module or a meta-optimizer, to come back to later.

    Args:
        target: The module, or the :class:`~torchopt.MetaOptimizer`, for which only ``by`` and
            ``device`` matter.
        by: How the tensors are taken. ``"reference"`` (or ``"ref"``) takes the tensors
            themselves, so that recovering gives the optimizer's leaves back and gradients
            accumulate there over tasks; ``"copy"`` (or ``"clone"``) takes clones that stay
            connected in the graph; ``"deepcopy"`` (or ``"deepclone"``) takes detached clones,
            parameters and ``requires_grad`` kept as they are. Tied tensors stay tied.
        device: Where the state is to live; ``None`` leaves every tensor where it is. A tensor
            that moves is a copy, in the graph unless ``by="deepcopy"``.
        with_buffers: Whether buffers belong to the state.
        detach_buffers: Whether buffers are taken as detached copies, whatever ``by`` says. A
            forward pass writes to the running statistics of batch normalization in place: with
            ``by="reference"``, they come back as they were only if this is ``True``.
        enable_visual: Whether ``visual_contents`` names the tensors, for
            :func:`torchopt.visual.make_dot`.
        visual_prefix: What those names start with.

    Returns:
        A :class:`ModuleState` for a module; a tuple of functional states, one for each parameter
        group, for a meta-optimizer.

    Raises:
        TypeError: ``target`` is neither.
        ValueError: ``by`` is none of the above.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> state = torchopt.extract_state_dict(net)
        >>> optimizer = torchopt.MetaSGD(net, lr=0.1)
        >>> optimizer.step(net(torch.ones(1, 2)).sum())
        >>> net.weight.is_leaf
        False
        >>> torchopt.recover_state_dict(net, state)
        >>> net.weight.is_leaf
        True
    """
    carry = carrier(by, device)
    if isinstance(target, MetaOptimizer):
        return tuple(carry_tree(carry, state) for state in target.state_dict())
    if not isinstance(target, nn.Module):
        raise reject_target(target, "an nn.Module or a MetaOptimizer")
    carry_buffer = carrier("deepcopy", device) if detach_buffers else carry
    params, buffers = containers(target)
    if not with_buffers:
        buffers = []
    state = ModuleState(
        params=tuple(container.carried(carry) for container in params),
        buffers=tuple(container.carried(carry_buffer) for container in buffers),
        detach_buffers=detach_buffers,
    )
    if not enable_visual:
        return state
    taken = zip([*params, *buffers], [*state.params, *state.buffers], strict=True)
    return state._replace(
        visual_contents={
            tensor: f"{visual_prefix}{container.prefix}{name}"
            for container, tensors in taken
            for name, tensor in tensors.items()
        }
    )


def carry_tree(carry: Callable[[torch.Tensor], torch.Tensor], tree: OptState) -> OptState:
    """Return ``tree`` with its tensors carried over and anything else as it is."""
    return optree.tree_map(
        lambda x: carry(x) if isinstance(x, torch.Tensor) else x, tree, none_is_leaf=True
    )


def recover_state_dict(
    target: nn.Module | MetaOptimizer, state: ModuleState | Sequence[OptState]
) -> None:
    """Put a state from :func:`extract_state_dict` back into the module or meta-optimizer.

    A state can be recovered any number of times. Parameters are the state's own tensors. A buffer
    the module holds already stays; any other is cloned, because forward passes write to buffers
    in place and would otherwise write to the state.

    Args:
        target: What the state was extracted from, or a module of the same structure.
        state: The state. That of a meta-optimizer may be any sequence, and one of TorchOpt 0.7.

    Raises:
        TypeError: ``target`` is neither a module nor a meta-optimizer, or ``state`` is not the
            kind of state that such a target has.
        ValueError: ``state`` belongs to a module with other names or shapes; nothing is changed.

    Example:
        >>> import torch, torchopt
        >>> norm = torch.nn.BatchNorm1d(1)
        >>> state = torchopt.extract_state_dict(norm, detach_buffers=True)
        >>> _ = norm(torch.tensor([[1.0], [3.0]]))
        >>> norm.running_mean
        tensor([0.2000])
        >>> torchopt.recover_state_dict(norm, state)
        >>> norm.running_mean
        tensor([0.])
    """
    if isinstance(target, MetaOptimizer):
        if isinstance(state, (ModuleState, str)) or not isinstance(state, Sequence):
            raise TypeError(
                "`state` must be the tuple (or another sequence) that extract_state_dict returns "
                f"for a {type(target).__name__}, got {type(state).__name__}"
            )
        target.load_state_dict(state)
        return
    if not isinstance(target, nn.Module):
        raise reject_target(target, "an nn.Module or a MetaOptimizer")
    if not isinstance(state, ModuleState):
        raise TypeError(
            "`state` must be the ModuleState that extract_state_dict returns for a module, "
            f"got {type(state).__name__}"
        )
    # 0.7 kept empty dicts for submodules that have names, but no tensors
    saved_params = [x for x in state.params if x]
    saved_buffers = [x for x in state.buffers if x]
    params, buffers = containers(target)
    _check_same(target, "parameters", params, saved_params)
    if not saved_buffers:
        buffers = []
    _check_same(target, "buffers", buffers, saved_buffers)
    for container, saved in zip(params, saved_params, strict=True):
        container.entries.update(saved)
    if not buffers:
        return
    clone = carrier("copy", device=None)
    for container, saved in zip(buffers, saved_buffers, strict=True):
        for name, buffer in saved.items():
            if container.entries[name] is not buffer:
                container.entries[name] = clone(buffer)


def _check_same(
    target: nn.Module,
    kind: str,
    held: list[Container],
    saved: Sequence[dict[str, torch.Tensor]],
) -> None:
    problem = f"`state` is not a state of this {type(target).__name__}"
    if len(held) != len(saved):
        raise ValueError(
            f"{problem}: {kind} are held by {len(held)} submodules of the module "
            f"({_join(c.owner for c in held)}) and by {len(saved)} of the state "
            f"({_join(str(_shapes(tensors)) for tensors in saved)})"
        )
    for container, tensors in zip(held, saved, strict=True):
        own = container.tensors()
        if own.keys() == tensors.keys():
            pairs = [(own[name], x) for name, x in tensors.items()]
            if not [1 for x, y in pairs if x is not y and x.shape != y.shape]:
                continue
        raise ValueError(
            f"{problem}: the {kind} of {container.owner} are {_shapes(own)} in the module and "
            f"{_shapes(tensors)} in the state"
        )


def _join(words: Iterable[str]) -> str:
    listed = list(words)
    return ", ".join(listed[:3] + ["..."] * (len(listed) > 3)) or "none"


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
