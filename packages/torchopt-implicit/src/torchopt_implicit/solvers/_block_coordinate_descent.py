"""Block coordinate descent for functions of linear predictions."""

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
from torchopt_implicit.solvers._flat import Objective, ValueAndGrad, flat_value_and_grad
from torchopt_implicit.solvers._linear_step import LinearSolve
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Number, like, read
from torchopt_implicit.solvers._solver import Solver, by_size, check_arguments

__all__ = ["block_coordinate_descent"]


class _State(NamedTuple):
    x: torch.Tensor
    error: Number
    failure: Any


def block_coordinate_descent(
    loss: Objective,
    prox: Callable[..., torch.Tensor],
    *,
    smoothness: float = 1.0,
    maxiter: int = 500,
    tol: float | None = None,
    derivative_solve: LinearSolve | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver that minimizes over one block of unknowns after the other.

    .. math::
        W^\star(A, \theta) = \arg\min_W \ell(A W, \theta) + \sum_i g(w_i, \theta), \qquad
        w_i \leftarrow \operatorname{prox}_{t_i g}(w_i - t_i a_i^\top \nabla \ell(A W)),
        \quad t_i = 1 / (L \|a_i\|^2)

    Blocks are the rows :math:`w_i` of the unknowns, one for each column :math:`a_i` of the matrix;
    entries, if the unknowns are a vector. The predictions :math:`A W` are kept up to date, so that
    a sweep over all blocks reads the matrix about as often as a gradient does. Derivatives come
    from the fixed point of one proximal gradient step of all blocks.

    The solver is called as ``solver(init, A, *args)``, with ``init`` of shape ``(n,)`` or
    ``(n, k)``, and ``A`` of shape ``(m, n)``; it is differentiable in ``A``, too.

    Args:
        loss: :math:`\ell`: ``loss(predictions, *args)`` of predictions ``(m,)`` or ``(m, k)``
            returns a 0-dim tensor. Convex.
        prox: ``prox(block, stepsize, *args)`` returns the proximal operator of ``stepsize`` times
            :math:`g` at one block, of shape ``()`` or ``(k,)``; see
            :mod:`torchopt_implicit.proximal`.
        smoothness: :math:`L`, a Lipschitz constant of :math:`\nabla \ell`, in the predictions: 1
            for half the sum of squares, 1/4 for the sum of logistic losses, 1/2 for that of
            multinomial ones. One that is too small makes the search diverge.
        maxiter: The most sweeps.
        tol: Stop when :math:`\|W - \operatorname{prox}_g(W - A^\top \nabla \ell(A W))\|` is at most
            ``tol * max(1, its value at the start)``; 3.7e-11 in float64 and 2.4e-5 in float32 by
            default.
        derivative_solve: As for :func:`proximal_gradient`.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`.

    Raises:
        TypeError: If ``loss``, ``prox`` or ``derivative_solve`` is not callable.
        ValueError: If a number is out of its range, the loss is not scalar, or, when called,
            ``init`` and ``A`` do not fit.

    Example:
        >>> import torch
        >>> from torchopt_implicit.proximal import prox_l1
        >>> from torchopt_implicit.solvers import block_coordinate_descent
        >>> lasso = block_coordinate_descent(
        ...     lambda p, y, weight: 0.5 * (p - y).square().sum(),
        ...     lambda w, stepsize, y, weight: prox_l1(w, stepsize * weight),
        ... )
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> w = lasso(torch.zeros(2), torch.eye(2), torch.tensor([2.0, 0.3]), weight)
        >>> torch.autograd.grad(w.sum(), weight)
        (tensor(-1.),)

    References:
        - P. Tseng, S. Yun: A coordinate gradient descent method for nonsmooth separable
          minimization (2009).
        - J. Friedman, T. Hastie, R. Tibshirani: Regularization paths for generalized linear models
          via coordinate descent (2010), section 2.
    """
    check_arguments(
        loss,
        "loss",
        maxiter,
        tol,
        derivative_solve=derivative_solve,
        differentiation=differentiation,
    )
    check_arguments(prox, "prox", maxiter, tol)
    if not smoothness > 0:
        raise ValueError(f"`smoothness` must be positive, got {smoothness!r}")
    gradient_of = torch.func.grad(loss)

    def step(x: torch.Tensor, gradient: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
        moved: torch.Tensor = torch.func.vmap(lambda row: prox(row, 1.0, *args))(x - gradient)
        return moved

    def fixed_point(x: torch.Tensor, A: torch.Tensor, *args: Any) -> torch.Tensor:
        return step(x, A.mT @ gradient_of(A @ x, *args), args)

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Sweeps:
        A, *rest = args or (None,)
        x = layout.unravel(torch.zeros(layout.size, dtype=layout.dtype, device=layout.device))
        if not isinstance(x, torch.Tensor) or x.ndim not in (1, 2) or x.shape[0] == 0:
            raise ValueError("`init` must be a tensor of shape (n,) or (n, k), with n at least 1")
        if not isinstance(A, torch.Tensor) or A.ndim != 2 or A.shape[1] != x.shape[0]:
            got = tuple(A.shape) if isinstance(A, torch.Tensor) else type(A).__name__
            raise ValueError(
                f"block_coordinate_descent is called as solver(init, A, *args) with `A` of shape "
                f"(m, {x.shape[0]}), since `init` has {x.shape[0]} rows, got {got}"
            )
        known = tuple(rest)
        predicted = Layout.of(A.detach() @ x.to(A.dtype), "the predictions")
        return _Sweeps(
            flat_value_and_grad(loss, predicted, known),
            lambda block, length: prox(block, length, *known),
            lambda x, gradient: step(x, gradient, known),
            A,
            layout,
            smoothness,
        )

    differentiate = functools.partial(
        custom_fixed_point,
        fixed_point,
        solve=by_size(solves.GMRES) if derivative_solve is None else derivative_solve,
    )
    return Solver(
        "block_coordinate_descent",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
    )


@dataclasses.dataclass(frozen=True)
class _Sweeps(Method[_State]):
    # of the predictions, as vectors
    value_and_grad: ValueAndGrad
    # of one block, and of all of them with a gradient step of length one
    prox: Callable[[torch.Tensor, Any], torch.Tensor]
    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    A: torch.Tensor
    layout: Layout
    smoothness: float

    def init_state(self, x: torch.Tensor) -> _State:
        blocks = self.layout.unravel(x)
        (error,) = read(self._error(blocks, self.A @ blocks))
        return _State(x, error, like(error, 0))

    def update(self, state: _State) -> _State:
        blocks = list(self.layout.unravel(state.x).unbind(0))
        predictions = self.A @ torch.stack(blocks)
        curvatures = self.smoothness * self.A.square().sum(0)
        # a column of zeros says nothing of its block, so that any step leads to the minimum
        lengths = torch.where(curvatures > 0, 1 / curvatures, 1 / torch.finfo(self.A.dtype).eps)
        for i, column in enumerate(self.A.unbind(1)):
            slope = column @ self._gradient(predictions)
            new = self.prox(blocks[i] - lengths[i] * slope, lengths[i])
            move = new - blocks[i]
            predictions = predictions + (
                column * move if move.ndim == 0 else column.unsqueeze(-1) * move
            )
            blocks[i] = new
        x = torch.stack(blocks)
        # anew, since sums of many moves have rounded
        (error,) = read(self._error(x, self.A @ x))
        return _State(self.layout.ravel(x, "the solution"), error, state.failure)

    def _gradient(self, predictions: torch.Tensor) -> torch.Tensor:
        _, gradient = self.value_and_grad(predictions.reshape(-1))
        return gradient.reshape(predictions.shape)

    def _error(self, x: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
        gradient = self.A.mT @ self._gradient(predictions)
        error: torch.Tensor = torch.linalg.vector_norm(x - self.step(x, gradient))
        return error
