"""Functions of matvecs that programs of 0.7 import; a :class:`LinearOperator` has them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt_implicit._conversion import by_leaf
from torchopt_implicit._operator import LinearOperator

__all__ = [
    "cat_shapes",
    "make_normal_matvec",
    "make_ridge_matvec",
    "make_rmatvec",
    "materialize_matvec",
    "normalize_matvec",
]

_Map = Callable[[Any], Any]


def cat_shapes(tree: Any) -> tuple[int, ...]:
    """Return the shapes of the leaves of a tree of tensors, one after the other."""
    return tuple(itertools.chain.from_iterable(x.shape for x in optree.tree_leaves(tree)))


def normalize_matvec(matvec: Any) -> _Map:
    """Return a function that applies ``matvec``: itself, or each matrix of a tree to its leaf.

    Raises:
        TypeError: If it is neither callable nor a tree of square matrices.
    """
    if callable(matvec):
        return matvec  # type: ignore[no-any-return]
    return by_leaf(matvec)


def make_rmatvec(matvec: _Map, example_x: Any) -> _Map:
    r"""Return :math:`y \mapsto A^\top y` for :math:`x \mapsto A x`, on trees like ``example_x``."""
    return LinearOperator.from_function(matvec, example_x).T


def make_normal_matvec(matvec: _Map) -> _Map:
    r"""Return :math:`x \mapsto A^\top A x` for :math:`x \mapsto A x`."""

    def normal_matvec(x: Any) -> Any:
        operator = LinearOperator.from_function(matvec, x)
        return operator.T(operator(x))

    return normal_matvec


def make_ridge_matvec(matvec: _Map, ridge: float | torch.Tensor = 0.0) -> _Map:
    r"""Return :math:`x \mapsto A x + \rho x` for :math:`x \mapsto A x`."""
    return lambda x: optree.tree_map(lambda y, z: y + ridge * z, matvec(x), x)


def materialize_matvec(matvec: _Map, x: Any) -> tuple[Any, _Map, _Map, _Map]:
    """Return the matrices of an operator that maps each leaf of a tree like ``x`` to itself.

    Returns:
        The tree of matrices; a function that applies them to a tree of flat leaves or of leaves
        like those of ``x``; one that flattens the leaves of a tree; one that shapes them back.

    Raises:
        ValueError: If the operator mixes leaves: ``LinearOperator.from_function(matvec, x)`` and
            its ``as_matrix`` are for these.
    """
    operator = LinearOperator.from_function(matvec, x)
    matrix = operator.as_matrix()
    leaves, spec = optree.tree_flatten(x)
    sizes = [leaf.numel() for leaf in leaves]
    if any(leaf.is_complex() for leaf in leaves):
        raise ValueError("`x` must be real")
    columns = [torch.split(part, sizes) for part in torch.split(matrix, sizes, dim=1)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    blocks = [row.pop(i) for i, row in enumerate(rows)]
    if any(bool(block.any()) for row in rows for block in row):
        raise ValueError(
            "`matvec` must map each leaf of `x` to itself, but it mixes them: use "
            "LinearOperator.from_function(matvec, x).as_matrix()"
        )

    def tree_ravel(tree: Any) -> Any:
        return optree.tree_map(torch.ravel, tree)

    def tree_unravel(tree: Any) -> Any:
        return optree.tree_map(lambda flat, leaf: flat.reshape(leaf.shape), tree, x)

    matrices = optree.tree_unflatten(spec, blocks)

    def apply(tree: Any) -> Any:
        return optree.tree_map(lambda block, leaf: block @ leaf.ravel(), matrices, tree)

    return matrices, apply, tree_ravel, tree_unravel
