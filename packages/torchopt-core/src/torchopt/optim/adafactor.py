"""Adafactor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt._arithmetic import HALF, Operand, PerLeaf
from torchopt._context import Context, beside_steps, counts_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._norms import leaf_norms, precise
from torchopt._rule import Rule
from torchopt._state import per_leaf, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.optim import _derived

__all__ = ["Adafactor", "MetaAdafactor", "adafactor"]


@record(
    count=per_leaf("step"),
    row=per_leaf("row_var"),
    column=per_leaf("col_var"),
    full=per_leaf("variance"),
)
class AdafactorState(NamedTuple):
    """The state of :func:`adafactor`; every field changes in every step."""

    # steps taken by each leaf (0-dim int64)
    count: TensorTree
    # moving averages of the squared gradients over each row, shape (..., m, 1); None for vectors
    row: TensorTree
    # the same over each column, shape (..., 1, n); None for vectors
    column: TensorTree
    # moving averages of the squared gradients of vectors; None for matrices
    full: TensorTree


@dataclasses.dataclass(frozen=True, eq=False)
class AdafactorDirection(Rule):
    """The rule of Adafactor, learning rate included; see :func:`adafactor`."""

    beta2_decay: Scalar
    eps1: float | None
    eps2: Scalar
    d: Scalar

    # it sees rows and columns
    elementwise = False
    absorbs_rate = True
    state_type = AdafactorState

    def __post_init__(self) -> None:
        if not isinstance(self.beta2_decay, torch.Tensor) and self.beta2_decay > 0:
            raise ValueError(f"beta2_decay should be <= 0 but is: {self.beta2_decay}")
        if self.eps1 is not None and not self.eps1 >= 0:
            raise ValueError(f"epsilon1 should be >= 0 but is: {self.eps1}")
        check_non_negative("eps[1]", self.eps2)
        if not isinstance(self.d, (int, float, torch.Tensor)):
            raise TypeError(f"`d` must be a number or a 0-dim tensor, got {self.d!r}")
        if not isinstance(self.d, torch.Tensor) and not self.d >= 1:
            raise ValueError(f"Clipping threshold d should be >= 1 but is: {self.d}")

    def init(self, params: Leaves, context: Context) -> AdafactorState:
        return AdafactorState(
            count=counts_like(params),
            row=[x.new_zeros((*x.shape[:-1], 1)) if x.ndim > 1 else None for x in params],
            column=[
                x.new_zeros((*x.shape[:-2], 1, x.shape[-1])) if x.ndim > 1 else None for x in params
            ],
            full=[None if x.ndim > 1 else torch.zeros_like(x) for x in params],
        )

    def prepare(self, state: Any, context: Context) -> None:
        if context.complex:
            raise RuntimeError("Adafactor does not support complex parameters")
        if context.params is None:
            raise ValueError("`adafactor` needs the parameters: pass `params=` to `update`")
        rows = zip(context.positions, context.like or [], state.row, state.full, strict=True)
        for i, x, row, full in rows:
            expected = (*x.shape[:-1], 1) if x.ndim > 1 else tuple(x.shape)
            found = row if x.ndim > 1 else full
            if found is None or tuple(found.shape) != expected:
                what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
                raise ValueError(
                    f"the state of leaf {i} {what}, but its update has shape {tuple(x.shape)}"
                )

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        params = context.params
        assert params is not None
        grads = updates.materialize(context)
        count = context.reuse.add(state.count, 1)
        share, slowed = context.per_step(count, self._of_step)
        new = AdafactorState(count, list(state.row), list(state.column), list(state.full))
        found, factors = [], []
        for k, (g, p) in enumerate(zip(grads, params, strict=True)):
            eps = torch.finfo(p.dtype).eps if self.eps1 is None else self.eps1
            weight, single = _of_leaf(share, k), precise(g)
            if g.ndim > 1:
                variance = self._factored(single, new, k, weight, eps, context)
            else:
                new.full[k] = _average(new.full[k], single * single, weight, context)
                variance = precise(new.full[k])
                variance = variance.clone() if context.inplace else variance
            if context.inplace:  # the variance is a tensor of this step's own
                direction = variance.clamp_(min=eps * eps).rsqrt_().mul_(single)
            else:
                direction = variance.clamp(min=eps * eps).rsqrt() * single
            found.append(direction.to(g.dtype))
            rate = _of_leaf(context.lr, k)
            factors.append(self._factor(direction, p, rate, _of_leaf(slowed, k), context))
        if context.inplace:
            new = state
        scale: Operand = factors
        if all(isinstance(x, float) for x in factors):
            scale = PerLeaf(torch.tensor(factors, dtype=torch.float64, device="cpu"))
        return FactoredUpdates(found, scale=scale, borrowed=False), new

    def _of_step(self, t: Any) -> tuple[Any, Any]:
        """Return the weight of the new squares, and the bound of the rate."""
        return t ** beside_steps(self.beta2_decay), 1 / t**0.5

    def _factored(
        self, g: torch.Tensor, new: Any, k: int, weight: Any, eps: float, context: Context
    ) -> torch.Tensor:
        """Return the squared gradients as a product of those of rows and columns."""
        row, column = (_mean_square(g, dim, context) for dim in (-1, -2))
        new.row[k] = _average(new.row[k], row, weight, context)
        new.column[k] = _average(new.column[k], column, weight, context)
        row, column = precise(new.row[k]), precise(new.column[k])
        estimate: torch.Tensor = row * column
        mean = row.mean(dim=-2, keepdim=True).clamp(min=eps)
        return estimate.div_(mean) if context.inplace else estimate / mean

    def _factor(
        self, direction: torch.Tensor, p: torch.Tensor, rate: Any, slowed: Any, context: Context
    ) -> Any:
        """Return the relative step size of a leaf over the clipped size of its direction."""
        size = math.sqrt(max(p.numel(), 1))
        scale, length = (x / size for x in leaf_norms([p, direction], context))
        if context.inplace and p.is_cpu and not isinstance(rate, torch.Tensor):
            relative = max(float(self.eps2), scale.item()) * min(rate, float(slowed))
            return relative / max(1.0, length.item() / float(self.d))
        bounds = [_beside(x, p) for x in (self.eps2, rate, slowed)]
        relative = torch.maximum(bounds[0], scale) * torch.minimum(bounds[1], bounds[2])
        return relative / (length / self.d).clamp(min=1.0)


def _of_leaf(operand: Any, k: int) -> Any:
    """Return what an operand is for one leaf."""
    if isinstance(operand, PerLeaf):
        return operand.values[k]
    return operand[k] if isinstance(operand, list) else operand


def _beside(x: Any, p: torch.Tensor) -> torch.Tensor:
    dtype = torch.float32 if p.dtype in HALF else p.dtype
    if isinstance(x, torch.Tensor):
        return x.to(p.device, dtype)
    return torch.tensor(x, dtype=dtype, device=p.device)


def _average(average: torch.Tensor, x: torch.Tensor, weight: Any, context: Context) -> torch.Tensor:
    """Return the average moved towards ``x`` by ``weight``."""
    x = x.to(average.dtype)
    if isinstance(weight, torch.Tensor):
        weight = weight.to(x.dtype)
    return context.reuse.ema([average], [x], 1 - weight)[0]


def _mean_square(g: torch.Tensor, dim: int, context: Context) -> torch.Tensor:
    if context.inplace:  # without a tensor of squares
        norms: torch.Tensor = torch.linalg.vector_norm(g, dim=dim, keepdim=True)
        return norms.square_().div_(max(g.shape[dim], 1))
    return g.square().mean(dim=dim, keepdim=True)


@optimizer
def adafactor(
    lr: ScalarOrSchedule | TensorTree = 1e-2,
    beta2_decay: Scalar = -0.8,
    eps: tuple[float | None, Scalar] = (None, 1e-3),
    d: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    *,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Adafactor, with second moments of rows and columns, as in :class:`torch.optim.Adafactor`.

    For a matrix, with :math:`\rho_t = \min(\eta, 1 / \sqrt t)` and
    :math:`\hat\beta_t = 1 - t^{\tau}`,

    .. math::
        R_t &= \hat\beta_t R_{t-1} + (1 - \hat\beta_t) \operatorname{mean}_{cols}(G_t^2), \qquad
        C_t = \hat\beta_t C_{t-1} + (1 - \hat\beta_t) \operatorname{mean}_{rows}(G_t^2), \\
        U_t &= G_t \Big/ \sqrt{\max\bigl(R_t C_t / \max(\operatorname{mean} R_t, \epsilon_1),
                       \epsilon_1^2\bigr)}, \\
        \theta_t &= (1 - \eta\lambda)\, \theta_{t-1}
            - \max(\epsilon_2, \operatorname{RMS}(\theta_{t-1}))\, \rho_t\,
              \frac{U_t}{\max(1, \operatorname{RMS}(U_t) / d)} .

    Vectors keep all second moments. ``update`` needs ``params``.

    Args:
        lr: The largest relative step size :math:`\eta`, in every form that :func:`~torchopt.adam`
            takes.
        beta2_decay: :math:`\tau \le 0`.
        eps: :math:`(\epsilon_1, \epsilon_2)`; None for the machine epsilon of the dtype.
        d: The clipping threshold :math:`d \ge 1`.
        weight_decay: :math:`\lambda`, decoupled from the gradient.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range, or ``update`` has no ``params``.
        RuntimeError: In a step, if a parameter is complex.

    Example:
        >>> import torch, torchopt
        >>> optim = torchopt.adafactor(lr=0.1)
        >>> params = {"w": torch.ones(2, 3)}
        >>> updates, state = optim.update(params, optim.init(params), params=params)
        >>> torchopt.apply_updates(params, updates)
        {'w': tensor([[0.9000, 0.9000, 0.9000],
                [0.9000, 0.9000, 0.9000]])}

    Reference:
        Shazeer, Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018,
        Algorithms 4 and 5.
    """
    if not isinstance(eps, (tuple, list)) or len(eps) != 2:
        raise ValueError(f"`eps` must be a pair, the first of which may be None, got {eps!r}")
    return GradientStep(
        direction=AdafactorDirection(beta2_decay, eps[0], eps[1], d),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class Adafactor(_derived.Adafactor, functional=adafactor):
    """Adafactor as a :class:`torch.optim.Optimizer`; see :func:`adafactor`."""


class MetaAdafactor(_derived.MetaAdafactor, functional=adafactor):
    """Differentiable Adafactor on a module; see :func:`adafactor`."""
