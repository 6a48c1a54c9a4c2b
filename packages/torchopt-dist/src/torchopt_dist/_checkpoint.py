"""Checkpoints: written whole or not at all, read by any number of ranks."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import optree
import torch
import torch.distributed as dist
from torch import Tensor

from torchopt_dist._sharded import is_sharded

_FORMAT = "torchopt-dist checkpoint 1"
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def save_checkpoint(path: str | os.PathLike[str], state: Any) -> None:
    """Write a checkpoint: rank zero does, and the other ranks go on.

    The file is complete or not there: it is written under another name in the same folder, forced
    to the disk, and renamed. What a killed process leaves of it is overwritten the next time.

    Args:
        path: Where; an older checkpoint of this name is replaced.
        state: A tree, such as a dict. Its leaves are tensors, plain values (numbers, strings,
            ``None``), generators, and whatever has ``state_dict()`` and ``load_state_dict()``, as
            modules, optimizers and schedulers have. ``torch.default_generator`` stands for torch's
            global randomness. A list of plain values, such as losses so far, may grow.

    Raises:
        TypeError: If a leaf is none of these, or sharded over ranks (DTensor); an older checkpoint
            is then kept.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from torchopt_dist import load_checkpoint, save_checkpoint
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "checkpoint.pt"
        >>> net = torch.nn.Linear(2, 1)
        >>> state = {"iteration": 0, "net": net, "random": torch.default_generator}
        >>> if path.exists():
        ...     state = load_checkpoint(path, state)
        >>> for iteration in range(state["iteration"], 30):
        ...     if (iteration + 1) % 10 == 0:
        ...         save_checkpoint(path, {**state, "iteration": iteration + 1})
        >>> load_checkpoint(path, state)["iteration"]
        30
    """
    names, leaves, _ = _flatten(state)
    # every rank looks, so that all of them raise
    leaves = [_packed(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        return
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": _FORMAT, "names": names, "leaves": leaves}, file)
            file.flush()
            os.fsync(file.fileno())
        _check_readable(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check_readable(path: Path) -> None:
    """Raise unless the file can be read; the numbers themselves are not."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise TypeError(
            f"`state` must have objects whose state_dict() is made of tensors, plain values and "
            f"containers of these: {error}"
        ) from error


def load_checkpoint(path: str | os.PathLike[str], state: Any) -> Any:
    """Read a checkpoint; every rank does, from a file system that all of them see.

    Nothing in the file is executed: it is read with ``weights_only=True``, and the structure comes
    from `state`.

    Args:
        path: What :func:`save_checkpoint` has written, with any number of ranks.
        state: A tree like the one that was saved, such as the initial state. Generators and objects
            with ``load_state_dict()`` are set to what was saved.

    Returns:
        A tree like `state`, with the tensors and plain values of the file; tensors are on the
        devices, and require a gradient, as those of `state`. Other leaves are those of `state`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If a tensor of `state` is sharded over ranks (DTensor).
        ValueError: If the file is no checkpoint, or one of another structure, or tensors have other
            shapes or dtypes, or an object refuses what was saved; what had been set is put back
            then, so that nothing is changed.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # unpickling garbage raises anything
        raise ValueError(f"{os.fspath(path)} is damaged, or not a checkpoint: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{os.fspath(path)} was not written by save_checkpoint")
    names, leaves, treedef = _flatten(state)
    if names != content["names"]:
        theirs = content["names"]
        raise ValueError(
            f"`state` must have the structure of the checkpoint, got "
            f"{_difference(names, theirs) or 'the same entries'} beyond those saved, and "
            f"{_difference(theirs, names) or 'none'} missing"
        )
    for name, leaf, saved in zip(names, leaves, content["leaves"], strict=True):
        _check(name, leaf, saved)
    before = [_packed(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    before = copy.deepcopy(
        [x if _is_set(leaf) else None for leaf, x in zip(leaves, before, strict=True)]
    )
    done = []
    try:
        for place, (leaf, saved) in enumerate(zip(leaves, content["leaves"], strict=True)):
            done.append(place)
            leaves[place] = _unpacked(leaf, saved)
    except Exception as error:
        for place in done:
            if _is_set(leaves[place]):
                _unpacked(leaves[place], before[place])
        raise ValueError(
            f"`state` must have objects like those of the checkpoint; {names[done[-1]]!r} refused "
            f"what was saved: {error}"
        ) from error
    return optree.tree_unflatten(treedef, leaves)


def _flatten(state: Any) -> tuple[list[str], list[Any], optree.PyTreeSpec]:
    paths, leaves, treedef = optree.tree_flatten_with_path(state, _is_history, none_is_leaf=True)
    return ["/".join(map(str, path)) for path in paths], leaves, treedef


def _is_history(x: Any) -> bool:
    return type(x) in (list, tuple) and all(isinstance(item, _PLAIN) for item in x)


def _difference(names: list[str], others: list[str]) -> str:
    return ", ".join(repr(name) for name in names if name not in set(others))


def _packed(name: str, leaf: Any) -> Any:
    """Return what is written for a leaf."""
    if isinstance(leaf, torch.Generator):
        return leaf.get_state()
    if isinstance(leaf, Tensor):
        return _compact(name, leaf)
    if isinstance(leaf, _PLAIN) or _is_history(leaf):
        return leaf
    if _has_state(leaf):
        state = leaf.state_dict()
        packed: Any = optree.tree_map(
            lambda x: _compact(name, x) if isinstance(x, Tensor) else x, state, none_is_leaf=True
        )
        if hasattr(state, "_metadata"):  # the versions by which modules tell old states
            packed._metadata = state._metadata
        return packed
    raise TypeError(
        f"`state` must be made of tensors, plain values, generators and objects with state_dict(), "
        f"got {type(leaf).__name__} at {name!r}"
    )


def _compact(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor that is written without the rest of a storage that it is a view of."""
    if is_sharded(tensor):
        raise TypeError(
            f"`state` must have whole tensors, got a DTensor at {name!r}, of which each rank has a "
            f"part; use torch.distributed.checkpoint, whose save() and load() know shards, or keep "
            f"what torch.distributed.checkpoint.state_dict.get_model_state_dict returns with "
            f"full_state_dict=True"
        )
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        return tensor
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _is_set(leaf: Any) -> bool:
    """Return whether a leaf is set in place, rather than replaced."""
    return isinstance(leaf, torch.Generator) or (
        not isinstance(leaf, (Tensor, *_PLAIN)) and not _is_history(leaf) and _has_state(leaf)
    )


def _has_state(leaf: Any) -> bool:
    return hasattr(leaf, "state_dict") and hasattr(leaf, "load_state_dict")


def _check(name: str, leaf: Any, saved: Any) -> None:
    if isinstance(leaf, Tensor) and _kind(leaf) != _kind(saved):
        raise ValueError(
            f"`state` must have the tensors of the checkpoint, got {_kind(leaf)} at {name!r}, "
            f"where the checkpoint has {_kind(saved)}"
        )


def _kind(leaf: Any) -> str:
    return f"{tuple(leaf.shape)}, {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)


def _unpacked(leaf: Any, saved: Any) -> Any:
    """Return what takes the place of a leaf."""
    if isinstance(leaf, torch.Generator):
        leaf.set_state(saved)
        return leaf
    if isinstance(leaf, Tensor):
        moved = saved.to(leaf.device)
        if isinstance(leaf, torch.nn.Parameter):
            return torch.nn.Parameter(moved, leaf.requires_grad)
        return moved.requires_grad_(leaf.requires_grad)
    if isinstance(leaf, _PLAIN) or _is_history(leaf):
        return saved
    leaf.load_state_dict(saved)
    return leaf
