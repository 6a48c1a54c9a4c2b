"""One task: its loss, what comes with it, and the gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import optree
import torch
from torch import Tensor

from torchopt_dist._agreement import task
from torchopt_dist._group import Ranks
from torchopt_dist._leaves import Leaves
from torchopt_dist._put_back import Snapshot
from torchopt_dist._seeding import seeded
from torchopt_dist._sharded import reduced_by_hooks

__all__ = ["Output", "Step", "Tasks"]


class Tasks(Protocol):
    """A meta-batch: what has a length and items."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Output(NamedTuple):
    """What a task gave; tensors are detached."""

    # the loss, and the metrics in the order of their names
    row: list[Tensor | float]
    # of the scaled loss, for each leaf; empty without differentiation
    gradients: tuple[Tensor | None, ...]
    aux: Any


class Step:
    """What is the same for the tasks of a meta-step."""

    def __init__(
        self,
        fn: Callable[[Any, Any], Any],
        tasks: Tasks,
        params: Any,
        leaves: Leaves,
        ranks: Ranks,
        *,
        names: tuple[str, ...],
        has_aux: bool,
        seed: int | None,
    ) -> None:
        self.fn, self.tasks, self.params = fn, tasks, params
        self.leaves, self.ranks = leaves, ranks
        self.names, self.has_aux, self.seed = names, has_aux, seed
        self.snapshot = Snapshot(leaves.modules, leaves.all)
        #: The ids of leaves whose gradients hooks of a backward pass reduce over ranks.
        self.reduced = reduced_by_hooks(leaves.modules)
        if self.reduced and not all(leaf.is_leaf for leaf in leaves.tensors):
            raise ValueError(
                "`params` must be leaves of the graph next to a module that is spread over ranks, "
                "whose hooks reduce what a pass to `.grad` leaves there; detach() others, and go "
                "on from `grads`"
            )

    def run(self, index: int, scale: float) -> Output:
        """Evaluate a task, and put back what it changes."""
        differentiate = bool(self.leaves.tensors)
        mode = torch.enable_grad() if differentiate else contextlib.nullcontext()
        try:
            with mode, task(self.ranks, index), seeded(self.seed, index, self.leaves.device):
                loss, values, aux = self._parsed(self.fn(self.params, self.tasks[index]))
                gradients: tuple[Tensor | None, ...] = ()
                if differentiate:
                    if not loss.requires_grad:
                        raise RuntimeError(
                            "the loss that `fn` returned does not depend on `params` "
                            "differentiably; was it detached, or computed under no_grad?"
                        )
                    gradients = self._gradients(loss, scale)
        finally:
            self.snapshot.put_back()
        return Output([loss.detach().view(()), *values], gradients, aux)

    def _gradients(self, loss: Tensor, scale: float) -> tuple[Tensor | None, ...]:
        leaves = self.leaves.tensors
        cotangent = torch.full_like(loss, scale)
        if not self.reduced:
            return torch.autograd.grad(loss, leaves, cotangent, allow_unused=True)
        # the ranks of a module add up in hooks that only a pass to `.grad` runs
        for leaf in leaves:
            leaf.grad = None
        torch.autograd.backward(loss, cotangent)
        return tuple(leaf.grad for leaf in leaves)

    def _parsed(self, output: Any) -> tuple[Tensor, list[Tensor | float], Any]:
        parts = ["the loss"]
        if self.names:
            parts.append(f"the metrics {', '.join(map(repr, self.names))}")
        if self.has_aux:
            parts.append("auxiliary data")
        found: tuple[Any, ...] = (output,)
        if len(parts) > 1:
            if not (isinstance(output, tuple) and len(output) == len(parts)):
                kind = "pair" if len(parts) == 2 else "triple"
                raise TypeError(
                    f"`fn` must return a {kind} of {' and '.join(parts)}, got "
                    f"{type(output).__name__}"
                )
            found = output
        values: Any = found[1] if self.names else {}
        if not isinstance(values, Mapping) or set(values) != set(self.names):
            raise ValueError(
                f"`fn` must return the metrics {list(self.names)}, got "
                f"{list(values) if isinstance(values, Mapping) else values!r}"
            )
        aux = optree.tree_map(_detached, found[-1], none_is_leaf=True) if self.has_aux else None
        row = [_scalar(name, values[name]) for name in self.names]
        return _checked_loss(found[0]), row, aux


def _checked_loss(loss: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point():
        return loss
    got = type(loss).__name__
    if isinstance(loss, Tensor):
        got = f"{tuple(loss.shape)}, {loss.dtype}"
    elif isinstance(loss, tuple):
        got = "a tuple; name what comes with the loss in `metrics`, or pass has_aux=True"
    raise TypeError(f"`fn` must return the loss as a real scalar tensor, got {got}")


def _scalar(name: str, value: Any) -> Tensor | float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return value.detach().view(())
    if isinstance(value, (bool, int, float)):
        return float(value)
    raise TypeError(f"the metric {name!r} must be a real scalar, got {value!r}")


def _detached(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
