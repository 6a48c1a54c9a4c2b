"""What rules hand on to each other: updates, kept as factors until they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchopt._arithmetic import HALF, Operand, is_number, pick, product
from torchopt._context import Context
from torchopt._types import Leaves

__all__ = ["FactoredUpdates"]


class FactoredUpdates(NamedTuple):
    r"""Updates kept as factors, ``scale * numerators / (slope * roots + offset)``.

    The factors are combined as late as possible: so a learning rate and a bias correction cost no
    pass over memory, and applying the updates to the parameters is one fused operation. A rule that
    has no use for this returns its updates as numerators alone.

    Updates are used once: the memory of the roots is consumed. To use them twice, begin with
    ``FactoredUpdates(updates.materialize(context))``.
    """

    #: The updates, or what is left of them besides the other factors.
    numerators: Leaves
    #: None: the denominators are 1.
    roots: Leaves | None = None
    slope: Operand = 1.0
    offset: Operand = 0.0
    scale: Operand = 1.0
    #: Whether the numerators are tensors of the state or of the caller, not to be handed out.
    borrowed: bool = True
    #: Whether the roots are tensors of the state, not to be overwritten.
    borrowed_roots: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the updates are the numerators themselves."""
        return self.roots is None and is_number(self.scale, 1.0)

    def scaled(self, factor: Operand) -> FactoredUpdates:
        """Return the updates times ``factor``."""
        numerators, roots, slope, offset, scale, *borrowed = self
        return FactoredUpdates(numerators, roots, slope, offset, product(scale, factor), *borrowed)

    def materialize(self, context: Context) -> Leaves:
        """Return the updates as a list, which may be the numerators: not to be overwritten."""
        if self.is_plain:
            return self.numerators
        if self.roots is None:
            return context.fresh.mul(self.numerators, self.scale)
        if self._is_half():
            # small offsets, and quotients of small numbers, are zero or infinite in half precision
            precise = self._in_single()
            quotients = precise.materialize(context)
            pairs = zip(quotients, self.numerators, strict=True)
            return [x.to(like.dtype) for x, like in pairs]
        if isinstance(self.scale, (int, float)) and self.scale != 0:
            return context.fresh.div(self.numerators, self._denominators(context, 1 / self.scale))
        quotients = context.fresh.div(self.numerators, self._denominators(context))
        return context.reuse.mul(quotients, self.scale)

    def of(self, chosen: Sequence[int]) -> FactoredUpdates:
        """Return the updates of some of the leaves."""
        return self._replace(
            numerators=[self.numerators[k] for k in chosen],
            roots=None if self.roots is None else [self.roots[k] for k in chosen],
            slope=pick(self.slope, chosen),
            offset=pick(self.offset, chosen),
            scale=pick(self.scale, chosen),
        )

    def owned(self, context: Context) -> Leaves:
        """Return the updates as a list of tensors that nothing else will overwrite."""
        if self.is_plain and self.borrowed:
            return [x.clone() for x in self.numerators]
        return self.materialize(context)

    def add_to(self, targets: Leaves, context: Context, factor: float = 1.0) -> Leaves:
        """Return ``targets`` plus ``factor`` times the updates, in the memory of the targets."""
        if isinstance(self.scale, list):
            # the products have the factor for nothing
            return context.reuse.add_scaled(targets, self.materialize(context), factor)
        if factor != 1:
            return self.scaled(factor).add_to(targets, context)
        if self.roots is None:
            return context.reuse.add_scaled(targets, self.numerators, self.scale)
        if context.inplace and isinstance(self.scale, (int, float)) and not self._is_half():
            denominators = self._denominators(context)
            return context.reuse.addcdiv(targets, self.numerators, denominators, self.scale)
        return context.reuse.add(targets, self.materialize(context))

    def _denominators(self, context: Context, factor: float = 1.0) -> Leaves:
        """Return ``factor`` times the denominators."""
        assert self.roots is not None
        arithmetic = context.fresh if self.borrowed_roots else context.reuse
        slope, offset = product(self.slope, factor), product(self.offset, factor)
        return arithmetic.mul_add(self.roots, slope, offset)

    def _is_half(self) -> bool:
        return True in [x.dtype in HALF for x in self.numerators]

    def _in_single(self) -> FactoredUpdates:
        assert self.roots is not None
        return self._replace(
            numerators=[x.float() if x.dtype in HALF else x for x in self.numerators],
            roots=[x.float() if x.dtype in HALF else x for x in self.roots],
            borrowed_roots=True,
        )
