"""Fields in the state of a transformation, found and replaced by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torchopt._state import Kind, declared_fields

__all__ = ["tree_get", "tree_get_all_with_path", "tree_set"]

#: The way to a field: positions in tuples, labels of parts, names of fields.
Path: TypeAlias = tuple[Any, ...]
Filter: TypeAlias = Callable[[Path, Any], bool]

_REQUIRED: Any = object()


def tree_get(
    state: Any,
    key: str,
    default: Any = _REQUIRED,
    filtering: Filter | None = None,
    *,
    param: str | int | tuple[Any, ...] | None = None,
) -> Any:
    """Return the value of a field in the state of a transformation, wherever it is.

    It is found by the name that it has in its record: ``mu``, ``nu`` and ``count`` of Adam,
    ``trace`` of momentum, ``inner_state`` of a mask; in chains, masks, parts of a partition, and
    optimizers around others. Names in the trees of parameters are no fields.

    Args:
        state: The state: of the functional face; ``optim_state`` of
            :class:`~torchopt.FuncOptimizer`, ``state_groups`` of the stateful and the
            differentiable face, whose fields are lists.
        key: The name of the field.
        default: What to return if there is none; by default that is an error.
        filtering: From the path to a field and its value to whether it counts. A path is a tuple of
            positions in chains, labels of a partition, and names of fields.
        param: The parameter whose entry is wanted rather than the whole tree: its key, or its place
            in the tree as a tuple of keys or joined by dots (``"layer.weight"``); a position in a
            list. Fields that have no entry for it, or None, do not count.

    Raises:
        KeyError: If there is no such field and no default, or more than one.

    Example:
        >>> import torch, torchopt
        >>> params = {"layer.weight": torch.ones(2), "layer.bias": torch.zeros(1)}
        >>> optim = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(1e-3))
        >>> state = optim.init(params)
        >>> torchopt.pytree.tree_get(state, "nu", param="layer.weight")
        tensor([0., 0.])
        >>> [nu.shape for nu in torchopt.pytree.tree_leaves(torchopt.pytree.tree_get(state, "nu"))]
        [torch.Size([1]), torch.Size([2])]
    """
    found = tree_get_all_with_path(state, key, filtering)
    if param is not None:
        entries = [(path, _entry(value, param)) for path, value in found]
        found = [(path, x) for path, x in entries if x is not None]
    if len(found) == 1:
        return found[0][1]
    what = f"`{key}`" if param is None else f"`{key}` of the parameter {param!r}"
    if found:
        paths = ", ".join(str(path) for path, _ in found)
        raise KeyError(f"the state has {what} at several places, {paths}: choose by `filtering`")
    if default is not _REQUIRED:
        return default
    names = sorted({path[-1] for path, _ in _fields(state, ())})
    raise KeyError(f"the state has no {what}; its fields are {', '.join(names) or 'none'}")


def tree_get_all_with_path(
    state: Any, key: str, filtering: Filter | None = None
) -> list[tuple[Path, Any]]:
    """Return all fields of a name in the state of a transformation, each with the path to it.

    Args:
        state: The state, as in :func:`tree_get`.
        key: The name of the field.
        filtering: As in :func:`tree_get`.

    Example:
        >>> import torch, torchopt
        >>> parts = {"slow": torchopt.adam(1e-3), "fast": torchopt.adam(1e-1)}
        >>> optim = torchopt.partition(parts, {"body": "slow", "head": "fast"})
        >>> state = optim.init({"body": torch.ones(1), "head": torch.ones(1)})
        >>> found = torchopt.pytree.tree_get_all_with_path(state, "count")
        >>> [path for path, count in found]
        [('inner_states', 'slow', 0, 'count'), ('inner_states', 'fast', 0, 'count')]
    """
    return [
        (path, value)
        for path, value in _fields(state, ())
        if path[-1] == key and (filtering is None or filtering(path, value))
    ]


def tree_set(state: Any, filtering: Filter | None = None, /, **values: Any) -> Any:
    """Return the state with other values in some fields; nothing is overwritten.

    Args:
        state: The state, as in :func:`tree_get`.
        filtering: As in :func:`tree_get`; by default all fields of a name are replaced.
        **values: By the name of the field, its new value.

    Raises:
        KeyError: If there is no field of a name.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.sgd(0.1, momentum=0.9)
        >>> state = torchopt.pytree.tree_set(optim.init(torch.ones(1)), trace=torch.ones(1))
        >>> torchopt.pytree.tree_get(state, "trace")
        tensor([1.])
    """
    for key, value in values.items():
        found = tree_get_all_with_path(state, key, filtering)
        if not found:
            raise KeyError(f"the state has no `{key}` to be replaced")
        for path, _ in found:
            state = _replaced(state, path, value)
    return state


def _is_record(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _fields(node: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield all fields of records, outer ones first."""
    if _is_record(node):
        own = [((*path, name), value) for name, value in zip(node._fields, node, strict=True)]
        yield from own
        declared = declared_fields(type(node))
        for k, (way, value) in enumerate(own):
            # the others hold what is shaped like the parameters
            if declared is None or declared[k].kind is Kind.NESTED:
                yield from _fields(value, way)
    elif isinstance(node, (tuple, list)):
        for k, value in enumerate(node):
            yield from _fields(value, (*path, k))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _fields(value, (*path, key))


def _replaced(node: Any, path: Path, value: Any) -> Any:
    """Return what is as ``node`` but for the end of a path."""
    if not path:
        return value
    first, *rest = path
    if _is_record(node):
        return node._replace(**{first: _replaced(getattr(node, first), tuple(rest), value)})
    new = _replaced(node[first], tuple(rest), value)
    if isinstance(node, Mapping):
        changed: Any = node.copy()  # type: ignore[attr-defined]
        changed[first] = new
        return changed
    return type(node)(new if k == first else x for k, x in enumerate(node))


def _entry(tree: Any, param: str | int | tuple[Any, ...]) -> Any:
    """Return a parameter's entry in a tree, None if there is none."""
    if isinstance(param, tuple):
        for key in param:
            tree = _child(tree, key)
        return tree
    found = _child(tree, param)
    if found is not None or isinstance(param, int):
        return found
    for k, character in enumerate(param):
        if character == ".":
            inner = _child(tree, param[:k])
            found = None if inner is None else _entry(inner, param[k + 1 :])
            if found is not None:
                return found
    return None


def _child(tree: Any, key: Any) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(key)
    if _is_record(tree):
        return getattr(tree, key) if key in tree._fields else None
    if isinstance(tree, (tuple, list)):
        k = int(key) if isinstance(key, int) or (isinstance(key, str) and key.isdigit()) else -1
        return tree[k] if 0 <= k < len(tree) else None
    return None
