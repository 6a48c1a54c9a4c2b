"""Lion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt._context import Context, zeros_like
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas
from torchopt.optim import _derived

__all__ = ["Lion", "MetaLion", "lion", "scale_by_lion"]


@record(mu=moment("exp_avg"))
class ScaleByLionState(NamedTuple):
    """The state of :func:`scale_by_lion`."""

    # moving averages of the gradients, a tree like the parameters; changes in every step
    mu: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByLion(Rule):
    """The rule of Lion; see :func:`scale_by_lion`."""

    b1: Scalar
    b2: Scalar

    state_type = ScaleByLionState

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))

    def init(self, params: Leaves, context: Context) -> ScaleByLionState:
        return ScaleByLionState(mu=zeros_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        blended = context.fresh.ema(state.mu, grads, self.b1)
        mu = context.reuse.ema(state.mu, grads, self.b2)
        signs = context.reuse.sign(blended)
        return FactoredUpdates(signs, borrowed=False), ScaleByLionState(mu)


@transformation
def scale_by_lion(b1: Scalar = 0.9, b2: Scalar = 0.99) -> Rule:
    r"""Replace the updates by the signs of a blend of momentum and gradient.

    .. math::
        u_t = \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1)\, g_t), \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2)\, g_t .

    The derivative of the sign is zero everywhere, so gradients reach later steps through the
    learning rate, the weight decay and the parameters alone.

    Args:
        b1: :math:`\beta_1`, in [0, 1).
        b2: :math:`\beta_2`, in [0, 1).

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> lion = torchopt.transform.scale_by_lion()
        >>> lion.update(torch.tensor([-3.0, 0.1]), lion.init(torch.zeros(2)))[0]
        tensor([-1.,  1.])
    """
    return ScaleByLion(b1, b2)


@optimizer
def lion(
    lr: ScalarOrSchedule | TensorTree = 1e-4,
    betas: tuple[Scalar, Scalar] = (0.9, 0.99),
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Lion, evolved sign momentum.

    .. math::
        \theta_t &= \theta_{t-1} - \eta \left(
            \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1)\, g_t)
            + \lambda\, \theta_{t-1} \right), \\
        m_t &= \beta_2 m_{t-1} + (1 - \beta_2)\, g_t .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes; three to
            ten times smaller than Adam's.
        betas: :math:`(\beta_1, \beta_2)`, in [0, 1).
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.lion(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Chen, Liang, Huang, Real, Wang, Pham, Dong, Luong, Hsieh, Lu, Le, "Symbolic Discovery of
        Optimization Algorithms", NeurIPS 2023, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByLion(*betas),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class Lion(_derived.Lion, functional=lion):
    """Lion as a :class:`torch.optim.Optimizer`; see :func:`lion`."""


class MetaLion(_derived.MetaLion, functional=lion):
    """Differentiable Lion on a module; see :func:`lion`."""
