"""Adadelta."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torchopt._context import Context, counts_like, zeros_like
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

__all__ = ["AdaDelta", "Adadelta", "MetaAdaDelta", "MetaAdadelta", "adadelta", "scale_by_adadelta"]


@record(mu=moment("square_avg"), nu=moment("acc_delta"), count=per_leaf("step"))
class ScaleByAdadeltaState(NamedTuple):
    """The state of :func:`scale_by_adadelta`; every field changes in every step."""

    # moving averages of the squared gradients, a tree like the parameters
    mu: TensorTree
    # moving averages of the squared updates, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByAdadelta(Rule):
    """The rule of Adadelta; see :func:`scale_by_adadelta`."""

    rho: Scalar
    eps: Scalar
    moment_requires_grad: bool

    def __post_init__(self) -> None:
        check_unit_interval("rho", self.rho)
        check_non_negative("eps", self.eps)

    state_type = ScaleByAdadeltaState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByAdadeltaState(
            mu=zeros_like(params, self.moment_requires_grad),
            nu=zeros_like(params, self.moment_requires_grad),
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads, nu = updates.materialize(context), state.nu
        mu = context.reuse.ema_square(state.mu, grads, self.rho)
        delta = context.reuse.sqrt(context.fresh.add(nu, self.eps))
        delta = context.reuse.div(delta, context.reuse.sqrt(context.fresh.add(mu, self.eps)))
        delta = context.reuse.mul(delta, grads)
        nu = context.reuse.ema_square(nu, delta, self.rho)
        new = ScaleByAdadeltaState(mu, nu, context.reuse.add(state.count, 1))
        return FactoredUpdates(delta, borrowed=False), new

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        rho, eps = float(self.rho), float(self.eps)
        return Formula("adadelta", lambda t: (rho, eps), counted=False)


def scale_by_adadelta(
    rho: Scalar = 0.9, eps: Scalar = 1e-6, moment_requires_grad: bool = False
) -> GradientTransformation:
    r"""Rescale by the ratio of the running sizes of updates and gradients.

    .. math::
        v_t &= \rho\, v_{t-1} + (1 - \rho)\, g_t^2, \qquad
        u_t = \frac{\sqrt{s_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t, \\
        s_t &= \rho\, s_{t-1} + (1 - \rho)\, u_t^2 .

    Args:
        rho: :math:`\rho`, in [0, 1).
        eps: :math:`\epsilon`, added inside of both roots.
        moment_requires_grad: Whether the initial averages require gradients.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_adadelta()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([0.0032])

    Reference:
        Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1.
    """
    return RuleTransformation(ScaleByAdadelta(rho, eps, moment_requires_grad))


@optimizer
def adadelta(
    lr: ScalarOrSchedule | TensorTree = 1.0,
    rho: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Adadelta, as in :class:`torch.optim.Adadelta`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        v_t = \rho\, v_{t-1} + (1 - \rho)\, g_t^2, \\
        u_t &= \frac{\sqrt{s_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t, \qquad
        s_t = \rho\, s_{t-1} + (1 - \rho)\, u_t^2, \\
        \theta_t &= \theta_{t-1} - \eta\, u_t .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        rho: :math:`\rho`, in [0, 1).
        eps: :math:`\epsilon`, added inside of both roots.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        moment_requires_grad: Whether the initial moments require gradients.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`~torchopt.adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adadelta(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9997])}

    Reference:
        Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1.
    """
    return GradientStep(
        direction=ScaleByAdadelta(rho, eps, moment_requires_grad),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class Adadelta(_derived.Adadelta, functional=adadelta):
    """Adadelta as a :class:`torch.optim.Optimizer`; see :func:`adadelta`."""


class MetaAdadelta(_derived.MetaAdadelta, functional=adadelta):
    """Differentiable Adadelta on a module; see :func:`adadelta`."""


AdaDelta = Adadelta
MetaAdaDelta = MetaAdadelta
