"""Gradient transformations: the interface, composition, and the identity."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import optree
import torch

from torchopt._chain import Chain, Identity, select_state
from torchopt._context import Context, Evaluate
from torchopt._driver import (
    Extras,
    as_chain,
    check_params,
    check_params_like,
    flat_state,
    init,
    initial_tree,
    open_step,
    run,
    tree_state,
)
from torchopt._legacy_state import converted, is_legacy
from torchopt._rule import Rule
from torchopt._state import EmptyState, Field, Kind, UninitializedState
from torchopt._structure import flatten_like
from torchopt._types import Leaves, OptState, Params, Scalar, Updates, ValueAndGrad
from torchopt._updates import FactoredUpdates

__all__ = [
    "ChainedGradientTransformation",
    "EmptyState",
    "GradientTransformation",
    "IdentityGradientTransformation",
    "TransformInitFn",
    "TransformUpdateFn",
    "UninitializedState",
    "chain",
    "eval_params",
    "identity",
]


class TransformInitFn(Protocol):
    """The signature of :attr:`GradientTransformation.init`."""

    def __call__(self, params: Params, /) -> OptState: ...


class TransformUpdateFn(Protocol):
    """The signature of :attr:`GradientTransformation.update`."""

    def __call__(
        self,
        updates: Updates,
        state: OptState,
        *,
        params: Params | None = None,
        inplace: bool = True,
        value: torch.Tensor | None = None,
        lr: Scalar | None = None,
        value_and_grad: ValueAndGrad | None = None,
    ) -> tuple[Updates, OptState]: ...


class _Pair(NamedTuple):
    init: TransformInitFn
    update: TransformUpdateFn


class GradientTransformation(_Pair):
    """A pair of pure functions that turns gradients into updates.

    Args:
        init: ``init(params) -> state``, for a tree of parameters.
        update: ``update(updates, state, *, params=None, inplace=True) -> (updates, state)``.
            ``updates`` is a tree of gradients shaped like the parameters, in which ``None`` means
            "no gradient here": that leaf and its state pass through. Kinds of sequences and of
            dicts may differ: the tuple of `torch.autograd.grad` goes with a list of parameters,
            and updates come back as such a tuple. With ``inplace=True`` the
            memory of the state is reused and no graph is recorded; gradients are never written
            to. With ``inplace=False``, and wherever a graph is being recorded through the updates,
            the state or the hyperparameters, or a ``torch.func`` transform is running, nothing is
            overwritten and the result is differentiable to any order. (Weights in the state that
            begin as copies of the parameters, as :func:`lookahead`'s, are by themselves no reason
            to record a graph, or ordinary training would.) A state that TorchOpt 0.7
            made is taken as :func:`torchopt.utils.convert_state` takes it.

    Some transformations need more, which ``update`` takes and every link of a chain receives:
    ``value``, the loss at ``params``; ``lr``, a learning rate for rules that need one and are not
    part of an optimizer that has it; ``value_and_grad``, a function from a tree of parameters to
    the loss there and the tree of its gradients. A function of your own receives those of them that
    its signature names.

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
        links, is_chain = as_chain(rule), isinstance(rule, Chain)
        self = super().__new__(
            cls,
            functools.partial(_init, rule),
            functools.partial(_update, links, is_chain, tuple(rule.learned())),
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

    def __hash__(self) -> int:
        return hash(type(self.rule))  # hyperparameters may be tensors, of which equal ones differ

    def __repr__(self) -> str:
        return f"GradientTransformation({self.rule!r})"

    def _replace(self, **changes: Any) -> GradientTransformation:  # type: ignore[override]
        """Return the pair of functions with others, which is of no rule any more."""
        return GradientTransformation(**{**self._asdict(), **changes})

    def parts(self) -> list[GradientTransformation]:
        """Return the transformations that this one is made of."""
        return []

    def with_parts(self, parts: list[GradientTransformation]) -> GradientTransformation:
        """Return the transformation made of others."""
        assert not parts
        return self


def check_transformation(value: Any, name: str) -> None:
    """Raise unless ``value`` is a pair of functions ``init`` and ``update``."""
    if not isinstance(value, tuple) or not hasattr(value, "init") or not hasattr(value, "update"):
        raise TypeError(f"{name} must be a GradientTransformation, got {_mistaken(value)}")


def _mistaken(value: Any) -> str:
    """Return what something is that is no transformation, and what to give instead."""
    if callable(value) and not isinstance(value, type) and hasattr(value, "__name__"):
        return f"the function {value.__name__}: did you mean to call it?"
    kind = value if isinstance(value, type) else type(value)
    is_optimizer = issubclass(kind, torch.optim.Optimizer)
    is_of_torch = is_optimizer and kind.__module__.startswith("torch.optim")
    name = f"torch.optim.{kind.__name__}" if is_of_torch else kind.__name__
    if value is not kind and hasattr(value, "impl"):
        return f"an instance of {name}: pass its `impl`"
    what = f"the class {name}" if value is kind else f"an instance of {name}"
    if is_optimizer or hasattr(kind, "_functional"):
        functional = kind.__name__.removeprefix("Meta").lower()
        if functional in getattr(sys.modules.get("torchopt.alias"), "__all__", ()):
            return f"{what}: pass its functional form, `torchopt.{functional}(...)`"
        return f"{what}: pass a functional optimizer, such as `torchopt.adam(...)`"
    return f"{what}: did you mean to call it?" if value is kind else what


def _init(rule: Rule, params: Params) -> OptState:
    check_params(params)
    leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
    return initial_tree(rule, init(rule, leaves, spec, params), spec)


def _update(
    links: Chain,
    is_chain: bool,
    learned: tuple[torch.Tensor, ...],
    updates: Updates,
    state: OptState,
    *,
    params: Params | None = None,
    inplace: bool = True,
    value: torch.Tensor | None = None,
    lr: Scalar | None = None,
    value_and_grad: ValueAndGrad | None = None,
) -> tuple[Updates, OptState]:
    leaves, spec = optree.tree_flatten(updates, none_is_leaf=True)
    if not [x for x in leaves if x is not None]:
        return updates, state
    states: Any = state if is_chain else (state,)
    param_leaves = None
    if params is not None:
        param_leaves = flatten_like(spec, params, "params")
        check_params_like(param_leaves, leaves)
    evaluate = None if value_and_grad is None else _evaluate_leaves(value_and_grad, spec)
    try:
        flat = flat_state(links, states, spec)
    except TypeError:
        if not is_legacy(state):
            raise
        tree = updates if params is None else params
        rule = links if is_chain else links.rules[0]
        found = converted(rule, state, param_leaves or leaves, spec, tree)
        flat = found if is_chain else (found,)
        states = initial_tree(links, flat, spec)
    extras = Extras(value, lr, evaluate)
    step = open_step(links, leaves, flat, spec, param_leaves, params, extras, learned)
    if inplace and not step.records():
        with torch.no_grad():
            ((found, new),) = run([step], inplace=True, stepping=False)
    else:
        ((found, new),) = run([step], inplace=False, stepping=False)
    new = tree_state(links, new, flat, states, spec)
    return optree.tree_unflatten(spec, found), new if is_chain else new[0]


def _evaluate_leaves(value_and_grad: ValueAndGrad, spec: optree.PyTreeSpec) -> Evaluate:
    """Return a function of trees as one of leaves."""

    def evaluate(params: Leaves) -> tuple[torch.Tensor, Leaves]:
        with torch.enable_grad():  # whatever becomes of the step's own graph
            value, grads = value_and_grad(optree.tree_unflatten(spec, params))
        found = flatten_like(spec, grads, "the gradients that `value_and_grad` returned")
        pairs = zip(found, params, strict=True)
        return value, [torch.zeros_like(p) if g is None and p is not None else g for g, p in pairs]

    return evaluate


def eval_params(transformation: GradientTransformation, params: Params, state: OptState) -> Params:
    """Return the parameters to evaluate a model at, where these differ from those that are trained.

    They do for averaging methods (:func:`torchopt.schedule_free`); for all others they are
    ``params`` themselves.

    Args:
        transformation: The transformation, which may contain such a method anywhere.
        params: The tree of parameters that are trained.
        state: The state of the transformation.

    Example:
        >>> import torch, torchopt
        >>> torchopt.eval_params(
        ...     torchopt.adam(), torch.ones(2), torchopt.adam().init(torch.ones(2))
        ... )
        tensor([1., 1.])
    """
    if not isinstance(transformation, RuleTransformation):
        return params
    rule = transformation.rule
    leaves, spec = optree.tree_flatten(params, none_is_leaf=True)
    flat = flat_state(rule, state, spec)
    active = [i for i, x in enumerate(leaves) if x is not None]
    context = Context(spec, tree=params).computing(inplace=False)
    if len(active) < len(leaves):
        context = context.restrict(active)
        flat = select_state(rule, flat, active)
    found = rule.evaluated_at([leaves[i] for i in active], flat, context)
    for i, x in zip(active, found, strict=True):
        leaves[i] = x
    return optree.tree_unflatten(spec, leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class Foreign(Rule):
    """A transformation of trees that is a user's own, as a rule."""

    transformation: GradientTransformation

    # any kind of state; it may raise, and sees complex leaves as they are
    state_type = object
    fallible = True
    elementwise = False

    def __post_init__(self) -> None:
        _ = self._extras

    @functools.cached_property
    def _extras(self) -> frozenset[str]:
        """The names of what it takes beside parameters."""
        try:
            parameters = inspect.signature(self.transformation.update).parameters
        except (TypeError, ValueError):
            return frozenset()
        if any(x.kind is x.VAR_KEYWORD for x in parameters.values()):
            return frozenset(Extras._fields)
        return frozenset(Extras._fields) & parameters.keys()

    def init(self, params: Leaves, context: Context) -> Any:
        return self.transformation.init(context.unflatten(params))

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        return function(Field(Kind.OPAQUE, "state", "state"), state, *others)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        extras: dict[str, Any] = {name: getattr(context, name) for name in self._extras}
        if extras.get("value_and_grad") is not None:
            extras["value_and_grad"] = self._evaluate_tree(context)
        found: Any = self.transformation.update(
            context.unflatten(updates.owned(context)),
            state,
            params=None if context.params is None else context.tree,
            inplace=context.inplace,
            **extras,
        )
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(
                f"`update` of {self.transformation!r} must return the pair (updates, state), got "
                f"{type(found).__name__}"
            )
        leaves = context.flatten(found[0], "updates")
        for i, like, x in zip(context.positions, context.like or leaves, leaves, strict=True):
            if not isinstance(x, torch.Tensor) or x.shape != like.shape:
                what = f"of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else repr(x)
                raise ValueError(
                    f"`update` of {self.transformation!r} returned {what} for leaf {i}, whose "
                    f"update is a tensor of shape {tuple(like.shape)}"
                )
        return FactoredUpdates(leaves), found[1]

    @staticmethod
    def _evaluate_tree(context: Context) -> ValueAndGrad:
        def value_and_grad(params: Params) -> tuple[torch.Tensor, Updates]:
            assert context.value_and_grad is not None
            value, grads = context.value_and_grad(context.flatten(params, "params"))
            return value, context.unflatten(grads)

        return value_and_grad


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

    __hash__ = RuleTransformation.__hash__

    def __repr__(self) -> str:
        return f"ChainedGradientTransformation{self.transformations!r}"

    def parts(self) -> list[GradientTransformation]:
        return list(self.transformations)

    def with_parts(self, parts: list[GradientTransformation]) -> GradientTransformation:
        return chain(*parts)


def as_rule(transformation: GradientTransformation) -> Rule:
    """Return the transformation as a rule over leaves."""
    if isinstance(transformation, RuleTransformation):
        return transformation.rule
    return Foreign(transformation)


class IdentityGradientTransformation(RuleTransformation):
    """The transformation that changes nothing: the unit of :func:`chain`."""

    def __new__(cls) -> IdentityGradientTransformation:
        self = super().__new__(cls, Identity())
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
