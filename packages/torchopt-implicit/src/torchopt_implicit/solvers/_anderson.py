"""Fixed-point iteration with Anderson acceleration."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit import linear_solve as solves
from torchopt_implicit._root import custom_fixed_point
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation
from torchopt_implicit.solvers._linear_step import LinearSolve, derivative_solver
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Number, like, minimum, read, select
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["anderson"]

#: growth of the residual in one iteration after which the history is dropped
RESTART_GROWTH = 4.0


class _State(NamedTuple):
    x: torch.Tensor
    # images of the last iterates and how far each moved, the newest last
    images: tuple[torch.Tensor, ...]
    residuals: tuple[torch.Tensor, ...]
    # how many of them count
    filled: Any
    error: Number
    failure: Any


def anderson(
    function: Callable[..., Any],
    *,
    history: int = 5,
    mixing: float = 1.0,
    ridge: float = 1e-10,
    maxiter: int = 200,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    linear_solve: LinearSolve | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for fixed points by iteration with Anderson acceleration.

    .. math::
        x^\star(\theta) = T(x^\star, \theta), \qquad
        x_{k+1} = \sum_i \alpha_i \bigl(x_i + \beta f_i\bigr), \quad f_i = T(x_i) - x_i

    where the weights :math:`\alpha`, which sum to one, minimize :math:`\|\sum_i \alpha_i f_i\|`
    over the last ``history`` iterates. One iteration evaluates :math:`T` once. Derivatives come
    from :math:`x^\star - T(x^\star, \theta) = 0`; this is the solver of a deep equilibrium model.

    Args:
        function: ``function(x, *args)`` returns a tree like ``x``, which is a tree like ``init``.
        history: How many iterates are combined; 1 is the plain iteration.
        mixing: The step :math:`\beta` along the combined residual.
        ridge: Regularisation of the weights, relative to the squared residuals; at least the
            precision of the dtype.
        maxiter: The most evaluations.
        tol: Stop when :math:`\|T(x) - x\|` is at most ``tol * max(1, its value at the start)``;
            3.7e-11 in float64 and 2.4e-5 in float32 by default.
        derivative_solve: Solves with :math:`I - \partial_x T` in derivatives. A factorisation for
            up to 256 unknowns and GMRES beyond by default.
        linear_solve: The former name of ``derivative_solve``.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``function`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, or the function returns another tree.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import anderson
        >>> solver = anderson(lambda x, w: torch.cos(w * x))
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> x = solver(torch.tensor(0.0), w)
        >>> x
        tensor(0.7391, grad_fn=...)
        >>> torch.autograd.grad(x, w)  # -x sin(x) / (1 + sin(x))
        (tensor(-0.2975),)

    References:
        H. F. Walker, P. Ni: Anderson acceleration for fixed-point iterations (2011).
    """
    derivative_solve = derivative_solver(derivative_solve, linear_solve)
    check_arguments(
        function,
        "function",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    if not isinstance(history, int) or history < 1:
        raise ValueError(f"`history` must be a positive integer, got {history!r}")
    if not mixing > 0:
        raise ValueError(f"`mixing` must be positive, got {mixing!r}")
    if not ridge >= 0:
        raise ValueError(f"`ridge` must be non-negative, got {ridge!r}")

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Anderson:
        def image_of(x: torch.Tensor) -> torch.Tensor:
            return layout.ravel(function(layout.unravel(x), *args), "the result of `function`")

        return _Anderson(image_of, history, mixing, ridge)

    differentiate = functools.partial(
        custom_fixed_point,
        function,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "anderson",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _Anderson(Method[_State]):
    image_of: Callable[[torch.Tensor], torch.Tensor]
    history: int
    mixing: float
    ridge: float

    def init_state(self, x: torch.Tensor) -> _State:
        image = self.image_of(x)
        residual = image - x
        (error,) = read(torch.linalg.vector_norm(residual))
        none = torch.zeros_like(residual)
        empty = (none,) * (self.history - 1)
        return _State(
            x=x,
            images=(*empty, image),
            residuals=(*empty, residual),
            filled=like(error, 1),
            error=error,
            failure=like(error, 0),
        )

    def update(self, state: _State) -> _State:
        weights = self._weights(torch.stack(state.residuals).detach(), state.filled)
        images = torch.stack(state.images)
        if self.mixing != 1:
            images = images - (1 - self.mixing) * torch.stack(state.residuals)
        with torch.autocast(images.device.type, enabled=False):
            x = weights @ images
        image = self.image_of(x)
        residual = image - x
        (error,) = read(torch.linalg.vector_norm(residual))
        restart = error > RESTART_GROWTH * state.error
        filled = select(restart, like(error, 1), minimum(state.filled + 1, self.history))
        return _State(
            x=x,
            images=(*state.images[1:], image),
            residuals=(*state.residuals[1:], residual),
            filled=filled,
            error=error,
            failure=state.failure,
        )

    def _weights(self, residuals: torch.Tensor, filled: Any) -> torch.Tensor:
        """Return the weights that sum to one and minimize the norm of the combined residual."""
        # the newest are the last; those older than the last restart do not count
        age = torch.arange(self.history - 1, -1, -1, device=residuals.device)
        valid = age < filled
        residuals = torch.where(valid.unsqueeze(-1), residuals, 0.0)
        # rows scaled by the largest, so that the products do not underflow near the solution
        size = torch.linalg.vector_norm(residuals, dim=-1)
        scaled = residuals / torch.where(size.amax() > 0, size.amax(), 1.0)
        with torch.autocast(scaled.device.type, enabled=False):
            products = scaled @ scaled.mT
        damping = max(self.ridge, torch.finfo(residuals.dtype).eps) * products.diagonal().sum()
        products = products + torch.diag(torch.where(valid, damping, 1.0))
        ones = valid.to(residuals.dtype)
        weights, _ = torch.linalg.solve_ex(products, ones.unsqueeze(-1))
        normalized: torch.Tensor = weights.squeeze(-1) / weights.sum()
        return normalized
