"""AdaBelief."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.optim import _derived

__all__ = ["AdaBelief", "MetaAdaBelief", "adabelief", "scale_by_belief"]


@record(mu=moment("exp_avg"), nu=moment("exp_avg_var"), count=per_leaf("step"))
class ScaleByBeliefState(NamedTuple):
    """The state of :func:`scale_by_belief`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # moving averages of the squared surprise, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByBelief(Rule):
    """The rule of AdaBelief; see :func:`scale_by_belief`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar

    state_type = ScaleByBeliefState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)

    def init(self, params: Leaves, context: Context) -> ScaleByBeliefState:
        return ScaleByBeliefState(zeros_like(params), zeros_like(params), counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        surprise = context.fresh.add_scaled(grads, mu, -1.0)
        nu = context.reuse.ema_square(state.nu, surprise, self.b2)
        nu = context.reuse.add(nu, self.eps)
        count = context.reuse.add(state.count, 1)
        slope, offset = context.per_step(count, self.corrections)
        direction = FactoredUpdates(mu, context.fresh.sqrt(nu), slope, offset)
        return direction, ScaleByBeliefState(mu, nu, count)

    def corrections(self, t: Any) -> tuple[Any, Any]:
        """Return ``(a, b)`` of the denominators ``a * sqrt(s) + b`` of ``m``."""
        c1, c2 = bias_correction(self.b1, t), bias_correction(self.b2, t)
        return c1 / c2**0.5, c1 * beside_steps(self.eps)


@transformation
def scale_by_belief(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16) -> Rule:
    r"""Rescale the first moments by how far gradients are from them.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2)\, (g_t - m_t)^2 + \epsilon, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{s_t / (1 - \beta_2^t)} + \epsilon} .

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: Decay :math:`\beta_2` of the squares, in [0, 1).
        eps: :math:`\epsilon \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_belief()
        >>> rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))[0].round(decimals=4)
        tensor([1.1111])
    """
    return ScaleByBelief(b1, b2, eps)


@optimizer
def adabelief(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-16,
    weight_decay: Scalar = 0.0,
    decoupled_weight_decay: bool = True,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""AdaBelief: Adam, with the variance of gradients around their mean in the denominator.

    .. math::
        \theta_t = \theta_{t-1} - \eta \left( u_t + \lambda\, \theta_{t-1} \right),

    with :math:`u_t` as in :func:`torchopt.transform.scale_by_belief`.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
        eps: :math:`\epsilon \ge 0`, added in every step inside of the root and once outside.
        weight_decay: :math:`\lambda`; needs ``params`` in ``update``.
        decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adabelief(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.8889])}

    Reference:
        Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris, Duncan, "AdaBelief Optimizer: Adapting
        Stepsizes by the Belief in Observed Gradients", NeurIPS 2020, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByBelief(*betas, eps),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        mask=mask,
        maximize=maximize,
    )


class AdaBelief(_derived.AdaBelief, functional=adabelief):
    """AdaBelief as a :class:`torch.optim.Optimizer`; see :func:`adabelief`."""


class MetaAdaBelief(_derived.MetaAdaBelief, functional=adabelief):
    """Differentiable AdaBelief on a module; see :func:`adabelief`."""
