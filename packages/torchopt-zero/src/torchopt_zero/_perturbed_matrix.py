"""A matrix plus an outer product, which linear layers need not add up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor
from torch.nn import functional


def _getter(name: str) -> Any:
    """Return what `__torch_function__` is given when an attribute is read."""
    return getattr(Tensor, name).__get__


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}
_TRANSPOSES = {torch.t, Tensor.t, _getter("T"), _getter("mT")}
_METADATA = {
    Tensor.size,
    Tensor.dim,
    *map(_getter, ("shape", "ndim", "dtype", "device", "requires_grad")),
}


class PerturbedMatrix(Tensor):
    """The matrix ``base + left @ right.T``, seen by functions as a tensor.

    Products with it, from the left, are computed from the parts. Anything else is given the sum.
    """

    base: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def make(cls, base: Tensor, left: Tensor, right: Tensor) -> PerturbedMatrix:
        """Return the matrix of ``[m, n]``, ``[m, rank]`` and ``[n, rank]``."""
        matrix: PerturbedMatrix = base.as_subclass(cls)
        with torch._C.DisableTorchFunctionSubclass():
            matrix.base, matrix.left, matrix.right = base, left, right
        return matrix

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and len(args) >= 2 and _is_right_factor(args[0], args[1]):
            return _linear(*args, **kwargs)
        if func in _PRODUCTS and len(args) == 2 and not kwargs and _is_right_factor(*args):
            matrix = args[1]
            return args[0] @ matrix.base + (args[0] @ matrix.left) @ matrix.right.mT
        if func in _TRANSPOSES and not kwargs:
            matrix = args[0]
            return cls.make(matrix.base.mT, matrix.right, matrix.left)
        if func in _METADATA:
            return func(args[0].base, *args[1:], **kwargs)
        args, kwargs = optree.tree_map(_dense, (args, kwargs), none_is_leaf=True)  # type: ignore[arg-type]
        return func(*args, **kwargs)


def _is_right_factor(x: Any, matrix: Any) -> bool:
    return isinstance(matrix, PerturbedMatrix) and not isinstance(x, PerturbedMatrix)


def _linear(x: Tensor, weight: PerturbedMatrix, bias: Tensor | None = None) -> Tensor:
    shared = functional.linear(x, weight.base)
    output = shared + (x @ weight.right) @ weight.left.mT
    return output if bias is None else output + bias


def _dense(leaf: Any) -> Any:
    if isinstance(leaf, PerturbedMatrix):
        return leaf.base + leaf.left @ leaf.right.mT
    return leaf
