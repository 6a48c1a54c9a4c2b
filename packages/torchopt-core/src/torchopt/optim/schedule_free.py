"""Schedule-free averaging around an optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import Operand
from torchopt._chain import prepare, update
from torchopt._context import Context
from torchopt._factory import optimizer
from torchopt._rule import Rule
from torchopt._state import nested, record, shared, weights
from torchopt._types import Leaves, OptState, Scalar, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.base import GradientTransformation, as_rule, check_transformation
from torchopt.optim import _derived

__all__ = ["MetaScheduleFree", "ScheduleFree", "schedule_free"]


@record(
    inner_state=nested(),
    z=weights("z"),
    weight_sum=shared("weight_sum"),
    lr_max=shared("lr_max"),
    count=shared("k"),
)
class ScheduleFreeState(NamedTuple):
    """The state of :func:`schedule_free`; every field changes in every step."""

    # the state of the optimizer
    inner_state: OptState
    # where the optimizer is, a tree like the parameters
    z: TensorTree
    # sum of the weights of the average, and the largest learning rate so far (0-dim float64)
    weight_sum: torch.Tensor
    lr_max: torch.Tensor
    # steps taken (0-dim int64)
    count: TensorTree


class _Plan(NamedTuple):
    inner: Any
    # the weight of z in the average, and the next state of what it depends on
    share: torch.Tensor
    weight_sum: torch.Tensor
    lr_max: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class ScheduleFreeRule(Rule):
    """The rule of :func:`schedule_free`."""

    inner: Rule
    momentum: Scalar
    r: Scalar
    weight_lr_power: Scalar

    averages = True
    state_type = ScheduleFreeState

    def __post_init__(self) -> None:
        if not isinstance(self.momentum, torch.Tensor) and not 0 < self.momentum < 1:
            raise ValueError(f"`momentum` must be in (0, 1), got {self.momentum}")
        check_non_negative("r", self.r)
        check_non_negative("weight_lr_power", self.weight_lr_power)

    def children(self) -> tuple[Rule, ...]:
        return (self.inner,)

    def init(self, params: Leaves, context: Context) -> ScheduleFreeState:
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        return ScheduleFreeState(
            inner_state=self.inner.init(params, context),
            z=[p.clone() for p in params],
            weight_sum=zero,
            lr_max=zero.clone(),
            count=torch.zeros((), dtype=torch.int64, device="cpu"),
        )

    def prepare(self, state: Any, context: Context) -> _Plan:
        if context.params is None:
            raise ValueError("`schedule_free` needs the parameters: pass `params=` to `update`")
        plan = prepare(self.inner, state.inner_state, context)
        rate = self.inner.rate(context._replace(plan=plan))
        if not isinstance(rate, (int, float)) and not (
            isinstance(rate, torch.Tensor) and rate.ndim == 0
        ):
            raise ValueError(
                "`schedule_free` needs an optimizer with one learning rate, a number or a 0-dim "
                f"tensor, got {type(rate).__name__}"
            )
        rate = torch.as_tensor(rate, dtype=torch.float64, device="cpu")
        lr_max = torch.maximum(state.lr_max, rate)
        weight = (state.count + 1).to(torch.float64) ** self.r * lr_max**self.weight_lr_power
        weight_sum = state.weight_sum + weight
        share = torch.where(weight_sum > 0, weight / weight_sum.clamp_min(1e-300), 0.0)
        return _Plan(plan, share, weight_sum, lr_max)

    def rate(self, context: Context) -> Operand | None:
        return self.inner.rate(context._replace(plan=context.plan.inner))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        assert context.params is not None
        moves, inner, share, ahead = self._moves(updates, state, context)
        pulls = context.fresh.add_scaled(state.z, context.params, -1.0)
        found = context.reuse.add_scaled(context.reuse.mul(pulls, share), moves, ahead)
        new = self._next(inner, context.reuse.add(state.z, moves), state, context)
        return FactoredUpdates(found, borrowed=False), new

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        assert context.params is not None
        moves, inner, share, ahead = self._moves(updates, state, context)
        params = context.reuse.ema(context.params, state.z, 1 - share)
        params = context.reuse.add_scaled(params, moves, ahead)
        return params, self._next(inner, context.reuse.add(state.z, moves), state, context)

    def _moves(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[Leaves, Any, Any, Any]:
        """Return the updates of the optimizer, its state, and the weights of the average."""
        plan: _Plan = context.plan
        own = context._replace(plan=plan.inner)
        found, inner = update(self.inner, updates, state.inner_state, own)
        share: Any = plan.share
        if context.inplace:
            share = share.item()
        return found.owned(own), inner, share, 1 - self.momentum * (1 - share)

    def _next(self, inner: Any, z: Leaves, state: Any, context: Context) -> ScheduleFreeState:
        plan: _Plan = context.plan
        return ScheduleFreeState(inner, z, plan.weight_sum, plan.lr_max, state.count + 1)

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        return self._interpolate(params, state.z, 1 / self.momentum, context)

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        return self._interpolate(evaluated, state.z, self.momentum, context)

    @staticmethod
    def _interpolate(params: Leaves, z: Any, weight: Scalar, context: Context) -> Leaves:
        """Return ``weight * params + (1 - weight) * z``; parameters without state stay."""
        return [
            p if at is None else context.fresh.ema([p], [at], weight)[0]
            for p, at in zip(params, z, strict=True)
        ]


@optimizer
def schedule_free(
    inner: GradientTransformation,
    momentum: Scalar = 0.9,
    r: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> Rule:
    r"""Average the iterates of an optimizer, in place of a learning rate schedule.

    Gradients are taken at :math:`y`, the parameters that are trained; the optimizer moves
    :math:`z`; the model is evaluated at the average :math:`x`:

    .. math::
        y_t &= (1 - \beta)\, z_t + \beta\, x_t, \qquad
        z_{t+1} = z_t + u_t(\nabla f(y_t)), \\
        x_{t+1} &= (1 - c_{t+1})\, x_t + c_{t+1} z_{t+1}, \qquad
        c_{t+1} = \frac{w_{t+1}}{\sum_{i \le t + 1} w_i}, \quad
        w_t = t^r \bigl(\max_{i \le t} \eta_i\bigr)^p .

    ``update`` needs ``params``, which are :math:`y`. Use :func:`torchopt.eval_params` in the
    functional face to get :math:`x`, and ``optimizer.eval()`` and ``optimizer.train()`` in the
    stateful one, around evaluation and checkpoints of the model.

    Args:
        inner: The optimizer, without momentum of its own: ``torchopt.sgd(lr)`` or
            ``torchopt.adamw(lr, betas=(0.0, 0.999))``. For a warm-up give it a schedule that rises
            and stays.
        momentum: :math:`\beta`, in (0, 1).
        r: The power :math:`r` of the step in the weights.
        weight_lr_power: The power :math:`p` of the learning rate in the weights.

    Raises:
        TypeError: If ``inner`` is not a transformation.
        ValueError: If a number is outside of its range, ``update`` has no ``params``, or ``inner``
            has no learning rate.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.schedule_free(torchopt.sgd(0.5))
        >>> params = torch.tensor([2.0])
        >>> state = optim.init(params)
        >>> for _ in range(50):
        ...     updates, state = optim.update(2 * params, state, params=params)
        ...     params = torchopt.apply_updates(params, updates)
        >>> bool(torchopt.eval_params(optim, params, state).abs() < 0.1)
        True

    Reference:
        Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky, "The Road Less Scheduled", NeurIPS 2024,
        Algorithm 1.
    """
    check_transformation(inner, "`inner`")
    return ScheduleFreeRule(as_rule(inner), momentum, r, weight_lr_power)


class ScheduleFree(_derived.ScheduleFree, functional=schedule_free):
    """Schedule-free averaging as a :class:`torch.optim.Optimizer`; see :func:`schedule_free`."""


class MetaScheduleFree(_derived.MetaScheduleFree, functional=schedule_free):
    """Differentiable schedule-free averaging on a module; see :func:`schedule_free`."""
