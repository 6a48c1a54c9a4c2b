"""Interpolation: a gradient that tells a solver which other solution would be better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from torchopt_zero._functorch import over_batched_gradients
from torchopt_zero.discrete._check import check_positive
from torchopt_zero.discrete._solver import Solver

__all__ = ["Blackbox"]


@dataclass(frozen=True)
class Blackbox:
    r"""A solver with the gradient of a piecewise affine interpolation of its loss.

    For costs :math:`x` whose inner product with a solution is minimized, and a cotangent
    :math:`g = \partial L / \partial y`,

    .. math::
        \nabla_x = -\tfrac{1}{\lambda} \big( y(x) - y(x + \lambda g) \big)

    and for scores that are maximized, :math:`\tfrac{1}{\lambda} ( y(x) - y(x - \lambda g) )`. One
    call of the solver forward, one backward; solutions stay exact, and are the solver's own.

    Args:
        solver: A solver whose solutions are of the shape of its inputs, and minimize or maximize
            the inner product with them.
        lambd: How far to interpolate. Where changes of the solution are to be felt, ``lambd`` times
            the cotangent should be about as large as ``x``. 10.0 by default.

    Returns:
        When called with ``x``: the solution.

    Raises:
        TypeError: If ``solver`` is not a :class:`Solver`, or ``lambd`` is not a number.
        ValueError: If ``lambd`` is not positive; when called, if the solution is not of the shape
            of ``x``, or ``x`` is not finite; in the backward pass, if the cotangent is not.
        NotImplementedError: In a second backward pass: the gradient is piecewise constant itself.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import Blackbox, shortest_path
        >>> costs = torch.tensor([[1.0, 2.0], [3.0, 1.0]], requires_grad=True)
        >>> path = Blackbox(shortest_path(connectivity=4), lambd=2.0)(costs)
        >>> target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> (path - target).square().sum().backward()
        >>> costs.grad  # its descent makes the path dearer, the target cheaper
        tensor([[ 0.0000, -0.5000],
                [ 0.5000,  0.0000]])

    Reference:
        Vlastelica, Paulus, Musil, Martius and Rolínek, Differentiation of blackbox combinatorial
        solvers, 2020, algorithm 1.
    """

    solver: Solver
    lambd: float = 10.0

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"`solver` must be a Solver, got {type(self.solver).__name__}; make a function "
                f"into one with `Solver(function, event_dim, maximize)`"
            )
        check_positive(self.lambd, "lambd")

    def __call__(self, x: Tensor) -> Tensor:
        self.solver.check(x)
        y: Tensor = _Interpolate.apply(x, self)  # type: ignore[no-untyped-call]
        return y


class _Interpolate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, options: Blackbox) -> Tensor:
        y = options.solver(x)
        if y.shape != x.shape:
            raise ValueError(
                f"`solver` must return solutions of the shape of its input, {tuple(x.shape)}, got "
                f"{tuple(y.shape)}; use a solver whose objective is the inner product with its "
                f"solution (to sort, `Blackbox(assignment(maximize=True))(sorting_scores(x))`), or "
                f"`Perturbed`"
            )
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.options = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, None]:
        def difference(cotangent: Tensor) -> Tensor:
            found: Tensor = _Difference.apply(*ctx.saved_tensors, cotangent, ctx.options)  # type: ignore[no-untyped-call]
            return found

        return over_batched_gradients(difference, cotangents[0]), None


class _Difference(torch.autograd.Function):
    """The interpolated gradient, as a function that cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, cotangent: Tensor, options: Blackbox) -> Tensor:
        signed = -options.lambd if options.solver.maximize else options.lambd
        return (options.solver(x + signed * cotangent) - y) / signed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> NoReturn:
        raise NotImplementedError(
            "the gradient of `Blackbox` is piecewise constant, so has no derivative that could be "
            "used; use `Perturbed`, which has derivatives of any order"
        )
