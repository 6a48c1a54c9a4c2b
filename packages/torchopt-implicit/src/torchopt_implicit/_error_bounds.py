"""How far to trust a hypergradient: residuals of the solution, and bounds on the error."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._status import FailedSolveError, FailedSolveWarning, Info, Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.linear_solve import LinearSolver, solve_normal_cg

__all__ = ["HypergradientError", "Lipschitz", "hypergradient_error", "stationarity"]


def stationarity(
    optimality_fn: Callable[..., Any],
    x: Any,
    *args: Any,
    tol: float | None = None,
    throw: bool = False,
) -> float:
    r"""Return :math:`\|F(x, \theta)\|_2`, which is 0 at a solution.

    The implicit function theorem holds at solutions. Elsewhere its formula gives some vector, but
    not a gradient, and no linear solver can tell.

    Args:
        optimality_fn: :math:`F`, as for :func:`custom_root`.
        x: The solution found, a tree.
        *args: Its other arguments.
        tol: Above this, and where the norm is not finite, warn.
        throw: Raise instead.

    Raises:
        FailedSolveError: If the norm is above ``tol`` and ``throw``.
        ValueError: If the structures of ``x`` and of the residual differ.

    Example:
        >>> import torch, torchopt
        >>> f = lambda x, a: x**2 - a
        >>> torchopt.diff.implicit.stationarity(f, torch.tensor(1.5), torch.tensor(2.0))
        0.25
    """
    layout = Layout.of(x, "x")
    with torch.no_grad():
        residual = layout.ravel(optimality_fn(x, *args), "what `optimality_fn` returns, like `x`,")
        norm = float(torch.linalg.vector_norm(residual))
    if tol is not None and not norm <= tol:
        status = Status.ITERATION_LIMIT if math.isfinite(norm) else Status.NOT_FINITE
        message = (
            f"the solution is not stationary: its optimality residual has the norm {norm:.3g}, "
            f"above `tol` = {tol:.3g}, so that an implicit derivative there is inexact. Run the "
            "solver for longer, or look whether `optimality_fn` describes what it solves"
        )
        if throw:
            raise FailedSolveError(message, Info(0, norm, status))
        warnings.warn(message, FailedSolveWarning, stacklevel=2)
    return norm


class Lipschitz(NamedTuple):
    r"""How fast derivatives change with :math:`x`, as bounds in the spectral norm.

    All hold on the ball around the approximate solution that the bound confines the solution to.
    """

    #: of :math:`\partial_x F`; 0 where F is affine in x, as for quadratic inner problems
    jacobian: float
    #: of :math:`\partial_\theta F`
    cross: float
    #: of :math:`\partial_x L`, the outer gradient in the solution
    outer: float
    #: of :math:`\partial_\theta L`
    outer_cross: float = 0.0


class HypergradientError(NamedTuple):
    """A hypergradient, and how far it is from the true one."""

    #: of the outer objective in ``theta``, a tree like it
    gradient: Any
    #: of the error's 2-norm: an upper bound if `certified`, else an estimate
    error: float
    #: whether `error` is a bound
    certified: bool
    #: norm of the optimality residual at the solution
    solution_residual: float
    #: norm of the residual of the adjoint linear system
    linear_residual: float


def hypergradient_error(
    optimality_fn: Callable[..., Any],
    outer_fn: Callable[[Any, Any], torch.Tensor],
    x: Any,
    theta: Any,
    *args: Any,
    solve: Callable[[Any, Any], Any] | None = None,
    strong_monotonicity: float | None = None,
    lipschitz: Lipschitz | None = None,
) -> HypergradientError:
    r"""Return the hypergradient at an approximate solution, with an estimate of its error.

    The hypergradient of :math:`L(x(\theta), \theta)`, where :math:`F(x(\theta), \theta) = 0`, is

    .. math:: g = \partial_\theta L - \partial_\theta F^\top u, \qquad
        \partial_x F^\top u = \partial_x L.

    Two things are inexact: :math:`x`, with :math:`r = \|F(x, \theta)\|`, and :math:`u`, with the
    residual :math:`\rho`. If F is strongly monotone in x with modulus :math:`\mu`, the solution is
    within :math:`e = r / \mu`, and with the Lipschitz constants :math:`\ell` of `lipschitz`

    .. math:: \|g - g^*\| \le \ell_{\theta L} e + \ell_{\theta F} e \|u\| +
        \frac{\|\partial_\theta F\| + \ell_{\theta F} e}{\mu}
        \bigl(\rho + \ell_{x L} e + \ell_{x F} e \|u\|\bigr).

    That is the certified bound; rounding errors come on top. Without these constants the error is
    estimated, as the change that one Newton step from ``x`` makes to the hypergradient, with both
    linear systems solved anew to higher accuracy. It costs two more linear solves.

    Args:
        optimality_fn: :math:`F`, called as ``optimality_fn(x, theta, *args)``.
        outer_fn: :math:`L`, called as ``outer_fn(x, theta)``.
        x: The approximate solution, a tree.
        theta: What to differentiate in, a tree.
        *args: Other arguments of ``optimality_fn``.
        solve: The solver of linear systems that is used for the hypergradient, as for
            :func:`custom_root`.
        strong_monotonicity: :math:`\mu > 0`: for the gradient of a function, its modulus of strong
            convexity, the smallest eigenvalue of its Hessians.
        lipschitz: The constants. The bound is certified if both are given.

    Returns:
        A :class:`HypergradientError`. Nothing is differentiable.

    Raises:
        ValueError: If ``strong_monotonicity`` is not positive, or is given without ``lipschitz``
            or the other way round.

    Example:
        >>> import torch, torchopt
        >>> torchopt.diff.implicit.hypergradient_error(
        ...     lambda x, a: 2 * x - a,
        ...     lambda x, a: (x**2).sum() / 2,
        ...     torch.tensor([1.25]),
        ...     torch.tensor([2.0]),
        ...     strong_monotonicity=2.0,
        ...     lipschitz=torchopt.diff.implicit.Lipschitz(jacobian=0.0, cross=0.0, outer=1.0),
        ... )
        HypergradientError(gradient=tensor([0.6250]), error=0.125, certified=True, ...)

    References:
        - Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016, theorem 1.
        - Grazzi et al., On the iteration complexity of hypergradient computation, ICML 2020.
    """
    if (strong_monotonicity is None) != (lipschitz is None):
        raise ValueError(
            "`strong_monotonicity` and `lipschitz` certify a bound together: give both or neither, "
            f"got {strong_monotonicity} and {lipschitz}"
        )
    if strong_monotonicity is not None and not strong_monotonicity > 0:
        raise ValueError(f"`strong_monotonicity` must be positive, got {strong_monotonicity}")
    solve = solve_normal_cg() if solve is None else solve
    problem = _Problem(optimality_fn, outer_fn, x, theta, args)
    point = problem.x_layout.ravel(x, "x").detach()
    gradient, u, linear_residual = problem.hypergradient(point, solve)
    residual = problem.residual(point, problem.theta)
    r, rho = _norm(residual), _norm(linear_residual)
    if strong_monotonicity is None or lipschitz is None:
        # of Newton's step no more than direction and rough size are needed; of the rest, all
        exact = solve_normal_cg(rtol=100 * torch.finfo(point.dtype).eps)
        A = problem.jacobian(point)
        step, _ = _run(exact, A, residual)
        better, _, _ = problem.hypergradient(point - step, exact)
        error = _norm(better - gradient)
    else:
        e, size = r / strong_monotonicity, _norm(u)
        cross = problem.cross_norm(point) + lipschitz.cross * e
        error = (lipschitz.outer_cross + lipschitz.cross * size) * e + cross * (
            rho + (lipschitz.outer + lipschitz.jacobian * size) * e
        ) / strong_monotonicity
    tree = problem.theta_layout.unravel(gradient)
    return HypergradientError(tree, error, strong_monotonicity is not None, r, rho)


class _Problem:
    """A bilevel problem between vectors."""

    def __init__(
        self,
        optimality_fn: Callable[..., Any],
        outer_fn: Callable[[Any, Any], torch.Tensor],
        x: Any,
        theta: Any,
        args: tuple[Any, ...],
    ) -> None:
        self.x_layout = Layout.of(x, "x")
        self.theta_layout = Layout.of(theta, "theta")
        self.theta = self.theta_layout.ravel(theta, "theta").detach()
        self.optimality_fn = optimality_fn
        self.outer_fn = outer_fn
        self.args = args

    def residual(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        trees = self.x_layout.unravel(x), self.theta_layout.unravel(theta)
        value = self.optimality_fn(*trees, *self.args)
        return self.x_layout.ravel(value, "what `optimality_fn` returns, like `x`,")

    def jacobian(self, x: torch.Tensor) -> LinearOperator:
        return LinearOperator.jacobian(lambda x: self.residual(x, self.theta), x)

    def hypergradient(
        self, x: torch.Tensor, solve: Callable[[Any, Any], Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the hypergradient, the adjoint, and the residual of that."""

        def outer(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
            return self.outer_fn(self.x_layout.unravel(x), self.theta_layout.unravel(theta))

        dx, dtheta = torch.func.grad(outer, argnums=(0, 1))(x, self.theta)
        u, residual = _run(solve, self.jacobian(x).T, dx)
        pullback = torch.func.vjp(lambda theta: self.residual(x, theta), self.theta)[1]
        return (dtheta - pullback(u)[0]).detach(), u, residual

    def cross_norm(self, x: torch.Tensor) -> float:
        """Return the spectral norm of the derivative in theta, from the matrix."""
        matrix = torch.func.jacrev(lambda theta: self.residual(x, theta))(self.theta)
        return float(torch.linalg.matrix_norm(matrix.detach(), 2)) if matrix.numel() else 0.0


def _run(
    solve: Callable[[Any, Any], Any], A: LinearOperator, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the solution and its residual, whatever became of the solve: the residual tells."""
    with torch.no_grad():
        x = (solve.solve(A, b)[0] if isinstance(solve, LinearSolver) else solve(A, b)).detach()
        return x, (A.matvec(x) - b).detach()


def _norm(vector: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))
