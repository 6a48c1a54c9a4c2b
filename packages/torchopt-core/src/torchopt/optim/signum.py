"""Signum: the signs of momentum."""

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
from torchopt._validate import check_unit_interval
from torchopt.optim import _derived

__all__ = ["MetaSignum", "Signum", "scale_by_signum", "signum"]


@record(mu=moment("momentum_buffer"))
class ScaleBySignumState(NamedTuple):
    """The state of :func:`scale_by_signum`."""

    # moving averages of the gradients, a tree like the parameters; changes in every step
    mu: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleBySignum(Rule):
    """The rule of Signum; see :func:`scale_by_signum`."""

    momentum: Scalar

    state_type = ScaleBySignumState

    def __post_init__(self) -> None:
        check_unit_interval("momentum", self.momentum)

    def init(self, params: Leaves, context: Context) -> ScaleBySignumState:
        return ScaleBySignumState(mu=zeros_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        mu = context.reuse.ema(state.mu, updates.materialize(context), self.momentum)
        return FactoredUpdates(context.fresh.sign(mu), borrowed=False), ScaleBySignumState(mu)


@transformation
def scale_by_signum(momentum: Scalar = 0.9) -> Rule:
    r"""Replace the updates by the signs of their moving averages.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta)\, g_t, \qquad u_t = \operatorname{sign}(m_t) .

    With :math:`\beta = 0` these are the signs of the gradients. The derivative of the sign is zero
    everywhere.

    Args:
        momentum: :math:`\beta`, in [0, 1).

    Raises:
        ValueError: If it is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> signs = torchopt.transform.scale_by_signum()
        >>> signs.update(torch.tensor([-3.0, 0.1]), signs.init(torch.zeros(2)))[0]
        tensor([-1.,  1.])
    """
    return ScaleBySignum(momentum)


@optimizer
def signum(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    momentum: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Signum, and with ``momentum=0`` signSGD.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta)\, g_t, \qquad
        \theta_t = \theta_{t-1} - \eta \left(
            \operatorname{sign}(m_t) + \lambda\, \theta_{t-1} \right) .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        momentum: :math:`\beta`, in [0, 1).
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.signum(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for
        Non-Convex Problems", ICML 2018, Algorithm 1.
    """
    return GradientStep(
        direction=ScaleBySignum(momentum),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class Signum(_derived.Signum, functional=signum):
    """Signum as a :class:`torch.optim.Optimizer`; see :func:`signum`."""


class MetaSignum(_derived.MetaSignum, functional=signum):
    """Differentiable Signum on a module; see :func:`signum`."""
