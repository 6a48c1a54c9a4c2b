"""RAdam."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import torch

from torchopt._arithmetic import PerLeaf, is_number
from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
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

__all__ = ["MetaRAdam", "RAdam", "radam", "scale_by_radam"]


@record(mu=moment("exp_avg"), nu=moment("exp_avg_sq"), count=per_leaf("step"))
class ScaleByRAdamState(NamedTuple):
    """The state of :func:`scale_by_radam`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByRAdam(Rule):
    """The rule of RAdam; see :func:`scale_by_radam`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    moment_requires_grad: bool

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)

    state_type = ScaleByRAdamState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByRAdamState(
            mu=zeros_like(params, self.moment_requires_grad),
            nu=zeros_like(params, self.moment_requires_grad),
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        nu = context.reuse.ema_square(state.nu, grads, self.b2)
        count = context.reuse.add(state.count, 1)
        slope, offset = context.per_step(count, self.corrections)
        new = ScaleByRAdamState(mu, nu, count)
        if isinstance(slope, PerLeaf):
            # second moments that are not used yet may have overflowed: 0 * inf
            used = slope.values != 0
            roots = [torch.where(u, v, 1.0) for u, v in zip(used.to(nu[0].device), nu, strict=True)]
            return FactoredUpdates(mu, context.fresh.sqrt(roots), slope, offset), new
        if is_number(slope, 0.0):
            return FactoredUpdates(mu, scale=1 / cast(Any, offset)), new
        return FactoredUpdates(mu, context.fresh.sqrt(nu), slope, offset), new

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        b1, b2 = float(self.b1), float(self.b2)
        return Formula("adam", lambda t: (b1, b2, 0.0, *self.corrections(t)), counted=True)

    def corrections(self, t: Any) -> tuple[Any, Any]:
        """Return ``(a, b)`` of the denominators ``a * sqrt(v) + b`` of ``m``."""
        b2 = beside_steps(self.b2)
        c1, c2 = bias_correction(self.b1, t), bias_correction(b2, t)
        rho_inf = 2 / (1 - b2) - 1
        rho = rho_inf - 2 * t * b2**t / c2
        rectified = rho > 5
        # 6 keeps the branch that is not taken away from the root's and the quotient's zeros
        rho_inf = _select(rectified, rho_inf + 0 * rho, 6.0)
        rho = _select(rectified, rho, 6.0)
        squared = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
        slope = _select(rectified, c1 / (c2 * squared) ** 0.5, 0.0)
        return slope, _select(rectified, slope * beside_steps(self.eps), c1)


def _select(condition: Any, x: Any, y: Any) -> Any:
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, x, y)
    return x if condition else y


def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Rescale by Adam's moments, with the variance of the second one rectified.

    .. math::
        \rho_\infty &= \tfrac{2}{1 - \beta_2} - 1, \qquad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}, \qquad
        r_t^2 = \frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}
                     {(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}, \\
        u_t &= \frac{m_t}{1 - \beta_1^t} \cdot
        \begin{cases}
            r_t \sqrt{1 - \beta_2^t} \,/\, (\sqrt{v_t} + \epsilon) & \rho_t > 5, \\
            1 & \text{otherwise.}
        \end{cases}

    Args:
        b1: Decay :math:`\beta_1` of the first moments :math:`m_t`, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments :math:`v_t`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        moment_requires_grad: Whether the initial moments require gradients.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_radam()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([2.])

    Reference:
        Liu, Jiang, He, Chen, Liu, Gao, Han, "On the Variance of the Adaptive Learning Rate and
        Beyond", ICLR 2020, Algorithm 2.
    """
    return RuleTransformation(ScaleByRAdam(b1, b2, eps, moment_requires_grad))


@optimizer
def radam(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decoupled_weight_decay: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""RAdam, as in :class:`torch.optim.RAdam`.

    .. math::
        g_t = \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \eta\, u_t(g_t),

    with the rectified direction :math:`u_t` of :func:`~torchopt.transform.scale_by_radam`.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        decoupled_weight_decay: Whether the weight decay bypasses the direction, as in AdamW.
        moment_requires_grad: Whether the initial moments require gradients.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`~torchopt.adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.radam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.8000])}

    Reference:
        Liu, Jiang, He, Chen, Liu, Gao, Han, "On the Variance of the Adaptive Learning Rate and
        Beyond", ICLR 2020, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByRAdam(*betas, eps, moment_requires_grad),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class RAdam(_derived.RAdam, functional=radam):
    """RAdam as a :class:`torch.optim.Optimizer`; see :func:`radam`."""


class MetaRAdam(_derived.MetaRAdam, functional=radam):
    """Differentiable RAdam on a module; see :func:`radam`."""
