"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._chain import Identity
from torchopt._context import Context, beside_steps, counts_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.base import GradientTransformation, RuleTransformation
from torchopt.kernels import Formula
from torchopt.optim import _derived

__all__ = ["SGD", "MetaSGD", "sgd", "trace"]


@record(trace=moment("momentum_buffer"))
class TraceState(NamedTuple):
    """The state of :func:`trace`."""

    # momentum buffer, a tree like the parameters; changes in every step
    trace: TensorTree


@record(trace=moment("momentum_buffer"), count=per_leaf("step", missing=1))
class DampenedTraceState(NamedTuple):
    """The state of :func:`trace` with dampening, which does not apply to the first step."""

    # momentum buffer, a tree like the parameters; changes in every step
    trace: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class Trace(Rule):
    """The momentum rule; see :func:`trace`."""

    momentum: Scalar
    dampening: Scalar
    nesterov: bool
    moment_requires_grad: bool

    def __post_init__(self) -> None:
        check_non_negative("momentum", self.momentum)
        check_non_negative("dampening", self.dampening)
        if self.nesterov and (self._is_zero(self.momentum) or not self._is_zero(self.dampening)):
            raise ValueError(
                "Nesterov momentum requires a momentum and zero dampening, got "
                f"`momentum`={self.momentum}, `dampening`={self.dampening}"
            )

    @staticmethod
    def _is_zero(value: Scalar) -> bool:
        return not isinstance(value, torch.Tensor) and value == 0

    @property
    def state_type(self) -> type:
        return TraceState if self._is_zero(self.dampening) else DampenedTraceState

    def init(self, params: Leaves, context: Context) -> Any:
        buffer = zeros_like(params, self.moment_requires_grad)
        if self._is_zero(self.dampening):
            return TraceState(trace=buffer)
        return DampenedTraceState(trace=buffer, count=counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        if self.nesterov:  # needs the updates twice
            updates = FactoredUpdates(updates.materialize(context))
        if self._is_zero(self.dampening):
            buffer = updates.add_to(context.reuse.mul(state.trace, self.momentum), context)
            new: Any = TraceState(buffer)
        else:
            (share,) = context.per_step(state.count, self.share)
            buffer = context.reuse.mul(state.trace, self.momentum)
            buffer = updates.scaled(share).add_to(buffer, context)
            new = DampenedTraceState(buffer, context.reuse.add(state.count, 1))
        if self.nesterov:
            ahead = updates.add_to(context.fresh.mul(buffer, self.momentum), context)
            return FactoredUpdates(ahead, borrowed=False), new
        return FactoredUpdates(buffer), new

    def formula(self) -> Formula | None:
        if self.learned():
            return None
        momentum, dampening = float(self.momentum), float(self.dampening)
        look = (1.0, momentum) if self.nesterov else (0.0, 1.0)

        def coefficients(t: int) -> tuple[float, ...]:
            return momentum, 1.0 if t <= 1 else 1.0 - dampening, *look

        return Formula("momentum", coefficients, counted=dampening != 0)

    def share(self, t: Any) -> tuple[Any]:
        """Return the weight of the gradient, which is 1 in the first step."""
        t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        return (1 - beside_steps(self.dampening) * t.clamp(max=1),)


def trace(
    momentum: Scalar = 0.9,
    dampening: Scalar = 0.0,
    nesterov: bool = False,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Accumulate momentum.

    .. math::
        b_1 &= g_1, \qquad b_t = \mu\, b_{t-1} + (1 - \tau)\, g_t, \\
        u_t &= b_t \quad\text{or, with Nesterov momentum,}\quad g_t + \mu\, b_t .

    Args:
        momentum: Decay :math:`\mu \ge 0` of the buffer; differentiable if a 0-dim tensor.
        dampening: :math:`\tau \ge 0`, not applied to the first gradient; differentiable if a
            0-dim tensor.
        nesterov: Whether to look ahead (Sutskever et al., 2013).
        moment_requires_grad: Whether the initial buffer requires a gradient.

    Raises:
        ValueError: If a number is negative, or Nesterov momentum meets zero momentum or dampening.

    Example:
        >>> import torch, torchopt
        >>> momentum = torchopt.transform.trace(momentum=0.5)
        >>> state = momentum.init(torch.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = momentum.update(torch.ones(1), state)
        >>> updates
        tensor([1.5000])
    """
    return RuleTransformation(Trace(momentum, dampening, nesterov, moment_requires_grad))


@optimizer
def sgd(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    momentum: Scalar = 0.0,
    dampening: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Stochastic gradient descent with momentum, as in :class:`torch.optim.SGD`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \\
        b_1 &= g_1, \qquad b_t = \mu\, b_{t-1} + (1 - \tau)\, g_t, \\
        \theta_t &= \theta_{t-1} - \eta\, b_t
        \quad\text{or, with Nesterov momentum,}\quad \theta_{t-1} - \eta\, (g_t + \mu\, b_t).

    Args:
        lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
            of tensors shaped like the parameters. Tensors receive gradients.
        momentum: :math:`\mu`; zero keeps no state.
        dampening: :math:`\tau`, not applied to the first gradient.
        weight_decay: :math:`\lambda`; needs ``params`` in ``update``.
        nesterov: Whether to use Nesterov momentum.
        moment_requires_grad: Whether the initial buffer requires a gradient.
        maximize: Whether to ascend.
        use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
            ``None`` uses them where they are installed and apply, ``False`` never does.

    Raises:
        ValueError: If a number is negative or not finite, or Nesterov momentum meets zero momentum
            or dampening.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.sgd(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.8000])}

    Reference:
        Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
        learning", ICML 2013.
    """
    buffer = Trace(momentum, dampening, nesterov, moment_requires_grad)
    plain = not isinstance(momentum, torch.Tensor) and momentum == 0
    return GradientStep(
        direction=Identity() if plain else buffer,
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


_POSITIONAL = ("lr", "momentum", "weight_decay", "dampening", "nesterov")


class SGD(_derived.SGD, functional=sgd, positional=(*_POSITIONAL, "maximize")):
    """Stochastic gradient descent as a :class:`torch.optim.Optimizer`; see :func:`sgd`."""


class MetaSGD(
    _derived.MetaSGD,
    functional=sgd,
    positional=(*_POSITIONAL, "moment_requires_grad", "maximize"),
):
    """Differentiable stochastic gradient descent on a module; see :func:`sgd`."""
