"""LaProp."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._context import Context, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.optim import _derived

__all__ = ["LaProp", "MetaLaProp", "laprop", "scale_by_laprop"]


@record(mu=moment("exp_avg"), nu=moment("exp_avg_sq"), count=per_leaf("step"))
class ScaleByLaPropState(NamedTuple):
    """The state of :func:`scale_by_laprop`; every field changes in every step."""

    # moving averages of the normalized gradients, a tree like the parameters
    mu: TensorTree
    # second moments of the gradients, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByLaProp(Rule):
    """The rule of LaProp; see :func:`scale_by_laprop`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar

    state_type = ScaleByLaPropState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)

    def init(self, params: Leaves, context: Context) -> ScaleByLaPropState:
        return ScaleByLaPropState(zeros_like(params), zeros_like(params), counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        nu = context.reuse.ema_square(state.nu, grads, self.b2)
        count = context.reuse.add(state.count, 1)
        slope, scale = context.per_step(count, self.corrections)
        ratios = FactoredUpdates(grads, context.fresh.sqrt(nu), slope, self.eps)
        mu = context.reuse.ema(state.mu, ratios.materialize(context), self.b1)
        return FactoredUpdates(mu, scale=scale), ScaleByLaPropState(mu, nu, count)

    def corrections(self, t: Any) -> tuple[Any, Any]:
        """Return the factor of the root, and that of the average."""
        return bias_correction(self.b2, t) ** -0.5, 1 / bias_correction(self.b1, t)


@transformation
def scale_by_laprop(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-15) -> Rule:
    r"""Average gradients that are normalized by their second moments.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1)\,
              \frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}, \\
        u_t &= \frac{m_t}{1 - \beta_1^t} .

    Args:
        b1: Decay :math:`\beta_1` of the average, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_laprop()
        >>> rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))[0].round(decimals=4)
        tensor([1.])
    """
    return ScaleByLaProp(b1, b2, eps)


@optimizer
def laprop(
    lr: ScalarOrSchedule | TensorTree = 4e-4,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-15,
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""LaProp: Adam, with the momentum taken after the normalization.

    .. math::
        \theta_t = \theta_{t-1} - \eta \left( u_t + \lambda\, \theta_{t-1} \right),

    with :math:`u_t` as in :func:`torchopt.transform.scale_by_laprop`.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.laprop(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Ziyin, Wang, Ueda, "LaProp: Separating Momentum and Adaptivity in Adam", 2020, Algorithm 1.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByLaProp(*betas, eps),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class LaProp(_derived.LaProp, functional=laprop):
    """LaProp as a :class:`torch.optim.Optimizer`; see :func:`laprop`."""


class MetaLaProp(_derived.MetaLaProp, functional=laprop):
    """Differentiable LaProp on a module; see :func:`laprop`."""
