"""NAdam."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import PerLeaf
from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, number, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.optim import _derived

__all__ = ["MetaNAdam", "NAdam", "nadam", "scale_by_nadam"]


@record(
    mu=moment("exp_avg"),
    nu=moment("exp_avg_sq"),
    mu_product=number("mu_product"),
    count=per_leaf("step"),
)
class ScaleByNAdamState(NamedTuple):
    """The state of :func:`scale_by_nadam`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # products of the momenta so far (0-dim float64)
    mu_product: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByNAdam(Rule):
    """The rule of NAdam; see :func:`scale_by_nadam`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    momentum_decay: Scalar

    state_type = ScaleByNAdamState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)
        check_non_negative("momentum_decay", self.momentum_decay)

    def init(self, params: Leaves, context: Context) -> ScaleByNAdamState:
        return ScaleByNAdamState(
            mu=zeros_like(params),
            nu=zeros_like(params),
            mu_product=[torch.ones((), dtype=torch.float64, device="cpu") for _ in params],
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        nu = context.reuse.ema_square(state.nu, grads, self.b2)
        count = context.reuse.add(state.count, 1)
        momentum, following, slope = context.per_step(count, self._of_step)
        products = context.reuse.mul(state.mu_product, momentum)

        so_far: Any = torch.stack(products)
        if not isinstance(momentum, PerLeaf):
            so_far = so_far[0]
        now, later = _values(momentum), _values(following)
        share, rest = (1 - now) / (1 - so_far), later / (1 - so_far * later)
        if isinstance(momentum, PerLeaf):
            share, rest = PerLeaf(share), PerLeaf(rest)
        elif not share.requires_grad:
            share, rest = share.item(), rest.item()
        blended = context.fresh.add_scaled(context.fresh.mul(grads, share), mu, rest)
        direction = FactoredUpdates(
            blended, context.fresh.sqrt(nu), slope, beside_steps(self.eps), borrowed=False
        )
        return direction, ScaleByNAdamState(mu, nu, products, count)

    def _of_step(self, t: Any) -> tuple[Any, Any, Any]:
        """Return the momentum of a step and of the next, and the factor of the root."""
        b1, psi = beside_steps(self.b1), beside_steps(self.momentum_decay)
        momentum, following = (b1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in (t, t + 1))
        return momentum, following, bias_correction(self.b2, t) ** -0.5


def _values(x: Any) -> Any:
    return x.values if isinstance(x, PerLeaf) else x


@transformation
def scale_by_nadam(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, momentum_decay: Scalar = 4e-3
) -> Rule:
    r"""Rescale by Adam's moments, with Nesterov's look-ahead in the first one.

    .. math::
        \mu_t &= \beta_1 \bigl(1 - \tfrac12\, 0.96^{t \psi}\bigr), \qquad
        M_t = \prod_{i \le t} \mu_i, \\
        u_t &= \left( \frac{1 - \mu_t}{1 - M_t}\, g_t
               + \frac{\mu_{t+1}}{1 - M_t \mu_{t+1}}\, m_t \right)
               \Big/ \left( \sqrt{v_t / (1 - \beta_2^t)} + \epsilon \right) .

    Args:
        b1: Decay :math:`\beta_1` of the first moments :math:`m_t`, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments :math:`v_t`, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        momentum_decay: :math:`\psi \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_nadam()
        >>> rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))[0].round(decimals=4)
        tensor([1.0565])
    """
    return ScaleByNAdam(b1, b2, eps, momentum_decay)


@optimizer
def nadam(
    lr: ScalarOrSchedule | TensorTree = 2e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    momentum_decay: Scalar = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""NAdam, as in :class:`torch.optim.NAdam`.

    .. math::
        g_t = \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1} - \eta\, u_t,

    with :math:`u_t` as in :func:`torchopt.transform.scale_by_nadam`.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`; needs ``params`` in ``update``.
        momentum_decay: :math:`\psi \ge 0`, by which the momentum warms up.
        decoupled_weight_decay: Whether the weight decay bypasses the moments, as in AdamW.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.nadam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.8944])}

    Reference:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByNAdam(*betas, eps, momentum_decay),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        mask=mask,
        maximize=maximize,
    )


class NAdam(_derived.NAdam, functional=nadam):
    """NAdam as a :class:`torch.optim.Optimizer`; see :func:`nadam`."""


class MetaNAdam(_derived.MetaNAdam, functional=nadam):
    """Differentiable NAdam on a module; see :func:`nadam`."""
