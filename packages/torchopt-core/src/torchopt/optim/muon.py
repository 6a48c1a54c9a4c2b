"""Muon."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch

from torchopt._arithmetic import PerLeaf
from torchopt._context import Context, zeros_like
from torchopt._factory import optimizer
from torchopt._gradient_step import GradientStep
from torchopt._rule import Rule
from torchopt._state import moment, record
from torchopt._types import Leaves, Params, Scalar, ScalarOrSchedule, TensorTree
from torchopt._updates import FactoredUpdates
from torchopt._validate import check_non_negative
from torchopt.optim import _derived

__all__ = ["MetaMuon", "Muon", "muon", "orthogonalize"]

_SCALINGS = (None, "original", "match_rms_adamw")


@record(momentum=moment("momentum_buffer"))
class MuonState(NamedTuple):
    """The state of :func:`muon`."""

    # moving averages of the gradients, a tree like the parameters; changes in every step
    momentum: TensorTree


def orthogonalize(
    x: torch.Tensor,
    steps: int = 5,
    coefficients: tuple[float, ...] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    dtype: torch.dtype | None = torch.bfloat16,
) -> torch.Tensor:
    r"""Return nearly the orthogonal factor :math:`U V^T` of matrices :math:`U \Sigma V^T`.

    Newton-Schulz iterations, from :math:`X = x / \max(\lVert x \rVert_F, \epsilon)`,

    .. math::
        X \leftarrow a X + (b\, X X^T + c\, (X X^T)^2)\, X,

    which with these coefficients bring the singular values near 1, to about [0.7, 1.2], in few
    steps.

    Args:
        x: Matrices in the last two dimensions, shape (..., m, n).
        steps: The number of iterations.
        coefficients: :math:`(a, b, c)`.
        eps: :math:`\epsilon`.
        dtype: What to compute in; None for that of ``x``.

    Example:
        >>> import torch
        >>> from torchopt.optim.muon import orthogonalize
        >>> x = orthogonalize(torch.diag(torch.tensor([3.0, 4.0])), dtype=None)
        >>> 0.6 < torch.linalg.svdvals(x).min() < torch.linalg.svdvals(x).max() < 1.3
        tensor(True)

    Reference:
        Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for hidden layers
        in neural networks", 2024, kellerjordan.github.io/posts/muon.
    """
    a, b, c = coefficients
    is_tall = x.shape[-2] > x.shape[-1]
    y = x if dtype is None else x.to(dtype)
    y = y.mT if is_tall else y
    y = y / _frobenius(y).clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.mT
        y = _multiply_add(y, _multiply_add(gram, gram, gram, b, c), y, a, 1.0)
    return y.mT if is_tall else y


def _frobenius(x: torch.Tensor) -> torch.Tensor:
    """Return the norms of matrices; where they are zero their derivatives are, in any order."""
    if not (x.requires_grad or x.numel() == 0):
        plain: torch.Tensor = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
        return plain
    is_zero = (x == 0).all(-1, keepdim=True).all(-2, keepdim=True)
    norms = torch.linalg.vector_norm(torch.where(is_zero, 1.0, x), dim=(-2, -1), keepdim=True)
    return torch.where(is_zero, 0.0, norms)


def _multiply_add(
    offset: torch.Tensor, x: torch.Tensor, y: torch.Tensor, beta: float, alpha: float
) -> torch.Tensor:
    """Return ``beta * offset + alpha * x @ y``."""
    if offset.ndim == 2:
        return torch.addmm(offset, x, y, beta=beta, alpha=alpha)
    batch = offset.shape[:-2]
    flat = [z.reshape(-1, *z.shape[-2:]) for z in (offset, x, y)]
    found = torch.baddbmm(*flat, beta=beta, alpha=alpha)
    return found.reshape(*batch, *found.shape[-2:])


@dataclasses.dataclass(frozen=True, eq=False)
class MuonDirection(Rule):
    """The direction of Muon; see :func:`muon`."""

    momentum: Scalar
    nesterov: bool
    ns_coefficients: tuple[float, ...]
    eps: float
    ns_steps: int
    adjust_lr_fn: str | None
    ns_dtype: torch.dtype | None

    # it sees matrices
    elementwise = False
    state_type = MuonState

    def __post_init__(self) -> None:
        check_non_negative("momentum", self.momentum)
        check_non_negative("eps", self.eps)
        if self.adjust_lr_fn not in _SCALINGS:
            raise ValueError(
                f"Adjust learning rate function {self.adjust_lr_fn} is not supported: "
                f"`adjust_lr_fn` must be one of {_SCALINGS}"
            )
        numbers = [isinstance(x, (int, float)) for x in self.ns_coefficients]
        if numbers != [True] * 3:
            raise ValueError(
                f"`ns_coefficients` must be three numbers, got {self.ns_coefficients!r}"
            )
        if not isinstance(self.ns_steps, int) or not 0 <= self.ns_steps < 100:
            raise ValueError(f"`ns_steps` must be an int in [0, 100), got {self.ns_steps!r}")
        if self.ns_dtype is not None and not (
            isinstance(self.ns_dtype, torch.dtype) and self.ns_dtype.is_floating_point
        ):
            raise ValueError(
                f"`ns_dtype` must be a floating point dtype or None, got {self.ns_dtype!r}"
            )

    def check_params(self, params: Leaves, context: Context) -> None:
        for i, p in zip(context.positions, params, strict=True):
            if p.ndim < 2:
                raise ValueError(
                    f"Muon only supports 2D parameters, and batches of them: leaf {i} has shape "
                    f"{tuple(p.shape)}; leave it to another optimizer by `torchopt.partition`"
                )

    def init(self, params: Leaves, context: Context) -> MuonState:
        return MuonState(zeros_like(params))

    def prepare(self, state: Any, context: Context) -> None:
        if context.complex:
            raise RuntimeError("Muon does not support complex parameters")
        self.check_params(context.like or [], context)

    def update(
        self, updates: FactoredUpdates, state: Any, context: Context
    ) -> tuple[FactoredUpdates, Any]:
        grads = updates.materialize(context)
        buffer = context.reuse.ema(state.momentum, grads, self.momentum)
        ahead = buffer
        if self.nesterov:
            ahead = context.fresh.ema(buffer, grads, self.momentum)
        found = []
        for x in ahead:
            y = orthogonalize(x, self.ns_steps, self.ns_coefficients, self.eps, self.ns_dtype)
            found.append(y.to(x.dtype))
        scale = [self._scale(x) for x in found]
        factors = scale[0] if len(set(scale)) == 1 else _per_leaf(scale)
        return FactoredUpdates(found, scale=factors, borrowed=False), MuonState(buffer)

    def _scale(self, x: torch.Tensor) -> float:
        rows, columns = x.shape[-2:]
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1, rows / columns)) if columns else 1.0


def _per_leaf(values: list[float]) -> PerLeaf:
    return PerLeaf(torch.tensor(values, dtype=torch.float64, device="cpu"))


@optimizer
def muon(
    lr: ScalarOrSchedule | TensorTree = 1e-3,
    weight_decay: Scalar = 0.1,
    momentum: Scalar = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
    *,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    mask: Any | Callable[[Params], Any] | None = None,
    maximize: bool = False,
) -> Rule:
    r"""Muon: momentum, orthogonalized by Newton-Schulz, as in :class:`torch.optim.Muon`.

    .. math::
        b_t &= \mu\, b_{t-1} + (1 - \mu)\, g_t, \qquad
        d_t = \mu\, b_t + (1 - \mu)\, g_t \text{ (Nesterov) or } b_t, \\
        \theta_t &= (1 - \eta \lambda)\, \theta_{t-1}
            - \eta\, s \operatorname{NS}(d_t)

    with :math:`\operatorname{NS}` of :func:`~torchopt.optim.muon.orthogonalize` on the last two
    dimensions, of m rows and n columns; dimensions before these are a batch of matrices.

    Args:
        lr: Learning rate :math:`\eta`, in every form that :func:`~torchopt.adam` takes.
        weight_decay: :math:`\lambda`, decoupled from the gradient; needs ``params`` in ``update``.
        momentum: :math:`\mu`.
        nesterov: Whether to look ahead.
        ns_coefficients: The coefficients of the iteration.
        eps: The least norm to divide by.
        ns_steps: The number of iterations.
        adjust_lr_fn: The scale :math:`s`: :math:`\sqrt{\max(1, m / n)}` for None and
            ``"original"``, :math:`0.2 \sqrt{\max(m, n)}` for ``"match_rms_adamw"``, with which
            Adam's learning rates can be used.
        ns_dtype: What the iteration computes in: bfloat16 as torch's, which is fast; None for the
            dtype of the gradients, with which derivatives are exact.
        mask: The leaves that decay: a tree of bools (or a prefix of it), or a function from the
            parameters to one; all by default.
        maximize: Whether to ascend.

    Raises:
        ValueError: If a number is outside of its range, or a parameter has fewer than two
            dimensions.
        RuntimeError: In a step, if a parameter is complex.

    Example:
        >>> import torch, torchopt
        >>> params = {"hidden": torch.ones(2, 2), "bias": torch.ones(2)}
        >>> optim = torchopt.partition(
        ...     {"matrix": torchopt.muon(lr=0.1), "other": torchopt.adamw(lr=0.01)},
        ...     lambda params: {k: "matrix" if p.ndim == 2 else "other" for k, p in params.items()},
        ... )
        >>> updates, state = optim.update(params, optim.init(params), params=params)

    Reference:
        Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et al.,
        "Muon is Scalable for LLM Training", arXiv:2502.16982, for ``"match_rms_adamw"``.
    """
    is_sequence = isinstance(ns_coefficients, (tuple, list))
    coefficients: Any = tuple(ns_coefficients) if is_sequence else (ns_coefficients,)
    return GradientStep(
        direction=MuonDirection(
            momentum, nesterov, coefficients, eps, ns_steps, adjust_lr_fn, ns_dtype
        ),
        lr=lr,
        weight_decay=weight_decay,
        decoupled=True,
        mask=mask,
        maximize=maximize,
    )


class Muon(_derived.Muon, functional=muon):
    """Muon as a :class:`torch.optim.Optimizer`; see :func:`muon`."""

    # as torch's it takes matrices alone, no batches of them
    def add_param_group(self, param_group: dict[str, Any] | Iterable[torch.Tensor]) -> None:
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p.ndim != 2:
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found a parameter with size: "
                    f"{p.size()}; for batches of matrices use `torchopt.Optimizer(params, "
                    "torchopt.muon())`"
                )


class MetaMuon(_derived.MetaMuon, functional=muon):
    """Differentiable Muon on a module; see :func:`muon`."""
