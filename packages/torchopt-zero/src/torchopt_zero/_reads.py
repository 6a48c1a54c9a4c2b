"""The tensors that a function reads without being given them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optree
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torchopt_zero import _functorch
from torchopt_zero._perturbed_matrix import PerturbedMatrix


class Reads(TorchFunctionMode):
    """Records the tensors that torch is called with, but for those that it made meanwhile.

    Args:
        given: The tensors that the function is given, which are not recorded.
        only: Which tensors to look at, if not all: a function that is evaluated many times should
            not wait for the others.
    """

    def __init__(
        self, given: Iterable[Tensor], only: Callable[[Tensor], bool] | None = None
    ) -> None:
        super().__init__()
        self._only = only
        self._made = {id(tensor): weakref.ref(tensor) for tensor in given}
        self._found: dict[int, tuple[Tensor, int]] = {}
        self._level = _functorch.current_level()
        # the entries of the largest tensor that torch returned
        self.largest = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for arg in (*args, *kwargs.values()):
            for tensor in _tensors(arg):
                if self._looks_at(tensor):
                    self.add(tensor)
        output = func(*args, **kwargs)
        # what returns nothing sets something, as `x.requires_grad = True`
        for tensor in _tensors(args[:1] if output is None else output):
            if self._looks_at(tensor) and id(tensor) not in self._found:
                self.largest = max(self.largest, tensor.numel())
                self._made[id(tensor)] = weakref.ref(tensor)
        return output

    def _looks_at(self, tensor: Tensor) -> bool:
        if isinstance(tensor, PerturbedMatrix):
            return False  # a leaf, in parts
        return self._only is None or self._only(tensor)

    def add(self, tensor: Tensor) -> None:
        """Record a tensor, unless it was made or given."""
        key = id(tensor)
        made = self._made.get(key)
        if key in self._found or (made is not None and made() is tensor):
            return
        if tensor.is_inference() or _functorch.level(tensor) > self._level:
            return  # without a version; of a transform that has ended by now
        self._found[key] = (tensor, tensor._version)

    def tensors(self) -> list[Tensor]:
        """Return what was read, without what the function writes to, e.g. running statistics."""
        return [tensor for tensor, version in self._found.values() if tensor._version == version]


class Replaced(TorchFunctionMode):
    """Gives torch other tensors in the place of some, which are told by identity."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        super().__init__()
        self._tensors = tensors  # keeps their identities
        self._others = {id(t): other for t, other in zip(tensors, others, strict=True)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        call: Any = (args, kwargs or {})
        args, kwargs = optree.tree_map(self._other, call, none_is_leaf=True)
        return func(*args, **kwargs)

    def _other(self, leaf: Any) -> Any:
        return self._others.get(id(leaf), leaf)


def _tensors(tree: Any) -> Iterable[Tensor]:
    if isinstance(tree, Tensor):
        return (tree,)
    if not isinstance(tree, (tuple, list, dict)):
        return ()
    leaves: list[Any] = optree.tree_leaves(tree)  # type: ignore[arg-type]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
