"""Adagrad."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch

from torchopt._context import Context, beside_steps, counts_like, filled_like
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

__all__ = ["AdaGrad", "Adagrad", "MetaAdaGrad", "MetaAdagrad", "adagrad", "scale_by_rss"]


@record(sum_of_squares=moment("sum"), count=per_leaf("step"))
class ScaleByRssState(NamedTuple):
    """The state of :func:`scale_by_rss`; every field changes in every step."""

    # sums of squared gradients, a tree like the parameters
    sum_of_squares: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByRss(Rule):
    """The rule of Adagrad; see :func:`scale_by_rss`."""

    initial_accumulator_value: Scalar
    eps: Scalar
    lr_decay: Scalar = 0.0

    def __post_init__(self) -> None:
        check_non_negative("initial_accumulator_value", self.initial_accumulator_value)
        check_non_negative("eps", self.eps)
        check_non_negative("lr_decay", self.lr_decay)

    state_type = ScaleByRssState

    def init(self, params: Leaves, context: Context) -> Any:
        return ScaleByRssState(
            sum_of_squares=filled_like(params, self.initial_accumulator_value),
            count=counts_like(params),
        )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        sums = context.reuse.addcmul(state.sum_of_squares, grads, grads)
        count = context.reuse.add(state.count, 1)
        slope, offset = context.per_step(count, self.slowdown)
        direction = FactoredUpdates(grads, context.fresh.sqrt(sums), slope, offset)
        return direction, ScaleByRssState(sums, count)

    def formula(self) -> Formula | None:
        return None if self.learned() else Formula("adagrad", self.slowdown, counted=True)

    def slowdown(self, t: Any) -> tuple[Any, Any]:
        """Return ``(a, b)`` of the denominators ``a * sqrt(v) + b``."""
        if not isinstance(self.lr_decay, torch.Tensor) and self.lr_decay == 0:
            return 1.0, self.eps
        slope = 1 + beside_steps(self.lr_decay) * (t - 1)
        return slope, beside_steps(self.eps) * slope


def scale_by_rss(
    initial_accumulator_value: Scalar = 0.0, eps: Scalar = 1e-10
) -> GradientTransformation:
    r"""Rescale by the root of the sum of all squared gradients so far.

    .. math::
        G_t = G_{t-1} + g_t^2, \qquad u_t = \frac{g_t}{\sqrt{G_t} + \epsilon} .

    Args:
        initial_accumulator_value: :math:`G_0 \ge 0`.
        eps: :math:`\epsilon \ge 0`.

    Both are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is negative or not finite.

    Example:
        >>> import torch, torchopt
        >>> rescale = torchopt.transform.scale_by_rss()
        >>> updates, state = rescale.update(torch.tensor([2.0]), rescale.init(torch.zeros(1)))
        >>> updates
        tensor([1.])

    Reference:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", JMLR 2011.
    """
    return RuleTransformation(ScaleByRss(initial_accumulator_value, eps))


@optimizer
def adagrad(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    lr_decay: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    initial_accumulator_value: Scalar = 0.0,
    eps: Scalar = 1e-10,
    *,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Adagrad, as in :class:`torch.optim.Adagrad`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \qquad G_t = G_{t-1} + g_t^2, \\
        \theta_t &= \theta_{t-1} - \frac{\eta}{1 + (t - 1)\, \eta'}
                    \frac{g_t}{\sqrt{G_t} + \epsilon} .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        lr_decay: :math:`\eta' \ge 0`.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        initial_accumulator_value: :math:`G_0 \ge 0`.
        eps: :math:`\epsilon \ge 0`.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`~torchopt.adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adagrad(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Duchi, Hazan, Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
        Optimization", JMLR 2011.
    """
    return GradientStep(
        direction=ScaleByRss(initial_accumulator_value, eps, lr_decay),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class Adagrad(_derived.Adagrad, functional=adagrad):
    """Adagrad as a :class:`torch.optim.Optimizer`; see :func:`adagrad`."""

    def state_dict(self) -> dict[str, Any]:
        """Return state and hyperparameters; as torch's Adagrad, also where there was no step."""
        packed = super().state_dict()
        for group, keys in zip(self.param_groups, packed["param_groups"], strict=True):
            for p, key in zip(group["params"], keys["params"], strict=True):
                if key not in packed["state"]:
                    (sums,) = filled_like([p.detach()], group["initial_accumulator_value"])
                    packed["state"][key] = {"step": torch.zeros((), device="cpu"), "sum": sums}
        return packed


class MetaAdagrad(_derived.MetaAdagrad, functional=adagrad):
    """Differentiable Adagrad on a module; see :func:`adagrad`."""


AdaGrad = Adagrad
MetaAdaGrad = MetaAdagrad
