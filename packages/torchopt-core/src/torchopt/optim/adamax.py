"""Adamax."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from torchopt._context import Context, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.base import GradientTransformation, RuleTransformation
from torchopt.kernels import Formula
from torchopt.optim import _derived

__all__ = ["AdaMax", "Adamax", "MetaAdaMax", "MetaAdamax", "adamax", "scale_by_adamax"]


@record(mu=moment("exp_avg"), nu=moment("exp_inf"), count=per_leaf("step"))
class ScaleByAdamaxState(NamedTuple):
    """The state of :func:`scale_by_adamax`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # infinity moments, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByAdamax(Rule):
    """The rule of Adamax; see :func:`scale_by_adamax`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    moment_requires_grad: bool

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)

    state_type = ScaleByAdamaxState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByAdamaxState(
            mu=zeros_like(params, self.moment_requires_grad),
            nu=zeros_like(params, self.moment_requires_grad),
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        sizes = context.reuse.add(context.fresh.abs(grads), self.eps)
        nu = context.reuse.maximum(context.reuse.mul(state.nu, self.b2), sizes)
        count = context.reuse.add(state.count, 1)
        (scale,) = context.per_step(count, lambda t: (1 / bias_correction(self.b1, t),))
        direction = FactoredUpdates(mu, nu, scale=scale, borrowed_roots=True)
        return direction, ScaleByAdamaxState(mu, nu, count)

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        b1, b2, eps = float(self.b1), float(self.b2), float(self.eps)
        return Formula("adamax", lambda t: (b1, b2, eps, 1 / (1 - b1**t)), counted=True)


def scale_by_adamax(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Rescale the bias-corrected first moments by the infinity moments.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \max(\beta_2 v_{t-1},\, |g_t| + \epsilon), \\
        u_t &= \frac{m_t}{(1 - \beta_1^t)\, v_t} .

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: Decay :math:`\beta_2` of the infinity moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        moment_requires_grad: Whether the initial moments require gradients.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_adamax()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([1.0000])

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 2.
    """
    return RuleTransformation(ScaleByAdamax(b1, b2, eps, moment_requires_grad))


@optimizer
def adamax(
    lr: ScalarOrSchedule | TensorTree = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Adamax, as in :class:`torch.optim.Adamax`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \\
        v_t &= \max(\beta_2 v_{t-1},\, |g_t| + \epsilon), \qquad
        \theta_t = \theta_{t-1} - \eta\, \frac{m_t}{(1 - \beta_1^t)\, v_t} .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        moment_requires_grad: Whether the initial moments require gradients.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`~torchopt.adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adamax(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByAdamax(*betas, eps, moment_requires_grad),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class Adamax(_derived.Adamax, functional=adamax):
    """Adamax as a :class:`torch.optim.Optimizer`; see :func:`adamax`."""


class MetaAdamax(_derived.MetaAdamax, functional=adamax):
    """Differentiable Adamax on a module; see :func:`adamax`."""


AdaMax = Adamax
MetaAdaMax = MetaAdamax
