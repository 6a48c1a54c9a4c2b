"""Memory policies: what an unroll stores for its backward pass, and what that costs."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import NamedTuple

from torchopt.diff.explicit._gradient import Gradient, exact, first_order
from torchopt.diff.explicit._mixed import mixed
from torchopt.diff.explicit._schedule import AtOnce, Every, Revolve, Schedule

__all__ = [
    "Binomial",
    "Checkpointed",
    "FirstOrder",
    "FullGraph",
    "Memory",
    "MixedMode",
    "Offloaded",
    "Plan",
    "Truncated",
]


class Plan(NamedTuple):
    """What a policy comes to for a number of steps."""

    #: Which carries are stored; None for those that the graph stores itself.
    schedule: Schedule | None = None
    #: How an inner gradient is taken.
    gradient: Gradient = exact
    #: Whether carries are stored in host memory.
    on_host: bool = False
    #: How many steps at the end are differentiated; None for all.
    last: int | None = None


class Memory(abc.ABC):
    r"""What an unroll stores to be differentiated.

    Let :math:`K` be the number of steps; :math:`g` the memory of one step's graph, with its
    gradient's; :math:`c` that of a carry: parameters, optimizer state and buffers. Times count
    steps, with the gradient's as one unit forward and two backward, so that a full graph takes
    :math:`3 K`.

    A policy is exact if it gives the gradient of the :math:`K` steps, whatever it stores. Those
    that run steps again restore random numbers and autocast for it, and read the data again, which
    must not have changed. The loss is then called more often than :math:`K` times, which it should
    not count; once more before, to find what it reads from its closure.
    """

    @abc.abstractmethod
    def plan(self, steps: int) -> Plan:
        """Return what the policy comes to for so many steps."""


@dataclasses.dataclass(frozen=True)
class FullGraph(Memory):
    """The graph of all steps, as autograd makes it. Exact.

    Stores ``K g``, takes ``3 K``. Nothing is run again, so batches may come from an iterator.
    """

    def plan(self, steps: int) -> Plan:
        return Plan()


@dataclasses.dataclass(frozen=True)
class Checkpointed(Memory):
    """A carry every few steps, and the graph of the steps in between when it is needed. Exact.

    Stores ``(K / every) c + every g``, takes ``4 K``.

    Args:
        every: The number of steps between two checkpoints; by default the square root of their
            number, rounded up.
        within: How the steps in between are stored: another policy of checkpoints nests them.

    Reference:
        Chen et al., Training deep nets with sublinear memory cost, 2016, arXiv 1604.06174.
    """

    every: int | None = None
    within: Memory = dataclasses.field(default_factory=FullGraph)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.every is not None:
            _check_positive("every", self.every)
        _check_policy("within", self.within, (FullGraph, Checkpointed, Binomial))

    def plan(self, steps: int) -> Plan:
        every = self.every or max(1, math.isqrt(max(steps - 1, 0)) + 1)
        within = self.within.plan(min(every, steps)).schedule
        return Plan(Every(every, within or AtOnce()))


@dataclasses.dataclass(frozen=True)
class Binomial(Memory):
    r"""Carries in a given number of slots, so that as few steps as possible run again. Exact.

    Stores ``slots c + g``. With :math:`\binom{s + r}{s} \ge K` for ``s`` slots, no step is taken
    forward more than ``r`` times before its graph is made: at most ``(r + 3) K`` in time. 30 slots
    hold 496 steps with ``r = 2`` and 5,456 with ``r = 3``; 8 slots hold 1,287 with ``r = 5``.

    Args:
        slots: How many carries are stored at a time, the first one included.

    Reference:
        Griewank and Walther, Algorithm 799: revolve, ACM TOMS 26(1), 2000.
    """

    slots: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_positive("slots", self.slots)

    def plan(self, steps: int) -> Plan:
        return Plan(Revolve(self.slots))


@dataclasses.dataclass(frozen=True)
class Offloaded(Memory):
    """Another policy, whose checkpoints are in host memory. Exact if that one is.

    On the device it stores ``2 c`` and the graphs that ``within`` makes, in host memory the
    checkpoints; each is copied there once, and back whenever it is run from.

    Args:
        within: A policy that has checkpoints.
    """

    within: Memory = dataclasses.field(default_factory=Checkpointed)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_policy("within", self.within, (Checkpointed, Binomial, MixedMode))
        if isinstance(self.within, MixedMode):
            _check_policy("within.within", self.within.within, (Checkpointed, Binomial))

    def plan(self, steps: int) -> Plan:
        return self.within.plan(steps)._replace(on_host=True)


@dataclasses.dataclass(frozen=True)
class MixedMode(Memory):
    r"""Hessian-vector products by forward mode over reverse mode. Exact.

    The gradient of a step's loss has no graph of its own. Where autograd would go back through it,
    with a cotangent :math:`v`, the loss is evaluated again at
    :math:`\theta + \epsilon v`: since a Hessian is symmetric,
    :math:`v^\top \partial_x \nabla_\theta L = \partial_\epsilon \nabla_x L(\theta + \epsilon v)`
    for everything :math:`x` that the loss depends on. So ``g`` shrinks to the parameters and the
    graph of the optimizer's arithmetic, and the memory at any time is that of one gradient twice.
    Takes ``5 K`` beside what ``within`` takes. The operations of the loss need forward-mode
    derivatives, which fused attention has not.

    Args:
        within: How carries are stored.

    Reference:
        Kemaev et al., Scalable meta-learning via mixed-mode differentiation, 2025,
        arXiv 2505.00793.
    """

    within: Memory = dataclasses.field(default_factory=FullGraph)

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_policy("within", self.within, (FullGraph, Checkpointed, Binomial))

    def plan(self, steps: int) -> Plan:
        return self.within.plan(steps)._replace(gradient=mixed)


@dataclasses.dataclass(frozen=True)
class Truncated(Memory):
    r"""The graph of the last steps alone. Not exact: it gives the gradient of

    .. math:: \theta_{K - k}, \dots, \theta_K

    with :math:`\theta_{K - k}`, and the optimizer's state there, as constants. So initial
    parameters have no gradient unless ``last`` is at least ``K``. Stores ``last g``, takes
    ``K + 2 last``.

    Args:
        last: The number of steps to differentiate.

    Reference:
        Shaban et al., Truncated back-propagation for bilevel optimization, AISTATS 2019.
    """

    last: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        _check_positive("last", self.last)

    def plan(self, steps: int) -> Plan:
        return Plan(last=self.last)


@dataclasses.dataclass(frozen=True)
class FirstOrder(Memory):
    r"""Inner gradients as constants. Not exact: it gives the gradient of

    .. math:: \theta_{t + 1} = \theta_t + u(g_t), \qquad g_t \text{ constant.}

    So derivatives reach the initial parameters and the optimizer's hyperparameters, and not what
    the loss depends on. Stores the graph of the optimizer's arithmetic, takes ``K``. With `sgd` the
    derivative in the initial parameters is that in the adapted ones, as in first-order MAML.

    Reference:
        Finn et al., Model-agnostic meta-learning, ICML 2017, section 5.2.
    """

    def plan(self, steps: int) -> Plan:
        return Plan(gradient=first_order)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")


def _check_policy(name: str, value: object, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"`{name}` must be one of the policies {names}, got {value!r}")
