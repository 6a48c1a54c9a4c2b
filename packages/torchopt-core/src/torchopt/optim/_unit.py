"""What a stateful optimizer steps together: the parameters of one call of `add_param_group`."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import optree
import torch

from torchopt._context import Context, Evaluate
from torchopt._driver import Extras, Step, as_chain, flat_state, open_step
from torchopt._gradient_step import Rate
from torchopt._legacy_state import Order, converted, is_legacy
from torchopt._partition import Labels, labels_of
from torchopt._types import Leaves, OptState
from torchopt._validate import check_non_negative
from torchopt.base import GradientTransformation, UninitializedState, as_rule
from torchopt.optim._hyperparameters import (
    Hyperparameters,
    at,
    find_partition,
    has_optimizers,
    unchanged,
    with_part,
)
from torchopt.optim._layout import Layout

__all__ = ["Unit", "split"]

_NOTHING: Mapping[str, Any] = {}


def split(impl: GradientTransformation, group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parameter groups that a group becomes: one for each label of a partition.

    Each has the hyperparameters that it does not set itself.
    """
    way = find_partition(impl)
    if way is None:
        values = Hyperparameters(impl).values
        _check_rate_is_used(impl, values, group)
        return [{**values, **group}]
    made = at(impl, way)
    parts: Mapping[Any, GradientTransformation] = made.hyperparameters["transformations"]
    labels, params = made.hyperparameters["labels"], group["params"]
    tree: Any = tuple(params)
    if tree and isinstance(tree[0], tuple) and len(tree[0]) == 2 and not isinstance(labels, list):
        tree = OrderedDict(tree)
    elif tree and isinstance(tree[0], tuple):
        tree = [p for _, p in tree]
    spec = optree.tree_structure(tree, none_is_leaf=True)
    found = labels_of(labels, tree, spec, parts)
    groups = []
    every = {label: Hyperparameters(part).values for label, part in parts.items()}
    rated = any("lr" in own for own in every.values())
    for label, own in every.items():
        chosen = [p for p, name in zip(params, found, strict=True) if name == label]
        if chosen:
            _check_rate_is_used(parts[label], own, group)
            # schedulers expect a rate in every group, also where nothing is optimized
            is_frozen = rated and not has_optimizers(parts[label])
            rest = {"lr": 0.0} if is_frozen else {}
            groups.append({**rest, **own, **group, "params": chosen, "label": label})
    return groups


def _rate(values: dict[str, Any]) -> Rate | None:
    """Return the learning rate as one that can be changed, if it is a plain number."""
    lr = values.get("lr")
    is_number = isinstance(lr, (int, float)) and not isinstance(lr, bool)
    return Rate(float(lr)) if is_number and lr is not None and lr >= 0 else None


def _with_rate(values: dict[str, Any], rate: Rate | None) -> dict[str, Any]:
    return values if rate is None else {**values, "lr": rate}


def _change(rate: Rate, values: dict[str, Any], lr: Any) -> None:
    """Take over another learning rate without making the rule anew, if it is a plain number."""
    if isinstance(lr, (int, float)) and not isinstance(lr, bool):
        check_non_negative("lr", lr)
        rate.value = float(lr)
        values["lr"] = lr


def _check_rate_is_used(
    impl: GradientTransformation, values: dict[str, Any], group: dict[str, Any]
) -> None:
    """Raise if a group sets a learning rate that would not reach any of several optimizers."""
    if "lr" in group and "lr" not in values and has_optimizers(impl):
        raise ValueError(
            "a parameter group sets `lr`, but there are several optimizers in the transformation, "
            "with rates of their own: set theirs, or give each a label of one `partition`"
        )


class Unit:
    """Parameter groups that are stepped by one rule: one, or those of a partition's labels."""

    def __init__(self, impl: GradientTransformation, groups: list[int]) -> None:
        """Take the transformation, and the positions of the groups in the optimizer."""
        self.impl, self.groups = impl, groups
        self.way = find_partition(impl)
        self._values: list[dict[str, Any]] | None = None
        # of each group, where it is a plain number: it changes often
        self._rates: list[Rate | None] = []
        self._labels: list[Any] | None = None
        self._anchor: torch.Tensor | None = None
        self._layout: Layout | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what cannot be found again."""
        return {"impl": self.impl, "groups": self.groups, "_anchor": self._anchor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["impl"], state["groups"])  # type: ignore[misc]
        self._anchor = state["_anchor"]

    @property
    def is_joint(self) -> bool:
        """Whether all parameters are optimized as one vector, so that there is but one group."""
        return self.rule.joint

    def params(self, param_groups: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
        """Return the parameters."""
        if len(self.groups) == 1:
            return list(param_groups[self.groups[0]]["params"])
        return [p for k in self.groups for p in param_groups[k]["params"]]

    def refresh(self, param_groups: Sequence[dict[str, Any]]) -> None:
        """Take over hyperparameters, and parameters, that have changed.

        Raises:
            ValueError: If a hyperparameter is out of range.
        """
        options = [param_groups[k] for k in self.groups]
        if self._values is not None:
            for rate, own, group in zip(self._rates, self._values, options, strict=True):
                if rate is not None and group["lr"] != rate.value:
                    _change(rate, own, group["lr"])
        sizes = [len(group["params"]) for group in options]
        labels = None
        if self.way is not None:
            labels = [g["label"] for g, n in zip(options, sizes, strict=True) for _ in range(n)]
        if (
            self._values is not None
            and self._labels == labels
            and all(map(unchanged, self._values, options))
            and (self._layout is None or self._layout.size == sum(sizes))
        ):
            return
        self.transformation, values, self._rates = self._made(options, labels)
        self.rule = as_rule(self.transformation)
        self.chain = as_chain(self.rule)
        self.learned = tuple(self.rule.learned())
        self.averages, self.reevaluates = self.rule.averages, self.rule.reevaluates
        self._values, self._labels, self._layout = values, labels, None

    def _made(
        self, options: list[dict[str, Any]], labels: list[Any] | None
    ) -> tuple[GradientTransformation, list[dict[str, Any]], list[Rate | None]]:
        """Return the transformation with the hyperparameters of the groups, these, and rates."""
        if self.way is None:
            hyper = Hyperparameters(self.impl)
            values = {name: options[0][name] for name in hyper.values}
            rate = _rate(values)
            return hyper.transformation(_with_rate(values, rate)), [values], [rate]
        made = at(self.impl, self.way)
        parts = dict(made.hyperparameters["transformations"])
        every, rates = [], []
        for group in options:
            hyper = Hyperparameters(parts[group["label"]])
            values = {name: group[name] for name in hyper.values}
            rates.append(_rate(values))
            parts[group["label"]] = hyper.transformation(_with_rate(values, rates[-1]))
            every.append(values)
        part = made.factory(parts, Labels(labels or ()))
        return with_part(self.impl, self.way, part), every, rates

    def layout(self, params: Sequence[torch.Tensor]) -> Layout:
        """Return how the state lies in that of the optimizer."""
        if self._layout is None:
            self._layout = Layout(self.chain, params, tuple(params))
            self._names = {entry.name for entry in self._layout.entries if not entry.is_shared}
        return self._layout

    def _move_shared(self, layout: Layout, first: torch.Tensor, state: Any) -> None:
        """Let the first parameter have what all share, if another one was the first before."""
        before, self._anchor = self._anchor, first
        if before is None or before is first or before not in state:
            return
        mine, theirs = state[first], state[before]
        for entry in layout.entries:
            if entry.is_shared and entry.name in theirs:
                mine[entry.name] = theirs.pop(entry.name)
        if not theirs:
            del state[before]

    def open(
        self, params: list[torch.Tensor], grads: list[Any], state: Any, extras: Extras
    ) -> tuple[Step, list[Any]]:
        """Return the step of parameters whose state is in ``state``, and the columns of that.

        Parameters that have a gradient and no state get one.
        """
        layout = self.layout(params)
        columns = self._columns(layout, params, grads, state)
        step = open_step(
            self.chain,
            grads,
            layout.state(columns),
            layout.spec,
            params,
            tuple(params),
            extras,
            self.learned,
        )
        return step, columns

    def _columns(
        self, layout: Layout, params: list[torch.Tensor], grads: list[Any], state: Any
    ) -> list[Any]:
        entries = layout.entries
        self._begun: list[tuple[torch.Tensor, dict[str, Any]]] = []
        if not entries:
            return []
        if layout.has_shared:
            self._move_shared(layout, params[0], state)
        rows: list[Any] = [state.get(p, _NOTHING) for p in params]
        shared: Any = rows[0]
        try:  # as it is in all steps but the first
            return [
                shared[name] if is_shared else [row[name] for row in rows]
                for name, is_shared in layout.names
            ]
        except KeyError:
            pass
        new = [
            i
            for i, (row, g) in enumerate(zip(rows, grads, strict=True))
            if g is not None and not row.keys() >= self._names
        ]
        unknown = any(entry.is_shared and entry.name not in shared for entry in entries)
        if new or unknown:
            rows = self._begin(layout, params, rows, new)
            shared = rows[0]
        return [
            shared[entry.name] if entry.is_shared else [row.get(entry.name) for row in rows]
            for entry in entries
        ]

    def _begin(
        self, layout: Layout, params: list[torch.Tensor], rows: list[Any], new: list[int]
    ) -> list[Any]:
        """Return the rows with what is missing for some parameters; kept until the step is made."""
        initial = layout.initial(params, tuple(params), new)
        rows = [dict(row) if i in new or i == 0 else row for i, row in enumerate(rows)]
        begun = {i for i in new if any(e.name in rows[i] for e in layout.entries if e.is_moment)}
        for entry, column in zip(layout.entries, initial, strict=True):
            if entry.is_shared:
                rows[0].setdefault(entry.name, column)
                continue
            for i in new:
                if rows[i].get(entry.name) is not None:
                    continue
                value = column[i]
                if entry.missing is not None and i in begun and entry.name not in rows[i]:
                    value = torch.full_like(value, entry.missing)
                rows[i][entry.name] = value
        self._begun = [(params[i], rows[i]) for i in range(len(rows)) if rows[i] and i in {0, *new}]
        return rows

    def close(
        self,
        params: list[torch.Tensor],
        columns: list[Any],
        before: Any,
        new_state: Any,
        state: Any,
    ) -> None:
        """Put what is new into ``state``, given the state before the step and after it."""
        for p, row in self._begun:
            state[p].update(row)
        self._begun = []
        layout = self.layout(params)
        if all(map(operator.is_, new_state, before)):
            return
        for entry, old, new in zip(layout.entries, columns, layout.columns(new_state), strict=True):
            if new is old:
                continue
            if entry.is_shared:
                state[params[0]][entry.name] = new
                continue
            for p, before, x in zip(params, old, new, strict=True):
                if x is not before:
                    state[p][entry.name] = x

    def swapped(self, params: list[torch.Tensor], state: Any, evaluate: bool) -> Leaves | None:
        """Return the parameters to evaluate at, or to train; None where there is no state."""
        layout = self.layout(params)
        found = self._found(layout, params, state)
        if found is None:
            return None
        context = Context(layout.spec, tree=tuple(params), params=list(params)).computing(
            inplace=False
        )
        swap = self.chain.evaluated_at if evaluate else self.chain.trained_at
        return swap(list(params), found, context)

    def _found(self, layout: Layout, params: list[torch.Tensor], state: Any) -> Any:
        """Return the state of the chain as it is; None where there is none."""
        if layout.entries and not any(state.get(p) for p in params):
            return None
        self._move_shared(layout, params[0], state)
        rows = [state.get(p, _NOTHING) for p in params]
        shared = rows[0]
        if any(e.is_shared and e.name not in shared for e in layout.entries):
            return None
        return layout.state(
            [
                shared[e.name] if e.is_shared else [row.get(e.name) for row in rows]
                for e in layout.entries
            ]
        )

    def functional_state(self, params: list[torch.Tensor], state: Any) -> OptState:
        """Return the state as the functional face has it for the list of parameters."""
        found = self._found(self.layout(params), params, state)
        if found is None:
            return UninitializedState()
        return found if self.rule is self.chain else found[0]

    def rows(self, params: list[torch.Tensor], functional: OptState) -> list[dict[str, Any]]:
        """Return a state of the functional face by parameter; one of TorchOpt 0.7, too.

        Raises:
            ValueError: If it belongs to another transformation or to other parameters.
        """
        if isinstance(functional, UninitializedState):
            return [{} for _ in params]
        layout = self.layout(params)
        if is_legacy(functional):
            order = Order(range(len(params)), len(params))
            found = converted(self.rule, functional, params, layout.spec, params, order)
        else:
            try:
                found = flat_state(self.rule, functional, layout.spec)
            except TypeError as error:
                raise ValueError(f"the state belongs to another optimizer: {error}") from error
        return layout.rows(found if self.rule is self.chain else (found,))


def evaluation(params: list[torch.Tensor], closure: Any) -> Evaluate:
    """Return a function from other values of the parameters to the loss and the gradients there.

    It calls the closure with the parameters moved there, and moves them back.
    """

    def evaluate(moved: Leaves) -> tuple[torch.Tensor, Leaves]:
        kept = [p.detach().clone() for p in params]
        try:
            with torch.no_grad():
                for p, x in zip(params, moved, strict=True):
                    if x is not p:
                        p.copy_(x)
            with torch.enable_grad():
                value = closure()
            if isinstance(value, torch.Tensor):
                value = value.detach()
            grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
        finally:
            with torch.no_grad():
                for p, x in zip(params, kept, strict=True):
                    p.copy_(x)
        return value, grads

    return evaluate
