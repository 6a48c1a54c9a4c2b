"""Gradient transformations: the interface, composition, and the identity."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import optree
import torch

from torchopt._rule import Direction, Rule
from torchopt._workspace import Workspace, is_transforming

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves
    from torchopt.typing import OptState, Params, Updates

__all__ = [
    "ChainedGradientTransformation",
    "EmptyState",
    "GradientTransformation",
    "IdentityGradientTransformation",
    "UninitializedState",
    "chain",
    "identity",
]


class EmptyState(NamedTuple):
    """The state of a transformation that remembers nothing."""


class UninitializedState(NamedTuple):
    """The state before the parameters are known."""


class UpdateFunction(Protocol):
    """The signature of :attr:`GradientTransformation.update`."""

    def __call__(
        self,
        updates: Updates,
        state: OptState,
        *,
        params: Params | None = None,
        inplace: bool = True,
    ) -> tuple[Updates, OptState]: ...


class _Pair(NamedTuple):
    init: Callable[[Params], OptState]
    update: UpdateFunction


class GradientTransformation(_Pair):
    """A pair of pure functions that turns gradients into updates.

    Args:
        init: ``init(params) -> state``, for a tree of parameters.
        update: ``update(updates, state, *, params=None, inplace=True) -> (updates, state)``.
            ``updates`` is a tree of gradients shaped like the parameters, in which ``None`` means
            "no gradient here": that leaf and its state pass through. With ``inplace=True`` the
            memory of the state is reused and no graph is recorded; gradients are never written
            to. With ``inplace=False``, and wherever a graph is being recorded through the updates
            or the hyperparameters, or a ``torch.func`` transform is running, nothing is
            overwritten and the result is differentiable to any order.

    Example:
        >>> import torch, torchopt
        >>> sign = torchopt.base.GradientTransformation(
        ...     init=lambda params: torchopt.base.EmptyState(),
        ...     update=lambda updates, state, *, params=None, inplace=True: (
        ...         torchopt.pytree.tree_map(torch.sign, updates),
        ...         state,
        ...     ),
        ... )
        >>> sign_sgd = torchopt.chain(sign, torchopt.transform.scale(-0.1))
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> updates, _ = sign_sgd.update({"w": torch.tensor([3.0, -4.0])}, sign_sgd.init(params))
        >>> updates["w"]
        tensor([-0.1000,  0.1000])
    """

    __slots__ = ()

    def chain(self, *others: GradientTransformation) -> GradientTransformation:
        """Return the transformation that applies this one, then ``others`` in order."""
        return chain(self, *others)


class RuleTransformation(GradientTransformation):
    """A transformation given by a rule over leaves: equal if the rules are, and picklable."""

    rule: Rule

    def __new__(cls, rule: Rule) -> RuleTransformation:
        """Return the transformation that runs ``rule`` on trees."""
        self = super().__new__(
            cls,
            functools.partial(_init, rule),
            functools.partial(_update, rule, tuple(rule.learned())),
        )
        self.rule = rule
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return RuleTransformation, (self.rule,)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RuleTransformation):
            return self.rule == other.rule
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"GradientTransformation({self.rule!r})"


def check_transformation(value: Any, name: str) -> None:
    """Raise unless ``value`` is a pair of functions ``init`` and ``update``."""
    if not isinstance(value, tuple) or not hasattr(value, "init") or not hasattr(value, "update"):
        raise TypeError(
            f"{name} must be a GradientTransformation, got {value!r}: did you mean to call it?"
        )


def check_params(params: Params) -> None:
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


def _is_recording(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Return whether nothing may be overwritten: a graph is recorded or a transform is running."""
    if is_transforming():
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _init(rule: Rule, params: Params) -> OptState:
    check_params(params)
    return rule.init(params)


def _update(
    rule: Rule,
    learned: tuple[torch.Tensor, ...],
    updates: Updates,
    state: OptState,
    *,
    params: Params | None = None,
    inplace: bool = True,
) -> tuple[Updates, OptState]:
    leaves, spec = optree.tree_flatten(updates, none_is_leaf=True)
    inplace = inplace and not _is_recording([*leaves, *learned])
    # what can fail midway must not have overwritten anything by then
    work = Workspace.over(leaves, spec, inplace and not rule.may_raise, params)
    grads = work.updates
    if not grads:
        return updates, state
    param_leaves = None if params is None else work.leaves(params, "params")
    if param_leaves is not None:
        work.check_shapes(param_leaves, "params")
    if not inplace:
        direction, state = rule.update(Direction(grads), state, param_leaves, work)
        return work.unflatten(work.merge(direction.owned(work), leaves)), state
    with torch.no_grad():
        direction, state = rule.update(Direction(grads), state, param_leaves, work)
        new = direction.owned(work)
    return work.unflatten(work.merge(new, leaves)), state


@dataclasses.dataclass(frozen=True, eq=False)
class _Foreign(Rule):
    """A transformation of trees, as a link of a chain."""

    transformation: GradientTransformation

    @property
    def may_raise(self) -> bool:
        return True

    def init(self, params: Params) -> OptState:
        return self.transformation.init(params)

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        grads = work.merge(updates.owned(work))
        tree, state = self.transformation.update(
            work.unflatten(grads),
            state,
            params=None if params is None else work.params,
            inplace=work.inplace,
        )
        return Direction(work.leaves(tree, "updates")), state


@dataclasses.dataclass(frozen=True, eq=False)
class Chain(Rule):
    """Rules applied one after the other; the state is the tuple of theirs."""

    rules: tuple[Rule, ...]

    def children(self) -> tuple[Rule, ...]:
        return self.rules

    @property
    def may_raise(self) -> bool:
        return any(rule.may_raise for rule in self.rules)

    def init(self, params: Params) -> OptState:
        return tuple(rule.init(params) for rule in self.rules)

    def adopt(self, state: Any, params: Params) -> OptState:
        return tuple(rule.adopt(x, params) for rule, x in zip(self.rules, state, strict=True))

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        if not isinstance(state, tuple) or len(state) != len(self.rules):
            raise TypeError(
                f"the state belongs to another transformation: expected a tuple of "
                f"{len(self.rules)} states, got {type(state).__name__}"
            )
        states = []
        for rule, link_state in zip(self.rules, state, strict=True):
            updates, new_state = rule.update(updates, link_state, params, work)
            states.append(new_state)
        return updates, tuple(states)


class ChainedGradientTransformation(RuleTransformation):
    """Transformations applied one after the other: flat, comparable and picklable.

    The trees are flattened once for all links. See :func:`chain`.
    """

    transformations: tuple[GradientTransformation, ...]

    def __new__(cls, *transformations: GradientTransformation) -> ChainedGradientTransformation:
        """Return the chain of ``transformations``."""
        flat: list[GradientTransformation] = []
        for link in transformations:
            if isinstance(link, ChainedGradientTransformation):
                flat.extend(link.transformations)
            elif not isinstance(link, IdentityGradientTransformation):
                flat.append(link)
        self = super().__new__(cls, Chain(tuple(map(as_rule, flat))))
        assert isinstance(self, ChainedGradientTransformation)
        self.transformations = tuple(flat)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return ChainedGradientTransformation, self.transformations

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ChainedGradientTransformation):
            return self.transformations == other.transformations
        return NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        return f"ChainedGradientTransformation{self.transformations!r}"


def as_rule(transformation: GradientTransformation) -> Rule:
    """Return the transformation as a rule over leaves."""
    if isinstance(transformation, RuleTransformation):
        return transformation.rule
    return _Foreign(transformation)


@dataclasses.dataclass(frozen=True, eq=False)
class IdentityRule(Rule):
    def init(self, params: Params) -> OptState:
        return EmptyState()

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        return updates, state


class IdentityGradientTransformation(RuleTransformation):
    """The transformation that changes nothing: the unit of :func:`chain`."""

    def __new__(cls) -> IdentityGradientTransformation:
        self = super().__new__(cls, IdentityRule())
        assert isinstance(self, IdentityGradientTransformation)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return IdentityGradientTransformation, ()


def identity() -> IdentityGradientTransformation:
    """Return the transformation that changes nothing.

    Example:
        >>> import torchopt
        >>> adam = torchopt.adam()
        >>> torchopt.chain(torchopt.base.identity(), adam) == adam
        True
    """
    return IdentityGradientTransformation()


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    """Return the transformation that applies the given ones in order.

    The state is the tuple of the links' states. Chains flatten (a chain of chains is one chain),
    compare and pickle; :func:`identity` is the unit, and the chain of one link is that link.

    Args:
        *transformations: The links, first to last.

    Example:
        >>> import torchopt
        >>> clipped = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(1e-3))
        >>> nested = torchopt.chain(torchopt.base.identity(), clipped)
        >>> nested == clipped
        True
    """
    for i, link in enumerate(transformations):
        check_transformation(link, f"argument {i} of `chain`")
    chained = ChainedGradientTransformation(*transformations)
    if not chained.transformations:
        return identity()
    return chained if len(chained.transformations) > 1 else chained.transformations[0]
