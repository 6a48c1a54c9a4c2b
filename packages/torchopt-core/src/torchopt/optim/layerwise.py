"""Layerwise rates: LARS, LAMB and Fromage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from torchopt._arithmetic import HALF, Operand, product
from torchopt._chain import Chain
from torchopt._context import Context
from torchopt._factory import optimizer, transformation
from torchopt._gradient_step import GradientStep, add_decayed, chosen_leaves
from torchopt._norms import leaf_norms, trust_ratios
from torchopt._rule import Rule
from torchopt._state import EmptyState
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_flag, check_mask, check_non_negative
from torchopt.optim import _derived
from torchopt.optim.adam import ScaleByAdam
from torchopt.optim.sgd import Trace

__all__ = [
    "LAMB",
    "LARS",
    "Fromage",
    "MetaFromage",
    "MetaLAMB",
    "MetaLARS",
    "fromage",
    "lamb",
    "lars",
    "scale_by_trust_ratio",
]


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByTrustRatio(Rule):
    """The rule of layerwise rates; see :func:`scale_by_trust_ratio`."""

    trust_coefficient: Scalar
    eps: Scalar
    weight_decay: Scalar = 0.0
    mask: Any = None
    #: Whether the norms of update and decay are added, in the place of the norm of their sum.
    separate: bool = False

    # the norms are of whole leaves
    elementwise = False

    def __post_init__(self) -> None:
        check_non_negative("trust_coefficient", self.trust_coefficient)
        check_non_negative("eps", self.eps)
        check_non_negative("weight_decay", self.weight_decay)
        check_mask(self.mask)

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def prepare(self, state: Any, context: Context) -> tuple[int, ...] | None:
        """Return the positions of the leaves that decay, None for all."""
        if context.params is None:
            raise ValueError("trust ratios need the parameters: pass `params=` to `update`")
        return chosen_leaves(self.mask, context) if self._decays else ()

    @property
    def _decays(self) -> bool:
        return isinstance(self.weight_decay, torch.Tensor) or self.weight_decay != 0

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params = context.params
        assert params is not None
        leaves = updates.materialize(context)
        weights = leaf_norms(params, context)
        lengths = leaf_norms(leaves, context) if self.separate else []
        if self._decays:
            leaves = add_decayed(leaves, self.weight_decay, context.plan, context)
        if self.separate:
            chosen = range(len(weights)) if context.plan is None else context.plan
            for k in chosen:
                lengths[k] = lengths[k] + self.weight_decay * weights[k]
        else:
            lengths = leaf_norms(leaves, context)
        if isinstance(self.eps, torch.Tensor) or self.eps:
            zero = [x == 0 for x in lengths]
            lengths = [x + self.eps for x in lengths]
            lengths = [torch.where(z, 0.0, x) for z, x in zip(zero, lengths, strict=True)]
        ratios: Operand = trust_ratios(weights, lengths, self.trust_coefficient)
        return FactoredUpdates(leaves, scale=ratios), state


@transformation
def scale_by_trust_ratio(trust_coefficient: Scalar = 1.0, eps: Scalar = 0.0) -> Rule:
    r"""Scale the update of each leaf to the size of its parameters.

    .. math::
        u = c\, \frac{\lVert \theta \rVert_2}{\lVert g \rVert_2 + \epsilon}\, g,

    with the norms of whole leaves, and :math:`u = g` where one of them is zero. ``update`` needs
    ``params``.

    Args:
        trust_coefficient: :math:`c \ge 0`.
        eps: :math:`\epsilon \ge 0`.

    Numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range, or ``update`` has no ``params``.

    Example:
        >>> import torch, torchopt
        >>> trust = torchopt.transform.scale_by_trust_ratio()
        >>> params = torch.tensor([3.0, 4.0])
        >>> trust.update(torch.tensor([0.0, 2.0]), trust.init(params), params=params)[0]
        tensor([0., 5.])

    Reference:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017.
    """
    return ScaleByTrustRatio(trust_coefficient, eps)


@dataclasses.dataclass(frozen=True, eq=False)
class FromageDirection(Rule):
    """The rule of Fromage, learning rate included; see :func:`fromage`."""

    elementwise = False
    absorbs_rate = True

    def init(self, params: Leaves, context: Context) -> EmptyState:
        return EmptyState()

    def prepare(self, state: Any, context: Context) -> None:
        if context.params is None:
            raise ValueError("`fromage` needs the parameters: pass `params=` to `update`")

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params = context.params
        assert params is not None
        assert context.lr is not None
        leaves = updates.materialize(context)
        norms = leaf_norms(params, context), leaf_norms(leaves, context)
        steps = context.fresh.mul(leaves, trust_ratios(*norms, 1.0))
        rates = _each(context.lr, params)
        shrink = [(1 + rate * rate) ** -0.5 for rate in rates]
        # p - (p - rate * step) * shrink
        moved = context.fresh.mul(steps, [r * s for r, s in zip(rates, shrink, strict=True)])
        rest = context.fresh.mul(list(params), [1 - s for s in shrink])
        return FactoredUpdates(context.fresh.add(moved, rest), borrowed=False), state


def _each(operand: Operand, like: Leaves) -> Leaves:
    """Return the rate of each leaf as a tensor, in at least single precision."""
    ones = []
    for x in like:
        real = x.real.dtype if x.is_complex() else x.dtype
        dtype = torch.float32 if real in HALF else real
        ones.append(torch.ones((), dtype=dtype, device=x.device))
    factors: Any = product(ones, operand)
    return list(factors)


@optimizer
def lars(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    momentum: Scalar = 0.9,
    weight_decay: Scalar = 0.0,
    trust_coefficient: Scalar = 1e-3,
    eps: Scalar = 0.0,
    nesterov: bool = False,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""LARS, layerwise adaptive rates for momentum SGD.

    For each leaf,

    .. math::
        \rho_t &= c\, \frac{\lVert \theta_{t-1} \rVert}
            {\lVert g_t \rVert + \lambda \lVert \theta_{t-1} \rVert + \epsilon}, \qquad
        b_t = \mu\, b_{t-1} + \rho_t\, (g_t + \lambda\, \theta_{t-1}), \\
        \theta_t &= \theta_{t-1} - \eta\, b_t,

    with :math:`\rho_t = 1` where a norm is zero. ``update`` needs ``params``.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        momentum: :math:`\mu \ge 0`.
        weight_decay: :math:`\lambda`.
        trust_coefficient: :math:`c \ge 0`.
        eps: :math:`\epsilon \ge 0`.
        nesterov: Whether to look ahead.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range, or ``update`` has no ``params``.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.lars(lr=1.0, trust_coefficient=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> grads = {"w": torch.tensor([0.0, 2.0])}
        >>> updates, state = optim.update(grads, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([3.0000, 3.5000])}

    Reference:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Algorithm 1.
    """
    check_flag("nesterov", nesterov)
    trust = ScaleByTrustRatio(trust_coefficient, eps, weight_decay, mask, separate=True)
    trace = Trace(momentum, 0.0, nesterov, moment_requires_grad=False)
    return GradientStep(direction=Chain((trust, trace)), lr=lr, maximize=maximize)


@optimizer
def lamb(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""LAMB, layerwise adaptive rates for Adam.

    With Adam's bias-corrected moments, for each leaf,

    .. math::
        u_t = \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon} + \lambda\, \theta_{t-1}, \qquad
        \theta_t = \theta_{t-1}
            - \eta\, \frac{\lVert \theta_{t-1} \rVert}{\lVert u_t \rVert}\, u_t,

    where the ratio is 1 if a norm is zero. ``update`` needs ``params``.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda`.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range, or ``update`` has no ``params``.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.lamb(lr=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> grads = {"w": torch.tensor([0.0, 2.0])}
        >>> updates, state = optim.update(grads, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([3.0000, 3.5000])}

    Reference:
        You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, "Large Batch
        Optimization for Deep Learning: Training BERT in 76 Minutes", ICLR 2020, Algorithm 2.
    """
    check_betas(betas)
    adam = ScaleByAdam(*betas, eps, 0.0, moment_requires_grad=False)
    trust = ScaleByTrustRatio(1.0, 0.0, weight_decay, mask)
    return GradientStep(direction=Chain((adam, trust)), lr=lr, maximize=maximize)


@optimizer
def fromage(lr: ScalarOrSchedule | TensorTree = 1e-2, *, maximize: bool = False) -> Rule:
    r"""Fromage, the Frobenius-matched gradient step.

    For each leaf,

    .. math::
        \theta_t = \frac{1}{\sqrt{1 + \eta^2}} \left( \theta_{t-1}
            - \eta\, \frac{\lVert \theta_{t-1} \rVert}{\lVert g_t \rVert}\, g_t \right),

    where the ratio is 1 if a norm is zero. ``update`` needs ``params``.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        maximize: Whether to ascend.

    Raises:
        ValueError: If ``lr`` is out of range, or ``update`` has no ``params``.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.fromage(lr=0.1)
        >>> params = {"w": torch.tensor([3.0, 4.0])}
        >>> grads = {"w": torch.tensor([0.0, 2.0])}
        >>> updates, state = optim.update(grads, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([2.9851, 3.4826])}

    Reference:
        Bernstein, Vahdat, Yue, Liu, "On the Distance between Two Neural Networks and the Stability
        of Learning", NeurIPS 2020, Algorithm 1.
    """
    return GradientStep(direction=FromageDirection(), lr=lr, maximize=maximize)


class LARS(_derived.LARS, functional=lars):
    """LARS as a :class:`torch.optim.Optimizer`; see :func:`lars`."""


class MetaLARS(_derived.MetaLARS, functional=lars):
    """Differentiable LARS on a module; see :func:`lars`."""


class LAMB(_derived.LAMB, functional=lamb):
    """LAMB as a :class:`torch.optim.Optimizer`; see :func:`lamb`."""


class MetaLAMB(_derived.MetaLAMB, functional=lamb):
    """Differentiable LAMB on a module; see :func:`lamb`."""


class Fromage(_derived.Fromage, functional=fromage):
    """Fromage as a :class:`torch.optim.Optimizer`; see :func:`fromage`."""


class MetaFromage(_derived.MetaFromage, functional=fromage):
    """Differentiable Fromage on a module; see :func:`fromage`."""
