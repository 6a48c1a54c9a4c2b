"""Quasi-hyperbolic momentum: QHM and QHAdam."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative, check_unit_interval
from torchopt.optim import _derived

__all__ = ["QHM", "MetaQHAdam", "MetaQHM", "QHAdam", "qhadam", "qhm"]


@record(mu=moment("momentum_buffer"))
class QHMState(NamedTuple):
    """The state of :func:`qhm`."""

    # moving averages of the gradients, a tree like the parameters; changes in every step
    mu: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class QHMDirection(Rule):
    """The rule of QHM; see :func:`qhm`."""

    momentum: Scalar
    nu: Scalar

    state_type = QHMState

    def __post_init__(self) -> None:
        check_unit_interval("momentum", self.momentum)
        check_non_negative("nu", self.nu)

    def init(self, params: Leaves, context: Context) -> QHMState:
        return QHMState(zeros_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.momentum)
        blended = context.fresh.add_scaled(context.fresh.mul(grads, 1 - self.nu), mu, self.nu)
        return FactoredUpdates(blended, borrowed=False), QHMState(mu)


@record(mu=moment("exp_avg"), nu=moment("exp_avg_sq"), count=per_leaf("step"))
class QHAdamState(NamedTuple):
    """The state of :func:`qhadam`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class QHAdamDirection(Rule):
    """The rule of QHAdam; see :func:`qhadam`."""

    b1: Scalar
    b2: Scalar
    nu1: Scalar
    nu2: Scalar
    eps: Scalar

    state_type = QHAdamState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("nus[0]", self.nu1)
        check_non_negative("nus[1]", self.nu2)
        check_non_negative("eps", self.eps)

    def init(self, params: Leaves, context: Context) -> QHAdamState:
        return QHAdamState(zeros_like(params), zeros_like(params), counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        nu = context.reuse.ema_square(state.nu, grads, self.b2)
        count = context.reuse.add(state.count, 1)
        share1, share2 = context.per_step(count, self.shares)
        blended = context.fresh.add_scaled(context.fresh.mul(grads, 1 - self.nu1), mu, share1)
        squares = context.fresh.mul(nu, share2)
        if not isinstance(self.nu2, (int, float)) or self.nu2 != 1:
            own = context.fresh.mul(context.fresh.mul(grads, grads), 1 - self.nu2)
            squares = context.fresh.add(squares, own)
        direction = FactoredUpdates(
            blended, context.fresh.sqrt(squares), offset=self.eps, borrowed=False
        )
        return direction, QHAdamState(mu, nu, count)

    def shares(self, t: Any) -> tuple[Any, Any]:
        """Return the weights of the moments, bias corrections included."""
        pairs = (self.nu1, self.b1), (self.nu2, self.b2)
        first, second = (beside_steps(nu) / bias_correction(b, t) for nu, b in pairs)
        return first, second


@optimizer
def qhm(
    lr: ScalarOrSchedule | TensorTree = 1.0,
    momentum: Scalar = 0.999,
    nu: Scalar = 0.7,
    weight_decay: Scalar = 0.0,
    *,
    maximize: bool = False,
) -> Rule:
    r"""QHM, quasi-hyperbolic momentum: an average of a gradient step and a momentum step.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta)\, g_t, \qquad
        \theta_t = \theta_{t-1} - \eta \left( (1 - \nu)\, g_t + \nu\, m_t \right) .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        momentum: :math:`\beta`, in [0, 1).
        nu: The weight :math:`\nu` of momentum: 0 for gradient descent, 1 for momentum alone.
        weight_decay: Coupled to the gradient; needs ``params`` in ``update``.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.qhm(lr=0.1, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9260])}

    Reference:
        Ma, Yarats, "Quasi-Hyperbolic Momentum and Adam for Deep Learning", ICLR 2019, equation 1.
    """
    return GradientStep(
        direction=QHMDirection(momentum, nu), lr=lr, weight_decay=weight_decay, maximize=maximize
    )


@optimizer
def qhadam(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.995, 0.999),
    nus: tuple[Scalar, Scalar] = (0.7, 1.0),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""QHAdam: Adam, with averages of gradients and moments in the place of moments.

    With Adam's bias-corrected moments :math:`\hat m_t` and :math:`\hat v_t`,

    .. math::
        \theta_t = \theta_{t-1} - \eta\,
            \frac{(1 - \nu_1)\, g_t + \nu_1 \hat m_t}
                 {\sqrt{(1 - \nu_2)\, g_t^2 + \nu_2 \hat v_t} + \epsilon} .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        nus: The weights :math:`(\nu_1, \nu_2)` of the moments; (1, 1) is Adam.
        eps: :math:`\epsilon \ge 0`.
        weight_decay: Needs ``params`` in ``update``.
        decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.qhadam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Ma, Yarats, "Quasi-Hyperbolic Momentum and Adam for Deep Learning", ICLR 2019, Algorithm 2.
    """
    check_betas(betas)
    if not isinstance(nus, (tuple, list)) or len(nus) != 2:
        raise ValueError(f"`nus` must be a pair of numbers, got {nus!r}")
    return GradientStep(
        direction=QHAdamDirection(*betas, *nus, eps),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        mask=mask,
        maximize=maximize,
    )


class QHM(_derived.QHM, functional=qhm):
    """QHM as a :class:`torch.optim.Optimizer`; see :func:`qhm`."""


class MetaQHM(_derived.MetaQHM, functional=qhm):
    """Differentiable QHM on a module; see :func:`qhm`."""


class QHAdam(_derived.QHAdam, functional=qhadam):
    """QHAdam as a :class:`torch.optim.Optimizer`; see :func:`qhadam`."""


class MetaQHAdam(_derived.MetaQHAdam, functional=qhadam):
    """Differentiable QHAdam on a module; see :func:`qhadam`."""
