"""Update rules: the mathematics of a transformation, written once over lists of leaves.

A rule receives a :class:`Direction` and returns one. Trees, ``None`` leaves, memory and autograd
are the :class:`~torchopt._workspace.Workspace`'s business, so a rule reads like its formula.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import optree
import torch

from torchopt._arithmetic import Leaves, Operand, is_number, product

if TYPE_CHECKING:
    from torchopt._workspace import Workspace
    from torchopt.typing import OptState, Params

__all__ = ["Direction", "Rule"]


class Direction(NamedTuple):
    r"""Updates kept as factors, ``scale * numerators / (slope * roots + offset)``.

    A direction is used once: the roots' memory is consumed.

    All adaptive methods are of this form. The factors are combined as late as possible: so a
    learning rate and a bias correction cost no pass over memory, and applying the updates to the
    parameters is one fused operation.
    """

    numerators: Leaves
    # None: the denominators are 1
    roots: Leaves | None = None
    slope: Operand = 1.0
    offset: Operand = 0.0
    scale: Operand = 1.0
    # whether the numerators are tensors of the state or of the caller, not to be handed out
    borrowed: bool = True
    # whether the roots are tensors of the state, not to be overwritten
    borrowed_roots: bool = False

    @property
    def _is_plain(self) -> bool:
        """Whether the updates are the numerators themselves."""
        return self.roots is None and is_number(self.scale, 1.0)

    def scaled(self, factor: Operand) -> Direction:
        """Return the direction times ``factor``."""
        numerators, roots, slope, offset, scale, *borrowed = self
        return Direction(numerators, roots, slope, offset, product(scale, factor), *borrowed)

    def materialize(self, work: Workspace) -> Leaves:
        """Return the updates as a list, which may be the numerators."""
        if self._is_plain:
            return self.numerators
        if self.roots is None:
            return work.fresh.mul(self.numerators, self.scale)
        if isinstance(self.scale, (int, float)) and self.scale != 0:
            return work.fresh.div(self.numerators, self._denominators(work, 1 / self.scale))
        return work.reuse.mul(work.fresh.div(self.numerators, self._denominators(work)), self.scale)

    def _denominators(self, work: Workspace, factor: float = 1.0) -> Leaves:
        """Return ``factor`` times the denominators."""
        assert self.roots is not None
        arithmetic = work.fresh if self.borrowed_roots else work.reuse
        slope, offset = product(self.slope, factor), product(self.offset, factor)
        return arithmetic.mul_add(self.roots, slope, offset)

    def owned(self, work: Workspace) -> Leaves:
        """Return the updates as a list of tensors that nothing else will overwrite."""
        if self._is_plain and self.borrowed and work.inplace:
            return [x.clone() for x in self.numerators]
        return self.materialize(work)

    def add_to(self, targets: Leaves, work: Workspace) -> Leaves:
        """Return ``targets`` plus the updates, reusing the targets' memory."""
        if self.roots is None:
            return work.reuse.add_scaled(targets, self.numerators, self.scale)
        if work.inplace and isinstance(self.scale, (int, float)):
            denominators = self._denominators(work)
            return work.reuse.addcdiv(targets, self.numerators, denominators, self.scale)
        return work.reuse.add(targets, self.materialize(work))


@dataclasses.dataclass(frozen=True, eq=False)
class Rule(ABC):
    """The mathematics of a gradient transformation; its fields are the hyperparameters."""

    @property
    def may_raise(self) -> bool:
        """Whether a step can fail after other rules of a chain have overwritten their state."""
        return False

    @abstractmethod
    def init(self, params: Params) -> OptState:
        """Return the state before the first step, for a tree of parameters."""

    @abstractmethod
    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        """Return the transformed direction and the next state."""

    def step(
        self, grads: Leaves, state: Any, params: Leaves, work: Workspace
    ) -> tuple[Leaves, OptState]:
        """Return the next parameters and the next state."""
        direction, state = self.update(Direction(grads), state, params, work)
        return direction.add_to(params, work), state

    def adopt(self, state: Any, params: Params) -> OptState:
        """Return the state that goes on from ``state``, of this rule with other hyperparameters."""
        return state

    def children(self) -> tuple[Rule, ...]:
        """Return the rules this one is composed of."""
        return ()

    def learned(self) -> list[torch.Tensor]:
        """Return the hyperparameters that are tensors."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self)]
        leaves: list[Any] = optree.tree_leaves(cast(Any, fields))
        found = [x for x in leaves if isinstance(x, torch.Tensor)]
        for child in self.children():
            found.extend(child.learned())
        return found

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(
            _same(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


def _same(x: Any, y: Any) -> bool:
    """Return whether two hyperparameters are equal; tensors are, when all their entries are."""
    xs, x_spec = optree.tree_flatten(x, none_is_leaf=True)
    ys, y_spec = optree.tree_flatten(y, none_is_leaf=True)
    return x_spec == y_spec and all(
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else bool(a == b)
        for a, b in zip(xs, ys, strict=True)
    )
