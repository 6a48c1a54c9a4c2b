"""Update rules: the mathematics of a transformation, written once over lists of leaves."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import optree
import torch

from torchopt._arithmetic import Operand
from torchopt._context import Context
from torchopt._state import EmptyState, Kind, fields_of
from torchopt._types import Leaves
from torchopt._updates import FactoredUpdates
from torchopt.kernels import Formula

__all__ = ["Rule", "same"]


@dataclasses.dataclass(frozen=True, eq=False)
class Rule(ABC):
    """The mathematics of a gradient transformation; its fields are the hyperparameters.

    A rule is a frozen dataclass. It must define :meth:`init` and :meth:`update`; everything else
    has a default, for elementwise rules that depend on nothing but gradients, parameters and their
    own state. What is a property here may be a plain attribute of the class (``fallible = True``).

    What happens in a step, of all faces and whether differentiable or not:

    1. :meth:`prepare` of every rule, for all parameter groups. What can fail without having seen
       the updates, fails here: schedules, masks, trees of factors, the shape of the state.
    2. Whether a graph is recorded, is decided once: it is if the step is asked for with
       ``inplace=False``, and wherever updates, state, hyperparameters or plans require grad.
    3. :meth:`update` of every rule of the chain up to the last one that is :attr:`fallible`, for
       all groups, in a context in which nothing is overwritten.
    4. :meth:`update` of the others, which may overwrite; :meth:`step` of the last one if parameters
       are to be stepped. Nothing fails any more.

    Memory. Updates, parameters and the plan are the caller's, to be read only. The tensors of the
    state belong to the rule: in a context that is in place it overwrites them by ``context.reuse``,
    and returns the very lists it was given; elsewhere it must not. What it returns as updates may
    be tensors of its state or of the updates it was given if it says so
    (:attr:`~torchopt.rules.FactoredUpdates.borrowed`). Nothing may be kept on the rule itself: it
    may serve many optimizers at once.
    """

    @property
    def state_type(self) -> type:
        """The type of the state, declared by :func:`torchopt.rules.record`.

        ``object`` if it is none, and :meth:`map_state` is defined.
        """
        return EmptyState

    @property
    def fallible(self) -> bool:
        """Whether :meth:`update` may raise, or calls a function of the user's that may."""
        return any(rule.fallible for rule in self.children())

    @property
    def elementwise(self) -> bool:
        """Whether the shape of the leaves does not matter: they could be one vector of numbers.

        Then complex leaves are seen as pairs of real numbers. A rule that sees matrices, or the
        absolute values of complex numbers, says False.
        """
        return all(rule.elementwise for rule in self.children())

    @property
    def reevaluates(self) -> bool:
        """Whether :meth:`update` needs ``context.value_and_grad``."""
        return any(rule.reevaluates for rule in self.children())

    @property
    def absorbs_rate(self) -> bool:
        """Whether the updates are scaled by ``context.lr`` already."""
        return False

    @property
    def averages(self) -> bool:
        """Whether the parameters to evaluate at differ from those that are trained."""
        return any(rule.averages for rule in self.children())

    @property
    def partial(self) -> bool:
        """Whether some leaves may have None for a moment, as they belong to another part."""
        return any(rule.partial for rule in self.children())

    @property
    def joint(self) -> bool:
        """Whether all leaves are optimized as one vector, so that there is but one group."""
        return any(rule.joint for rule in self.children())

    def check_params(self, params: Leaves, context: Context) -> None:
        """Raise if some leaves cannot be optimized, before anything is done with them."""
        for rule in self.children():
            rule.check_params(params, context)

    @abstractmethod
    def init(self, params: Leaves, context: Context) -> Any:
        """Return the state before the first step of some leaves.

        Called once in the functional and the differentiable face. In the stateful face it is called
        whenever parameters take their first step, for these alone; fields that are shared are taken
        from the first call. Moments of complex leaves are complex.

        Args:
            params: The leaves; there may be none.
            context: The context of these leaves, in which ``tree`` is that of all parameters.
        """

    def prepare(self, state: Any, context: Context) -> Any:
        """Return what depends neither on updates nor on the arithmetic, or raise.

        Called once before every :meth:`update`, which finds the result as ``context.plan``.
        """
        return None

    @abstractmethod
    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        """Return the transformed updates and the next state.

        Args:
            updates: The updates, to be used once.
            state: The state, with lists in place of trees.
            context: The context.
        """

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        """Return the next parameters and the next state.

        In place the parameters are overwritten and returned. To be defined where there is a faster
        way than to apply the result of :meth:`update`, with the same result up to rounding.
        """
        assert context.params is not None
        updates, state = self.update(updates, state, context)
        return updates.add_to(context.params, context), state

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        """Return the parameters to evaluate at, where these differ from those that are trained."""
        return params

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        """Return the parameters that are trained, given the result of :meth:`evaluated_at`."""
        return evaluated

    def rate(self, context: Context) -> Operand | None:
        """Return the learning rate of the coming step, after `prepare`; None if there is none."""
        return None

    def formula(self) -> Formula | None:
        """Return the rule as a formula for kernels, if it is one; see :mod:`torchopt.kernels`."""
        return None

    def children(self) -> tuple[Rule, ...]:
        """Return the rules this one is composed of."""
        return ()

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        """Return the state made of the results of ``function`` for each field.

        Args:
            function: Called with the :class:`~torchopt.rules.Field` and the field's values.
            state: A state of this rule.
            *others: More states of the same structure.

        Raises:
            TypeError: If ``state`` belongs to another rule.
        """
        kind: Any = self.state_type
        if type(state) is not kind:
            raise TypeError(
                f"the state belongs to another transformation: expected {kind.__name__}, "
                f"got {type(state).__name__}"
            )
        columns = zip(fields_of(kind), state, *others, strict=True)
        return kind(
            *[
                self.children()[0].map_state(function, *values)
                if field.kind is Kind.NESTED
                else function(field, *values)
                for field, *values in columns
            ]
        )

    def learned(self) -> list[torch.Tensor]:
        """Return the hyperparameters that are tensors."""
        fields = [getattr(self, name) for name in self.__dataclass_fields__]
        trees: Any = [x for x in fields if not isinstance(x, (int, float, str, Rule))]
        leaves: list[Any] = optree.tree_leaves(trees) if trees else []
        found = [x for x in leaves if isinstance(x, torch.Tensor)]
        for child in self.children():
            found.extend(child.learned())
        return found

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(
            same(getattr(self, field.name), getattr(other, field.name))
            for field in dataclasses.fields(self)
        )

    __hash__ = None  # type: ignore[assignment]


def same(x: Any, y: Any) -> bool:
    """Return whether two hyperparameters are equal; tensors are, when all their entries are."""
    xs, x_spec = optree.tree_flatten(x, none_is_leaf=True)
    ys, y_spec = optree.tree_flatten(y, none_is_leaf=True)
    return x_spec == y_spec and all(
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else bool(a == b)
        for a, b in zip(xs, ys, strict=True)
    )
