"""Which rules of `torchopt` have kernels: the state of each, and its coefficients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torchopt.base import Chain, EmptyState, IdentityRule
from torchopt.optim.adadelta import ScaleByAdadelta, ScaleByAdadeltaState
from torchopt.optim.adagrad import ScaleByRss, ScaleByRssState
from torchopt.optim.adam import ScaleByAdam, ScaleByAdamState
from torchopt.optim.adamax import ScaleByAdamax, ScaleByAdamaxState
from torchopt.optim.radam import ScaleByRAdam, ScaleByRAdamState
from torchopt.optim.rmsprop import (
    ScaleByRms,
    ScaleByRmsState,
    ScaleByRStdDevState,
    ScaleByStdDev,
)
from torchopt.optim.sgd import DampenedTraceState, Trace, TraceState

if TYPE_CHECKING:
    from torchopt._rule import Rule

__all__ = ["Kernel", "kernel_for"]

Numbers = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled rule, as listed in ``cpp/rules/rules.hpp``."""

    name: str
    #: The records that the state consists of. Their fields, but for the step counts, are the
    #: kernel's states, in this order.
    records: tuple[type[NamedTuple], ...]
    #: Whether the state is a tuple of these records, not one record.
    chained: bool
    #: From the rule and the number of the step, counted from 1, to the coefficients.
    coefficients: Callable[[Any, int], Numbers]
    #: Whether the backward pass depends on the gradients, and on each state.
    needs: tuple[bool, ...]

    @functools.cached_property
    def counted(self) -> bool:
        """Whether the coefficients depend on the step."""
        return any("count" in record._fields for record in self.records)

    def assemble(self, moments: Sequence[Any], counts: Any) -> Any:
        """Return the state, given each of its fields."""
        remaining = iter(moments)
        built = tuple(
            record(*(counts if name == "count" else next(remaining) for name in record._fields))
            for record in self.records
        )
        return built if self.chained else built[0]

    def take_apart(self, fields: Sequence[Sequence[Any]]) -> tuple[list[Any], Any]:
        """Return the kernel's states and the step counts or None, given the records' fields."""
        moments, counts = [], None
        for record, values in zip(self.records, fields, strict=True):
            for name, value in zip(record._fields, values, strict=True):
                if name == "count":
                    counts = value
                else:
                    moments.append(value)
        return moments, counts


def _sgd(rule: Rule, t: int) -> Numbers:
    return ()


def _momentum(rule: Trace, t: int) -> Numbers:
    share = 1.0 if t <= 1 else 1.0 - float(rule.dampening)
    return (float(rule.momentum), share, *_look(rule))


def _look(rule: Trace) -> Numbers:
    """Return how much of the direction is the gradient, and how much the buffer."""
    return (1.0, float(rule.momentum)) if rule.nesterov else (0.0, 1.0)


def _adam(rule: ScaleByAdam, t: int) -> Numbers:
    inside, slope, offset = rule.corrections(t)
    return (float(rule.b1), float(rule.b2), inside or 0.0, slope, offset)


def _radam(rule: ScaleByRAdam, t: int) -> Numbers:
    return (float(rule.b1), float(rule.b2), 0.0, *rule.corrections(t))


def _adagrad(rule: ScaleByRss, t: int) -> Numbers:
    return rule.slowdown(t)


def _adadelta(rule: ScaleByAdadelta, t: int) -> Numbers:
    return (float(rule.rho), float(rule.eps))


def _adamax(rule: ScaleByAdamax, t: int) -> Numbers:
    return (float(rule.b1), float(rule.b2), float(rule.eps), 1 / (1 - float(rule.b1) ** t))


def _rmsprop(rule: Chain, t: int) -> Numbers:
    scaling: Any = rule.rules[0]
    momentum = rule.rules[1]
    buffer: Numbers = ()
    if isinstance(momentum, Trace):
        buffer = (float(momentum.momentum), 1.0, *_look(momentum))
    return (float(scaling.alpha), float(scaling.eps), *buffer)


def _of_chain(chain: Chain) -> Kernel | None:
    """Return the kernel of RMSprop, a scaling followed by momentum or nothing."""
    kinds = {
        ScaleByRms: ("", (ScaleByRmsState,), (True, True)),
        ScaleByStdDev: ("centered_", (ScaleByRStdDevState,), (True, True, True)),
    }
    if len(chain.rules) != 2 or type(chain.rules[0]) not in kinds:
        return None
    prefix, records, needs = kinds[type(chain.rules[0])]
    last = chain.rules[1]
    if isinstance(last, IdentityRule):
        return Kernel(f"{prefix}rmsprop", (*records, EmptyState), True, _rmsprop, needs)
    if isinstance(last, Trace) and last.dampening == 0:
        name = f"{prefix}rmsprop_momentum"
        return Kernel(name, (*records, TraceState), True, _rmsprop, (*needs, False))
    return None


def _of_trace(trace: Trace) -> Kernel:
    record = TraceState if trace.dampening == 0 else DampenedTraceState
    return Kernel("momentum", (record,), False, _momentum, (False, False))


def _single(
    name: str, record: type[NamedTuple], coefficients: Callable[[Any, int], Numbers], states: int
) -> Callable[[Rule], Kernel]:
    kernel = Kernel(name, (record,), False, coefficients, (True,) * (1 + states))
    return lambda rule: kernel


_TABLE: dict[type[Rule], Callable[[Any], Kernel | None]] = {
    IdentityRule: lambda rule: Kernel("sgd", (EmptyState,), False, _sgd, (False,)),
    Trace: _of_trace,
    ScaleByAdam: _single("adam", ScaleByAdamState, _adam, 2),
    ScaleByRAdam: _single("adam", ScaleByRAdamState, _radam, 2),
    ScaleByRss: _single("adagrad", ScaleByRssState, _adagrad, 1),
    ScaleByAdadelta: _single("adadelta", ScaleByAdadeltaState, _adadelta, 2),
    ScaleByAdamax: _single("adamax", ScaleByAdamaxState, _adamax, 2),
    Chain: _of_chain,
}


def kernel_for(direction: Rule) -> Kernel | str:
    """Return the kernel of a rule, or a sentence on why there is none."""
    if any(isinstance(x, torch.Tensor) for x in direction.learned()):
        return "its hyperparameters are tensors, other than the learning rate"
    make = _TABLE.get(type(direction))
    kernel = None if make is None else make(direction)
    return kernel or f"there is no kernel for {type(direction).__name__}"
