"""Solvers find what brute force finds, for a batch, under transforms and in any dtype."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from torchopt_zero.discrete import (
    Solver,
    argmax,
    assignment,
    ranking,
    shortest_path,
    sorting,
    sorting_scores,
)


def _one_hot(shape: tuple[int, ...]) -> Iterator[Tensor]:
    yield from torch.eye(shape[0])


def _permutations(shape: tuple[int, ...]) -> Iterator[Tensor]:
    for ranks in itertools.permutations(range(1, shape[0] + 1)):
        yield torch.tensor(ranks, dtype=torch.get_default_dtype())


def _assignments(shape: tuple[int, ...]) -> Iterator[Tensor]:
    rows, columns = shape
    if rows > columns:
        for y in _assignments((columns, rows)):
            yield y.T
        return
    for chosen in itertools.permutations(range(columns), rows):
        yield torch.eye(columns)[list(chosen)]


def _grid_paths(connectivity: int) -> Callable[[tuple[int, ...]], Iterator[Tensor]]:
    def paths(shape: tuple[int, ...]) -> Iterator[Tensor]:
        def walk(cell: tuple[int, int], seen: frozenset[tuple[int, int]]) -> Iterator[Tensor]:
            if cell == (shape[0] - 1, shape[1] - 1):
                y = torch.zeros(shape)
                y[tuple(zip(*seen, strict=True))] = 1
                yield y
                return
            for step in itertools.product((-1, 0, 1), repeat=2):
                to = (cell[0] + step[0], cell[1] + step[1])
                near = connectivity == 8 or abs(step[0]) + abs(step[1]) == 1
                inside = 0 <= to[0] < shape[0] and 0 <= to[1] < shape[1]
                if near and inside and to not in seen:
                    yield from walk(to, seen | {to})

        yield from walk((0, 0), frozenset({(0, 0)}))

    return paths


# solver, shape of an instance, all feasible solutions
SOLVERS = {
    "argmax": (argmax(), (5,), _one_hot),
    "ranking": (ranking(), (4,), _permutations),
    "ranking, descending": (ranking(descending=True), (4,), _permutations),
    "assignment": (assignment(), (3, 3), _assignments),
    "assignment, wide": (assignment(), (2, 4), _assignments),
    "assignment, tall": (assignment(maximize=True), (4, 2), _assignments),
    "shortest path, 4 neighbours": (shortest_path(connectivity=4), (3, 3), _grid_paths(4)),
    "shortest path, 8 neighbours": (shortest_path(), (3, 3), _grid_paths(8)),
    "shortest path, oblong": (shortest_path(), (2, 4), _grid_paths(8)),
    "user's own": (
        Solver.from_numpy(lambda x: x == x.min(), event_dim=1, maximize=False),
        (5,),
        _one_hot,
    ),
}
ALL = pytest.mark.parametrize(("solver", "shape", "feasible"), SOLVERS.values(), ids=SOLVERS)


@ALL
@pytest.mark.usefixtures("float64")
def test_the_solution_is_the_best_of_all_feasible_ones(
    solver: Solver, shape: tuple[int, ...], feasible: Callable[..., Iterator[Tensor]]
) -> None:
    x = torch.rand(20, *shape)
    vertices = torch.stack(list(feasible(shape)))
    objective = torch.einsum("nv,bv->bn", vertices.flatten(1), x.flatten(1))
    best = objective.argmax(1) if solver.maximize else objective.argmin(1)
    torch.testing.assert_close(solver(x), vertices[best], rtol=0, atol=0)


@ALL
def test_batches_of_any_shape_are_solved_one_by_one(
    solver: Solver, shape: tuple[int, ...], feasible: object
) -> None:
    x = torch.rand(2, 3, *shape)
    expected = torch.stack([torch.stack([solver(x[i, j]) for j in range(3)]) for i in range(2)])
    assert torch.equal(solver(x), expected)
    assert torch.equal(torch.func.vmap(solver, in_dims=1, out_dims=1)(x), expected)
    assert torch.equal(torch.func.vmap(torch.func.vmap(solver))(x), expected)
    assert torch.equal(solver(x.mT.contiguous().mT), expected)
    assert solver(x[:0]).shape == (0, 3, *shape)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_solutions_keep_the_dtype_and_inputs_stay_as_they_are(
    solver: Solver, shape: tuple[int, ...], feasible: object, dtype: torch.dtype
) -> None:
    x = torch.rand(2, *shape).to(dtype).requires_grad_()
    before = x.detach().clone()
    y = solver(x)
    assert y.dtype == dtype
    assert not y.requires_grad
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"user's own"}))
def test_solvers_are_pickled(name: str) -> None:
    solver, shape, _ = SOLVERS[name]
    x = torch.rand(shape)
    assert torch.equal(pickle.loads(pickle.dumps(solver))(x), solver(x))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.usefixtures("float64")
def test_sorting_agrees_with_torch_and_with_the_assignment_of_its_scores(descending: bool) -> None:
    x = torch.randn(3, 6)
    permutation = sorting(descending)(x)
    values = (permutation @ x.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(values, x.sort(descending=descending).values, rtol=0, atol=0)
    assert torch.equal(assignment(maximize=True)(sorting_scores(x, descending)), permutation)


def test_of_equal_entries_the_first_comes_first() -> None:
    x = torch.tensor([1.0, 2.0, 2.0, 1.0])
    assert argmax()(x).tolist() == [0, 1, 0, 0]
    assert ranking()(x).tolist() == [1, 3, 4, 2]
    assert ranking(descending=True)(x).tolist() == [3, 1, 2, 4]
    assert sorting()(x).argmax(-1).tolist() == [0, 3, 1, 2]


def test_negative_costs_of_a_path_count_as_zero() -> None:
    costs = torch.randn(10, 5, 5)
    paths = shortest_path()(costs)
    assert torch.equal(paths, shortest_path()(costs.clamp(min=0)))
    assert (paths[:, 0, 0] == 1).all()
    assert (paths[:, -1, -1] == 1).all()


def test_a_large_batch_of_paths_has_the_costs_of_bellman_ford() -> None:
    costs = torch.rand(16, 12, 12, dtype=torch.float64)
    distance = torch.full((16, 14, 14), torch.inf, dtype=torch.float64)
    distance[:, 1, 1] = costs[:, 0, 0]
    inner = distance[:, 1:-1, 1:-1]
    for _ in range(144):
        around = torch.nn.functional.max_pool2d(-distance, 3, stride=1)
        inner.copy_(torch.minimum(inner, costs - around))
    found = (shortest_path()(costs) * costs).sum((1, 2))
    torch.testing.assert_close(found, inner[:, -1, -1])


def test_a_single_cell_or_entry_is_its_own_solution() -> None:
    for solver, x in ((argmax(), torch.rand(1)), (shortest_path(), torch.rand(1, 1))):
        assert torch.equal(solver(x), torch.ones_like(x))


def test_a_function_of_arrays_is_called_for_each_instance_in_float64() -> None:
    seen = []

    def solve(x: np.ndarray) -> list[bool]:
        seen.append((x.shape, x.dtype))
        return (x > 0).tolist()

    y = Solver.from_numpy(solve, event_dim=1, maximize=True)(torch.tensor([[1.0, -1.0], [-1, 1]]))
    assert torch.equal(y, torch.eye(2))
    assert seen == [((2,), np.dtype("float64"))] * 2
