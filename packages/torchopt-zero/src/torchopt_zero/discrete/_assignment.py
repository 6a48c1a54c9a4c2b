"""Linear assignment."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchopt_zero.discrete._solver import Solver

__all__ = ["assignment"]


def assignment(maximize: bool = False) -> Solver:
    r"""Return the solver that assigns each row to a column of its own, by scipy.

    .. math::
        Y(C) = \operatorname{arg\,min}_{Y \in \{0, 1\}^{n \times m}} \langle Y, C \rangle
        \quad\text{subject to}\quad Y 1 = 1,\; Y^\top 1 \le 1

    With more rows than columns each column has a row of its own instead.

    Args:
        maximize: Whether entries are scores to be maximized, not costs.

    Returns:
        A :class:`Solver` from ``(*batch, n, m)`` to ``(*batch, n, m)``.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import assignment
        >>> assignment()(torch.tensor([[4.0, 1.0], [2.0, 3.0]]))
        tensor([[0., 1.],
                [1., 0.]])

    Reference:
        Crouse, On implementing 2D rectangular assignment algorithms, 2016, as in
        `scipy.optimize.linear_sum_assignment`.
    """
    return Solver.from_numpy(partial(_assign, maximize), event_dim=2, maximize=maximize)


def _assign(maximize: bool, costs: NDArray[Any]) -> NDArray[Any]:
    # Imported here, as it takes longer to import than to use.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    rows, columns = linear_sum_assignment(costs, maximize=maximize)
    chosen = np.zeros_like(costs)
    chosen[rows, columns] = 1
    return chosen
