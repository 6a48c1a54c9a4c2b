"""Yogi."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._context import (
    Context,
    beside_steps,
    bias_correction,
    counts_like,
    filled_like,
)
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.optim import _derived

__all__ = ["MetaYogi", "Yogi", "scale_by_yogi", "yogi"]


@record(mu=moment("exp_avg"), nu=moment("exp_avg_sq"), count=per_leaf("step"))
class ScaleByYogiState(NamedTuple):
    """The state of :func:`scale_by_yogi`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByYogi(Rule):
    """The rule of Yogi; see :func:`scale_by_yogi`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    initial_accumulator_value: Scalar

    state_type = ScaleByYogiState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)
        check_non_negative("initial_accumulator_value", self.initial_accumulator_value)

    def init(self, params: Leaves, context: Context) -> ScaleByYogiState:
        mu, nu = (filled_like(params, self.initial_accumulator_value) for _ in range(2))
        return ScaleByYogiState(mu, nu, counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        squares = context.fresh.mul(grads, grads)
        signs = context.fresh.sign(context.fresh.add_scaled(state.nu, squares, -1.0))
        nu = context.reuse.add_scaled(state.nu, context.fresh.mul(signs, squares), self.b2 - 1)
        count = context.reuse.add(state.count, 1)
        slope, offset = context.per_step(count, self.corrections)
        direction = FactoredUpdates(mu, context.fresh.sqrt(nu), slope, offset)
        return direction, ScaleByYogiState(mu, nu, count)

    def corrections(self, t: Any) -> tuple[Any, Any]:
        """Return ``(a, b)`` of the denominators ``a * sqrt(v) + b`` of ``m``."""
        c1, c2 = bias_correction(self.b1, t), bias_correction(self.b2, t)
        return c1 / c2**0.5, c1 * beside_steps(self.eps)


@transformation
def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    initial_accumulator_value: Scalar = 1e-6,
) -> Rule:
    r"""Rescale by moments of which the second one moves by the same amount up and down.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - g_t^2)\, g_t^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} .

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        initial_accumulator_value: :math:`m_0 = v_0 \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_yogi()
        >>> rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))[0].round(decimals=4)
        tensor([0.9994])
    """
    return ScaleByYogi(b1, b2, eps, initial_accumulator_value)


@optimizer
def yogi(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-3,
    weight_decay: Scalar = 0.0,
    initial_accumulator_value: Scalar = 1e-6,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Yogi: Adam, with second moments that forget no faster than they grow.

    .. math::
        g_t = \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \eta\, u_t,

    with :math:`u_t` as in :func:`torchopt.transform.scale_by_yogi`.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        initial_accumulator_value: :math:`m_0 = v_0 \ge 0`.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.yogi(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9001])}

    Reference:
        Zaheer, Reddi, Sachan, Kale, Kumar, "Adaptive Methods for Nonconvex Optimization", NeurIPS
        2018, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByYogi(*betas, eps, initial_accumulator_value),
        lr=lr,
        weight_decay=weight_decay,
        mask=mask,
        maximize=maximize,
    )


class Yogi(_derived.Yogi, functional=yogi):
    """Yogi as a :class:`torch.optim.Optimizer`; see :func:`yogi`."""


class MetaYogi(_derived.MetaYogi, functional=yogi):
    """Differentiable Yogi on a module; see :func:`yogi`."""
