r"""How a solution is differentiated: exactly, cheaply, through the steps that led to it, or not.

Let :math:`A = \partial_x F` at the solution of :math:`F(x, \theta) = 0`, where for a fixed point
:math:`F = x - T(x, \theta)`. All but :class:`Unrolled` give derivatives of the form

.. math:: \partial x = -P\, \partial_\theta F,

and differ in the :math:`P` that stands for :math:`A^{-1}`.

=================  ================================================  ====================
strategy           :math:`P`                                         exact if
=================  ================================================  ====================
:class:`Implicit`  :math:`A^{-1}`, by a linear solver                always
:class:`OneStep`   :math:`\alpha I`                                  :math:`\alpha A = I`
:class:`Neumann`   :math:`\alpha \sum_{k<K} (I - \alpha A)^k`        :math:`K \to \infty`
:class:`Unrolled`  (the derivatives of the solver's steps)           many steps are done
:class:`Constant`  0                                                 x is constant
=================  ================================================  ====================

Example:
    >>> import torch, torchopt
    >>> from torchopt.diff.implicit import custom_fixed_point
    >>> from torchopt.diff.implicit.differentiation import Implicit, Neumann, OneStep
    >>> def solver(x, a):
    ...     for _ in range(100):
    ...         x = x / 2 + a
    ...     return x
    >>> for way in (Implicit(), OneStep(), Neumann(terms=3)):
    ...     decorate = custom_fixed_point(lambda x, a: x / 2 + a, argnums=1, differentiation=way)
    ...     print(float(torch.func.grad(lambda a: decorate(solver)(a, a))(torch.tensor(1.0))))
    2.0
    1.0
    1.75
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import Info, Status
from torchopt_implicit.linear_solve import LinearSolver

__all__ = ["Constant", "Differentiation", "Implicit", "Neumann", "OneStep", "Unrolled"]


class Differentiation(abc.ABC):
    """How a solution is differentiated: what ``differentiation=`` takes."""

    @abc.abstractmethod
    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any] | None:
        """Return what stands for the linear solver ``solve``; ``None`` if nothing is solved."""


@dataclasses.dataclass(frozen=True)
class Implicit(Differentiation):
    r"""By the implicit function theorem, :math:`P = A^{-1}`: exact at a solution. The default.

    Each derivative costs one linear solve, by the ``solve`` of whatever is decorated.

    Args:
        compiled: Whether products with :math:`A` are compiled, False by default. It takes seconds
            at the first derivative and for each new set of shapes, and a compiler for C++ or CUDA;
            then each product takes a fraction of the time. The equation must do without Python's
            control flow on values and without random numbers. Tensors that it closes over are
            inputs; other values that it has from elsewhere are constants of the first call.

    Reference:
        Blondel et al., Efficient and modular implicit differentiation, NeurIPS 2022.
    """

    compiled: bool = False

    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return solve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neumann(Differentiation):
    r"""By a truncated series, :math:`P = \alpha \sum_{k=0}^{K-1} (I - \alpha A)^k`.

    Costs ``terms - 1`` products with :math:`A`, and no memory for each. The relative error is at
    most :math:`\|I - \alpha A\|^K`; where this norm is 1 or more, more terms may be worse. For a
    fixed point :math:`I - A = \partial_x T`, and the series is that of the last ``terms`` steps of
    the iteration with step ``alpha``: phantom gradients. Where a function is minimized, ``alpha``
    is the step size of gradient descent. Derivatives of derivatives are approximated likewise.

    Args:
        terms: :math:`K`, at least 1.
        alpha: :math:`\alpha`, 1 by default.

    Raises:
        TypeError: If ``terms`` is not an integer.
        ValueError: If ``terms`` is below 1, or ``alpha`` is not positive and finite.

    References:
        - Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by implicit
          differentiation, AISTATS 2020.
        - Geng et al., On training implicit models, NeurIPS 2021.
    """

    terms: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.terms, bool) or not isinstance(self.terms, int):
            raise TypeError(f"`terms` must be an integer, got {self.terms!r}")
        if self.terms < 1:
            raise ValueError(f"`terms` must be at least 1, got {self.terms}")
        _check_alpha(self.alpha)

    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> LinearSolver:
        return _Series(terms=self.terms, alpha=self.alpha)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(Differentiation):
    r"""By one step from the solution, :math:`P = \alpha I`: Jacobian-free backpropagation.

    For a fixed point these are the derivatives of :math:`T` at a constant :math:`x`, where a
    function is minimized those of one step of gradient descent of size ``alpha``. Costs no product
    with :math:`A`, and is :class:`Neumann` with one term. Exact for methods that converge faster
    than linearly, such as Newton's taken as :math:`T`; a descent direction where :math:`T`
    contracts enough.

    Args:
        alpha: :math:`\alpha`, 1 by default.

    Raises:
        ValueError: If ``alpha`` is not positive and finite.

    References:
        - Fung et al., JFB: Jacobian-free backpropagation for implicit networks, AAAI 2022.
        - Bolte, Pauwels and Vaiter, One-step differentiation of iterative algorithms,
          NeurIPS 2023.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> LinearSolver:
        return _Series(terms=1, alpha=self.alpha)


@dataclasses.dataclass(frozen=True)
class Unrolled(Differentiation):
    """Through the steps of the solver, which runs with gradients.

    The derivatives are those of what the solver computed, converged or not: exact for that, and
    closer to those of the solution with every step; zero without one, where the start is good
    enough. They reach all that the solver depends on, the
    initial guess included. Memory grows with the steps. The solver has to be differentiable: in
    torch, without ``no_grad`` and without writing to tensors in place.
    """

    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Constant(Differentiation):
    """Not at all: the solution is a constant. First-order methods drop its derivative like this."""

    def linear_solver(self, solve: Callable[[Any, Any], Any]) -> None:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Series(LinearSolver):
    terms: int
    alpha: float

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        x = term = self.alpha * b
        for _ in range(self.terms - 1):
            term = term - self.alpha * A.matvec(term)
            x = x + term
        # the residual would cost one more product, and nobody asks for it
        is_finite = bool(torch.isfinite(x).all())
        status = Status.TRUNCATED if is_finite else Status.NOT_FINITE
        return x, Info(self.terms - 1, math.nan, status)


def _check_alpha(alpha: float) -> None:
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"`alpha` must be positive and finite, got {alpha}")
