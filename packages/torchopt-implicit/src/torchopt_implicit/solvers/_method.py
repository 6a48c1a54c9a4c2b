"""The contract of an iterative method, between vectors."""

from __future__ import annotations

import abc
from typing import Any, Generic, Protocol, TypeVar

import torch

from torchopt_implicit.solvers._numbers import Number

__all__ = ["Method", "MethodState"]


class MethodState(Protocol):
    """What a method knows after an iteration: a NamedTuple that has these fields.

    Its other fields are tensors, numbers, or tuples of these. A number is a float, or a 0-dim
    tensor: which of both, :func:`~torchopt_implicit.solvers._numbers.read` decides. Nothing of it
    is ever written to, so that a state can be kept, saved, and gone on from.
    """

    @property
    def x(self) -> torch.Tensor:
        """The iterate, one vector."""

    @property
    def error(self) -> Number:
        """The norm at ``x`` that the stopping test looks at; infinite or NaN ends the search."""

    @property
    def failure(self) -> Any:
        """A :class:`Status` that ends the search, or ``CONVERGED`` while it may go on."""


State = TypeVar("State", bound=MethodState)


class Method(abc.ABC, Generic[State]):
    """An iterative method on one problem, as two pure functions of vectors.

    An instance is made for each call of a solver and holds the problem: functions of vectors such
    as an objective's value and gradient, with the user's arguments in them. It holds no iterate:
    that is in the state, and a state may be handed to another instance, for a problem with other
    arguments, such as the next batch of data.

    Both functions are called underneath `torch.vmap` for a batch of problems. So Python may branch
    on values only if they are floats or bools, that is, read by
    :func:`~torchopt_implicit.solvers._numbers.read`; otherwise it is
    :func:`~torchopt_implicit.solvers._numbers.select` that chooses. All problems of a batch take
    each iteration together; what one computes after its end is dropped.

    They may be called with gradients recorded, to differentiate through the steps. Then the
    iterate has to depend differentiably on the functions' values, with a derivative that converges
    to that of the solution; the lengths and weights of a step are constants, since what is read is.

    One iteration should cost one evaluation of the problem: that is what `maxiter` bounds.
    """

    @abc.abstractmethod
    def init_state(self, x: torch.Tensor) -> State:
        """Return the state at a point, which is not written to and may be kept."""

    @abc.abstractmethod
    def update(self, state: State) -> State:
        """Return the state after one more iteration. The given one stays as it is."""
