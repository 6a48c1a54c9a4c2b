"""Elementwise arithmetic on lists of leaves.

Every update rule is written once in terms of these operations. Two things vary underneath, and
neither is visible to the rule:

- *memory*: :class:`Functional` returns new tensors and is differentiable to any order;
  :class:`InPlace` overwrites its first operand, for ordinary training;
- *primitives*: :data:`FOREACH` runs a whole list in one call of ``torch._foreach_*``;
  :data:`LOOP` runs leaf by leaf, for ``torch.func`` transforms, which have no batching rule for
  the former.

A second operand is a Python number, a 0-dim tensor (a learned hyperparameter), one number for each
leaf (a bias correction), or a list of tensors shaped like the leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch

from torchopt._types import Leaves, Scalar

Operand: TypeAlias = "float | torch.Tensor | PerLeaf | Sequence[torch.Tensor]"

__all__ = [
    "FOREACH",
    "FOREACH_NO_GRAD",
    "HALF",
    "LOOP",
    "Functional",
    "InPlace",
    "Operand",
    "PerLeaf",
    "is_number",
    "pick",
    "product",
    "spread",
]


#: The dtypes in which squares overflow or vanish, and small numbers are zero.
HALF = frozenset({torch.float16, torch.bfloat16})


class PerLeaf(NamedTuple):
    """One number for each leaf, as a float64 vector on the CPU."""

    values: torch.Tensor


class Primitives(NamedTuple):
    """Out-of-place operations on lists, with the signatures of ``torch._foreach_*``."""

    add: Callable[..., Leaves]
    sub: Callable[..., Leaves]
    mul: Callable[..., Leaves]
    div: Callable[..., Leaves]
    lerp: Callable[..., Leaves]
    addcmul: Callable[..., Leaves]
    maximum: Callable[..., Leaves]
    neg: Callable[..., Leaves]
    abs: Callable[..., Leaves]
    clamp_min: Callable[..., Leaves]
    sqrt: Callable[..., Leaves]
    sign: Callable[..., Leaves]


# sqrt is not differentiable at zero. Lifting zeros to this floor, whose root vanishes beside any
# eps, selects a zero cotangent there: no 0 * inf, in any order.
_SQRT_FLOOR = {
    torch.float64: 1e-200,
    torch.float32: 1e-36,
    torch.bfloat16: 1e-36,
    torch.float16: 6e-8,
}


def _each(operation: Callable[..., torch.Tensor]) -> Callable[..., Leaves]:
    def run(xs: Leaves, *operands: Any, **keywords: Any) -> Leaves:
        columns = [y if isinstance(y, (list, tuple)) else [y] * len(xs) for y in operands]
        results = []
        for row in zip(xs, *columns, strict=True):
            if True in [isinstance(x, torch.Tensor) and x.ndim > 0 for x in row]:
                results.append(operation(*row, **keywords))
            else:
                # torch.func.jvp takes a number beside a 0-dim tensor for a double, and promotes
                results.append(operation(row[0].reshape(1), *row[1:], **keywords).reshape(()))
        return results

    return run


# typed as overloads that return tuples; they return lists
_torch: Any = torch

FOREACH_NO_GRAD = Primitives(
    add=_torch._foreach_add,
    sub=_torch._foreach_sub,
    mul=_torch._foreach_mul,
    div=_torch._foreach_div,
    lerp=_torch._foreach_lerp,
    addcmul=_torch._foreach_addcmul,
    maximum=_torch._foreach_maximum,
    neg=_torch._foreach_neg,
    abs=_torch._foreach_abs,
    clamp_min=_torch._foreach_clamp_min,
    sqrt=_torch._foreach_sqrt,
    sign=_torch._foreach_sign,
)


FOREACH = FOREACH_NO_GRAD._replace(
    sqrt=lambda xs: _torch._foreach_sqrt(
        _torch._foreach_clamp_min(xs, [_SQRT_FLOOR[x.dtype] for x in xs])
    )
)
LOOP = Primitives(
    add=_each(torch.add),
    sub=_each(torch.sub),
    mul=_each(torch.mul),
    div=_each(torch.div),
    lerp=_each(torch.lerp),
    addcmul=_each(lambda x, y, z, value: torch.addcmul(x, y, z, value=value)),
    maximum=_each(torch.maximum),
    neg=_each(torch.neg),
    abs=_each(torch.abs),
    clamp_min=_each(torch.clamp_min),
    sqrt=_each(lambda x: x.clamp_min(_SQRT_FLOOR[x.dtype]).sqrt()),
    sign=_each(torch.sign),
)


def is_number(operand: Operand, value: float) -> bool:
    """Return whether an operand is the Python number ``value``."""
    return isinstance(operand, (int, float)) and operand == value


def product(x: Operand, y: Operand) -> Operand:
    """Return the product of two operands."""
    if isinstance(x, (int, float, torch.Tensor)):
        if isinstance(y, (int, float, torch.Tensor)):
            return x * y
        x, y = y, x
    if isinstance(x, PerLeaf):
        if isinstance(y, PerLeaf):
            return PerLeaf(x.values * y.values)
        if isinstance(y, (int, float)):
            return PerLeaf(x.values * y)
        if isinstance(y, torch.Tensor):
            return PerLeaf(x.values * y.cpu())
        x, y = y, x
    factors = y.values.unbind() if isinstance(y, PerLeaf) else y
    if isinstance(factors, (int, float, torch.Tensor)):
        return [tensor * factors for tensor in x]
    return [tensor * factor for tensor, factor in zip(x, factors, strict=True)]


def pick(operand: Operand, chosen: Sequence[int]) -> Operand:
    """Return the operand for some of the leaves."""
    if isinstance(operand, (int, float, torch.Tensor)):
        return operand
    if isinstance(operand, PerLeaf):
        return PerLeaf(operand.values[list(chosen)])
    return [operand[k] for k in chosen]


def spread(operand: Operand, xs: Leaves) -> float | Leaves:
    """Return ``operand`` as a number or as a list with one tensor for each leaf of ``xs``.

    No leaf changes its dtype: beside a leaf that has dimensions a 0-dim tensor of higher precision
    is harmless, any other takes the leaf's dtype.
    """
    if isinstance(operand, (int, float)):
        return operand
    if isinstance(operand, PerLeaf):
        operand = operand.values.unbind()
    elif isinstance(operand, torch.Tensor):
        operand = [operand] * len(xs)
    return [
        y if y.dtype == x.dtype or (x.ndim and not y.ndim) else y.to(x.dtype)
        for x, y in zip(xs, operand, strict=True)
    ]


class Functional(NamedTuple):
    """New tensors; differentiable to any order in every operand."""

    primitives: Primitives

    def add(self, xs: Leaves, ys: Operand) -> Leaves:
        """Return ``xs + ys``."""
        return self.primitives.add(xs, spread(ys, xs))

    def add_scaled(self, xs: Leaves, ys: Leaves, alpha: Operand) -> Leaves:
        """Return ``xs + alpha * ys``."""
        if isinstance(alpha, (int, float)):
            return self.primitives.add(xs, ys, alpha=alpha)
        return self.primitives.add(xs, self.primitives.mul(ys, spread(alpha, xs)))

    def mul(self, xs: Leaves, ys: Operand) -> Leaves:
        """Return ``xs * ys``."""
        return self.primitives.mul(xs, spread(ys, xs))

    def div(self, xs: Leaves, ys: Operand) -> Leaves:
        """Return ``xs / ys``."""
        return self.primitives.div(xs, spread(ys, xs))

    def ema(self, xs: Leaves, ys: Leaves, decay: Scalar) -> Leaves:
        """Return the moving average ``decay * xs + (1 - decay) * ys``."""
        if isinstance(decay, (int, float)):
            return self.primitives.lerp(xs, ys, 1 - decay)
        return self.add_scaled(ys, self.primitives.sub(xs, ys), decay)

    def ema_square(self, xs: Leaves, ys: Leaves, decay: Scalar) -> Leaves:
        """Return the moving average ``decay * xs + (1 - decay) * ys**2``."""
        if isinstance(decay, (int, float)) and True in [y.dtype in HALF for y in ys]:
            # in one operation, so that the square is never rounded by itself
            return self.primitives.addcmul(self.mul(xs, decay), ys, ys, 1 - decay)
        return self.ema(xs, self.primitives.mul(ys, ys), decay)

    def mul_add(self, xs: Leaves, factor: Operand, offset: Operand) -> Leaves:
        """Return ``factor * xs + offset``."""
        if is_number(offset, 0.0):
            return xs if is_number(factor, 1.0) else self.mul(xs, factor)
        if is_number(factor, 1.0):
            return self.add(xs, offset)
        if isinstance(factor, (int, float)) and xs[0].is_cpu:
            # one operation; elsewhere tensors on the CPU would break up the fused kernels
            offsets = offset
            if isinstance(offset, (int, float)):
                offsets = torch.tensor(offset, dtype=torch.float64, device="cpu")
            return self.primitives.add(spread(offsets, xs), xs, alpha=factor)
        return self.add(self.mul(xs, factor), offset)

    def addcmul(self, xs: Leaves, ys: Leaves, zs: Leaves, value: float = 1.0) -> Leaves:
        """Return ``xs + value * ys * zs``."""
        return self.primitives.addcmul(xs, ys, zs, value)

    def addcdiv(self, xs: Leaves, numerators: Leaves, denominators: Leaves, value: float) -> Leaves:
        """Return ``xs + value * numerators / denominators``."""
        # not in one operation: the backward of torch 2.13's _foreach_addcdiv indexes out of range
        return self.primitives.add(xs, self.primitives.div(numerators, denominators), alpha=value)

    def maximum(self, xs: Leaves, ys: Leaves) -> Leaves:
        """Return the elementwise maximum."""
        return self.primitives.maximum(xs, ys)

    def neg(self, xs: Leaves) -> Leaves:
        """Return ``-xs``."""
        return self.primitives.neg(xs)

    def abs(self, xs: Leaves) -> Leaves:
        """Return ``|xs|``."""
        return self.primitives.abs(xs)

    def clamp_min(self, xs: Leaves, bound: float) -> Leaves:
        """Return ``max(xs, bound)``."""
        return self.primitives.clamp_min(xs, bound)

    def sign(self, xs: Leaves) -> Leaves:
        """Return the signs, whose derivative is zero everywhere."""
        return self.primitives.sign(xs)

    def sqrt(self, xs: Leaves) -> Leaves:
        """Return the square root; where a graph is recorded, its derivatives at zero are zero."""
        return self.primitives.sqrt(xs)


class InPlace:
    """The same operations; the first operand is overwritten and returned."""

    def add(self, xs: Leaves, ys: Operand) -> Leaves:
        torch._foreach_add_(xs, spread(ys, xs))
        return xs

    def add_scaled(self, xs: Leaves, ys: Leaves, alpha: Operand) -> Leaves:
        if isinstance(alpha, (int, float)):
            torch._foreach_add_(xs, ys, alpha=alpha)
        elif isinstance(alpha, PerLeaf):
            for x, y, a in zip(xs, ys, alpha.values.tolist(), strict=True):
                x.add_(y, alpha=a)
        else:
            torch._foreach_add_(xs, torch._foreach_mul(ys, spread(alpha, xs)))
        return xs

    def mul(self, xs: Leaves, ys: Operand) -> Leaves:
        torch._foreach_mul_(xs, spread(ys, xs))
        return xs

    def div(self, xs: Leaves, ys: Operand) -> Leaves:
        torch._foreach_div_(xs, spread(ys, xs))
        return xs

    def ema(self, xs: Leaves, ys: Leaves, decay: Scalar) -> Leaves:
        if isinstance(decay, (int, float)):
            torch._foreach_lerp_(xs, ys, 1 - decay)
            return xs
        return self.add_scaled(self.mul(xs, decay), ys, 1 - decay)

    def ema_square(self, xs: Leaves, ys: Leaves, decay: Scalar) -> Leaves:
        if isinstance(decay, (int, float)):
            torch._foreach_mul_(xs, decay)
            torch._foreach_addcmul_(xs, ys, ys, 1 - decay)
            return xs
        return self.ema(xs, list(torch._foreach_mul(ys, ys)), decay)

    def mul_add(self, xs: Leaves, factor: Operand, offset: Operand) -> Leaves:
        products = xs if is_number(factor, 1.0) else self.mul(xs, factor)
        return products if is_number(offset, 0.0) else self.add(products, offset)

    def addcmul(self, xs: Leaves, ys: Leaves, zs: Leaves, value: float = 1.0) -> Leaves:
        torch._foreach_addcmul_(xs, ys, zs, value)
        return xs

    def addcdiv(self, xs: Leaves, numerators: Leaves, denominators: Leaves, value: float) -> Leaves:
        torch._foreach_addcdiv_(xs, numerators, denominators, value)
        return xs

    def maximum(self, xs: Leaves, ys: Leaves) -> Leaves:
        torch._foreach_maximum_(xs, ys)
        return xs

    def clamp_min(self, xs: Leaves, bound: float) -> Leaves:
        torch._foreach_clamp_min_(xs, bound)
        return xs

    def sign(self, xs: Leaves) -> Leaves:
        torch._foreach_sign_(xs)
        return xs

    def sqrt(self, xs: Leaves) -> Leaves:
        torch._foreach_sqrt_(xs)
        return xs
