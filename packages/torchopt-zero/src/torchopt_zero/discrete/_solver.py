"""What the estimators of this package share: a batched combinatorial solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Solver"]


@dataclass(frozen=True)
class Solver:
    r"""A combinatorial problem that is solved exactly, for a whole batch at once.

    .. math::
        y(x) \in \operatorname{arg\,max}_{y \in \mathcal Y} \langle y, x \rangle
        \quad\text{or}\quad \operatorname{arg\,min}

    A solution is piecewise constant in ``x``: its derivative is zero wherever it exists, so the
    result of a call is detached. :class:`Perturbed` and :class:`Blackbox` make it differentiable.

    Args:
        solve: Takes a finite floating-point tensor of shape ``(*batch, *event)``, for any
            ``batch``, and returns the solutions, usually of the same shape. It is never
            differentiated.
        event_dim: Number of trailing dimensions that make up one instance, at least 1.
        maximize: Whether a solution maximizes the inner product; it minimizes it otherwise.

    Returns:
        When called with ``x``: the solutions, of the dtype and on the device of ``x``.

    Raises:
        TypeError: If ``solve`` cannot be called, or ``x`` is not a floating-point tensor.
        ValueError: If ``event_dim`` is less than 1, or ``x`` has fewer dimensions or is not
            finite.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import Solver
        >>> def nearest_corner(x):  # of the hypercube
        ...     return (x > 0).to(x.dtype)
        >>> corner = Solver(nearest_corner, event_dim=1, maximize=True)
        >>> corner(torch.tensor([0.3, -0.2]))
        tensor([1., 0.])
    """

    solve: Callable[[Tensor], Tensor]
    event_dim: int
    maximize: bool

    def __post_init__(self) -> None:
        if not callable(self.solve):
            raise TypeError(f"`solve` must be callable, got {type(self.solve).__name__}")
        if not isinstance(self.event_dim, int) or self.event_dim < 1:
            raise ValueError(f"`event_dim` must be an integer of at least 1, got {self.event_dim}")

    def __call__(self, x: Tensor) -> Tensor:
        self.check(x)
        y: Tensor = _Solve.apply(x.detach(), self)  # type: ignore[no-untyped-call]
        return y

    @classmethod
    def from_numpy(
        cls, solve: Callable[[NDArray[Any]], Any], event_dim: int, maximize: bool
    ) -> Solver:
        """Make a solver of a function that solves one instance, as an array of float64.

        Args:
            solve: Takes an array of shape ``event`` and returns an array, or what numpy makes one
                of. It is called for each instance in turn.
            event_dim: Like that of the class.
            maximize: Likewise.

        Example:
            >>> import torch
            >>> from torchopt_zero.discrete import Solver
            >>> def cheapest(costs):
            ...     return costs == costs.min()
            >>> Solver.from_numpy(cheapest, event_dim=1, maximize=False)(torch.tensor([[2.0, 1.0]]))
            tensor([[0., 1.]])
        """
        if not callable(solve):
            raise TypeError(f"`solve` must be callable, got {type(solve).__name__}")
        return cls(partial(_one_by_one, solve, event_dim), event_dim, maximize)

    def check(self, x: Any, name: str = "x") -> None:
        """Raise unless a value can be given to the solver."""
        if not isinstance(x, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(x).__name__}")
        if not x.dtype.is_floating_point:
            raise TypeError(
                f"`{name}` must be a floating-point tensor, got {x.dtype}; convert it, e.g. with "
                f"`.float()`"
            )
        if x.ndim < self.event_dim:
            raise ValueError(
                f"`{name}` must have at least {self.event_dim} dimension(s), as many as an "
                f"instance of the problem, got shape {tuple(x.shape)}"
            )


class _Solve(torch.autograd.Function):
    """Calls a solver on plain tensors, whatever transforms are around it."""

    @staticmethod
    def forward(x: Tensor, solver: Solver) -> Tensor:
        if not torch.isfinite(x).all():
            raise ValueError("`x` must be finite, got NaN or infinite values")
        y = solver.solve(x)
        batch = x.shape[: x.ndim - solver.event_dim]
        if not isinstance(y, Tensor) or y.shape[: len(batch)] != batch:
            got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"`solve` must return a tensor whose shape begins with that of the batch, "
                f"{tuple(batch)}, got {got}"
            )
        y = y.detach().to(dtype=x.dtype, device=x.device)
        return y.clone() if y is x else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, solver: Solver) -> Any:
        dim = in_dims[0]
        return _Solve.apply(x.movedim(dim or 0, 0), solver), 0  # type: ignore[no-untyped-call]


def _one_by_one(solve: Callable[[NDArray[Any]], Any], event_dim: int, x: Tensor) -> Tensor:
    array = to_numpy(x)
    batch, event = array.shape[: x.ndim - event_dim], array.shape[x.ndim - event_dim :]
    solutions = [np.asarray(solve(instance)) for instance in array.reshape(-1, *event)]
    stacked = np.stack(solutions) if solutions else np.empty((0, *event))
    return torch.from_numpy(stacked).reshape(*batch, *stacked.shape[1:])


def to_numpy(x: Tensor) -> NDArray[np.float64]:
    """Return a tensor of any dtype and on any device as an array of float64."""
    array: NDArray[np.float64] = x.detach().to(device="cpu", dtype=torch.float64).numpy()
    return array
