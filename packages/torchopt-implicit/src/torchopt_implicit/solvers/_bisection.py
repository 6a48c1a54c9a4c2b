"""Bisection for scalar roots, many at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt_implicit._operator import LinearOperator
from torchopt_implicit._root import custom_root
from torchopt_implicit._status import Info, Status
from torchopt_implicit._tree import Layout
from torchopt_implicit.differentiation import Differentiation, Unrolled
from torchopt_implicit.linear_solve import LinearSolver
from torchopt_implicit.solvers._method import Method
from torchopt_implicit.solvers._numbers import Number, read
from torchopt_implicit.solvers._solver import Solver, check_arguments

__all__ = ["bisection"]


class _State(NamedTuple):
    # the middles
    x: torch.Tensor
    # ends of the brackets, and the signs of the function at the lower ones
    lower: torch.Tensor
    upper: torch.Tensor
    sign: torch.Tensor
    # widest half bracket, relative to the larger of 1 and the middle
    error: Number
    failure: Any


def bisection(
    function: Callable[..., Any],
    *,
    maxiter: int = 106,
    tol: float | None = None,
    differentiation: Differentiation | None = None,
    throw: bool = False,
) -> Solver:
    r"""Return a solver for the roots of scalar functions by bisection.

    .. math::
        F_i(x_i^\star(\theta), \theta) = 0 \quad \text{for each entry } i

    The function acts entry by entry: each :math:`F_i` depends on :math:`x_i` alone, so that one
    solve finds as many roots as there are entries. One iteration evaluates the function once and
    halves all brackets. Derivatives are :math:`-\partial_\theta F_i / \partial_{x_i} F_i`.

    Args:
        function: ``function(x, *args)`` returns a tree like ``x``.
        maxiter: The most evaluations; by default enough for brackets :math:`2^{52}` wide in
            float64, twice its digits in base 2.
        tol: Stop when half of each bracket is at most ``tol * max(1, |x|)``; four roundings by
            default.
        differentiation: How the solution is differentiated, by default
            :class:`~torchopt_implicit.differentiation.Implicit`.
        throw: Whether a failed search raises rather than warns.

    Returns:
        A :class:`Solver`, called as ``solver((lower, upper), *args)`` with two trees of the
        solution's shape between which the function changes its sign. Where it does not, the
        search ends with ``Status.BREAKDOWN``. In ``info`` the residual norm is the widest half
        bracket, relative to the larger of 1 and ``|x|``.

    Raises:
        TypeError: If ``function`` is not callable.
        ValueError: If a number is out of its range, the bracket is not a pair, or a tree has
            another shape.

    Example:
        >>> import torch
        >>> from torchopt_implicit.solvers import bisection
        >>> a = torch.tensor([1.0, 8.0, 27.0], requires_grad=True)
        >>> x = bisection(lambda x, a: x**3 - a)((torch.zeros(3), torch.full((3,), 4.0)), a)
        >>> torch.autograd.grad(x.sum(), a)  # 1 / (3 x**2)
        (tensor([0.3333, 0.0833, 0.0370]),)
    """
    check_arguments(function, "function", maxiter, tol, differentiation=differentiation)
    if isinstance(differentiation, Unrolled):
        raise ValueError(
            "the steps of bisection depend on signs alone, so that Unrolled() would give gradients "
            "of zero: use Implicit()"
        )

    def start(init: Any) -> tuple[Layout, torch.Tensor]:
        if not isinstance(init, (tuple, list)) or len(init) != 2:
            raise ValueError(f"`init` must be a pair (lower, upper), got {type(init).__name__}")
        layout = Layout.of(init[0], "lower")
        return layout, torch.stack((layout.ravel(init[0], "lower"), layout.ravel(init[1], "upper")))

    def bind(layout: Layout, args: tuple[Any, ...]) -> _Bisection:
        def value_of(x: torch.Tensor) -> torch.Tensor:
            return layout.ravel(function(layout.unravel(x), *args), "the result of `function`")

        return _Bisection(value_of)

    differentiate = functools.partial(custom_root, function, solve=_Divide())
    return Solver(
        "bisection",
        bind,
        differentiate,
        maxiter=maxiter,
        tol=tol,
        throw=throw,
        differentiation=differentiation,
        start=start,
        default_tol=lambda eps: 4 * eps,
        absolute=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Divide(LinearSolver):
    """Solves with diagonal operators."""

    def run(self, A: LinearOperator, b: torch.Tensor) -> tuple[torch.Tensor, Info]:
        diagonal = A.matvec(torch.ones_like(b))
        x = b / diagonal
        status = torch.where(diagonal == 0, int(Status.BREAKDOWN), int(Status.CONVERGED))
        status = torch.where(torch.isfinite(b), status, int(Status.NOT_FINITE))
        zero = torch.zeros_like(status)
        return x, Info(zero, (diagonal * x - b).abs(), status)


@dataclasses.dataclass(frozen=True)
class _Bisection(Method[_State]):
    value_of: Callable[[torch.Tensor], torch.Tensor]

    def init_state(self, x: torch.Tensor) -> _State:
        lower, upper = x.unbind()
        at_lower, at_upper = self.value_of(lower), self.value_of(upper)
        # an end that is a root is the whole bracket
        lower, upper = (
            torch.where((at_upper == 0) & (at_lower != 0), upper, lower),
            torch.where(at_lower == 0, lower, upper),
        )
        changes = torch.sign(at_lower) * torch.sign(at_upper) <= 0
        finite = torch.isfinite(at_lower).all() & torch.isfinite(at_upper).all()
        failure = torch.where(changes.all(), int(Status.CONVERGED), int(Status.BREAKDOWN))
        failure = torch.where(finite, failure, int(Status.NOT_FINITE))
        return _measure(lower, upper, torch.sign(at_lower), *read(failure))

    def update(self, state: _State) -> _State:
        sign = torch.sign(self.value_of(state.x))
        # also collapses onto a middle that is a root
        lower = torch.where((sign == state.sign) | (sign == 0), state.x, state.lower)
        upper = torch.where((sign != state.sign) | (sign == 0), state.x, state.upper)
        return _measure(lower, upper, state.sign, state.failure)


def _measure(lower: torch.Tensor, upper: torch.Tensor, sign: torch.Tensor, failure: Any) -> _State:
    middle = lower + 0.5 * (upper - lower)
    relative = 0.5 * (upper - lower).abs() / middle.abs().clamp_min(1.0)
    (error,) = read(relative.amax() if relative.numel() else relative.sum())
    return _State(middle, lower, upper, sign, error, failure)
