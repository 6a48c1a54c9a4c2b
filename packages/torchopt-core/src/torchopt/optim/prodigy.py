"""Prodigy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch

from torchopt._context import Context, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, record, shared, weights
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative, check_positive, check_unit_interval
from torchopt.optim import _derived

__all__ = ["MetaProdigy", "Prodigy", "prodigy"]


@record(
    mu=moment("exp_avg"),
    nu=moment("exp_avg_sq"),
    s=moment("s"),
    initial=weights("p0"),
    d=shared("d"),
    d_max=shared("d_max"),
    d_numerator=shared("d_numerator"),
    count=shared("k"),
)
class ProdigyState(NamedTuple):
    """The state of :func:`prodigy`; every field but ``initial`` changes in every step."""

    # first and second moments, weighted by the estimate, trees like the parameters
    mu: TensorTree
    nu: TensorTree
    # weighted sums of the gradients, a tree like the parameters
    s: TensorTree
    # the parameters before the first step
    initial: TensorTree
    # the estimate of the distance to the solution, and its largest value (0-dim float64)
    d: torch.Tensor
    d_max: torch.Tensor
    # numerator of the estimate (0-dim float64)
    d_numerator: torch.Tensor
    # steps taken (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ProdigyDirection(Rule):
    """The rule of Prodigy, learning rate included; see :func:`prodigy`."""

    b1: Scalar
    b2: Scalar
    b3: Scalar | None
    eps: Scalar
    #: Decoupled weight decay, which takes the estimated rate.
    weight_decay: Scalar
    use_bias_correction: bool
    safeguard_warmup: bool
    d0: Any
    d_coef: Scalar
    growth_rate: float

    absorbs_rate = True
    state_type = ProdigyState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        if self.b3 is not None:
            check_unit_interval("beta3", self.b3)
        check_non_negative("weight_decay", self.weight_decay)
        check_positive("eps", self.eps)
        if isinstance(self.d0, torch.Tensor):
            raise TypeError("`d0` must be a number: it is where the estimate begins, got a tensor")
        check_positive("d0", self.d0)
        check_positive("d_coef", self.d_coef)
        if not self.growth_rate >= 1:
            raise ValueError(f"`growth_rate` must be at least 1, got {self.growth_rate}")

    def init(self, params: Leaves, context: Context) -> ProdigyState:
        device = params[0].device if params else None
        d0 = torch.tensor(self.d0, dtype=torch.float64, device=device)
        return ProdigyState(
            mu=zeros_like(params),
            nu=zeros_like(params),
            s=zeros_like(params),
            initial=[p.clone() for p in params],
            d=d0,
            d_max=d0.clone(),
            d_numerator=torch.zeros_like(d0),
            count=torch.zeros((), dtype=torch.int64, device=device),
        )

    def prepare(self, state: Any, context: Context) -> None:
        if context.params is None:
            raise ValueError("`prodigy` needs the parameters: pass `params=` to `update`")
        if any(g.dtype == torch.float16 for g in context.like or ()):
            raise ValueError(
                "`prodigy` cannot estimate in float16, in which the squares of small estimates "
                "vanish: keep the parameters in float32 or bfloat16"
            )
        if isinstance(context.lr, (tuple, list)):
            raise ValueError("`prodigy` has one learning rate for all leaves, got a tree")

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params, lr = context.params, context.lr
        assert params is not None
        if isinstance(lr, (int, float)) and lr == 0:  # the estimate stands still
            return FactoredUpdates(zeros_like(params), borrowed=False), state
        grads = updates.materialize(context)
        device = grads[0].device
        shared_fields = (state.d, state.d_max, state.d_numerator, state.count)
        d, d_max, numerator, count = (x.to(device) for x in shared_fields)
        rate = d * lr * self._bias_correction(count + 1)
        weight = (d / self.d0) * (d if self.safeguard_warmup else rate)
        b3 = self.b2**0.5 if self.b3 is None else self.b3

        def averaged(average: Leaves, decay: Scalar, terms: Leaves, factor: Any) -> Leaves:
            return context.reuse.add_scaled(context.reuse.mul(average, decay), terms, factor)

        mu = averaged(state.mu, self.b1, grads, d * (1 - self.b1))
        squares = context.fresh.mul(grads, grads)
        nu = averaged(state.nu, self.b2, squares, d * d * (1 - self.b2))
        s = averaged(state.s, b3, grads, weight)

        moved = context.fresh.add_scaled(state.initial, params, -1.0)
        inner = [_total(g * x).to(device) for g, x in zip(grads, moved, strict=True)]
        numerator_now = b3 * numerator + (d / self.d0) * rate * sum(inner)
        denominator: Any = sum(_total(x.abs()).to(device) for x in s)
        is_moving = denominator > 0
        estimate = self.d_coef * numerator_now / torch.where(is_moving, denominator, 1.0)
        begun = torch.where(d == self.d0, torch.maximum(d, estimate), d)
        largest = torch.maximum(d_max, estimate)
        grown = largest  # without a bound, which would be inf times a cotangent of zero
        if self.growth_rate < math.inf:
            grown = torch.minimum(largest, begun * self.growth_rate)
        new_d = torch.where(is_moving, grown, d)
        new = ProdigyState(
            mu,
            nu,
            s,
            state.initial,
            new_d,
            torch.where(is_moving, largest, d_max),
            torch.where(is_moving, numerator_now, numerator),
            count + is_moving.to(torch.int64),
        )
        roots = context.fresh.sqrt(nu)
        direction = FactoredUpdates(mu, roots, offset=new_d * self.eps, scale=rate)
        if not isinstance(self.weight_decay, torch.Tensor) and self.weight_decay == 0:
            return direction, new
        leaves = direction.materialize(context)
        decayed = context.fresh.add_scaled(leaves, params, rate * self.weight_decay)
        return FactoredUpdates(decayed, borrowed=False), new

    def _bias_correction(self, t: Any) -> Any:
        if not self.use_bias_correction:
            return 1.0
        t = t.to(torch.float64)
        b1, b2 = self.b1, self.b2
        return (1 - b2**t) ** 0.5 / (1 - b1**t)


def _total(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of all elements, in double precision."""
    return x.sum(dtype=torch.float64)


@optimizer
def prodigy(
    lr: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    beta3: Scalar | None = None,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: Scalar = 1.0,
    growth_rate: float = math.inf,
    *,
    maximize: bool = False,
) -> Rule:
    r"""Prodigy: Adam that estimates its learning rate.

    With :math:`d_t` the estimate of the distance to the solution, shared by all leaves of a group,
    and :math:`\gamma_t = d_t\, \eta\, c_t` (:math:`c_t` = 1, or Adam's bias correction),

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, d_t\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, d_t^2 g_t^2, \\
        r_t &= \beta_3 r_{t-1} + \tfrac{d_t}{d_0} \gamma_t \langle g_t, \theta_0 - \theta_t \rangle,
        \qquad s_t = \beta_3 s_{t-1} + \tfrac{d_t}{d_0} \gamma_t\, g_t, \\
        d_{t+1} &= \max\Bigl(d_t,\; c\, \frac{r_t}{\lVert s_t \rVert_1}\Bigr), \qquad
        \theta_{t+1} = \theta_t - \gamma_t \Bigl(
            \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} + \lambda\, \theta_t \Bigr).

    ``update`` needs ``params``.

    Args:
        lr: The factor :math:`\eta` of the estimated rate: a number, a 0-dim tensor or a schedule.
            Leave it at 1, or anneal it from there.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        beta3: Decay :math:`\beta_3` of the sums; :math:`\sqrt{\beta_2}` by default.
        eps: :math:`\epsilon > 0`.
        weight_decay: :math:`\lambda`.
        decouple: Whether the weight decay bypasses the moments, as in AdamW.
        use_bias_correction: Whether to correct the moments' bias.
        safeguard_warmup: Whether to leave the rate out of the weights of :math:`s_t`, for a
            learning rate that warms up.
        d0: The first estimate :math:`d_0 > 0`.
        d_coef: The factor :math:`c > 0`.
        growth_rate: How much larger the estimate may become in a step.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite, ``update`` has no ``params``,
            or a parameter is of float16.

    Example:
        >>> import torch, torchopt
        >>> w = torch.tensor([5.0], requires_grad=True)
        >>> optim = torchopt.Prodigy([w])
        >>> for _ in range(300):
        ...     optim.zero_grad()
        ...     w.square().sum().backward()
        ...     optim.step()
        >>> bool(w.abs() < 0.5)
        True

    Reference:
        Mishchenko, Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", ICML 2024,
        Algorithm 4.
    """
    check_betas(betas)
    check_non_negative("weight_decay", weight_decay)
    direction = ProdigyDirection(
        *betas,
        beta3,
        eps,
        weight_decay if decouple else 0.0,
        use_bias_correction,
        safeguard_warmup,
        d0,
        d_coef,
        growth_rate,
    )
    return GradientStep(
        direction=direction,
        lr=lr,
        weight_decay=0.0 if decouple else weight_decay,
        maximize=maximize,
    )


class Prodigy(_derived.Prodigy, functional=prodigy):
    """Prodigy as a :class:`torch.optim.Optimizer`; see :func:`prodigy`."""


class MetaProdigy(_derived.MetaProdigy, functional=prodigy):
    """Differentiable Prodigy on a module; see :func:`prodigy`."""
