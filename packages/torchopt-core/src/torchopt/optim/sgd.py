"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import optree
import torch

from torchopt._rule import Direction, Rule
from torchopt._validate import check_non_negative
from torchopt._workspace import beside_steps, counts_like, zeros_like
from torchopt.base import EmptyState, GradientTransformation, RuleTransformation, identity
from torchopt.optim import _derived
from torchopt.optim._descent import Descent, optimizer

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves
    from torchopt._workspace import Workspace
    from torchopt.typing import OptState, Params, Scalar, ScalarOrSchedule, TensorTree

__all__ = ["SGD", "MetaSGD", "sgd", "trace"]


class TraceState(NamedTuple):
    """The state of :func:`trace`."""

    # momentum buffer, a tree like the parameters; changes in every step
    trace: TensorTree


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

    def init(self, params: Params) -> OptState:
        buffer = zeros_like(params, self.moment_requires_grad)
        if self._is_zero(self.dampening):
            return TraceState(trace=buffer)
        return DampenedTraceState(trace=buffer, count=counts_like(params))

    def adopt(self, state: Any, params: Params) -> OptState:
        fresh = self.init(params)
        if isinstance(state, EmptyState):
            return fresh
        if isinstance(state, TraceState) and isinstance(fresh, DampenedTraceState):
            # the buffer has begun, so dampening applies from now on
            begun = optree.tree_map(torch.ones_like, fresh.count)
            return DampenedTraceState(trace=state.trace, count=begun)
        if isinstance(state, DampenedTraceState) and isinstance(fresh, TraceState):
            return TraceState(trace=state.trace)
        return state

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        if self.nesterov:  # needs the updates twice
            updates = Direction(updates.materialize(work))
        if self._is_zero(self.dampening):
            (buffer,) = work.read(state, TraceState)
            buffer = updates.add_to(work.reuse.mul(buffer, self.momentum), work)
            state = work.write(state, buffer)
        else:
            buffer, count = work.read(state, DampenedTraceState)
            (share,) = work.per_step(count, self.share)
            buffer = work.reuse.mul(buffer, self.momentum)
            buffer = updates.scaled(share).add_to(buffer, work)
            state = work.write(state, buffer, work.reuse.add(count, 1))
        if self.nesterov:
            ahead = updates.add_to(work.fresh.mul(buffer, self.momentum), work)
            return Direction(ahead, borrowed=False), state
        return Direction(buffer), state

    def share(self, t: Any) -> tuple[Any]:
        """Return the weight of the gradient, which is 1 in the first step."""
        t = torch.as_tensor(t, dtype=torch.float64)
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
    return Descent(
        direction=identity().rule if plain else buffer,
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
