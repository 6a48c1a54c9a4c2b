"""Adam and AdamW."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt._context import Context, beside_steps, bias_correction, counts_like, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_betas, check_non_negative
from torchopt.base import GradientTransformation, RuleTransformation
from torchopt.kernels import Formula
from torchopt.optim import _derived

__all__ = ["Adam", "AdamW", "MetaAdam", "MetaAdamW", "adam", "adamw", "scale_by_adam"]


@record(mu=moment("exp_avg"), nu=moment("exp_avg_sq"), count=per_leaf("step"))
class ScaleByAdamState(NamedTuple):
    """The state of :func:`scale_by_adam`; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@record(
    mu=moment("exp_avg"),
    nu=moment("exp_avg_sq"),
    nu_max=moment("max_exp_avg_sq"),
    count=per_leaf("step"),
)
class ScaleByAmsgradState(NamedTuple):
    """The state of :func:`scale_by_adam` with AMSGrad; every field changes in every step."""

    # first moments, a tree like the parameters
    mu: TensorTree
    # second moments, a tree like the parameters
    nu: TensorTree
    # the largest second moments so far, a tree like the parameters
    nu_max: TensorTree
    # steps taken by each leaf (0-dim int64)
    count: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleByAdam(Rule):
    """The rule of Adam; see :func:`scale_by_adam`."""

    b1: Scalar
    b2: Scalar
    eps: Scalar
    eps_root: Scalar
    moment_requires_grad: bool
    amsgrad: bool = False

    def __post_init__(self) -> None:
        check_betas((self.b1, self.b2))
        check_non_negative("eps", self.eps)
        check_non_negative("eps_root", self.eps_root)

    @property
    def state_type(self) -> type:
        return ScaleByAmsgradState if self.amsgrad else ScaleByAdamState

    def init(self, params: Leaves, context: Context) -> Any:
        mu, nu = (zeros_like(params, self.moment_requires_grad) for _ in range(2))
        if self.amsgrad:
            return ScaleByAmsgradState(mu, nu, zeros_like(params), counts_like(params))
        return ScaleByAdamState(mu, nu, counts_like(params))

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        mu = context.reuse.ema(state.mu, grads, self.b1)
        nu = context.reuse.ema_square(state.nu, grads, self.b2)
        count = context.reuse.add(state.count, 1)
        new = state._replace(mu=mu, nu=nu, count=count)
        if self.amsgrad:
            nu = context.reuse.maximum(state.nu_max, nu)
            new = new._replace(nu_max=nu)

        eps_root, slope, offset = context.per_step(count, self.corrections)
        squares = context.fresh.add(nu, eps_root) if self._has_eps_root else nu
        direction = FactoredUpdates(mu, context.fresh.sqrt(squares), slope, offset)
        return direction, new

    def formula(self) -> Formula | None:
        if self.amsgrad or self.learned():
            return None
        b1, b2 = float(self.b1), float(self.b2)

        def coefficients(t: int) -> tuple[float, ...]:
            inside, slope, offset = self.corrections(t)
            return b1, b2, inside or 0.0, slope, offset

        return Formula("adam", coefficients, counted=True)

    @property
    def _has_eps_root(self) -> bool:
        return isinstance(self.eps_root, torch.Tensor) or self.eps_root > 0

    def corrections(self, t: Any) -> tuple[Any, Any, Any]:
        """Return ``(r, a, b)`` of the denominators ``a * sqrt(v + r) + b`` of ``m``.

        These are the bias corrections, moved to where they cost the fewest passes over memory.
        """
        c1, c2 = bias_correction(self.b1, t), bias_correction(self.b2, t)
        r = beside_steps(self.eps_root) * c2 if self._has_eps_root else None
        return r, c1 / c2**0.5, c1 * beside_steps(self.eps)


def scale_by_adam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    moment_requires_grad: bool = False,
) -> GradientTransformation:
    r"""Rescale by Adam's bias-corrected moments.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \\
        u_t &= \frac{m_t / (1 - \beta_1^t)}
                    {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} .

    Where :math:`v_t` is exactly zero the derivatives of the square root are taken as zero, so a
    zero gradient never turns a meta-gradient into NaN.

    Args:
        b1: Decay :math:`\beta_1` of the first moments, in [0, 1).
        b2: Decay :math:`\beta_2` of the second moments, in [0, 1).
        eps: :math:`\epsilon`, added outside of the root.
        eps_root: :math:`\bar\epsilon`, added inside of the root.
        moment_requires_grad: Whether the initial moments require gradients.

    All numbers are differentiable if given as 0-dim tensors.

    Raises:
        ValueError: If a number is outside of its range.

    Example:
        >>> import torch, torchopt
        >>> adam = torchopt.transform.scale_by_adam()
        >>> updates, state = adam.update(torch.tensor([-3.0]), adam.init(torch.zeros(1)))
        >>> updates.round(decimals=4)
        tensor([-1.])

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """
    return RuleTransformation(ScaleByAdam(b1, b2, eps, eps_root, moment_requires_grad))


@optimizer
def adam(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    amsgrad: bool = False,
    *,
    eps_root: Scalar = 0.0,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Adam, as in :class:`torch.optim.Adam`.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda\, \theta_{t-1}, \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, g_t^2, \\
        \theta_t &= \theta_{t-1} - \eta\, \frac{m_t / (1 - \beta_1^t)}
                    {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} .

    Args:
        lr: Learning rate :math:`\eta`: a number, a 0-dim tensor, a schedule of the step, or a tree
            of tensors shaped like the parameters. Tensors receive gradients.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon`, added outside of the root.
        weight_decay: :math:`\lambda`, coupled to the gradient; needs ``params`` in ``update``.
        amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
        eps_root: :math:`\bar\epsilon`, added inside of the root.
        moment_requires_grad: Whether the initial moments require gradients.
        maximize: Whether to ascend.
        decoupled_weight_decay: Whether to decay as :func:`adamw` does.
        use_accelerated_op: ``True`` insists on the compiled kernels of ``torchopt-accel``,
            ``None`` uses them where they are installed and apply, ``False`` never does.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adam(lr=0.1)
        >>> params = {"w": torch.tensor([1.0])}
        >>> updates, state = optim.update({"w": torch.tensor([2.0])}, optim.init(params))
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9000])}

    Reference:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByAdam(*betas, eps, eps_root, moment_requires_grad, amsgrad),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=decoupled_weight_decay,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


@optimizer
def adamw(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 1e-2,
    amsgrad: bool = False,
    *,
    eps_root: Scalar = 0.0,
    mask: Any | Callable[[Params], Any] | None = None,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    use_accelerated_op: bool | None = None,
) -> Rule:
    r"""Adam with decoupled weight decay, as in :class:`torch.optim.AdamW`.

    .. math::
        \theta_t = \theta_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t)}
        {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon} + \lambda\, \theta_{t-1} \right) .

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`adam` takes.
        betas: Decays :math:`(\beta_1, \beta_2)` of the moments, in [0, 1).
        eps: :math:`\epsilon`, added outside of the root.
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        amsgrad: Whether to divide by the largest second moments so far (Reddi, Kale, Kumar 2018).
        eps_root: :math:`\bar\epsilon`, added inside of the root.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        moment_requires_grad: Whether the initial moments require gradients.
        maximize: Whether to ascend.
        use_accelerated_op: As in :func:`adam`.

    Raises:
        ValueError: If a number is outside of its range or not finite.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adamw(lr=0.1, mask={"w": True, "b": False})
        >>> params = {"w": torch.ones(1), "b": torch.ones(1)}
        >>> grads = {"w": torch.zeros(1), "b": torch.zeros(1)}
        >>> updates, state = optim.update(grads, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([0.9990]), 'b': tensor([1.])}

    Reference:
        Loshchilov, Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, Algorithm 2.
    """
    check_betas(betas)
    return GradientStep(
        direction=ScaleByAdam(*betas, eps, eps_root, moment_requires_grad, amsgrad),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
        use_accelerated_op=use_accelerated_op,
    )


class Adam(_derived.Adam, functional=adam):
    """Adam as a :class:`torch.optim.Optimizer`; see :func:`adam`."""


class AdamW(_derived.AdamW, functional=adamw):
    """AdamW as a :class:`torch.optim.Optimizer`; see :func:`adamw`."""


class MetaAdam(_derived.MetaAdam, functional=adam):
    """Differentiable Adam on a module; see :func:`adam`."""


class MetaAdamW(_derived.MetaAdamW, functional=adamw, moment_requires_grad=False):
    """Differentiable AdamW on a module; see :func:`adamw`."""
