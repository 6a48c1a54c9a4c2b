"""Adam's direction, compiled, as a transformation of its own."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from torchopt._rule import Direction, Rule
from torchopt.base import GradientTransformation, RuleTransformation
from torchopt.optim._descent import Descent
from torchopt.optim.adam import ScaleByAdam
from torchopt_accel._compiled import CompiledDescent, compile_descent

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves
    from torchopt._workspace import Workspace
    from torchopt.typing import OptState, Params

__all__ = ["scale_by_accelerated_adam"]


@dataclasses.dataclass(frozen=True, eq=False)
class AcceleratedDirection(Rule):
    """A direction that insists on its kernel."""

    direction: Rule

    def __post_init__(self) -> None:
        compile_descent(self._descent)

    @property
    def _descent(self) -> Descent:
        return Descent(self.direction, lr=1.0, use_accelerated_op=True)

    @functools.cached_property
    def _compiled(self) -> CompiledDescent | None:
        return compile_descent(self._descent)

    def __getstate__(self) -> dict[str, Any]:
        return {"direction": self.direction}

    def children(self) -> tuple[Rule, ...]:
        return (self.direction,)

    def init(self, params: Params) -> OptState:
        return self.direction.init(params)

    def update(
        self, updates: Direction, state: Any, params: Leaves | None, work: Workspace
    ) -> tuple[Direction, OptState]:
        assert self._compiled is not None
        result = self._compiled.run(updates.materialize(work), state, params, work, None, 0.0)
        assert result is not None
        leaves, state = result
        return Direction(leaves, borrowed=False), state


def scale_by_accelerated_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Rescale by Adam's bias-corrected moments, in a compiled kernel.

    The same as :func:`torchopt.transform.scale_by_adam`, in one call for all leaves:

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}
                    {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} .

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments, in [0, 1).
        eps: :math:`\epsilon`, added outside of the root.
        eps_root: :math:`\bar\epsilon`, added inside of the root.
        moment_requires_grad: Whether the initial moments require gradients.

    Raises:
        ValueError: If a number is outside of its range.
        NotCoveredError: If a number is a tensor; or in a step, if there is no kernel for its
            inputs.

    Example:
        >>> import torch, torchopt
        >>> adam = torchopt.transform.scale_by_accelerated_adam()
        >>> updates, state = adam.update(torch.tensor([-3.0]), adam.init(torch.zeros(1)))
        >>> updates
        tensor([-1.])

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """
    direction = ScaleByAdam(b1, b2, eps, eps_root, moment_requires_grad)
    return RuleTransformation(AcceleratedDirection(direction))
