"""Lookahead: slow weights around an optimizer."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import Operand
from torchopt._chain import prepare, step, update
from torchopt._context import Context, is_eager
from torchopt._factory import optimizer
from torchopt._rule import Rule
from torchopt._state import nested, record, shared, weights
from torchopt._types import Leaves, OptState, Scalar, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.base import GradientTransformation, as_rule, check_transformation
from torchopt.optim import _derived

__all__ = ["Lookahead", "MetaLookahead", "lookahead"]


@record(inner_state=nested(), slow=weights("slow"), count=shared("lookahead_step"))
class LookaheadState(NamedTuple):
    """The state of :func:`lookahead`."""

    # the state of the optimizer
    inner_state: OptState
    # the slow weights, a tree like the parameters; change every k steps
    slow: TensorTree
    # steps taken (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class LookaheadRule(Rule):
    """The rule of :func:`lookahead`."""

    inner: Rule
    k: int
    alpha: Scalar

    state_type = LookaheadState

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"`k` must be a whole number of at least 1, got {self.k!r}")
        check_non_negative("alpha", self.alpha)

    def children(self) -> tuple[Rule, ...]:
        return (self.inner,)

    def init(self, params: Leaves, context: Context) -> LookaheadState:
        return LookaheadState(
            inner_state=self.inner.init(params, context),
            slow=[p.clone() for p in params],
            count=torch.zeros((), dtype=torch.int64, device="cpu"),
        )

    def prepare(self, state: Any, context: Context) -> Any:
        if context.params is None:
            raise ValueError("`lookahead` needs the parameters: pass `params=` to `update`")
        return prepare(self.inner, state.inner_state, context)

    def rate(self, context: Context) -> Operand | None:
        return self.inner.rate(context)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params = context.params
        assert params is not None
        found, inner = update(self.inner, updates, state.inner_state, context)
        count = state.count + 1
        share = self._share(count)
        if not isinstance(share, torch.Tensor) and share == 0:
            return found, LookaheadState(inner, state.slow, count)
        moves = found.owned(context)
        fast = context.fresh.add(moves, params)
        # where a compiler or a transform decides, both ways are taken
        ahead = context.fresh.add_scaled(fast, state.slow, -1.0)
        slow = context.reuse.add_scaled(state.slow, ahead, self._alpha(share))
        synced = context.fresh.add_scaled(slow, params, -1.0)
        if not isinstance(share, torch.Tensor):
            return FactoredUpdates(synced, borrowed=False), LookaheadState(inner, slow, count)
        chosen = [torch.where(share > 0, x, y) for x, y in zip(synced, moves, strict=True)]
        return FactoredUpdates(chosen, borrowed=False), LookaheadState(inner, slow, count)

    def step(self, updates: FactoredUpdates, state: Any, context: Context) -> tuple[Leaves, Any]:
        count = state.count + 1
        share = self._share(count)
        if not context.inplace or isinstance(share, torch.Tensor):
            return super().step(updates, state, context)
        fast, inner = step(self.inner, updates, state.inner_state, context)
        if share == 0:
            return fast, LookaheadState(inner, state.slow, count)
        slow = context.reuse.ema(state.slow, fast, 1 - self.alpha)
        torch._foreach_copy_(fast, slow)
        return fast, LookaheadState(inner, slow, count)

    def evaluated_at(self, params: Leaves, state: Any, context: Context) -> Leaves:
        return self.inner.evaluated_at(params, state.inner_state, context)

    def trained_at(self, evaluated: Leaves, state: Any, context: Context) -> Leaves:
        return self.inner.trained_at(evaluated, state.inner_state, context)

    def _share(self, count: torch.Tensor) -> int | torch.Tensor:
        """Return 1 if the slow weights move in this step, else 0."""
        if is_eager(count):
            return int(int(count) % self.k == 0)
        return (count % self.k == 0).to(torch.int64)

    def _alpha(self, share: int | torch.Tensor) -> Any:
        return self.alpha * share if isinstance(share, torch.Tensor) else self.alpha


@optimizer
def lookahead(inner: GradientTransformation, k: int = 5, alpha: Scalar = 0.5) -> Rule:
    r"""Let slow weights follow an optimizer, every k steps.

    .. math::
        \theta_t = \theta_{t-1} + u_t, \qquad
        \text{every } k \text{ steps:}\quad
        \phi \leftarrow \phi + \alpha\, (\theta_t - \phi), \quad \theta_t \leftarrow \phi .

    ``update`` needs ``params``. The slow weights :math:`\phi` are those to evaluate at; after every
    k-th step they are the parameters.

    Args:
        inner: The optimizer, any transformation. Its state goes on when the weights move.
        k: How many steps it makes between moves of the slow weights.
        alpha: The step size :math:`\alpha` of the slow weights; differentiable if a 0-dim tensor.

    Raises:
        TypeError: If ``inner`` is not a transformation.
        ValueError: If a number is outside of its range, or ``update`` has no ``params``.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.lookahead(torchopt.sgd(1.0), k=2, alpha=0.5)
        >>> params = torch.tensor([8.0])
        >>> state = optim.init(params)
        >>> for _ in range(2):
        ...     updates, state = optim.update(torch.ones(1), state, params=params)
        ...     params = torchopt.apply_updates(params, updates)
        >>> params
        tensor([7.])

    Reference:
        Zhang, Lucas, Hinton, Ba, "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019,
        Algorithm 1.
    """
    check_transformation(inner, "`inner`")
    return LookaheadRule(as_rule(inner), k, alpha)


class Lookahead(_derived.Lookahead, functional=lookahead):
    """Lookahead as a :class:`torch.optim.Optimizer`; see :func:`lookahead`."""


class MetaLookahead(_derived.MetaLookahead, functional=lookahead):
    """Differentiable lookahead on a module; see :func:`lookahead`."""
