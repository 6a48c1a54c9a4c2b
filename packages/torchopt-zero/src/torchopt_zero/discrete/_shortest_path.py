"""The shortest path between two corners of a grid."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchopt_zero.discrete._solver import Solver, to_numpy

__all__ = ["shortest_path"]


def shortest_path(connectivity: Literal[4, 8] = 8) -> Solver:
    r"""Return the solver that finds the cheapest path over a grid of cells, by scipy's Dijkstra.

    .. math::
        Y(C) = \operatorname{arg\,min}_{Y \in \mathcal Y} \langle Y, C \rangle

    where :math:`\mathcal Y` are the indicators of the cells that a path from the top left to the
    bottom right corner visits. Both ends count.

    A negative cost, as noise and steps of learning make them, counts as zero: with negative cycles
    the problem is not well-posed. The estimators hold for this solver as it is, clamp included.

    Args:
        connectivity: Whether a step leads to the 8 cells around, or to the 4 that share an edge.

    Returns:
        A :class:`Solver` from ``(*batch, height, width)`` to the same shape. A batch is solved in
        one call of Dijkstra's algorithm, on as many disconnected grids.

    Raises:
        ValueError: If ``connectivity`` is not 4 or 8; when called, if the grid has no cells.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import shortest_path
        >>> shortest_path()(torch.tensor([[1.0, 9.0, 9.0], [1.0, 9.0, 9.0], [9.0, 1.0, 1.0]]))
        tensor([[1., 0., 0.],
                [1., 0., 0.],
                [0., 1., 1.]])

    Reference:
        Vlastelica et al., Differentiation of blackbox combinatorial solvers, 2020, sec. 4.1.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"`connectivity` must be 4 or 8, got {connectivity!r}")
    return Solver(partial(_paths, connectivity), event_dim=2, maximize=False)


def _paths(connectivity: int, x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    cells = height * width
    if cells == 0:
        raise ValueError(f"`x` must have at least one cell, got shape {tuple(x.shape)}")
    costs = to_numpy(x).reshape(-1, cells).clip(min=0.0)
    paths = np.zeros_like(costs)
    if len(costs):
        previous = _predecessors(costs, *_edges(height, width, connectivity))
        instance, cell = np.arange(len(costs)), np.full(len(costs), cells - 1)
        while len(instance):  # all paths at once, from their ends
            paths[instance, cell] = 1.0
            arrived = cell == 0
            instance, cell = instance[~arrived], cell[~arrived]
            cell = previous[instance, cell]
    return torch.from_numpy(paths).reshape(x.shape)


def _predecessors(
    costs: NDArray[np.float64], pointers: NDArray[Any], heads: NDArray[Any]
) -> NDArray[Any]:
    """Return, for each cell of each grid, the one before it on the cheapest path from cell 0."""
    # Imported here, as it takes longer to import than to use.
    from scipy.sparse import csr_array  # type: ignore[import-untyped]
    from scipy.sparse.csgraph import dijkstra  # type: ignore[import-untyped]

    count, cells = costs.shape
    offsets = np.arange(count)[:, None]
    # An edge costs what the cell that it leads to costs.
    data = costs[:, heads].ravel()
    indices = (heads + cells * offsets).ravel()
    indptr = np.concatenate([[0], (pointers[1:] + len(heads) * offsets).ravel()])
    graph = csr_array((data, indices, indptr), shape=(count * cells, count * cells))
    sources = offsets.ravel() * cells
    _, previous, _ = dijkstra(graph, indices=sources, min_only=True, return_predecessors=True)
    relative: NDArray[Any] = previous.reshape(count, cells) - cells * offsets
    return relative


@lru_cache(maxsize=16)
def _edges(height: int, width: int, connectivity: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the neighbours of each cell, as the pointers and indices of a CSR matrix."""
    steps = np.array([(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)])
    steps = steps[:connectivity]
    rows, columns = np.divmod(np.arange(height * width), width)
    to_rows, to_columns = rows[:, None] + steps[:, 0], columns[:, None] + steps[:, 1]
    inside = (to_rows >= 0) & (to_rows < height) & (to_columns >= 0) & (to_columns < width)
    pointers = np.concatenate([[0], inside.sum(1).cumsum()])
    return pointers, (to_rows * width + to_columns)[inside]
