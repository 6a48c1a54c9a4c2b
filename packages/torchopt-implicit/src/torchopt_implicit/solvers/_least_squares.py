"""What the solvers of nonlinear least squares share: residuals, and steps from their Jacobian."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._tags import Tag
from torchopt_implicit._tree import Layout
from torchopt_implicit.solvers._flat import flat_function, value_and_jacobian
from torchopt_implicit.solvers._linear_step import LinearSolve, solve_step, with_layout

__all__ = ["Linearization", "Residuals", "half_square", "residuals_of"]


class Linearization(NamedTuple):
    """Residuals at a point."""

    residual: torch.Tensor
    # of half their squares
    gradient: torch.Tensor
    # a constant; without entries where only products with it are computed
    jacobian: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Residuals(abc.ABC):
    """Residuals as a function of a vector, and the linear algebra of their Jacobian ``J``."""

    #: below this, relative to the squares, differences decide nothing
    eps: float

    @abc.abstractmethod
    def linearize(self, x: torch.Tensor) -> Linearization:
        """Evaluate residuals and gradient, and the Jacobian if it is kept."""

    @abc.abstractmethod
    def scale(self, at: Linearization) -> torch.Tensor:
        """Return the scale of the unknowns, squared: for damping relative to it."""

    @abc.abstractmethod
    def step(
        self, x: torch.Tensor, at: Linearization, damping: torch.Tensor | None
    ) -> torch.Tensor:
        r"""Return :math:`-(J^\top J + D)^{-1} J^\top r`; NaN where that cannot be solved.

        Args:
            x: The point.
            at: What is known there.
            damping: The diagonal :math:`D`, or ``None`` for the shortest step that minimizes
                :math:`\|J p + r\|`.
        """


def residuals_of(
    residual: Callable[..., Any],
    layout: Layout,
    args: tuple[Any, ...],
    linear_solve: LinearSolve | None,
) -> Residuals:
    """Return the residuals of a problem, without the matrix if there is a linear solver."""
    flat = flat_function(residual, layout, args)
    if linear_solve is None:
        return _Dense(layout.eps, flat)
    return _MatrixFree(layout.eps, flat, linear_solve, layout)


def half_square(residual: Callable[..., Any]) -> Callable[..., torch.Tensor]:
    """Return the objective of a least squares problem."""

    def objective(x: Any, *args: Any) -> torch.Tensor:
        out = residual(x, *args)
        vector = Layout.of(out, "the residuals").ravel(out, "the residuals")
        return 0.5 * vector.square().sum()

    return objective


@dataclasses.dataclass(frozen=True)
class _Dense(Residuals):
    function: Callable[[torch.Tensor], torch.Tensor]

    def linearize(self, x: torch.Tensor) -> Linearization:
        residual, jacobian = value_and_jacobian(self.function)(x)
        return Linearization(residual, residual @ jacobian, jacobian.detach())

    def scale(self, at: Linearization) -> torch.Tensor:
        return at.jacobian.square().sum(0)

    def step(
        self, x: torch.Tensor, at: Linearization, damping: torch.Tensor | None
    ) -> torch.Tensor:
        if damping is None:
            if not at.jacobian.numel():
                return torch.zeros_like(x)
            # an SVD of what is not finite raises
            sound = torch.isfinite(at.jacobian).all()
            inverse = torch.linalg.pinv(torch.where(sound, at.jacobian, 0.0))
            # the inverse is a constant where steps are differentiated, and it is the gradient that
            # vanishes at the solution, not the residuals
            change = at.gradient - at.gradient.detach()
            step = -(inverse @ (at.residual.detach() + inverse.mT @ change))
            return torch.where(sound, step, torch.nan)
        matrix = at.jacobian.mT @ at.jacobian + torch.diag(damping)
        factor, broken = torch.linalg.cholesky_ex(matrix)
        step = -torch.cholesky_solve(at.gradient.unsqueeze(-1), factor).squeeze(-1)
        return torch.where(broken == 0, step, torch.nan)


@dataclasses.dataclass(frozen=True)
class _MatrixFree(Residuals):
    function: Callable[[torch.Tensor], torch.Tensor]
    linear_solve: LinearSolve
    layout: Layout

    def linearize(self, x: torch.Tensor) -> Linearization:
        residual, pullback, *_ = torch.func.vjp(self.function, x)
        return Linearization(residual, pullback(residual)[0], x.new_empty(0))

    def scale(self, at: Linearization) -> torch.Tensor:
        return torch.ones_like(at.gradient)

    def step(
        self, x: torch.Tensor, at: Linearization, damping: torch.Tensor | None
    ) -> torch.Tensor:
        J = LinearOperator.jacobian(self.function, x.detach())

        N = J.T @ J if damping is None else J.T @ J + LinearOperator.diagonal(damping)
        A = with_layout(N, N.domain, Tag.POSITIVE_DEFINITE)
        return solve_step(self.linear_solve, A, -at.gradient, self.layout)
