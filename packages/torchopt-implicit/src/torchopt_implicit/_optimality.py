"""The optimality conditions of problems with nonlinear constraints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch

from torchopt_implicit._tree import Layout

__all__ = ["KKTSolution", "kkt_conditions"]


class KKTSolution(NamedTuple):
    """A point and its multipliers, see :func:`kkt_conditions`."""

    #: the point, a tree
    x: Any
    #: multipliers of the inequalities, non-negative, a tree like their values; None without any
    lam: Any = None
    #: multipliers of the equalities, a tree like their values; None without any
    nu: Any = None


def kkt_conditions(
    objective: Callable[..., torch.Tensor],
    equalities: Callable[..., Any] | None = None,
    inequalities: Callable[..., Any] | None = None,
) -> Callable[..., KKTSolution]:
    r"""Return the conditions of Karush, Kuhn and Tucker, for :func:`custom_root`.

    The problem :math:`\min_x f(x, \theta)` such that :math:`h(x, \theta) = 0` and
    :math:`g(x, \theta) \le 0` is solved, under a constraint qualification, by a point at which

    .. math::
        \nabla_x f + \lambda^\top \partial_x g + \nu^\top \partial_x h = 0, \quad
        \lambda \circ g = 0, \quad h = 0

    with :math:`\lambda \ge 0` and :math:`g \le 0`. Decorate any solver that returns a point and
    its multipliers: however they were found, they differentiate. The derivative exists where
    active inequalities have positive multipliers and the gradients of active constraints are
    independent.

    Args:
        objective: ``objective(x, *args)`` returns a 0-dim tensor; ``x`` is a tree.
        equalities: ``equalities(x, *args)`` returns a tree of tensors that are to be zero.
        inequalities: ``inequalities(x, *args)`` returns a tree of tensors that are not to be
            positive.

    Returns:
        A function ``conditions(solution, *args)`` of a :class:`KKTSolution`, which returns another
        one, zero at a solution, whose fields are the three conditions.

    Raises:
        TypeError: If a function is not callable, or, when called, there are multipliers without
            constraints or the other way round.
        ValueError: When called, if multipliers differ in structure or shapes from the values of
            their constraints, or the objective is not a 0-dim tensor.

    Example:
        >>> import torch
        >>> from torchopt_implicit import KKTSolution, custom_root, kkt_conditions
        >>> conditions = kkt_conditions(
        ...     lambda x, target: (x - target).square().sum(),
        ...     inequalities=lambda x, target: x.square().sum() - 1,
        ... )
        >>> @custom_root(conditions, argnums=1)
        ... def nearest_in_ball(init, target):
        ...     norm = target.norm()
        ...     return KKTSolution(x=target / norm, lam=norm - 1)
        >>> target = torch.tensor([0.0, 2.0], requires_grad=True)
        >>> x = nearest_in_ball(None, target).x
        >>> (slope,) = torch.autograd.grad(x.sum(), target)
        >>> torch.allclose(slope, torch.tensor([0.5, 0.0]), atol=1e-5)  # (I - x x^T) / |target|
        True

    References:
        - S. Boyd, L. Vandenberghe: Convex optimization (2004), section 5.5.3.
        - A. V. Fiacco: Sensitivity analysis for nonlinear programming using penalty methods (1976).
    """
    for name, function in (
        ("objective", objective),
        ("equalities", equalities),
        ("inequalities", inequalities),
    ):
        if not callable(function) and (function is not None or name == "objective"):
            raise TypeError(
                f"`{name}` must be callable as {name}(x, *args), got {type(function).__name__}"
            )

    def conditions(solution: KKTSolution, *args: Any) -> KKTSolution:
        x, lam, nu = solution
        layout = Layout.of(x, "x")
        multipliers: Any = (lam, nu)

        def lagrangian(vector: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            x = layout.unravel(vector)
            value = objective(x, *args)
            if not isinstance(value, torch.Tensor) or value.shape != ():
                got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)
                raise ValueError(f"`objective` must return a 0-dim tensor, got {got}")
            g = _values(inequalities, "inequalities", lam, "lam", x, args)
            h = _values(equalities, "equalities", nu, "nu", x, args)
            values: list[torch.Tensor] = [*optree.tree_leaves(g), *optree.tree_leaves(h)]
            for one, other in zip(optree.tree_leaves(multipliers), values, strict=True):
                value = value + (one * other).sum()
            return value, values

        # which passes on lists of tensors alone
        slope, values = torch.func.grad(lagrangian, has_aux=True)(layout.ravel(x, "x"))
        g, h = optree.tree_unflatten(optree.tree_structure(multipliers), values)
        return KKTSolution(layout.unravel(slope), optree.tree_map(torch.mul, lam, g), h)

    return conditions


def _values(
    constraints: Callable[..., Any] | None,
    name: str,
    multipliers: Any,
    symbol: str,
    x: Any,
    args: tuple[Any, ...],
) -> Any:
    """Return the values of constraints, as a tree like their multipliers."""
    if (constraints is None) != (multipliers is None):
        missing = symbol if multipliers is None else name
        raise TypeError(
            f"`{name}` and the multipliers `{symbol}` go together, but `{missing}` is None"
        )
    if constraints is None:
        return None
    layout = Layout.of(multipliers, symbol)
    leaves = layout.flatten(constraints(x, *args), f"what `{name}` returns, like `{symbol}`,")
    return optree.tree_unflatten(layout.spec, leaves)
