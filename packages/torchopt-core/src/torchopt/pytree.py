"""Trees: the functions of `optree`, arithmetic on trees of tensors, and look-up in states.

The functions of `optree` keep their own defaults: ``None`` is a node without children unless
``none_is_leaf=True``. In the arithmetic ``None`` means "no gradient here" and passes through:
``None`` combines with ``None`` to ``None``, and with anything else it is an error.

The arithmetic is differentiable and runs under the transforms of `torch.func`. The structures of
all operands must agree; the leaves broadcast and promote as in `torch`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import optree
import torch
from optree import *  # noqa: F403

from torchopt._lookup import tree_get, tree_get_all_with_path, tree_set
from torchopt._structure import aligned

if TYPE_CHECKING:
    from torchopt.typing import OptionalTensorTree, Scalar

__all__ = [
    *optree.__all__,
    "tree_add",
    "tree_add_scalar_mul",
    "tree_as_rref",
    "tree_flatten_as_tuple",
    "tree_get",
    "tree_get_all_with_path",
    "tree_local_value",
    "tree_matmul",
    "tree_mul",
    "tree_neg",
    "tree_pos",
    "tree_scalar_mul",
    "tree_set",
    "tree_sub",
    "tree_sub_scalar_mul",
    "tree_to_here",
    "tree_truediv",
    "tree_vdot_real",
    "tree_wait",
]

_T = TypeVar("_T")


def tree_flatten_as_tuple(
    tree: Any,
    is_leaf: Callable[[Any], bool] | None = None,
    *,
    none_is_leaf: bool = False,
    namespace: str = "",
) -> tuple[tuple[Any, ...], optree.PyTreeSpec]:
    """Return the leaves as a tuple, and the structure: ``tree_flatten`` with hashable leaves.

    Args:
        tree: The tree.
        is_leaf: Tells which nodes to take as leaves; none by default.
        none_is_leaf: Whether ``None`` is a leaf rather than a node without children.
        namespace: The registry of custom nodes to look in.

    Example:
        >>> import torchopt
        >>> leaves, spec = torchopt.pytree.tree_flatten_as_tuple({"b": 2, "a": [1, None]})
        >>> leaves
        (1, 2)
    """
    leaves, spec = optree.tree_flatten(
        tree, is_leaf, none_is_leaf=none_is_leaf, namespace=namespace
    )
    return tuple(leaves), spec


def tree_pos(tree: OptionalTensorTree) -> OptionalTensorTree:
    """Return :math:`+x` for each leaf."""
    return _map("tree_pos", operator.pos, tree)


def tree_neg(tree: OptionalTensorTree) -> OptionalTensorTree:
    """Return :math:`-x` for each leaf."""
    return _map("tree_neg", operator.neg, tree)


def tree_add(*trees: OptionalTensorTree) -> OptionalTensorTree:
    r"""Return :math:`x_1 + \dots + x_n`, leaf by leaf.

    Raises:
        TypeError: If no tree is given.
        ValueError: If the structures differ, or a leaf is ``None`` in some trees only.

    Example:
        >>> import torch, torchopt
        >>> x = {"w": torch.tensor([1.0, 2.0]), "frozen": None}
        >>> torchopt.pytree.tree_add(x, x, x)
        {'w': tensor([3., 6.]), 'frozen': None}
    """
    return _map("tree_add", _fold(operator.add), *trees)


def tree_sub(
    minuend_tree: OptionalTensorTree, subtrahend_tree: OptionalTensorTree
) -> OptionalTensorTree:
    """Return :math:`x - y`, leaf by leaf. Raises as :func:`tree_add` does."""
    return _map("tree_sub", operator.sub, minuend_tree, subtrahend_tree)


def tree_mul(*trees: OptionalTensorTree) -> OptionalTensorTree:
    r"""Return :math:`x_1 \cdots x_n`, leaf by leaf. Raises as :func:`tree_add` does."""
    return _map("tree_mul", _fold(operator.mul), *trees)


def tree_matmul(*trees: OptionalTensorTree) -> OptionalTensorTree:
    """Return ``x_1 @ ... @ x_n``, leaf by leaf. Raises as :func:`tree_add` does."""
    return _map("tree_matmul", _fold(operator.matmul), *trees)


def tree_truediv(
    dividend_tree: OptionalTensorTree, divisor_tree: OptionalTensorTree
) -> OptionalTensorTree:
    """Return :math:`x / y`, leaf by leaf. Raises as :func:`tree_add` does."""
    return _map("tree_truediv", operator.truediv, dividend_tree, divisor_tree)


def tree_scalar_mul(scalar: Scalar, multiplicand_tree: OptionalTensorTree) -> OptionalTensorTree:
    r"""Return :math:`\alpha x` for each leaf, for a number or a 0-dim tensor :math:`\alpha`."""
    return _map("tree_scalar_mul", lambda x: scalar * x, multiplicand_tree)


def tree_add_scalar_mul(
    tree_x: OptionalTensorTree, tree_y: OptionalTensorTree, alpha: Scalar | None = None
) -> OptionalTensorTree:
    r"""Return :math:`x + \alpha y`, leaf by leaf.

    Args:
        tree_x: A tree.
        tree_y: A tree of the same structure.
        alpha: A number or a 0-dim tensor; ``None`` stands for 1.

    Raises:
        ValueError: If the structures differ, or a leaf is ``None`` in one tree only.

    Example:
        >>> import torch, torchopt
        >>> torchopt.pytree.tree_add_scalar_mul([torch.ones(2)], [torch.ones(2)], alpha=-0.5)
        [tensor([0.5000, 0.5000])]
    """
    if alpha is None:
        return _map("tree_add_scalar_mul", operator.add, tree_x, tree_y)
    return _map("tree_add_scalar_mul", lambda x, y: x + alpha * y, tree_x, tree_y)


def tree_sub_scalar_mul(
    tree_x: OptionalTensorTree, tree_y: OptionalTensorTree, alpha: Scalar | None = None
) -> OptionalTensorTree:
    r"""Return :math:`x - \alpha y`, leaf by leaf; otherwise as :func:`tree_add_scalar_mul`."""
    if alpha is None:
        return _map("tree_sub_scalar_mul", operator.sub, tree_x, tree_y)
    return _map("tree_sub_scalar_mul", lambda x, y: x - alpha * y, tree_x, tree_y)


def tree_vdot_real(tree_x: OptionalTensorTree, tree_y: OptionalTensorTree) -> torch.Tensor:
    r"""Return :math:`\operatorname{Re} \sum_i \langle x_i, y_i \rangle`, :math:`x` conjugated.

    This is the inner product of the trees, seen as one real vector each.

    Args:
        tree_x: A tree of tensors or numbers.
        tree_y: A tree of the same structure, shapes and dtypes.

    Returns:
        A 0-dim real tensor, on the device of the first leaf; 0 for trees without leaves.

    Raises:
        ValueError: If structures or shapes differ, or a leaf is ``None`` in one tree only.

    Example:
        >>> import torch, torchopt
        >>> x, y = [torch.tensor([1.0 + 2.0j])], [torch.tensor([3.0 - 1.0j])]
        >>> torchopt.pytree.tree_vdot_real(x, y)
        tensor(1.)
    """
    products = _map("tree_vdot_real", _vdot_real, tree_x, tree_y)
    terms = [term for term in optree.tree_leaves(products) if term is not None]
    if not terms:
        return torch.zeros(())
    total: torch.Tensor = functools.reduce(lambda x, y: x + y.to(x.device), terms)
    return total


def tree_wait(future_tree: Any) -> Any:
    """Return the tree of results, having waited for every future of a tree.

    Args:
        future_tree: A tree of :class:`torch.futures.Future`.

    Raises:
        Exception: That of the first future that failed.

    Example:
        >>> import torch, torchopt
        >>> future = torch.futures.Future()
        >>> future.set_result(1)
        >>> torchopt.pytree.tree_wait({"task": future})
        {'task': 1}
    """
    futures, spec = optree.tree_flatten(future_tree)
    return optree.tree_unflatten(spec, torch.futures.wait_all(futures))


def tree_as_rref(tree: Any) -> Any:
    """Return the tree of remote references to the leaves, which this worker owns.

    Needs torch's RPC to be running: ``torch.distributed.rpc.init_rpc``.

    Args:
        tree: The tree.

    Raises:
        RuntimeError: If RPC is not running, or this build of torch has none.
    """
    rpc = torch.distributed.rpc
    if not rpc.is_available():
        raise RuntimeError("`tree_as_rref` needs RPC, which this build of torch does not have")
    return optree.tree_map(rpc.RRef, tree)


def tree_to_here(rref_tree: Any, timeout: float = -1.0) -> Any:
    """Return the tree of values that remote references stand for, copied to this worker.

    Args:
        rref_tree: A tree of :class:`torch.distributed.rpc.RRef`.
        timeout: Seconds to wait for each value; 0 for ever, -1 as set in ``init_rpc``.
    """
    return optree.tree_map(lambda rref: rref.to_here(timeout), rref_tree)


def tree_local_value(rref_tree: Any) -> Any:
    """Return the tree of values that remote references stand for, all owned by this worker.

    Args:
        rref_tree: A tree of :class:`torch.distributed.rpc.RRef`.
    """
    return optree.tree_map(lambda rref: rref.local_value(), rref_tree)


def _fold(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda *xs: functools.reduce(function, xs)


def _vdot_real(x: Any, y: Any) -> torch.Tensor:
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if x.shape != y.shape:
        raise ValueError(
            f"`tree_vdot_real` needs leaves of equal shapes, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    return torch.vdot(x.reshape(-1), y.reshape(-1)).real


def _map(name: str, function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function leaf by leaf, for the public function called ``name``."""
    if not trees:
        raise TypeError(f"`{name}` needs at least one tree, got none")
    leaves, spec = optree.tree_flatten(trees[0], none_is_leaf=True)
    columns = [leaves, *(_flatten_like(name, spec, tree) for tree in trees[1:])]
    rows = list(zip(*columns, strict=True))
    for i, row in enumerate(rows):
        if any(x is None for x in row) and any(x is not None for x in row):
            path = "".join(f"[{entry!r}]" for entry in optree.treespec_paths(spec)[i])
            given = ", ".join("None" if x is None else type(x).__name__ for x in row)
            raise ValueError(
                f"`{name}` cannot combine None, which means no gradient, with a value: leaf "
                f"{path or 'at the root'} is {given}. Make it None in every tree or in none"
            )
    results = [None if row[0] is None else function(*row) for row in rows]
    return optree.tree_unflatten(spec, results)


def _flatten_like(name: str, spec: optree.PyTreeSpec, tree: Any) -> list[Any]:
    leaves, own_spec = optree.tree_flatten(tree, none_is_leaf=True)
    if own_spec == spec:
        return leaves
    try:
        leaves = aligned(spec, tree)
    except (TypeError, ValueError):
        leaves = [()]
    if not optree.all_leaves(leaves, none_is_leaf=True):
        raise ValueError(f"`{name}` needs trees of one structure, got {spec} and {own_spec}")
    return leaves
