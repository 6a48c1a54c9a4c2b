"""Which tensors of a function's arguments are differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from torchopt_zero._functorch import is_differentiated, loses_derivatives
from torchopt_zero._leaf_vector import wide


def check_argnums(argnums: Any) -> tuple[int, ...]:
    """Return `argnums` as a tuple.

    Raises:
        TypeError: If it is not made of integers.
        ValueError: If it is empty or names an argument twice.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not all(type(number) is int for number in numbers):
        raise TypeError(f"`argnums` must be an integer or a tuple of integers, got {argnums!r}")
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"`argnums` must name at least one argument, each once, got {argnums!r}")
    return numbers


class Arguments:
    """The arguments of one call, with those leaves set apart that are to be perturbed.

    Args:
        args: The positional arguments.
        argnums: Which of them are differentiated; negative numbers count from the end.
        perturb: Whether to set all of their tensors apart if no derivative may be asked for any.

    Raises:
        IndexError: If `argnums` is out of range.
        TypeError: If a differentiated argument has no tensor, or one that is not floating-point.
    """

    def __init__(
        self, args: tuple[Any, ...], argnums: tuple[int, ...], perturb: bool = False
    ) -> None:
        for number in argnums:
            if not -len(args) <= number < len(args):
                raise IndexError(
                    f"`argnums` must be within the {len(args)} positional arguments of the call, "
                    f"got {number}; pass differentiated arguments by position"
                )
        self.args = args
        self.numbers = [number % len(args) for number in argnums]
        if len(set(self.numbers)) != len(self.numbers):
            raise ValueError(f"`argnums` must name each argument once, got {argnums}")
        differentiated: Any = [args[number] for number in self.numbers]
        self.flat: list[Any]
        self.flat, self.treedef = optree.tree_flatten(differentiated, none_is_leaf=True)
        tensors = [leaf for leaf in self.flat if isinstance(leaf, Tensor)]
        if not tensors:
            raise TypeError(
                f"the arguments of `argnums`, {argnums}, must hold tensors, got "
                f"{', '.join(type(args[number]).__name__ for number in self.numbers)}"
            )
        for tensor in tensors:
            if not tensor.is_floating_point():
                raise TypeError(
                    f"the arguments of `argnums` must hold floating-point tensors, got "
                    f"{tensor.dtype}; convert it, or pass it as another argument"
                )
        positions = [i for i, leaf in enumerate(self.flat) if isinstance(leaf, Tensor)]
        asked = [i for i in positions if may_be_asked_for(self.flat[i])]
        self.positions = asked or (positions if perturb else [])

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that are perturbed."""
        return [self.flat[position] for position in self.positions]

    def replaced(self, leaves: Sequence[Tensor | None]) -> list[Any]:
        """Return the positional arguments with other tensors in the place of the leaves."""
        flat = list(self.flat)
        for position, leaf in zip(self.positions, leaves, strict=True):
            flat[position] = leaf
        args = list(self.args)
        for number, arg in zip(self.numbers, self.treedef.unflatten(flat), strict=True):
            args[number] = arg
        return args


def may_be_asked_for(leaf: Tensor) -> bool:
    """Return whether a tensor is perturbed where it may be."""
    return leaf.requires_grad or is_differentiated(leaf)


def like_leaves(tree: Any, leaves: Sequence[Tensor], name: str) -> list[Tensor]:
    """Return the tensors of a tree, checked to be shaped like some leaves."""
    tensors = [torch.as_tensor(leaf) for leaf in optree.tree_leaves(tree)]
    shapes = [tuple(tensor.shape) for tensor in tensors]
    wanted = [tuple(leaf.shape) for leaf in leaves]
    if shapes != wanted:
        raise ValueError(
            f"`{name}` must hold one tensor per differentiated tensor, of shapes {wanted}, got "
            f"{shapes}"
        )
    return [
        tensor.detach().to(leaf.device, wide(leaf.dtype))
        for tensor, leaf in zip(tensors, leaves, strict=True)
    ]


def check_constants(constants: list[Tensor]) -> None:
    """Raise at a tensor that an objective reads where derivatives would be lost."""
    for tensor in constants:
        if loses_derivatives(tensor):
            raise RuntimeError(
                f"the objective uses a tensor of shape {tuple(tensor.shape)} that derivatives are "
                f"asked for and that is not perturbed, so they would be lost; name it in `argnums` "
                f"(make it a parameter, if the objective is a module), or pass it through "
                f"`.detach()` to treat it as a constant"
            )
