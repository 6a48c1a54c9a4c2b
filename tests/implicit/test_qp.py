"""Quadratic programs: solutions, statuses with proofs, and derivatives from the KKT system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from torchopt_implicit import FailedSolveError, FailedSolveWarning, Status
from torchopt_implicit.solvers import QPSolution, _kkt, qp

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

Problem = tuple[torch.Tensor, ...]
SIZES = [(5, 4, 0), (4, 6, 2), (6, 0, 3), (3, 0, 0), (20, 60, 5), (10, 3, 9)]


def times(matrix: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def problem(*batch: int, n: int, m: int, p: int, dtype: torch.dtype = torch.float64) -> Problem:
    """A strictly convex program with a feasible point."""
    root = torch.randn(*batch, n, n, dtype=dtype)
    inside = torch.randn(*batch, n, dtype=dtype)
    G, A = torch.randn(*batch, m, n, dtype=dtype), torch.randn(*batch, p, n, dtype=dtype)
    return (
        root @ root.mT / n + 0.1 * torch.eye(n, dtype=dtype),
        torch.randn(*batch, n, dtype=dtype),
        G,
        times(G, inside) + torch.rand(*batch, m, dtype=dtype),
        A,
        times(A, inside),
    )


def assert_optimal(solution: QPSolution, data: Problem, tol: float) -> None:
    Q, q, G, h, A, b = data
    z, lam, nu, info = solution
    assert info.all_converged
    zero = torch.zeros_like(z)
    stationary = times(Q, z) + q + times(G.mT, lam) + times(A.mT, nu)
    torch.testing.assert_close(stationary, zero, atol=tol, rtol=0)
    torch.testing.assert_close(times(A, z), b, atol=tol, rtol=0)
    assert (times(G, z) <= h + tol).all()
    assert (lam >= 0).all()
    assert (lam * (h - times(G, z)) <= tol).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "m", "p"), SIZES)
def test_solutions_satisfy_the_optimality_conditions(
    n: int, m: int, p: int, dtype: torch.dtype
) -> None:
    data = problem(16, n=n, m=m, p=p, dtype=dtype)
    solution = qp(*data) if m else qp(data[0], data[1], A=data[4], b=data[5])
    assert solution.z.dtype == dtype
    assert solution.info.iterations.max() <= 20
    assert_optimal(solution, data, 1e-9 if dtype == torch.float64 else 2e-3)


def test_linear_programs_as_scipy_solves_them() -> None:
    for _ in range(5):
        Q, _, G, h, A, b = problem(n=6, m=15, p=2)
        q = -times(G.mT, torch.rand(15, dtype=torch.float64))  # bounded
        solution = qp(torch.zeros_like(Q), q, G, h, A, b)
        reference = scipy.optimize.linprog(
            q.numpy(), G.numpy(), h.numpy(), A.numpy(), b.numpy(), bounds=(None, None)
        )
        np.testing.assert_allclose(solution.z.numpy(), reference.x, atol=1e-8)


def test_quadratic_programs_as_scipy_solves_them() -> None:
    Q, q, G, h, A, b = problem(n=4, m=6, p=1)
    reference = scipy.optimize.minimize(
        lambda z: 0.5 * z @ Q.numpy() @ z + q.numpy() @ z,
        np.zeros(4),
        jac=lambda z: Q.numpy() @ z + q.numpy(),
        constraints=[
            {"type": "ineq", "fun": lambda z: h.numpy() - G.numpy() @ z},
            {"type": "eq", "fun": lambda z: A.numpy() @ z - b.numpy()},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(qp(Q, q, G, h, A, b).z.numpy(), reference.x, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "p"),
    [
        pytest.param(4, 3, 1, marks=pytest.mark.slow),
        pytest.param(3, 5, 0, marks=pytest.mark.slow),
        pytest.param(4, 1, 2, marks=pytest.mark.slow),
        (2, 1, 1),
    ],
)
def test_gradients_in_all_data_meet_finite_differences_to_second_order(
    n: int, m: int, p: int
) -> None:
    data = tuple(x.requires_grad_() for x in problem(2, n=n, m=m, p=p))

    def solve(*data: torch.Tensor) -> Problem:
        return qp(*data)[: 3 if p else 2]

    torch.autograd.gradcheck(solve, data, check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda *data: qp(*data).z, data, atol=1e-4)


def test_gradients_at_the_size_of_a_layer_meet_finite_differences() -> None:
    data = problem(8, n=40, m=40, p=5)
    weights = torch.randn(40, dtype=torch.float64)
    gradients = grad(lambda data: (qp(*data).z @ weights).sum())(data)
    for i, (x, gradient) in enumerate(zip(data, gradients, strict=True)):
        direction = torch.randn_like(x)

        def along(step: float, i: int = i, direction: torch.Tensor = direction) -> torch.Tensor:
            moved = [y + step * direction if j == i else y for j, y in enumerate(data)]
            return qp(*moved).z @ weights

        numeric = (along(1e-7) - along(-1e-7)) / 2e-7
        analytic = (gradient * direction).flatten(1).sum(-1)
        torch.testing.assert_close(analytic, numeric, atol=1e-5, rtol=1e-5)


def test_transforms_compose_and_vmap_equals_a_loop() -> None:
    Q, q, G, h, A, b = problem(3, n=4, m=5, p=1)

    def loss(q: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return (qp(Q, q, G, h, A, b).z ** 3).sum()

    torch.testing.assert_close(jacrev(loss)(q, h), jacfwd(loss)(q, h))
    torch.testing.assert_close(hessian(loss)(q, h), jacrev(jacrev(loss))(q, h))
    qs = torch.randn(4, 3, 4, dtype=torch.float64)
    expected = torch.stack([grad(loss)(q, h) for q in qs])
    torch.testing.assert_close(vmap(grad(loss), in_dims=(0, None))(qs, h), expected)
    hs = torch.stack((h, h + 0.1))
    nested = vmap(vmap(grad(loss, argnums=1), in_dims=(0, None)), in_dims=(None, 0))(qs, hs)
    for i, h_ in enumerate(hs):
        for j, q_ in enumerate(qs):
            torch.testing.assert_close(nested[i, j], grad(loss, argnums=1)(q_, h_))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accelerators_give_what_the_cpu_gives(dtype: torch.dtype) -> None:
    data = problem(16, n=6, m=8, p=2, dtype=dtype)

    def gradients(data: Problem) -> Problem:
        leaves = tuple(x.clone().requires_grad_() for x in data)
        return torch.autograd.grad((qp(*leaves).z ** 2).sum(), leaves)

    computed = gradients(tuple(x.cuda() for x in data))
    tol = 1e-7 if dtype == torch.float64 else 1e-2
    for ours, expected in zip(computed, gradients(data), strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.cpu(), expected, atol=tol, rtol=tol)


def test_leading_dimensions_broadcast() -> None:
    Q, q, G, h, A, _ = problem(2, 3, n=4, m=5, p=1)
    h, b = h[1].abs(), torch.zeros(3, 1, dtype=torch.float64)
    whole = qp(Q[0, 0], q, G[0, 0], h, A[0, 0], b)
    assert whole.z.shape == (2, 3, 4)
    assert whole.info.status.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = qp(Q[0, 0], q[i, j], G[0, 0], h[j], A[0, 0], b[j])
            assert alone.info.status is Status.CONVERGED
            torch.testing.assert_close(whole.z[i, j], alone.z)


def test_only_the_symmetric_part_of_the_matrix_counts() -> None:
    Q, q, G, h, A, b = problem(n=4, m=5, p=1)
    skew = torch.randn(4, 4, dtype=torch.float64)
    tilted = qp(Q + skew - skew.mT, q, G, h, A, b)
    torch.testing.assert_close(tilted.z, qp(Q, q, G, h, A, b).z)


def count_factorisations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = torch.linalg.cholesky_ex

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(_kkt.torch.linalg, "cholesky_ex", counted)
    return calls


def test_backward_passes_factorise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_factorisations(monkeypatch)
    data = tuple(x.requires_grad_() for x in problem(4, n=6, m=8, p=0))
    z = qp(*data).z
    forward = len(calls)
    assert forward > 0
    first = torch.autograd.grad((z**2).sum(), data, create_graph=True)
    torch.autograd.grad(sum((g**2).sum() for g in first), data)
    assert len(calls) == forward


def infeasible(inequality: float) -> Callable[[], Problem]:
    def make() -> Problem:
        Q, q, G, h, A, b = problem(32, n=6, m=10, p=2)
        G[:, 0], h[:, 0] = -G[:, 1], -h[:, 1] - inequality
        return Q, q, G, h, A, b

    return make


def contradictory_equalities() -> Problem:
    Q, q, G, h, A, b = problem(32, n=6, m=4, p=2)
    return Q, q, G, h, torch.cat((A, A[:, :1]), 1), torch.cat((b, b[:, :1] + 1), 1)


def unbounded(linear: bool) -> Callable[[], Problem]:
    def make() -> Problem:
        Q, q, G, h, A, b = problem(32, n=6, m=4, p=1)
        ray = torch.nn.functional.normalize(torch.randn_like(q), dim=-1)
        without = torch.eye(6) - ray.unsqueeze(-1) * ray.unsqueeze(-2)
        G = torch.where(times(G, ray).unsqueeze(-1) > 0, -G, G)
        A = A @ without
        q = q - (1 + (q * ray).sum(-1, keepdim=True)) * ray
        Q = without @ Q @ without * (0.0 if linear else 1.0)
        return Q, q, G, torch.rand_like(h), A, torch.zeros_like(b)

    return make


FAILURES = {
    "inequalities that contradict each other": (infeasible(1.0), Status.INFEASIBLE),
    "inequalities that hardly contradict each other": (infeasible(1e-2), Status.INFEASIBLE),
    "equalities that contradict each other": (contradictory_equalities, Status.INFEASIBLE),
    "a linear program without a minimum": (unbounded(linear=True), Status.UNBOUNDED),
    "a quadratic program without a minimum": (unbounded(linear=False), Status.UNBOUNDED),
}


@pytest.mark.parametrize("name", FAILURES)
def test_programs_without_a_solution_are_told_apart(name: str) -> None:
    make, status = FAILURES[name]
    data = make()
    with pytest.warns(FailedSolveWarning, match=rf"{status.name} in 32 of 32 problems: "):
        solution = qp(*data)
    assert (solution.info.status == status).all()
    with pytest.raises(FailedSolveError, match=status.message):
        qp(*(x[0] for x in data), throw=True)


FAR = {
    "a row of small size": ([[1.0]], [[-1e-3]], [-100.0], 1e5),
    "a bound far off": ([[1e5]], [[-1.0]], [-1e5], 1e5),
    "a row of tiny size": ([[1.0]], [[-1e-6]], [-1.0], 1e6),
    "an objective of small size": ([[1e-5]], [[-1.0]], [-1e5], 1e5),
}


@pytest.mark.parametrize("name", FAR)
def test_a_solution_far_from_the_start_is_found_and_not_called_infeasible(name: str) -> None:
    Q, G, h, expected = FAR[name]
    data = (torch.tensor(x, dtype=torch.float64) for x in (Q, [0.0], G, h))
    solution = qp(*data)
    assert solution.info.status is Status.CONVERGED
    assert solution.z.item() == pytest.approx(expected)


def test_a_program_without_a_solution_leaves_its_batch_alone() -> None:
    data = problem(3, n=6, m=10, p=2)
    spoiled = tuple(x.clone() for x in data)
    spoiled[2][1, 0], spoiled[3][1, 0] = -data[2][1, 1], -data[3][1, 1] - 1
    with pytest.warns(FailedSolveWarning, match="INFEASIBLE in 1 of 3 problems"):
        solution = qp(*spoiled)
    codes = [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    assert solution.info.status.tolist() == codes
    torch.testing.assert_close(solution.z[[0, 2]], qp(*data).z[[0, 2]])


def test_nan_and_too_few_iterations_are_told() -> None:
    Q, q, G, h, A, b = problem(n=6, m=10, p=2)
    with pytest.warns(FailedSolveWarning, match="NOT_FINITE.*after 0 iterations"):
        assert qp(Q, q * torch.nan, G, h).info.status is Status.NOT_FINITE
    enough = int(qp(Q, q, G, h, A, b).info.iterations)
    for maxiter in range(enough):
        with pytest.warns(FailedSolveWarning, match=f"ITERATION_LIMIT.*after {maxiter} iterations"):
            assert qp(Q, q, G, h, A, b, maxiter=maxiter).info.status is Status.ITERATION_LIMIT
    assert qp(Q, q, G, h, A, b, maxiter=enough).info.status is Status.CONVERGED


def test_a_derivative_that_does_not_exist_warns_and_is_finite() -> None:
    q = torch.tensor([0.0, -1.0], dtype=torch.float64, requires_grad=True)
    eye = torch.eye(2, dtype=torch.float64)
    z = qp(eye, q, -eye, torch.zeros(2, dtype=torch.float64)).z  # max(-q, 0), kinked at 0
    with pytest.warns(FailedSolveWarning, match="derivative of qp failed, BREAKDOWN"):
        (gradient,) = torch.autograd.grad(z.sum(), q)
    assert gradient[1] == pytest.approx(-1.0)
    assert -1.0 <= gradient[0] <= 0.0


DEGENERATE = {
    "inequalities twice": lambda Q, q, G, h, A, b: (
        (Q, q, torch.cat((G, G), 1), torch.cat((h, h), 1), A, b)
    ),
    "equalities twice": lambda Q, q, G, h, A, b: (
        (Q, q, G, h, torch.cat((A, A), 1), torch.cat((b, b), 1))
    ),
    "rows of all scales": lambda Q, q, G, h, A, b: (
        (Q, q, G * 10.0 ** torch.arange(-4, 4)[:, None], h * 10.0 ** torch.arange(-4, 4), A, b)
    ),
    "variables of all scales": lambda Q, q, G, h, A, b: (
        (
            Q * (S := 10.0 ** torch.arange(-2, 3)) * S[:, None],
            q * S,
            G * S,
            h,
            A * S,
            b,
        )
    ),
    "an inequality without variables": lambda Q, q, G, h, A, b: (
        (Q, q, torch.cat((G, 0 * G[:, :1]), 1), torch.cat((h, 1 + 0 * h[:, :1]), 1), A, b)
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_badly_posed_data_are_solved(name: str) -> None:
    data = DEGENERATE[name](*problem(32, n=5, m=8, p=2))
    assert qp(*data).info.all_converged


def test_no_variables_one_variable_and_no_problems() -> None:
    none = torch.zeros(3, 0, 0), torch.zeros(3, 0)
    assert qp(*none).z.shape == (3, 0)
    one = qp(torch.tensor([[2.0]]), torch.tensor([-4.0]), torch.ones(1, 1), torch.ones(1))
    assert one.z.item() == pytest.approx(1.0)
    assert one.lam.item() == pytest.approx(2.0)
    empty = qp(*problem(0, n=4, m=5, p=1))
    assert empty.z.shape == (0, 4)
    assert empty.info.all_converged


def test_thousands_of_random_programs_are_all_solved() -> None:
    for n, m, p in [(5, 20, 2), (20, 5, 19), (20, 30, 15)]:
        assert qp(*problem(1000, n=n, m=m, p=p)).info.all_converged


GOOD = problem(3, n=4, m=5, p=1)


def spoil(**changes: Any) -> Callable[[], Any]:
    return lambda: qp(**{**dict(zip("QqGhAb", GOOD, strict=True)), **changes})


BAD = {
    "Q is no tensor": (spoil(Q=1.0), TypeError, "`Q` must be a tensor of floats, got float"),
    "Q is not square": (spoil(Q=GOOD[0][:, :3]), ValueError, r"`Q`.*\(\.\.\., 4, 4\).*\(3, 3, 4\)"),
    "q is 0-dim": (spoil(q=torch.tensor(1.0)), ValueError, r"`q` must have the shape \(..., n\)"),
    "G does not fit h": (spoil(h=GOOD[3][:, :2]), ValueError, r"`G` and `h`.*\(3, 5, 4\)"),
    "A without b": (spoil(b=None), ValueError, "`A` and `b` go together, but `b` is None"),
    "dtypes differ": (spoil(G=GOOD[2].float()), TypeError, "`G`.*float64 like `q`.*float32"),
    "batches differ": (spoil(q=torch.zeros(2, 4).double()), ValueError, "must broadcast, got.*'q'"),
    "maxiter": (spoil(maxiter=-1), ValueError, "`maxiter`.*got -1"),
    "tol": (spoil(tol=0.0), ValueError, "`tol` must be positive.*got 0.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument_and_the_remedy(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()
