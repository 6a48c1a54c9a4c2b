"""RMSprop."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._chain import Chain
from torchopt._context import Context, counts_like, filled_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative, check_unit_interval
from torchopt.base import GradientTransformation, RuleTransformation
from torchopt.kernels import Formula
from torchopt.optim import _derived
from torchopt.optim.sgd import Trace

__all__ = [
    "MetaRMSProp",
    "MetaRMSprop",
    "RMSProp",
    "RMSprop",
    "rmsprop",
    "scale_by_rms",
    "scale_by_stddev",
]


@record(nu=moment("square_avg"), count=per_leaf("step"))
class ScaleByRmsState(NamedTuple):
    """The state of :func:`scale_by_rms`."""

    # moving averages of the squared gradients, a tree like the parameters; changes in every step
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@record(mu=moment("grad_avg"), nu=moment("square_avg"), count=per_leaf("step"))
class ScaleByRStdDevState(NamedTuple):
    """The state of :func:`scale_by_stddev`; every field changes in every step."""

    # moving averages of the gradients, a tree like the parameters
    mu: TensorTree
    # moving averages of the squared gradients, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByRms(Rule):
    """The rule of RMSprop; see :func:`scale_by_rms`."""

    alpha: Scalar
    eps: Scalar
    initial_scale: Scalar

    def __post_init__(self) -> None:
        check_unit_interval("alpha", self.alpha)
        check_non_negative("eps", self.eps)
        check_non_negative("initial_scale", self.initial_scale)

    state_type = ScaleByRmsState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByRmsState(filled_like(params, self.initial_scale), counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        nu = context.reuse.ema_square(state.nu, grads, self.alpha)
        direction = FactoredUpdates(grads, context.fresh.sqrt(nu), offset=self.eps)
        return direction, ScaleByRmsState(nu, context.reuse.add(state.count, 1))

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        alpha, eps = float(self.alpha), float(self.eps)
        return Formula("rmsprop", lambda t: (alpha, eps), counted=False)


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByStdDev(Rule):
    """The rule of centered RMSprop; see :func:`scale_by_stddev`."""

    alpha: Scalar
    eps: Scalar
    initial_scale: Scalar

    def __post_init__(self) -> None:
        check_unit_interval("alpha", self.alpha)
        check_non_negative("eps", self.eps)
        check_non_negative("initial_scale", self.initial_scale)

    state_type = ScaleByRStdDevState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByRStdDevState(
            mu=zeros_like(params),
            nu=filled_like(params, self.initial_scale),
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.alpha)
        nu = context.reuse.ema_square(state.nu, grads, self.alpha)
        # rounding may leave a variance of zero slightly negative
        variances = context.reuse.clamp_min(context.fresh.addcmul(nu, mu, mu, value=-1.0), 0.0)
        direction = FactoredUpdates(grads, context.reuse.sqrt(variances), offset=self.eps)
        return direction, ScaleByRStdDevState(mu, nu, context.reuse.add(state.count, 1))

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        alpha, eps = float(self.alpha), float(self.eps)
        return Formula("centered_rmsprop", lambda t: (alpha, eps), counted=False)


def scale_by_rms(
    alpha: Scalar = 0.9, eps: Scalar = 1e-8, initial_scale: Scalar = 0.0
) -> GradientTransformation:
    r"""Rescale by the root of a moving average of the squared gradients.

    .. math::
        v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \qquad
        u_t = \frac{g_t}{\sqrt{v_t} + \epsilon} .

    Args:
        alpha: :math:`\alpha`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        initial_scale: :math:`v_0 \ge 0`.

    All are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_rms()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([3.1623])

    Reference:
        Tieleman, Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    return RuleTransformation(ScaleByRms(alpha, eps, initial_scale))


def scale_by_stddev(
    alpha: Scalar = 0.9, eps: Scalar = 1e-8, initial_scale: Scalar = 0.0
) -> GradientTransformation:
    r"""Rescale by a running estimate of the gradients' standard deviation.

    .. math::
        m_t &= \alpha\, m_{t-1} + (1 - \alpha)\, g_t, \qquad
        v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \\
        u_t &= \frac{g_t}{\sqrt{v_t - m_t^2} + \epsilon} .

    Args:
        alpha: :math:`\alpha`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        initial_scale: :math:`v_0 \ge 0`.

    All are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_stddev()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([3.3333])

    Reference:
        Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, eq. 38-45.
    """
    return RuleTransformation(ScaleByStdDev(alpha, eps, initial_scale))


@optimizer
def rmsprop(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    alpha: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    momentum: Scalar = 0.0,
    centered: bool = False,
    *,
    initial_scale: Scalar = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""RMSprop, as in :class:`torch.optim.RMSprop`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        v_t = \alpha\, v_{t-1} + (1 - \alpha)\, g_t^2, \\
        b_t &= \mu\, b_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon}, \qquad
        \theta_t = \theta_{t-1} - \eta\, b_t .

    The centered form has :math:`v_t - m_t^2` in the root, with :math:`m_t` the moving average of
    the gradients.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        alpha: :math:`\alpha`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        momentum: :math:`\mu \ge 0`; zero keeps no buffer.
        centered: Whether to estimate the variance instead of the second moment.
        initial_scale: :math:`v_0 \ge 0`.
        nesterov: Whether the momentum looks ahead; needs a momentum.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`~torchopt.adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.rmsprop(lr=0.1)
        >>> params = {"w": torch.tensor([2.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([1.])}

    Reference:
        Tieleman, Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012;
        Graves, arXiv:1308.0850, for the centered form.
    """
    direction: Rule = (ScaleByStdDev if centered else ScaleByRms)(alpha, eps, initial_scale)
    if isinstance(momentum, torch.Tensor) or momentum != 0 or nesterov:
        buffer = Trace(momentum, 0.0, nesterov, moment_requires_grad=False)
        direction = Chain((direction, buffer))
    return GradientStep(
        direction=direction,
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class RMSprop(_derived.RMSprop, functional=rmsprop):
    """RMSprop as a :class:`torch.optim.Optimizer`; see :func:`rmsprop`."""


class MetaRMSprop(_derived.MetaRMSprop, functional=rmsprop):
    """Differentiable RMSprop on a module; see :func:`rmsprop`."""


RMSProp = RMSprop
MetaRMSProp = MetaRMSprop
