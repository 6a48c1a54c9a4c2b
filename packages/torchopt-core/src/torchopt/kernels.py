"""How a package of kernels offers whole optimizer steps: the protocol, version 1.

`torchopt-core` asks one package, `torchopt-accel`, for kernels. It calls nothing of the core but
what stands here, and the core calls nothing of it but what stands here, so each can be released
without the other as long as :data:`PROTOCOL` stays.

1. A rule that is a fixed formula of each element describes itself as a :class:`Formula`: a name,
   and coefficients that depend on the hyperparameters and on the number of the step.
2. ``torchopt_accel.PROVIDER``, a :class:`Provider`, has a :class:`Kernel` for some formulas.
3. For every step of an optimizer with such a rule which insists on the kernel, or for which that
   :meth:`~Kernel.pays`, the core makes a :class:`Request`, and the kernel answers with a
   :class:`Result`, or raises :class:`NotCoveredError`, having changed nothing; the core then takes
   the step itself (``use_accelerated_op=None``) or passes the error on (``True``).

The formulas of version 1, for one element with gradient :math:`g`, states and coefficients as
listed; each returns the direction and the next states:

============================= ============= =======================================================
name                          states        direction and coefficients
============================= ============= =======================================================
``sgd``                                     :math:`g`
``momentum``                  :math:`b`     :math:`b' = c_0 b + c_1 g`; :math:`c_2 g + c_3 b'`
``adam``                      :math:`m, v`  :math:`m' = c_0 m + (1 - c_0) g`,
                                            :math:`v' = c_1 v + (1 - c_1) g^2`;
                                            :math:`m' / (c_3 \\sqrt{v' + c_2} + c_4)`
``adagrad``                   :math:`s`     :math:`s' = s + g^2`;
                                            :math:`g / (c_0 \\sqrt{s'} + c_1)`
``adadelta``                  :math:`v, s`  :math:`v' = c_0 v + (1 - c_0) g^2`,
                                            :math:`u = g \\sqrt{s + c_1} / \\sqrt{v' + c_1}`,
                                            :math:`s' = c_0 s + (1 - c_0) u^2`; :math:`u`
``adamax``                    :math:`m, v`  :math:`m' = c_0 m + (1 - c_0) g`,
                                            :math:`v' = \\max(c_1 v, |g| + c_2)`;
                                            :math:`c_3 m' / v'`
``rmsprop``                   :math:`v`     :math:`v' = c_0 v + (1 - c_0) g^2`;
                                            :math:`g / (\\sqrt{v'} + c_1)`
``centered_rmsprop``          :math:`m, v`  the same with :math:`\\sqrt{v' - m'^2}`,
                                            :math:`m' = c_0 m + (1 - c_0) g`
``rmsprop+momentum``          :math:`v, b`  ``momentum``, by :math:`c_2, \\dots, c_5`, of the
``centered_rmsprop+momentum``               direction of the former
============================= ============= =======================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torchopt._types import Leaves

__all__ = [
    "PROTOCOL",
    "Formula",
    "Kernel",
    "NotCoveredError",
    "Provider",
    "Request",
    "Result",
]

#: The version of this protocol. A provider of another version is not asked.
PROTOCOL = 1


class NotCoveredError(RuntimeError):
    """A compiled kernel was insisted on, and there is none for these inputs."""


class Formula(NamedTuple):
    """A rule as one of the formulas of the protocol."""

    name: str
    #: From the number of the step, counted from 1, to the coefficients.
    coefficients: Callable[[int], tuple[float, ...]]
    #: Whether the coefficients depend on the step.
    counted: bool


class Request(NamedTuple):
    r"""One step of all leaves.

    With :math:`d` the formula's direction, :math:`s` the ``scale``, :math:`\lambda` the
    ``weight_decay`` of the leaves that decay, :math:`\eta` the ``rate``, :math:`k` = ``keep``, and
    the result :math:`r`,

    .. math::
        r = k\,\theta - \eta\, d(s\, g + \lambda\, \theta)
        \quad\text{or, decoupled,}\quad
        r = (k - \eta\lambda)\,\theta - \eta\, d(s\, g) .

    Without a rate it is :math:`d` alone, of gradients that decay as above if coupled.

    Memory: gradients are read only. If ``inplace``, moments and counts are overwritten, and
    parameters are if ``keep`` is 1, when they are the result; nothing is recorded. Otherwise
    everything is read only, and results are new tensors that are differentiable, to any order and
    under the transforms of ``torch.func``, in gradients, parameters and moments.
    """

    gradients: Leaves
    #: None if they are not known.
    parameters: Leaves | None
    #: The formula's states, each with a tensor for each leaf.
    moments: list[Leaves]
    #: The steps made so far by each leaf, 0-dim int64 on the CPU; None if they are not counted.
    counts: Leaves | None
    scale: float
    weight_decay: float
    decoupled: bool
    #: The positions of the leaves that decay; None for all.
    decays: tuple[int, ...] | None
    rate: float | None
    keep: float
    inplace: bool
    #: The formula in the core's arithmetic, which is differentiable to any order: from gradients,
    #: moments and the number of the step of each leaf, counted from 1, to the direction and the
    #: next moments.
    composite: Callable[[Leaves, list[Leaves], list[int]], tuple[Leaves, list[Leaves]]]


class Result(NamedTuple):
    """What a kernel answers."""

    #: The result for each leaf.
    leaves: Leaves
    #: The next states; in place these are the tensors of the request.
    moments: list[Leaves]
    #: The next step counts, likewise.
    counts: Leaves | None


class Kernel(Protocol):
    """Takes the steps of one rule."""

    def step(self, request: Request) -> Result:
        """Take a step.

        Raises:
            NotCoveredError: If there is no kernel for these inputs. Nothing has been changed then.
        """
        ...

    def pays(self, leaves: int, inplace: bool, weight_decay: float) -> bool:
        """Return whether a step of that many leaves is faster than in the core's arithmetic.

        Asked before every step that does not insist on the kernel, so it should take no time.
        """
        ...


class Provider(Protocol):
    """A package of kernels."""

    #: The version of the protocol that it follows.
    protocol: int

    def kernel(self, formula: Formula) -> Kernel:
        """Return what takes the steps of a rule.

        Raises:
            NotCoveredError: If there is nothing for this formula.
        """
        ...
