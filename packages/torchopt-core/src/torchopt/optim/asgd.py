"""ASGD, averaged stochastic gradient descent."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import PerLeaf, product
from torchopt._context import Context, beside_steps, counts_like, is_eager, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, number, per_leaf, record
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.optim import _derived

__all__ = ["ASGD", "MetaASGD", "asgd"]


@record(ax=moment("ax"), eta=number("eta"), mu=number("mu"), count=per_leaf("step"))
class ASGDState(NamedTuple):
    """The state of :func:`asgd`; every field changes in every step."""

    # averaged parameters, a tree like the parameters
    ax: TensorTree
    # the learning rates of the next step (0-dim float64), once there was a step
    eta: TensorTree
    # the weights of the next parameters in the averages (0-dim float64)
    mu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ASGDDirection(Rule):
    """The rule of ASGD, learning rate included; see :func:`asgd`."""

    lambd: Scalar
    alpha: Scalar
    t0: Scalar

    absorbs_rate = True
    state_type = ASGDState

    def __post_init__(self) -> None:
        check_non_negative("lambd", self.lambd)
        check_non_negative("alpha", self.alpha)
        check_non_negative("t0", self.t0)

    def init(self, params: Leaves, context: Context) -> ASGDState:
        eta, mu = (torch.ones(len(params), dtype=torch.float64, device="cpu") for _ in range(2))
        return ASGDState(
            zeros_like(params), list(eta.unbind()), list(mu.unbind()), counts_like(params)
        )

    def prepare(self, state: Any, context: Context) -> None:
        if context.params is None:
            raise ValueError("`asgd` needs the parameters: pass `params=` to `update`")
        if isinstance(context.lr, list) and any(x.ndim for x in context.lr):
            raise ValueError(
                "`lr` of `asgd` must be one number for each leaf, not for each element"
            )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params = context.params
        assert params is not None
        grads = updates.materialize(context)
        t, lr = torch.stack(state.count), _vector(context.lr)
        eta = torch.where(t > 0, torch.stack(state.eta), lr)
        mu = torch.stack(state.mu)
        count = context.reuse.add(state.count, 1)

        rate = _operand(eta)
        shrunk = product(rate, self.lambd)
        direction = context.fresh.add_scaled(context.fresh.mul(grads, rate), params, shrunk)
        moved = context.fresh.add_scaled(params, direction, -1.0)
        ahead = context.fresh.add_scaled(moved, state.ax, -1.0)
        ax = context.reuse.add_scaled(state.ax, ahead, _operand(mu))

        t = t + 1
        lambd, alpha, t0 = (beside_steps(x) for x in (self.lambd, self.alpha, self.t0))
        following = lr / (1 + lambd * lr * t) ** alpha
        weights = 1 / torch.clamp(t.to(torch.float64) - t0, min=1.0)
        new = ASGDState(
            ax,
            _stored(following.expand(len(params)), state.eta, context),
            _stored(weights, state.mu, context),
            count,
        )
        return FactoredUpdates(direction, borrowed=False), new


def _vector(lr: Any) -> torch.Tensor:
    """Return a learning rate in double precision, where the step counts are."""
    if isinstance(lr, PerLeaf):
        return lr.values
    if isinstance(lr, list):
        return torch.stack([x.to("cpu", torch.float64) for x in lr])
    return torch.as_tensor(lr, dtype=torch.float64, device="cpu")


def _operand(values: torch.Tensor) -> Any:
    """Return numbers of the leaves, as one if they are equal and nothing has to see that."""
    if is_eager(values) and not values.requires_grad and len(set(values.tolist())) == 1:
        return values[0].item()
    return PerLeaf(values)


def _stored(values: torch.Tensor, before: Leaves, context: Context) -> Leaves:
    """Return numbers as a column of the state, in its memory if that is in place."""
    if not context.inplace:
        return list(values.unbind())
    torch._foreach_copy_(before, list(values.unbind()))
    return before


@optimizer
def asgd(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    lambd: Scalar = 1e-4,
    alpha: Scalar = 0.75,
    t0: Scalar = 1e6,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
) -> Rule:
    r"""ASGD, averaged stochastic gradient descent, as in :class:`torch.optim.ASGD`.

    .. math::
        \eta_t &= \frac{\eta}{(1 + \lambda_0\, \eta\, (t - 1))^\alpha}, \qquad
        \theta_t = (1 - \lambda_0 \eta_t)\, \theta_{t-1} - \eta_t\, g_t, \\
        \bar\theta_t &= \bar\theta_{t-1} + \mu_t (\theta_t - \bar\theta_{t-1}), \qquad
        \mu_t = \frac{1}{\max(1,\, t - 1 - t_0)} .

    The averages :math:`\bar\theta_t` are in the state, as ``ax``. ``update`` needs ``params``.

    Args:
        lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule, or a tree with one of
            these tensors for each leaf. As in torch, a change reaches the step after the next.
        lambd: :math:`\lambda_0 \ge 0`, how fast the learning rate and the parameters decay.
        alpha: :math:`\alpha \ge 0`.
        t0: The step :math:`t_0` at which the averages begin.
        weight_decay: Coupled to the gradient.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite, or ``update`` has no
            ``params``.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.asgd(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> grads = {"w": torch.tensor([2.0])}
        >>> updates, state = optim.update(grads, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.8000])}

    Reference:
        Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
        Control and Optimization, 1992.
    """
    return GradientStep(
        direction=ASGDDirection(lambd, alpha, t0),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
    )


class ASGD(_derived.ASGD, functional=asgd):
    """ASGD as a :class:`torch.optim.Optimizer`; see :func:`asgd`."""


class MetaASGD(_derived.MetaASGD, functional=asgd):
    """Differentiable ASGD on a module; see :func:`asgd`."""
