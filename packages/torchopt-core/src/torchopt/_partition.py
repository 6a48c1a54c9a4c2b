"""Another transformation for each labelled part of the tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from torchopt._arithmetic import Operand, PerLeaf
from torchopt._chain import expand_state, is_same, merge_state, prepare, select_state, step, update
from torchopt._context import Context
from torchopt._factory import transformation
from torchopt._mask import resolve_prefix, tree_of
from torchopt._rule import Rule
from torchopt._state import Field
from torchopt._types import Leaves, Params
from torchopt._updates import FactoredUpdates
from torchopt.base import GradientTransformation, as_rule, check_transformation

__all__ = ["Labels", "Partition", "PartitionState", "labels_of", "partition"]


class PartitionState(NamedTuple):
    """The state of :func:`partition`."""

    # by label, the state of its transformation, with None for all other leaves
    inner_states: dict[Any, Any]


class _Part(NamedTuple):
    """A transformation and its leaves, for one step."""

    label: Hashable
    rule: Rule
    chosen: list[int]
    # the context of these leaves, before it is known how to compute
    context: Context
    # their state
    selected: Any
    # what the rule prepared
    plan: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Partition(Rule):
    """The rule of :func:`partition`."""

    rules: dict[Any, Rule]
    labels: Any

    state_type = object
    partial = True

    def children(self) -> tuple[Rule, ...]:
        return tuple(self.rules.values())

    def _positions(self, context: Context) -> dict[Any, list[int]]:
        """Return by label the positions of its leaves, among those with an update."""
        labels = labels_of(self.labels, tree_of(context), context.spec, self.rules)
        found: dict[Any, list[int]] = {label: [] for label in self.rules}
        for k, i in enumerate(context.positions):
            found[labels[i]].append(k)
        return found

    def check_params(self, params: Leaves, context: Context) -> None:
        for label, chosen in self._positions(context).items():
            mine = [params[k] for k in chosen]
            self.rules[label].check_params(mine, context.restrict(chosen))

    def init(self, params: Leaves, context: Context) -> PartitionState:
        states = {}
        for label, chosen in self._positions(context).items():
            rule = self.rules[label]
            state = rule.init([params[k] for k in chosen], context.restrict(chosen))
            states[label] = expand_state(rule, state, chosen, len(params))
        return PartitionState(states)

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        if not isinstance(state, PartitionState) or state.inner_states.keys() != self.rules.keys():
            found = getattr(state, "inner_states", None)
            what = f"the labels {list(found)}" if found else type(state).__name__
            raise TypeError(
                "the state belongs to another transformation: expected a PartitionState with the "
                f"labels {list(self.rules)}, got {what}"
            )

        def of_label(label: Any) -> Callable[..., Any]:
            def call(field: Field, *values: Any) -> Any:
                return function(field._replace(scope=(label, *field.scope)), *values)

            return call

        inner = [x.inner_states for x in (state, *others)]
        return PartitionState(
            {
                label: rule.map_state(of_label(label), *[states[label] for states in inner])
                for label, rule in self.rules.items()
            }
        )

    def prepare(self, state: Any, context: Context) -> list[_Part]:
        parts = []
        for label, chosen in self._positions(context).items():
            if chosen:
                rule = self.rules[label]
                selected = select_state(rule, state.inner_states[label], chosen)
                own = context.restrict(chosen)
                plan = prepare(rule, selected, own)
                parts.append(_Part(label, rule, chosen, own, selected, plan))
        return parts

    def rate(self, context: Context) -> Operand | None:
        rates = [part.rule.rate(context.planned(part.plan)) for part in context.plan]
        if len(rates) == 1:
            rate: Operand | None = rates[0]
            return rate
        by_leaf: list[Any] = [None] * context.size
        for part, own in zip(context.plan, rates, strict=True):
            if own is None or isinstance(own, PerLeaf):
                return None
            for j, k in enumerate(part.chosen):
                by_leaf[k] = own[j] if isinstance(own, Sequence) else own
        return by_leaf

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        leaves: list[Any] = [None] * context.size
        states = dict(state.inner_states)
        grads = updates.materialize(context)
        for label, rule, chosen, restricted, selected, plan in context.plan:
            own = context.part(restricted, plan)
            mine = FactoredUpdates([grads[k] for k in chosen])
            found, new = update(rule, mine, selected, own)
            for k, x in zip(chosen, found.owned(own), strict=True):
                leaves[k] = x
            states[label] = merge_state(rule, new, selected, states[label], chosen)
        return FactoredUpdates(leaves, borrowed=False), PartitionState(states)

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        assert context.params is not None
        leaves = list(context.params)
        states = dict(state.inner_states)
        for label, rule, chosen, restricted, selected, plan in context.plan:
            own = context.part(restricted, plan)
            stepped, new = step(rule, updates.of(chosen), selected, own)
            for k, x in zip(chosen, stepped, strict=True):
                leaves[k] = x
            states[label] = merge_state(rule, new, selected, states[label], chosen)
        if all(map(is_same, states.values(), state.inner_states.values())):
            return leaves, state
        return leaves, PartitionState(states)

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        return self._swapped("evaluated_at", params, state, context)

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        return self._swapped("trained_at", evaluated, state, context)

    def _swapped(self, method: str, params: Leaves, state: Any, context: Context) -> Leaves:
        leaves = list(params)
        for label, chosen in self._positions(context).items():
            rule = self.rules[label]
            selected = select_state(rule, state.inner_states[label], chosen)
            mine = [params[k] for k in chosen]
            found = getattr(rule, method)(mine, selected, context.restrict(chosen))
            for k, x in zip(chosen, found, strict=True):
                leaves[k] = x
        return leaves


class Labels(list[Any]):
    """The label of each leaf, in order, whatever the tree."""


def labels_of(labels: Any, tree: Any, spec: Any, known: Mapping[Any, Any]) -> list[Any]:
    """Return the label of each leaf of a tree.

    Raises:
        ValueError: If the labels are no prefix of the tree, or one is unknown.
    """
    if isinstance(labels, Labels):
        return labels
    if not isinstance(labels, (str, dict, list, tuple)) and callable(labels):
        labels = labels(tree)
    containers = (dict, list, tuple)
    found = resolve_prefix(labels, spec, lambda x: not isinstance(x, containers))
    if found is None:
        raise ValueError(
            f"`labels` must be a tree of labels that is a prefix of the parameters' tree {spec}, "
            f"got {labels!r}"
        )
    unknown = sorted({repr(label) for label in found if label not in known})
    if unknown:
        raise ValueError(
            f"`labels` has {', '.join(unknown)}, but `transformations` has only "
            f"{', '.join(map(repr, known))}"
        )
    return found


@transformation
def partition(
    transformations: Mapping[Any, GradientTransformation],
    labels: Any | Callable[[Params], Any],
) -> Rule:
    """Apply another transformation to each labelled part of the tree.

    Args:
        transformations: By label, the transformation of its leaves.
        labels: The label of each leaf: a tree of labels (or a prefix of it), or a function from the
            tree of parameters (of updates, where ``update`` has no ``params``) to one. Labels are
            strings, numbers, or anything hashable that is not a container.

    In the stateful face a parameter group becomes one group for each label, with the
    hyperparameters of its transformation and the label as ``group["label"]``; so schedulers and
    options reach each part. There the tree is the list of parameters or, where these are named, a
    dict by name. A part with several optimizers, such as a partition within, keeps their rates.

    Raises:
        TypeError: If a value of ``transformations`` is not a transformation.
        ValueError: If ``labels`` does not fit the parameters or names an unknown label.

    Example:
        >>> import torch, torchopt
        >>> params = {"body": torch.ones(2), "head": torch.ones(1)}
        >>> optim = torchopt.partition(
        ...     {"slow": torchopt.sgd(0.1), "fast": torchopt.sgd(1.0)},
        ...     labels={"body": "slow", "head": "fast"},
        ... )
        >>> optim.update(params, optim.init(params))[0]
        {'body': tensor([-0.1000, -0.1000]), 'head': tensor([-1.])}
    """
    if not isinstance(transformations, Mapping) or not transformations:
        raise TypeError(
            "`transformations` must be a dict from labels to transformations, got "
            f"{transformations!r}"
        )
    for label, inner in transformations.items():
        check_transformation(inner, f"`transformations[{label!r}]`")
    rules = {label: as_rule(inner) for label, inner in transformations.items()}
    return Partition(rules, labels)
