"""The optimizer around a direction: sign, weight decay, learning rate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

from torchopt import _extensions, kernels
from torchopt._arithmetic import Operand, pick, product
from torchopt._chain import Chain, is_same, merge_state, prepare, select_state, update
from torchopt._context import Context, is_eager
from torchopt._mask import mask_positions
from torchopt._rule import Rule
from torchopt._state import EmptyState, Kind, fields_of, record, shared
from torchopt._structure import tuple_structure
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import (
    check_flag,
    check_learning_rate,
    check_mask,
    check_non_negative,
    check_rate,
    is_scalar_tensor,
    is_schedule,
)
from torchopt.schedule._base import BaseSchedule

__all__ = [
    "SCHEDULE_STEP",
    "GradientStep",
    "Rate",
    "ScaleByScheduleState",
    "add_decayed",
]


#: The name of a schedule's count in the state of a stateful optimizer.
SCHEDULE_STEP = "schedule_step"


@record(count=shared(SCHEDULE_STEP))
class ScaleByScheduleState(NamedTuple):
    """The state of a schedule."""

    # updates made so far (0-dim int64, on the CPU)
    count: TensorTree


def first_count() -> ScaleByScheduleState:
    """Return the state of a schedule before the first step."""
    return ScaleByScheduleState(count=torch.zeros((), dtype=torch.int64, device="cpu"))


def add_decayed(
    leaves: Leaves,
    weight_decay: Operand,
    chosen: tuple[int, ...] | None,
    context: Context,
) -> Leaves:
    """Return ``leaves + weight_decay * params``, for the chosen leaves or all."""
    params = context.params
    assert params is not None
    if chosen is None:
        return context.fresh.add_scaled(leaves, params, weight_decay)
    if not chosen:
        return leaves
    decayed = context.fresh.add_scaled(
        [leaves[k] for k in chosen], [params[k] for k in chosen], pick(weight_decay, chosen)
    )
    result = list(leaves)
    for k, x in zip(chosen, decayed, strict=True):
        result[k] = x
    return result


def chosen_leaves(mask: Any, context: Context) -> tuple[int, ...] | None:
    """Return the positions of the leaves that decay, None for all; the parameters are needed."""
    if context.params is None:
        raise ValueError("`weight_decay` needs the parameters: pass `params=` to `update`")
    return None if mask is None else tuple(mask_positions(mask, context))


# elements: with a gradient, a parameter and two moments some MiB, what a core's cache holds
_CACHED = 1 << 17


class Rate:
    """A number that its owner may change between steps, as a learning rate."""

    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        """Take the number."""
        self.value = value


class _Plan(NamedTuple):
    rate: Operand
    # the positions of the leaves that decay; None for all
    decays: tuple[int, ...] | None
    # the plan of the direction
    direction: Any


@dataclasses.dataclass(frozen=True, eq=False)
class GradientStep(Rule):
    r"""A step along a direction, :math:`\theta \leftarrow \theta - \eta \, d(g)`.

    With :math:`g` the gradient (negated to maximize), coupled weight decay :math:`\lambda` gives
    :math:`d(g + \lambda\theta)`, decoupled weight decay :math:`d(g) + \lambda\theta`.
    """

    #: How gradients become a direction.
    direction: Rule
    lr: ScalarOrSchedule | TensorTree | Rate
    weight_decay: Scalar = 0.0
    #: Whether the weight decay bypasses the direction (AdamW).
    decoupled: bool = False
    #: The leaves that decay; all by default.
    mask: Any = None
    maximize: bool = False
    #: ``True`` insists on a kernel, ``None`` takes one where there is one.
    use_accelerated_op: bool | None = None

    state_type = object

    def __post_init__(self) -> None:
        check_learning_rate(self.lr.value if isinstance(self.lr, Rate) else self.lr)
        check_non_negative("weight_decay", self.weight_decay)
        check_mask(self.mask)
        check_flag("maximize", self.maximize)
        if self.use_accelerated_op:
            _extensions.require("torchopt.accelerated_op")

    def children(self) -> tuple[Rule, ...]:
        return (self.direction,)

    def init(self, params: Leaves, context: Context) -> Any:
        rate = first_count() if is_schedule(self.lr) else EmptyState()
        return self.direction.init(params, context), rate

    def map_state(self, function: Callable[..., Any], state: Any, *others: Any) -> Any:
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(
                "the state belongs to another transformation: expected the pair (state of the "
                f"direction, state of the learning rate), got {type(state).__name__}"
            )
        direction = self.direction.map_state(function, state[0], *[x[0] for x in others])
        if not is_schedule(self.lr):
            return direction, state[1] if isinstance(state[1], EmptyState) else EmptyState()
        if type(state[1]) is not ScaleByScheduleState:
            raise TypeError(
                "the state belongs to another transformation: expected ScaleByScheduleState, got "
                f"{type(state[1]).__name__}"
            )
        (field,) = fields_of(ScaleByScheduleState)
        count = function(field, state[1].count, *[x[1].count for x in others])
        return direction, ScaleByScheduleState(count)

    def prepare(self, state: Any, context: Context) -> _Plan:
        rate = self._rate(state[1], context)
        number = _as_number(rate)  # in double precision, as in torch
        rate = rate if number is None else number
        own = context._replace(lr=rate) if self.direction.absorbs_rate else context
        direction = prepare(self.direction, state[0], own)
        decays = chosen_leaves(self.mask, context) if self._decays else None
        return _Plan(rate, decays, direction)

    def rate(self, context: Context) -> Operand | None:
        plan: _Plan = context.plan
        return plan.rate

    def _rate(self, state: Any, context: Context) -> Operand:
        """Return the learning rate."""
        if isinstance(self.lr, Rate):
            return self.lr.value
        if isinstance(self.lr, (int, float)) or is_scalar_tensor(self.lr):
            return self.lr
        if isinstance(self.lr, torch.Tensor) and self.lr.numel() == 1:
            return self.lr.reshape(())
        if not is_schedule(self.lr):
            return context.factors(self.lr, "lr", context.like or [])
        if isinstance(self.lr, BaseSchedule) and is_eager(state.count):
            count = int(state.count)  # plain arithmetic takes less than operations on tensors
        else:
            count = state.count.clone()  # a user's function may keep it
        return check_rate("the schedule of `lr`", self.lr(count))

    def _next(self, direction: Any, state: Any, context: Context) -> Any:
        """Return the next state, given that of the direction."""
        rate = state[1]
        if isinstance(rate, ScaleByScheduleState):
            if context.inplace:
                rate.count.add_(1)
            else:
                rate = ScaleByScheduleState(count=rate.count + 1)
        if is_same(direction, state[0]) and is_same(rate, state[1]):
            return state
        return direction, rate

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        plan: _Plan = context.plan
        if self._asks_kernel(context):
            rate = _as_number(plan.rate)
            # a learned rate multiplies the direction; so does decoupled decay then
            found = self._ask_kernel(updates, state[0], context, rate, keep=0.0)
            if not isinstance(found, FactoredUpdates):
                leaves, new = found
                result = FactoredUpdates(leaves, borrowed=False)
                if rate is None:
                    result = self._scale_and_decay(result, context)
                return result, self._next(new, state, context)
            updates = found
        result, new = self._direct(updates, state[0], context)
        return self._scale_and_decay(result, context), self._next(new, state, context)

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        plan: _Plan = context.plan
        assert context.params is not None
        if self._asks_kernel(context):
            rate = _as_number(plan.rate)
            keep = 0.0 if rate is None else 1.0
            found = self._ask_kernel(updates, state[0], context, rate, keep)
            if not isinstance(found, FactoredUpdates):
                leaves, new = found
                if rate is None:
                    leaves = self._apply(FactoredUpdates(leaves, borrowed=False), context)
                return leaves, self._next(new, state, context)
            updates = found
        if self._is_separable(plan, context):
            return self._step_in_parts(updates, state, context)
        result, new = self._direct(updates, state[0], context)
        return self._apply(result, context), self._next(new, state, context)

    def _is_separable(self, plan: _Plan, context: Context) -> bool:
        """Return whether large leaves can be stepped one after the other, in place."""
        params = context.params
        return (
            params is not None
            and len(params) > 1
            and context.inplace
            and isinstance(plan.rate, float)
            and plan.decays is None
            and plan.direction is None
            and self._is_leafwise
            and params[0].is_cpu
            and sum([p.numel() for p in params]) > _CACHED
        )

    @functools.cached_property
    def _is_leafwise(self) -> bool:
        """Whether the direction of a leaf depends on nothing of the other leaves."""
        rule = self.direction
        return (
            rule.elementwise
            and rule.state_type is not object
            and not rule.children()
            and not any(field.is_shared for field in fields_of(rule.state_type))
        )

    def _step_in_parts(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[Leaves, Any]:
        """Step some leaves after the other, so that all passes over these are within the cache."""
        assert context.params is not None
        leaves: list[Any] = list(context.params)
        direction = state[0]
        part: list[int] = []
        size, last = 0, len(leaves) - 1
        for k, p in enumerate(leaves):
            part.append(k)
            size += p.numel()
            if size < _CACHED and k < last:
                continue
            own = context.restrict(part)
            selected = select_state(self.direction, direction, part)
            result, new = self._direct(updates.of(part), selected, own)
            direction = merge_state(self.direction, new, selected, direction, part)
            for i, x in zip(part, self._apply(result, own), strict=True):
                leaves[i] = x
            part, size = [], 0
        return leaves, self._next(direction, state, context)

    @property
    def _decays(self) -> bool:
        return isinstance(self.weight_decay, torch.Tensor) or self.weight_decay != 0

    def _direct(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        """Return the direction, of gradients that decay if that is coupled."""
        plan: _Plan = context.plan
        if self.maximize:
            updates = updates.scaled(-1.0)
        if self._decays and not self.decoupled:
            leaves = updates.materialize(context)
            updates = FactoredUpdates(add_decayed(leaves, self.weight_decay, plan.decays, context))
        own = context.at_rate(plan.rate, plan.direction)
        return update(self.direction, updates, state, own)

    def _scale_and_decay(self, direction: FactoredUpdates, context: Context) -> FactoredUpdates:
        """Return the updates."""
        plan: _Plan = context.plan
        factor = -1.0 if self.direction.absorbs_rate else product(plan.rate, -1.0)
        updates = direction.scaled(factor)
        if not (self._decays and self.decoupled):
            return updates
        factor = product(product(plan.rate, -1.0), self.weight_decay)
        leaves = add_decayed(updates.materialize(context), factor, plan.decays, context)
        return FactoredUpdates(leaves, borrowed=False)

    def _apply(self, direction: FactoredUpdates, context: Context) -> Leaves:
        """Return the next parameters."""
        plan: _Plan = context.plan
        params = context.params
        assert params is not None
        if self._decays and self.decoupled:
            params = self._shrunk(params, plan, context)
        if not self.direction.absorbs_rate:
            direction = direction.scaled(plan.rate)
        return direction.add_to(params, context, -1.0)

    def _shrunk(self, params: Leaves, plan: _Plan, context: Context) -> Leaves:
        """Return ``params * (1 - rate * weight_decay)`` for the leaves that decay."""
        chosen = range(len(params)) if plan.decays is None else plan.decays
        if not chosen:
            return params
        factor: Any = pick(product(product(plan.rate, -1.0), self.weight_decay), chosen)
        factor = [1 + x for x in factor] if isinstance(factor, list) else 1 + factor
        shrunk = context.reuse.mul([params[k] for k in chosen], factor)
        result = list(params)
        for k, x in zip(chosen, shrunk, strict=True):
            result[k] = x
        return result

    @functools.cached_property
    def _kernel(self) -> kernels.Kernel | None:
        """What takes the steps in `torchopt-accel`; None without one."""
        if self.use_accelerated_op is False:
            return None
        provider = _extensions.kernel_provider()
        reason = None
        if provider is None:
            reason = "torchopt-accel offers its kernels by another version of the protocol"
        elif isinstance(self.weight_decay, torch.Tensor):
            reason = "its weight decay is a tensor"
        elif self.direction.learned():
            reason = "its hyperparameters are tensors, other than the learning rate"
        elif (formula := self.direction.formula()) is None:
            reason = f"there is no kernel for {type(self.direction).__name__}"
        else:
            try:
                kernel: kernels.Kernel = provider.kernel(formula)
                return kernel
            except kernels.NotCoveredError as error:
                reason = str(error)
        if self.use_accelerated_op:
            raise kernels.NotCoveredError(_refusal(reason))
        return None

    @functools.cached_property
    def _composite(self) -> Callable[..., tuple[Leaves, list[Leaves]]]:
        template = self.direction.init([], Context(tuple_structure(0)))
        return functools.partial(_composite, self.direction, template)

    def require_kernel(self) -> None:
        """Raise if kernels are insisted on, and there is none for the direction.

        Raises:
            NotCoveredError: With the reason.
        """
        _ = self._kernel

    def _asks_kernel(self, context: Context) -> bool:
        """Return whether to ask a kernel; a compiler that traces would not see into it."""
        if self.use_accelerated_op:
            return self._kernel is not None
        if torch.compiler.is_compiling() or (kernel := self._kernel) is None:
            return False
        decay: Any = self.weight_decay  # a number, where there is a kernel
        return kernel.pays(len(context.like or ()), context.inplace, decay)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: a kernel stays where it is."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _ask_kernel(
        self,
        updates: FactoredUpdates,
        state: Any,
        context: Context,
        rate: float | None,
        keep: float,
    ) -> tuple[Leaves, Any] | FactoredUpdates:
        """Return what the kernel makes of the step, or the updates where it does not cover it."""
        kernel, plan = self._kernel, context.plan
        assert kernel is not None
        scale = _as_number(updates.scale) if updates.roots is None else None
        if scale is None:
            updates = FactoredUpdates(updates.materialize(context))
            scale = 1.0
        moments, counts = _take_apart(state, isinstance(self.direction, Chain))
        decay: Any = self.weight_decay
        request = kernels.Request(
            gradients=updates.numerators,
            parameters=context.params,
            moments=moments,
            counts=counts,
            scale=-scale if self.maximize else scale,
            weight_decay=decay,
            decoupled=self.decoupled,
            decays=plan.decays,
            rate=rate,
            keep=keep,
            inplace=context.inplace,
            composite=self._composite,
        )
        try:
            result = kernel.step(request)
        except kernels.NotCoveredError as error:
            if self.use_accelerated_op:
                raise kernels.NotCoveredError(_refusal(str(error))) from error
            return updates
        if context.inplace:
            return result.leaves, state
        return result.leaves, _assemble(
            state, isinstance(self.direction, Chain), result.moments, result.counts
        )


def _refusal(reason: str) -> str:
    return (
        f"`use_accelerated_op=True`, but {reason}; with `use_accelerated_op=None` the optimizer "
        "takes the compiled step where it can, and an equal one elsewhere"
    )


def _take_apart(state: Any, is_chain: bool) -> tuple[list[Leaves], Leaves | None]:
    """Return the moments and the step counts in a state."""
    moments: list[Leaves] = []
    counts: Leaves | None = None
    for part in state if is_chain else (state,):
        for field, value in zip(fields_of(type(part)), part, strict=True):
            if field.kind is Kind.MOMENT:
                moments.append(value)
            else:
                counts = value
    return moments, counts


def _assemble(state: Any, is_chain: bool, moments: list[Leaves], counts: Leaves | None) -> Any:
    """Return a state like ``state`` with other moments and step counts."""
    remaining = iter(moments)
    parts = [
        type(part)(
            *[
                next(remaining) if field.kind is Kind.MOMENT else counts
                for field in fields_of(type(part))
            ]
        )
        for part in (state if is_chain else (state,))
    ]
    return tuple(parts) if is_chain else parts[0]


def _composite(
    direction: Rule, state: Any, grads: Leaves, moments: list[Leaves], numbers: list[int]
) -> tuple[Leaves, list[Leaves]]:
    """Return direction and next moments; see :attr:`torchopt.kernels.Request.composite`."""
    is_chain = isinstance(direction, Chain)
    counts = [torch.tensor(t - 1, dtype=torch.int64, device="cpu") for t in numbers]
    own = _assemble(state, is_chain, moments, counts)
    context = Context(tuple_structure(len(grads))).computing(inplace=False)
    context = context._replace(plan=prepare(direction, own, context))
    updates, new = direction.update(FactoredUpdates(grads), own, context)
    return updates.materialize(context), _take_apart(new, is_chain)[0]


def _as_number(operand: Operand) -> float | None:
    """Return an operand as a Python number, unless that would lose a derivative or wait."""
    if isinstance(operand, (int, float)):
        return float(operand)
    if (
        isinstance(operand, torch.Tensor)
        and operand.ndim == 0
        and operand.is_cpu
        and not operand.requires_grad
        and forward_ad._current_level < 0
        and is_eager(operand)
    ):
        return float(operand)
    return None
