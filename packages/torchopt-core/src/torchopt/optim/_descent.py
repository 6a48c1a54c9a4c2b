"""The optimizer around a direction: sign, weight decay, learning rate."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd import forward_ad
from typing_extensions import ParamSpec

from torchopt import _extensions
from torchopt._arithmetic import pick, product
from torchopt._mask import mask_positions
from torchopt._rule import Direction, Rule
from torchopt._validate import (
    check_learning_rate,
    check_non_negative,
    is_scalar_tensor,
    is_schedule,
)
from torchopt._workspace import is_eager
from torchopt.base import EmptyState, RuleTransformation

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves, Operand
    from torchopt._workspace import Workspace
    from torchopt.typing import OptState, Params, Scalar, ScalarOrSchedule, TensorTree

__all__ = ["Descent", "OptimizerTransformation", "ScaleByScheduleState", "optimizer"]

_P = ParamSpec("_P")


class ScaleByScheduleState(NamedTuple):
    """The state of a schedule."""

    # updates made so far (0-dim int64)
    count: TensorTree


def add_decayed(
    leaves: Leaves, params: Leaves | None, weight_decay: Operand, mask: Any, work: Workspace
) -> Leaves:
    """Return ``leaves + weight_decay * params`` where the mask selects."""
    if params is None:
        raise ValueError("`weight_decay` needs the parameters: pass `params=` to `update`")
    chosen = mask_positions(mask, params, work)
    if not chosen:
        return leaves
    decayed = work.fresh.add_scaled(
        [leaves[k] for k in chosen], [params[k] for k in chosen], pick(weight_decay, chosen)
    )
    result = list(leaves)
    for k, x in zip(chosen, decayed, strict=True):
        result[k] = x
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Descent(Rule):
    r"""One step of an optimizer, :math:`\theta \leftarrow \theta - \eta \, d(g)`.

    With :math:`g` the gradient (negated to maximize), coupled weight decay :math:`\lambda` gives
    :math:`d(g + \lambda\theta)`, decoupled weight decay :math:`d(g) + \lambda\theta`.
    """

    #: How gradients become a direction.
    direction: Rule
    lr: ScalarOrSchedule | TensorTree
    weight_decay: Scalar = 0.0
    #: Whether the weight decay bypasses the direction (AdamW).
    decoupled: bool = False
    #: The leaves that decay; all by default.
    mask: Any = None
    maximize: bool = False
    #: ``True`` insists on a compiled kernel, ``None`` takes one where there is one.
    use_accelerated_op: bool | None = None

    def __post_init__(self) -> None:
        check_learning_rate(self.lr)
        check_non_negative("weight_decay", self.weight_decay)
        if self.use_accelerated_op:
            _extensions.require("torchopt.accelerated_op")

    def children(self) -> tuple[Rule, ...]:
        return (self.direction,)

    @property
    def may_raise(self) -> bool:
        plain_rate = isinstance(self.lr, (int, float)) or is_scalar_tensor(self.lr)
        return not plain_rate or self.mask is not None or self.direction.may_raise

    def init(self, params: Params) -> OptState:
        rate: OptState = EmptyState()
        if is_schedule(self.lr):
            rate = ScaleByScheduleState(count=torch.zeros((), dtype=torch.int64))
        return self.direction.init(params), rate

    def adopt(self, state: Any, params: Params) -> OptState:
        direction, rate = state
        if is_schedule(self.lr) and not isinstance(rate, ScaleByScheduleState):
            rate = ScaleByScheduleState(count=torch.zeros((), dtype=torch.int64))
        return self.direction.adopt(direction, params), rate

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        state, rate, rate_state = self._open(state, updates.numerators, work)
        if self._uses_compiled():
            updates = Direction(updates.materialize(work))
            done = self._run_compiled(updates.numerators, state, params, work, rate, keep=0.0)
            if done is not None:
                return Direction(done[0], borrowed=False), (done[1], rate_state)
        direction, state = self._direct(updates, state, params, work, rate)
        direction = direction.scaled(product(rate, -1.0))
        if self._decays and self.decoupled:
            factor = self._decay_factor(rate)
            leaves = add_decayed(direction.materialize(work), params, factor, self.mask, work)
            direction = Direction(leaves, borrowed=False)
        return direction, (state, rate_state)

    def step(
        self, grads: Leaves, state: Any, params: Leaves, work: Workspace
    ) -> tuple[Leaves, OptState]:
        state, rate, rate_state = self._open(state, grads, work)
        if self._uses_compiled():
            done = self._run_compiled(grads, state, params, work, rate, keep=1.0)
            if done is not None:
                return done[0], (done[1], rate_state)
        direction, state = self._direct(Direction(grads), state, params, work, rate)
        if self._decays and self.decoupled:
            params = self._shrink(params, rate, work)
        return direction.scaled(product(rate, -1.0)).add_to(params, work), (state, rate_state)

    @functools.cached_property
    def _compiled(self) -> Any:
        """The compiled form of the step, from `torchopt-accel`; None without one."""
        if self.use_accelerated_op is False:
            return None
        accel = _extensions.optional("torchopt_accel")
        return None if accel is None else accel.compile_descent(self)

    def _uses_compiled(self) -> bool:
        """Return whether to try the compiled form; a compiler that traces would not see into it."""
        if torch.compiler.is_compiling() and not self.use_accelerated_op:
            return False
        return self._compiled is not None

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: what is compiled stays where it is."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def _decays(self) -> bool:
        return isinstance(self.weight_decay, torch.Tensor) or self.weight_decay != 0

    def _open(
        self, state: Any, grads: Leaves, work: Workspace
    ) -> tuple[OptState, Operand, OptState]:
        """Return the state of the direction, the learning rate, and its next state."""
        if not isinstance(state, tuple) or len(state) != 2:
            raise TypeError(
                "the state belongs to another transformation: expected the pair (state of the "
                f"direction, state of the learning rate), got {type(state).__name__}"
            )
        return state[0], *self._rate(state[1], grads, work)

    def _run_compiled(
        self,
        grads: Leaves,
        state: Any,
        params: Leaves | None,
        work: Workspace,
        rate: Operand,
        keep: float,
    ) -> tuple[Leaves, OptState] | None:
        """Return ``keep * params`` plus the updates; None where the compiled step cannot."""
        number = _as_number(rate)
        if number is None:  # a learned rate is left to `_direct` and the arithmetic around it
            return None
        result: tuple[Leaves, OptState] | None = self._compiled.run(
            grads, state, params, work, rate=number, keep=keep
        )
        return result

    def _direct(
        self,
        updates: Direction,
        state: Any,
        params: Leaves | None,
        work: Workspace,
        rate: Operand,
    ) -> tuple[Direction, OptState]:
        if self._uses_compiled() and _as_number(rate) is None:
            grads = updates.materialize(work)
            done = self._compiled.run(grads, state, params, work, rate=None, keep=0.0)
            if done is not None:
                return Direction(done[0], borrowed=False), done[1]
        if self.maximize:
            updates = updates.scaled(-1.0)
        if self._decays and not self.decoupled:
            leaves = updates.materialize(work)
            updates = Direction(add_decayed(leaves, params, self.weight_decay, self.mask, work))
        return self.direction.update(updates, state, params, work)

    def _rate(self, state: Any, grads: Leaves, work: Workspace) -> tuple[Operand, OptState]:
        if isinstance(self.lr, (int, float)) or is_scalar_tensor(self.lr):
            return self.lr, state
        if not is_schedule(self.lr):
            return work.factors(self.lr, "lr", grads), state
        if not isinstance(state, ScaleByScheduleState):
            raise TypeError(
                "the state belongs to another transformation: expected ScaleByScheduleState, got "
                f"{type(state).__name__}"
            )
        return self.lr(state.count), ScaleByScheduleState(count=state.count + 1)

    def _decay_factor(self, rate: Operand) -> Operand:
        return product(product(rate, -1.0), self.weight_decay)

    def _shrink(self, params: Leaves, rate: Operand, work: Workspace) -> Leaves:
        """Return ``params * (1 - rate * weight_decay)`` where the mask selects."""
        chosen = mask_positions(self.mask, params, work)
        factor: Any = pick(self._decay_factor(rate), chosen)
        factor = [1 + x for x in factor] if isinstance(factor, list) else 1 + factor
        result = list(params)
        if chosen:
            shrunk = work.reuse.mul([params[k] for k in chosen], factor)
            for k, x in zip(chosen, shrunk, strict=True):
                result[k] = x
        return result


def _as_number(rate: Operand) -> float | None:
    """Return a learning rate as a Python number, unless that would lose a derivative."""
    if isinstance(rate, (int, float)):
        return float(rate)
    if (
        isinstance(rate, torch.Tensor)
        and rate.ndim == 0
        and rate.is_cpu
        and not rate.requires_grad
        and forward_ad._current_level < 0
        and is_eager(rate)
    ):
        return float(rate)
    return None


class OptimizerTransformation(RuleTransformation):
    """An optimizer in its functional form, which remembers how it was made.

    So the stateful and the differentiable form can be derived from it, and each parameter group
    can have hyperparameters of its own.
    """

    factory: Callable[..., OptimizerTransformation]
    hyperparameters: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, (self.factory, self.hyperparameters)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.hyperparameters.items())
        return f"{self.factory.__name__}({arguments})"


def _make(
    factory: Callable[..., OptimizerTransformation], hyperparameters: dict[str, Any]
) -> OptimizerTransformation:
    return factory(**hyperparameters)


def optimizer(rule: Callable[_P, Rule]) -> Callable[_P, OptimizerTransformation]:
    """Turn a function from hyperparameters to a rule into an optimizer's functional form."""
    signature = inspect.signature(rule)

    @functools.wraps(rule)
    def factory(*args: _P.args, **kwargs: _P.kwargs) -> OptimizerTransformation:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        transformation = RuleTransformation.__new__(OptimizerTransformation, rule(*args, **kwargs))
        assert isinstance(transformation, OptimizerTransformation)
        transformation.factory = factory
        transformation.hyperparameters = dict(bound.arguments)
        return transformation

    return factory
