"""The one way from a face of an optimizer to its rule, and back.

A face says which leaves have which updates, parameters and state; :class:`Step` has the rest: the
leaves that have an update, the plans, whether a graph is recorded, and the two phases of a step, of
which the first may fail and the second overwrites.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch.autograd import forward_ad

from torchopt._chain import Chain, expand_state, merge_state, prepare, select_state
from torchopt._context import Context, Evaluate, is_transforming
from torchopt._rule import Rule
from torchopt._state import Field, Kind
from torchopt._structure import flatten_like, unflatten_like
from torchopt._types import Leaves
from torchopt._updates import FactoredUpdates

__all__ = [
    "Extras",
    "Step",
    "as_chain",
    "check_params",
    "check_params_like",
    "flat_state",
    "init",
    "initial_tree",
    "open_step",
    "run",
    "tree_state",
]


class Extras(NamedTuple):
    """What a step may be given beside gradients and parameters."""

    value: torch.Tensor | None = None
    lr: Any = None
    value_and_grad: Evaluate | None = None


_NO_EXTRAS = Extras()


class Step(NamedTuple):
    """A step that has been prepared: nothing that its rules do not call fallible can fail now."""

    chain: Chain
    #: All updates, None where there is none.
    leaves: Sequence[torch.Tensor | None]
    #: The state of all leaves.
    every_state: Any
    #: The state of those that have an update.
    state: Any
    context: Context
    #: The hyperparameters that are tensors.
    learned: Sequence[torch.Tensor]

    def records(self) -> bool:
        """Return whether nothing may be overwritten: a graph is recorded, or a transform runs."""
        if is_transforming() or forward_ad._current_level >= 0:
            return True
        if not torch.is_grad_enabled():
            return False
        context = self.context
        found: list[Any] = [*(context.like or ()), *self.learned]
        _visit_state(self.chain, self.state, found)
        if any(plan is not None for plan in context.plan):
            found.extend(optree.tree_leaves(context.plan))
        if context.value is not None or context.lr is not None:
            found.extend((context.value, context.lr))
        return True in [isinstance(x, torch.Tensor) and x.requires_grad for x in found]


def _visit_state(rule: Rule, state: Any, found: list[Any]) -> None:
    def visit(field: Field, value: Any) -> Any:
        if field.begins_as_params:
            return value
        if field.kind is Kind.MOMENT or field.kind is Kind.PER_LEAF:
            found.extend(value)
        else:
            found.extend(optree.tree_leaves(value))
        return value

    rule.map_state(visit, state)


def as_chain(rule: Rule) -> Chain:
    """Return the rule as a chain, which may be of this one link."""
    return rule if isinstance(rule, Chain) else Chain((rule,))


def check_params(params: Any) -> None:
    """Raise unless every leaf is ``None`` or a floating point or complex tensor."""
    leaves = optree.tree_leaves(params, none_is_leaf=True)
    if all(
        x is None or (isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex()))
        for x in leaves
    ):
        return
    paths, leaves, _ = optree.tree_flatten_with_path(params, none_is_leaf=True)
    for path, leaf in zip(paths, leaves, strict=True):
        where = "".join(f"[{key!r}]" for key in path)
        if leaf is not None and not isinstance(leaf, torch.Tensor):
            raise TypeError(f"params{where} must be a tensor or None, got {type(leaf).__name__}")
        if leaf is not None and not (leaf.is_floating_point() or leaf.is_complex()):
            raise ValueError(
                f"params{where} must be floating point or complex to be optimized, got "
                f"{leaf.dtype}: leave it out, or put None in its place"
            )


def init(
    rule: Rule,
    leaves: Sequence[torch.Tensor | None],
    spec: optree.PyTreeSpec,
    tree: Any,
    active: list[int] | None = None,
) -> Any:
    """Return the state before the first step, with a list of all leaves for each field of leaves.

    Args:
        rule: The rule.
        leaves: All parameters.
        spec: The structure of their tree.
        tree: Their tree.
        active: The positions of those to make a state for; all that are not None by default.
    """
    if active is None:
        active = [i for i, x in enumerate(leaves) if x is not None]
    params: list[Any] = [leaves[i] for i in active]
    context = Context(spec, active, params=params, tree=tree)
    rule.check_params(params, context)
    state = rule.init(params, context)
    if len(active) == len(leaves):
        return state
    return expand_state(rule, state, active, len(leaves))


def open_step(
    chain: Chain,
    leaves: Sequence[torch.Tensor | None],
    state: Any,
    spec: optree.PyTreeSpec,
    params: Sequence[Any] | None,
    tree: Any,
    extras: Extras = _NO_EXTRAS,
    learned: Sequence[torch.Tensor] = (),
) -> Step:
    """Return a step, prepared; raise for what can fail before any arithmetic.

    Args:
        chain: The rules.
        leaves: The update of each leaf, or None.
        state: The states of the chain, with a list of all leaves for each field of leaves.
        spec: The structure of the tree of the leaves.
        params: The parameters, if they are given, shaped like the updates.
        tree: Their tree, if they are given.
        extras: What else is given.
        learned: The hyperparameters that are tensors.
    """
    active: list[int] | None = None
    if params is not None and chain.joint:
        # one vector has a gradient, zero where the loss does not depend on it
        pairs = zip(leaves, params, strict=True)
        leaves = [torch.zeros_like(p) if g is None and p is not None else g for g, p in pairs]
    chosen: list[Any] = list(leaves)
    every = params
    if [x for x in leaves if x is None]:
        active = [i for i, x in enumerate(leaves) if x is not None]
        chosen = [leaves[i] for i in active]
        params = None if params is None else [params[i] for i in active]
    context = Context(
        spec,
        active,
        like=chosen,
        params=None if params is None else list(params),
        tree=tree,
        value=extras.value,
        value_and_grad=_of_active(extras.value_and_grad, active, every),
        lr=extras.lr,
    )
    if True in [x.is_complex() for x in chosen]:
        complex_leaves = frozenset([k for k, x in enumerate(chosen) if x.is_complex()])
        context = context._replace(complex=complex_leaves)
    selected = state if active is None else select_state(chain, state, active)
    plan = tuple(
        [
            prepare(rule, rule_state, context)
            for rule, rule_state in zip(chain.rules, selected, strict=True)
        ]
    )
    return Step(chain, leaves, state, selected, context.planned(plan), learned)


def _of_active(
    evaluate: Evaluate | None, active: list[int] | None, every: Sequence[Any] | None
) -> Evaluate | None:
    """Return the function for the leaves that have an update, given that for all leaves."""
    if evaluate is None or active is None:
        return evaluate

    def evaluate_active(moved: Leaves) -> tuple[torch.Tensor, Leaves]:
        if every is None:
            raise ValueError("`value_and_grad` needs the parameters: pass `params=`, too")
        params = list(every)
        for i, x in zip(active, moved, strict=True):
            params[i] = x
        value, grads = evaluate(params)
        return value, [grads[i] for i in active]

    return evaluate_active


def check_params_like(params: Sequence[Any], leaves: Sequence[torch.Tensor | None]) -> None:
    """Raise unless the parameters are shaped like the updates."""
    for i, (p, x) in enumerate(zip(params, leaves, strict=True)):
        shape = getattr(p, "shape", None)
        if x is not None and shape != x.shape:
            what = "is None" if shape is None else f"has shape {tuple(shape)}"
            raise ValueError(
                f"leaf {i} of `params` {what}, but that of the updates has shape {tuple(x.shape)}"
            )


def run(steps: Sequence[Step], inplace: bool, stepping: bool) -> list[tuple[list[Any], Any]]:
    """Run steps that succeed or fail together.

    Args:
        steps: The steps.
        inplace: Whether to overwrite the state, and the parameters if ``stepping``.
        stepping: Whether to return the next parameters, not the updates.

    Returns:
        For each step, for all leaves, the updates (None where there was none) or the parameters
        (None likewise), and the next state.
    """
    begun = []
    for one in steps:
        context = one.context.computing(inplace)
        updates, states = one.chain.begin(FactoredUpdates(context.like or []), one.state, context)
        begun.append((one, context, updates, states))
    results = []
    for one, context, updates, states in begun:
        if stepping:
            found, state = one.chain.finish_step(updates, states, one.state, context)
        else:
            updates, state = one.chain.finish(updates, states, one.state, context)
            found = updates.owned(context)
        active = context.active
        if active is None:
            results.append((found, state))
            continue
        every: list[Any] = [None] * len(one.leaves)
        for i, x in zip(active, found, strict=True):
            every[i] = x
        results.append((every, merge_state(one.chain, state, one.state, one.every_state, active)))
    return results


def flat_state(rule: Rule, state: Any, spec: optree.PyTreeSpec) -> Any:
    """Return a state with lists of all leaves in place of trees."""

    def flatten(field: Field, value: Any) -> Any:
        if field.is_shared:
            return value
        return flatten_like(spec, value, f"state.{field.name}")

    return rule.map_state(flatten, state)


def tree_state(chain: Chain, new: Any, flat: Any, tree: Any, spec: optree.PyTreeSpec) -> Any:
    """Return the new state as trees; what has not changed is taken from the old one."""

    def unflatten(field: Field, found: Any, before: Any, old: Any) -> Any:
        if field.is_shared:
            return found
        return old if found is before else unflatten_like(spec, found, old)

    return chain.map_state(unflatten, new, flat, tree)


def initial_tree(rule: Rule, state: Any, spec: optree.PyTreeSpec) -> Any:
    """Return a state of lists as one of trees."""

    def unflatten(field: Field, value: Any) -> Any:
        return value if field.is_shared else optree.tree_unflatten(spec, value)

    return rule.map_state(unflatten, state)
