"""Adan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative, check_unit_interval
from torchopt.optim import _derived

__all__ = ["Adan", "MetaAdan", "adan", "scale_by_adan"]


@record(
    mu=moment("exp_avg"),
    delta=moment("exp_avg_diff"),
    nu=moment("exp_avg_sq"),
    prev=moment("previous_grad"),
    count=per_leaf("step"),
)
class ScaleByAdanState(NamedTuple):
    """The state of :func:`scale_by_adan`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # moving averages of the differences of gradients, a tree like the parameters
    delta: TensorTree
    # second moments of the extrapolated gradients, a tree like the parameters
    nu: TensorTree
    # gradients of the last step, a tree like the parameters
    prev: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByAdan(Rule):
    """The rule of Adan; see :func:`scale_by_adan`."""

    b1: Scalar
    b2: Scalar
    b3: Scalar
    eps: Scalar

    state_type = ScaleByAdanState

    def __post_init__(self) -> None:
        check_decays((self.b1, self.b2, self.b3))
        check_non_negative("eps", self.eps)

    def init(self, params: Leaves, context: Context) -> ScaleByAdanState:
        mu, delta, nu, prev = (zeros_like(params) for _ in range(4))
        return ScaleByAdanState(mu, delta, nu, prev, counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        (later,) = context.per_step(state.count, _is_later)
        differences = context.fresh.mul(context.fresh.add_scaled(grads, state.prev, -1.0), later)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        delta = context.reuse.ema(state.delta, differences, self.b2)
        ahead = context.fresh.add_scaled(grads, differences, self.b2)
        nu = context.reuse.ema_square(state.nu, ahead, self.b3)
        count = context.reuse.add(state.count, 1)
        if context.inplace:
            torch._foreach_copy_(state.prev, grads)
            prev = state.prev
        else:
            prev = [g.clone() for g in grads] if updates.borrowed else list(grads)

        weight, slope, offset = context.per_step(count, self.corrections)
        numerators = context.fresh.add_scaled(mu, delta, weight)
        direction = FactoredUpdates(
            numerators, context.fresh.sqrt(nu), slope, offset, borrowed=False
        )
        return direction, ScaleByAdanState(mu, delta, nu, prev, count)

    def corrections(self, t: Any) -> tuple[Any, Any, Any]:
        """Return ``(w, a, b)`` of the updates ``(m + w * d) / (a * sqrt(n) + b)``."""
        c1, c2, c3 = (bias_correction(b, t) for b in (self.b1, self.b2, self.b3))
        return beside_steps(self.b2) * c1 / c2, c1 / c3**0.5, c1 * beside_steps(self.eps)


def check_decays(betas: Any) -> None:
    """Raise unless ``betas`` are three numbers in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 3:
        raise ValueError(f"`betas` must be three numbers in [0, 1), got {betas!r}")
    for i, beta in enumerate(betas):
        check_unit_interval(f"betas[{i}]", beta)


def _is_later(t: Any) -> tuple[Any]:
    """Return 0 before the first step, which has no difference, and 1 afterwards."""
    return (t.clamp(max=1.0) if isinstance(t, torch.Tensor) else float(min(t, 1)),)


@transformation
def scale_by_adan(
    b1: Scalar = 0.98, b2: Scalar = 0.92, b3: Scalar = 0.99, eps: Scalar = 1e-8
) -> Rule:
    r"""Rescale by moments of gradients, of their differences, and of gradients extrapolated.

    With :math:`d_t = g_t - g_{t-1}`, zero in the first step,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, d_t, \qquad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3)\, (g_t + \beta_2 d_t)^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t) + \beta_2\, v_t / (1 - \beta_2^t)}
                    {\sqrt{n_t / (1 - \beta_3^t)} + \epsilon} .

    Args:
        b1: Decay :math:`\beta_1` of the gradients, in [0, 1).
        b2: Decay :math:`\beta_2` of the differences, in [0, 1).
        b3: Decay :math:`\beta_3` of the squares, in [0, 1).
        eps: :math:`\epsilon \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_adan()
        >>> rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))[0].round(decimals=4)
        tensor([1.])
    """
    return ScaleByAdan(b1, b2, b3, eps)


@optimizer
def adan(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar, Scalar] = (0.98, 0.92, 0.99),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Adan, adaptive Nesterov momentum.

    .. math::
        \theta_t = \theta_{t-1} - \eta \left( u_t + \lambda\, \theta_{t-1} \right),

    with :math:`u_t` as in :func:`torchopt.transform.scale_by_adan`. The decays are written as in
    Adam: :math:`\beta_i` here is :math:`1 - \beta_i` of the paper.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2, \beta_3)`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adan(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Xie, Zhou, Li, Lin, Yan, "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing
        Deep Models", IEEE TPAMI 2024, Algorithm 1.
    """
    check_decays(betas)
    return GradientStep(
        direction=ScaleByAdan(*betas, eps),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class Adan(_derived.Adan, functional=adan):
    """Adan as a :class:`torch.optim.Optimizer`; see :func:`adan`."""


class MetaAdan(_derived.MetaAdan, functional=adan):
    """Differentiable Adan on a module; see :func:`adan`."""
