"""Linear operators: transposes, structure, composition and sums are those of their matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchopt_implicit.linalg import LinearOperator, csr_operator
from torchopt_implicit.linear_solve import solve_cg, solve_gmres, solve_lu, solve_qr

pytestmark = pytest.mark.usefixtures("float64")
LIKE = {"a": torch.zeros(2, 2), "b": torch.zeros(())}
SIZE = 5


def tree(vector: torch.Tensor) -> Any:
    return {"a": vector[:4].reshape(2, 2), "b": vector[4]}


def flat(tree: Any) -> torch.Tensor:
    return torch.cat([tree["a"].reshape(4), tree["b"].reshape(1)])


def symmetric(seed: int) -> torch.Tensor:
    S = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()
    return S @ S.T + torch.eye(SIZE)  # in single precision not every processor rounds alike


M = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
S = symmetric(2)
D = torch.arange(1.0, SIZE + 1)

KINDS: dict[str, tuple[Callable[[], LinearOperator], torch.Tensor, bool, bool]] = {
    "function": (
        lambda: LinearOperator.from_function(lambda x: tree(M.double() @ flat(x)), like()),
        M,
        False,
        False,
    ),
    "function with transpose": (
        lambda: LinearOperator.from_function(
            lambda x: tree(M.double() @ flat(x)),
            like(),
            transpose=lambda y: tree(M.double().T @ flat(y)),
        ),
        M,
        False,
        False,
    ),
    "definite function": (
        lambda: LinearOperator.from_function(
            lambda x: tree(S.double() @ flat(x)), like(), positive_definite=True
        ),
        S,
        True,
        True,
    ),
    "matrix": (lambda: LinearOperator.from_matrix(M.double()), M, False, False),
    "tall matrix": (lambda: LinearOperator.from_matrix(M.double()[:, :3]), M[:, :3], False, False),
    "jacobian": (
        lambda: LinearOperator.jacobian(
            lambda x: tree(M.double() @ flat(x).sin()), tree(torch.zeros(SIZE))
        ),
        M,
        False,
        False,
    ),
    "hessian": (
        lambda: LinearOperator.jacobian(
            torch.func.grad(lambda x: 0.5 * flat(x) @ S.double() @ flat(x)),
            like(),
            symmetric=True,
        ),
        S,
        True,
        False,
    ),
    "identity": (lambda: LinearOperator.identity(like()), torch.eye(SIZE), True, True),
    "diagonal": (
        lambda: LinearOperator.diagonal(tree(D.double()), positive_definite=True),
        torch.diag(D),
        True,
        True,
    ),
}


def like() -> Any:
    return {key: value.double() for key, value in LIKE.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_operators_are_their_matrices(kind: str) -> None:
    build, matrix, is_symmetric, is_definite = KINDS[kind]
    A, matrix = build(), matrix.double()
    assert A.shape == tuple(matrix.shape)
    torch.testing.assert_close(A.as_matrix(), matrix)
    torch.testing.assert_close(A.T.as_matrix(), matrix.T)
    torch.testing.assert_close(A.T.T.as_matrix(), matrix)
    assert (A.symmetric, A.positive_definite) == (is_symmetric, is_definite)
    v = torch.randn(matrix.shape[1])
    torch.testing.assert_close(A.matvec(v), matrix @ v)
    batch = torch.randn(2, 3, matrix.shape[1])
    torch.testing.assert_close(A.matvec(batch), batch @ matrix.T)


@pytest.mark.parametrize("kind", ["function", "jacobian", "hessian", "identity", "diagonal"])
def test_operators_apply_to_trees(kind: str) -> None:
    build, matrix, _, _ = KINDS[kind]
    x = tree(torch.randn(SIZE))
    for applied in (build() @ x, build()(x)):
        assert applied["a"].shape == (2, 2)
        torch.testing.assert_close(flat(applied), matrix.double() @ flat(x))


def test_composition_sums_and_multiples() -> None:
    A = KINDS["function"][0]()
    B = KINDS["definite function"][0]()
    I = LinearOperator.identity(like())  # noqa: E741
    m, s, eye = M.double(), S.double(), torch.eye(SIZE)
    rows = [
        (A @ B, m @ s, False, False),
        ((A @ B).T, s @ m.T, False, False),
        (A + B, m + s, False, False),
        (B + 0.5 * I, s + 0.5 * eye, True, True),
        (B - I, s - eye, True, False),
        (-B, -s, True, False),
        (A.T @ A, m.T @ m, False, False),
        (2.0 * A, 2.0 * m, False, False),
        (B * torch.tensor(2.0), 2.0 * s, True, False),
    ]
    for operator, matrix, is_symmetric, is_definite in rows:
        torch.testing.assert_close(operator.as_matrix(), matrix)
        torch.testing.assert_close(operator.T.as_matrix(), matrix.T)
        assert (operator.symmetric, operator.positive_definite) == (is_symmetric, is_definite)


def test_complex_operators_have_the_conjugate_transpose() -> None:
    matrix = torch.randn(3, 3, dtype=torch.complex128)
    A = LinearOperator.from_matrix(matrix)
    v = torch.randn(3, dtype=torch.complex128)
    torch.testing.assert_close(A @ v, matrix @ v)
    torch.testing.assert_close(A.T @ v, matrix.mH @ v)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.sampled_from(sorted(KINDS)))
def test_matvecs_are_linear_and_transposes_adjoint(seed: int, scale: float, kind: str) -> None:
    A = KINDS[kind][0]()
    g = torch.Generator().manual_seed(seed)
    rows, columns = A.shape
    x, y = torch.randn(2, columns, generator=g, dtype=torch.float64)
    z = torch.randn(rows, generator=g, dtype=torch.float64)
    torch.testing.assert_close(A.matvec(x + scale * y), A.matvec(x) + scale * A.matvec(y))
    torch.testing.assert_close(A.matvec(x) @ z, x @ A.rmatvec(z))


@pytest.mark.parametrize(
    ("combine", "message"),
    [
        (lambda A, B: A @ B, "needs what B returns to be what A takes"),
        (lambda A, B: A + B, "needs operators between the same spaces"),
        (lambda A, B: A @ torch.ones(7), "must have the structure and shapes"),
    ],
)
def test_operators_that_do_not_fit_are_refused(
    combine: Callable[[Any, Any], Any], message: str
) -> None:
    A, B = (LinearOperator.identity(torch.zeros(n)) for n in (2, 3))
    with pytest.raises(ValueError, match=message):
        combine(A, B)


def compressed(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sparse = matrix.to_sparse_csr()
    return sparse.crow_indices(), sparse.col_indices(), sparse.values()


CSR_IS_BETA = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")


@CSR_IS_BETA
@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3), (0, 2)])
def test_sparse_operators_are_their_matrices(shape: tuple[int, int]) -> None:
    dense = torch.randn(shape) * (torch.rand(shape) < 0.5)
    A = csr_operator(*compressed(dense), shape)
    torch.testing.assert_close(A.as_matrix(), dense)
    if shape[0]:
        torch.testing.assert_close(A.T.as_matrix(), dense.T)


@CSR_IS_BETA
def test_solves_have_gradients_in_the_values_of_sparse_operators() -> None:
    dense = torch.eye(5) * 3 + torch.randn(5, 5) * (torch.rand(5, 5) < 0.3)
    crow, col, values = compressed(dense)
    values.requires_grad_()
    b = torch.randn(5, requires_grad=True)

    def ours(values: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solve_gmres(rtol=1e-13)(csr_operator(crow, col, values, (5, 5)), b)

    torch.testing.assert_close(ours(values, b), torch.linalg.solve(dense, b))
    assert torch.autograd.gradcheck(ours, (values, b))
    batch = torch.stack([values, 2 * values]).detach()
    looped = torch.stack([ours(row, b.detach()) for row in batch])
    torch.testing.assert_close(torch.vmap(ours, (0, None))(batch, b.detach()), looped)


@CSR_IS_BETA
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse])
def test_sparse_tensors_of_torch_are_operators(convert: Any) -> None:
    dense, b = torch.eye(4) * 2 + torch.diag(torch.ones(3), 1), torch.randn(4)
    b.requires_grad_()
    x = solve_gmres(rtol=1e-13)(convert(dense), b)
    (gradient,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(x, torch.linalg.solve(dense, b))
    torch.testing.assert_close(gradient, torch.linalg.inv(dense).sum(0))
    with pytest.raises(NotImplementedError, match="csr_operator"):
        solve_gmres()(convert(dense).requires_grad_(), b)


@CSR_IS_BETA
@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse])
@pytest.mark.parametrize("solve", [solve_lu(), solve_gmres(rtol=1e-13), solve_cg(rtol=1e-13)])
def test_sparse_tensors_of_torch_are_constants_of_transforms(convert: Any, solve: Any) -> None:
    dense = torch.eye(4) * 2 + torch.ones(4, 4) / 4
    A, batch = convert(dense), torch.randn(2, 4)
    gradient = torch.func.grad(lambda b: solve(A, b).sum())
    expected = torch.linalg.inv(dense).sum(0)
    torch.testing.assert_close(gradient(batch[0]), expected)
    torch.testing.assert_close(torch.vmap(gradient)(batch), expected.expand(2, 4))
    tangent = torch.func.jvp(lambda b: solve(A, b), (batch[0],), (batch[1],))[1]
    torch.testing.assert_close(tangent, torch.linalg.solve(dense, batch[1]))


def test_complex_numbers_are_no_diagonal_and_no_multiple() -> None:
    z = torch.tensor([1 + 1j, 2.0])
    with pytest.raises(TypeError, match=r"`diagonal` must be real, got torch.complex"):
        LinearOperator.diagonal({"a": torch.ones(2), "b": z})
    A = LinearOperator.from_matrix(torch.diag(z))
    for scalar in (1j, torch.tensor(1j)):
        with pytest.raises(TypeError, match=r"by a real scalar, got"):
            scalar * A
    with pytest.raises(ValueError, match=r"by a scalar, got a tensor of shape \[2\]"):
        A * torch.ones(2)
    rotated = LinearOperator.from_function(lambda x: 1j * A(x), z)
    torch.testing.assert_close(rotated @ z, 1j * z * z)
    torch.testing.assert_close(rotated.T @ z, (1j * z).conj() * z)


@pytest.mark.parametrize("solve", [solve_lu(), solve_gmres()])
def test_matrices_and_right_hand_sides_of_two_precisions_are_refused(solve: Any) -> None:
    with pytest.raises(TypeError, match=r"got torch.float32 .* torch.float64"):
        solve(torch.eye(3, dtype=torch.float32), torch.ones(3))
    with pytest.raises(TypeError, match=r"got torch.complex64 .* torch.complex128"):
        solve(torch.eye(3, dtype=torch.complex64), torch.ones(3, dtype=torch.complex128))


@CSR_IS_BETA
def test_sparse_matrices_that_do_not_fit_are_refused() -> None:
    crow, col, values = compressed(torch.eye(3))
    with pytest.raises(ValueError, match=r"`crow_indices` of shape \(5,\)"):
        csr_operator(crow, col, values, (4, 3))
    with pytest.raises(TypeError, match="`values` must be real"):
        csr_operator(crow, col, values.long(), (3, 3))


def test_operators_that_are_not_square_are_sent_to_solvers_that_exist() -> None:
    A = LinearOperator.from_matrix(torch.ones(3, 2))
    with pytest.raises(ValueError, match="solve_lstsq and solve_qr take others"):
        solve_lu()(A, torch.ones(3))
    assert solve_qr()(A + LinearOperator.from_matrix(torch.eye(3, 2)), torch.ones(3)).shape == (2,)
