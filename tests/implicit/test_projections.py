"""Projections and proximal operators: values, derivatives, transforms, trees, dtypes, edges."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from torchopt_implicit import FailedSolveError, FailedSolveWarning, projections, proximal
from torchopt_implicit.projections import (
    project_affine,
    project_box,
    project_halfspace,
    project_hyperplane,
    project_l1_ball,
    project_l2_ball,
    project_linf_ball,
    project_nonnegative,
    project_polyhedron,
    project_semidefinite,
    project_simplex,
    project_simplex_kl,
    project_transport,
)
from torchopt_implicit.proximal import (
    from_projection,
    prox_elastic_net,
    prox_group_l1,
    prox_l1,
    prox_nonnegative_l1,
    prox_nuclear,
    prox_squared_l2,
)

DOUBLE = torch.float64


def data(*numbers: Any) -> torch.Tensor:
    return torch.tensor(numbers, dtype=DOUBLE)


POINT = data(1.3, -0.4, 0.8, -1.7)
MATRIX = data([1.3, -0.4, 0.8], [0.2, 1.1, -0.9])
SQUARE = data([1.3, -0.4, 0.8], [0.2, -1.1, -0.9], [0.5, 0.1, -0.7])


class Case(NamedTuple):
    """An operator, the point, and its differentiable parameters."""

    operator: Callable[..., Any]
    x: torch.Tensor
    parameters: tuple[torch.Tensor, ...] = ()


PROJECTIONS = {
    "box": Case(project_box, POINT, (data(-0.5, -1.0, 0.0, -1.0), data(0.6, 0.5, 2.0, 1.0))),
    "nonnegative": Case(project_nonnegative, POINT),
    "simplex": Case(project_simplex, POINT, (torch.tensor(1.5, dtype=DOUBLE),)),
    "simplex, rows": Case(project_simplex, MATRIX, (data(1.5, 0.7),)),
    "l1 ball": Case(project_l1_ball, POINT, (torch.tensor(1.5, dtype=DOUBLE), 0.1 * POINT**2)),
    "l1 ball, inside": Case(project_l1_ball, POINT, (torch.tensor(9.0, dtype=DOUBLE),)),
    "l2 ball": Case(project_l2_ball, POINT, (torch.tensor(1.5, dtype=DOUBLE), 0.1 * POINT**2)),
    "l2 ball, inside": Case(project_l2_ball, POINT, (torch.tensor(9.0, dtype=DOUBLE),)),
    "linf ball": Case(project_linf_ball, POINT, (torch.tensor(0.9, dtype=DOUBLE), 0.1 * POINT)),
    "hyperplane": Case(
        project_hyperplane, POINT, (data(1.0, 0.5, -0.3, 2.0), torch.tensor(0.3, dtype=DOUBLE))
    ),
    "halfspace": Case(
        project_halfspace, POINT, (data(1.0, 0.5, -0.3, -2.0), torch.tensor(0.3, dtype=DOUBLE))
    ),
    "halfspace, inside": Case(
        project_halfspace, POINT, (data(1.0, 0.5, -0.3, 2.0), torch.tensor(0.3, dtype=DOUBLE))
    ),
    "affine": Case(project_affine, MATRIX[0], (SQUARE[:2], data(0.3, -0.2))),
    "polyhedron": Case(
        project_polyhedron,
        MATRIX[0],
        (SQUARE, data(0.3, -0.2, 0.1), data([1.0, 0.3, 0.5]), data(0.2)),
    ),
    "transport": Case(
        lambda x, a, b: project_transport(x, a / a.sum(), b / b.sum()),
        MATRIX,
        (data(0.4, 0.6), data(0.5, 0.3, 0.4)),
    ),
    "semidefinite": Case(project_semidefinite, SQUARE),
}
PROXES = {
    "simplex, Kullback-Leibler": Case(project_simplex_kl, MATRIX, (data(1.5, 0.7),)),
    "l1": Case(prox_l1, POINT, (data(0.5, 0.2, 1.0, 0.3),)),
    "nonnegative l1": Case(prox_nonnegative_l1, POINT, (data(0.5, 0.2, 0.3, 0.3),)),
    "squared l2": Case(prox_squared_l2, POINT, (data(0.5, 0.2, 0.3, 0.3),)),
    "elastic net": Case(
        prox_elastic_net,
        POINT,
        (torch.tensor(0.5, dtype=DOUBLE), torch.tensor(0.7, dtype=DOUBLE)),
    ),
    "group l1": Case(lambda x, w: prox_group_l1(x, w, dim=-1), MATRIX, (data([0.5], [0.8]),)),
    "group l1, one": Case(prox_group_l1, MATRIX, (torch.tensor(0.5, dtype=DOUBLE),)),
    "nuclear": Case(prox_nuclear, MATRIX, (torch.tensor(0.9, dtype=DOUBLE),)),
}
CASES = PROJECTIONS | PROXES
each_case = pytest.mark.parametrize("name", CASES)


def inputs(name: str) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    case = CASES[name]
    given = (case.x, *case.parameters)
    return case.operator, tuple(x.clone().requires_grad_() for x in given)


@each_case
def test_first_and_second_derivatives_meet_finite_differences(name: str) -> None:
    operator, given = inputs(name)
    torch.autograd.gradcheck(operator, given, check_forward_ad=True)
    torch.autograd.gradgradcheck(operator, given)


@each_case
def test_modes_agree_and_transforms_nest(name: str) -> None:
    case = CASES[name]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (case.operator(x, *case.parameters) ** 3).sum()

    torch.testing.assert_close(jacfwd(loss)(case.x), jacrev(loss)(case.x))
    second = jacrev(jacrev(loss))(case.x)
    torch.testing.assert_close(hessian(loss)(case.x), second, atol=1e-8, rtol=1e-8)
    _, along = jvp(grad(loss), (case.x,), (torch.ones_like(case.x),))
    expected = second.reshape(case.x.numel(), -1).sum(-1).reshape(case.x.shape)
    torch.testing.assert_close(along, expected, atol=1e-8, rtol=1e-8)


@each_case
def test_vmap_equals_a_loop(name: str) -> None:
    case = CASES[name]
    batch = torch.stack((case.x, 0.5 * case.x, 2 * case.x + 0.1))

    def loss(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return (case.operator(x, *parameters) ** 2).sum()

    dims = (0, *(None for _ in case.parameters))
    for function in (case.operator, grad(loss)):
        got = vmap(function, in_dims=dims)(batch, *case.parameters)
        alone = torch.stack([function(x, *case.parameters) for x in batch])
        torch.testing.assert_close(got, alone, atol=1e-10, rtol=1e-10)
    if case.parameters:
        scaled = tuple(torch.stack((p, 1.1 * p, 0.9 * p)) for p in case.parameters)
        got = vmap(grad(loss))(batch, *scaled)
        alone = torch.stack([grad(loss)(*row) for row in zip(batch, *scaled, strict=True)])
        torch.testing.assert_close(got, alone, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@each_case
def test_narrow_dtypes_are_kept_and_as_right_as_they_can_be(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    given = tuple(x.to(dtype).requires_grad_() for x in (case.x, *case.parameters))
    got = case.operator(*given)
    assert got.dtype == dtype
    exact = case.operator(*(x.detach().double() for x in given))
    tol = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    torch.testing.assert_close(got.double(), exact, atol=2 * tol, rtol=tol)
    for gradient in torch.autograd.grad(got.sum(), given, allow_unused=True):
        assert gradient is None or (gradient.dtype == dtype and torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_is_idempotent_and_the_nearest_point(name: str) -> None:
    case = CASES[name]
    nearest = case.operator(case.x, *case.parameters)
    again = case.operator(nearest, *case.parameters)
    torch.testing.assert_close(again, nearest, atol=1e-8, rtol=1e-8)
    # the obtuse angle that characterizes it
    for scale in (0.1, 1.0, 10.0):
        other = case.operator(scale * torch.randn_like(case.x), *case.parameters)
        assert ((case.x - nearest) * (other - nearest)).sum() <= 1e-7


PENALTIES: dict[str, Callable[..., torch.Tensor]] = {
    "l1": lambda y, w: (w * y.abs()).sum(),
    "squared l2": lambda y, w: (w * y**2).sum() / 2,
    "elastic net": lambda y, a, b: a * y.abs().sum() + b * (y**2).sum() / 2,
    "group l1": lambda y, w: (w[:, 0] * y.norm(dim=-1)).sum(),
    "group l1, one": lambda y, w: w * y.norm(),
    "nuclear": lambda y, w: w * torch.linalg.matrix_norm(y, "nuc"),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_proximal_operator_minimizes_what_defines_it(name: str) -> None:
    case = CASES[name]

    def value(y: torch.Tensor) -> torch.Tensor:
        return ((y - case.x) ** 2).sum() / 2 + PENALTIES[name](y, *case.parameters)

    best = case.operator(case.x, *case.parameters)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(10):
            assert value(best) <= value(best + scale * torch.randn_like(best))


#: values and gradients of the sum weighted by 1, 2, ..., as jaxopt 0.8.5 computes them
JAXOPT = {
    "simplex": (
        [1.0, 0.0, 0.5, 0.0],
        [-1.0, 0.0, 1.0, 0.0],
    ),
    "l1 ball": (
        [0.533333333, 0.0, 0.033333333, -0.933333333],
        [1.0, 0.0, 3.0, 4.0],
    ),
    "l2 ball": (
        [0.840704696, -0.258678368, 0.517356736, -1.099383065],
        [1.256128693, 1.105874065, 2.315123313, 1.789833133],
    ),
    "linf ball": (
        [0.9, -0.4, 0.8, -0.9],
        [0.0, 2.0, 3.0, 0.0],
    ),
    "box": (
        [0.6, -0.4, 0.6, -0.5],
        [0.0, 2.0, 0.0, 0.0],
    ),
    "hyperplane": (
        [1.831835206, -0.134082397, 0.640449438, -0.636329588],
        [-0.70411985, 1.147940075, 3.511235955, 0.5917603],
    ),
    "halfspace": (
        [0.558426966, -0.770786517, 1.02247191, -0.216853933],
        [2.292134831, 2.646067416, 2.612359551, 1.415730337],
    ),
    "affine": (
        [0.136439852, 0.057633067, 0.182101774],
        [-0.036264379, -0.038896471, 0.03948138],
    ),
    "l1": (
        [0.8, 0.0, 0.3, -1.2],
        [1.0, 0.0, 3.0, 4.0],
    ),
    "nonnegative l1": (
        [0.8, 0.0, 0.3, 0.0],
        [1.0, 0.0, 3.0, 0.0],
    ),
    "elastic net": (
        [0.470588235, 0.0, 0.176470588, -0.705882353],
        [0.588235294, 0.0, 1.764705882, 2.352941176],
    ),
    "group l1": (
        [1.019765101, -0.313773877, 0.627547755, -1.333538978],
        [0.581290436, 1.631375312, 2.228292229, 3.403388956],
    ),
}
SAME_AS_JAXOPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "simplex": lambda x: project_simplex(x, 1.5),
    "l1 ball": lambda x: project_l1_ball(x, 1.5),
    "l2 ball": lambda x: project_l2_ball(x, 1.5),
    "linf ball": lambda x: project_linf_ball(x, 0.9),
    "box": lambda x: project_box(x, -0.5, 0.6),
    "hyperplane": lambda x: project_hyperplane(x, data(1.0, 0.5, -0.3, 2.0), 0.3),
    "halfspace": lambda x: project_halfspace(x, data(1.0, 0.5, -0.3, -2.0), 0.3),
    "affine": lambda x: project_affine(x, SQUARE[:2], data(0.3, -0.2)),
    "l1": lambda x: prox_l1(x, 0.5),
    "nonnegative l1": lambda x: prox_nonnegative_l1(x, 0.5),
    "elastic net": lambda x: prox_elastic_net(x, 0.5, 0.5 * 1.4),
    "group l1": lambda x: prox_group_l1(x, 0.5),
}


@pytest.mark.parametrize("name", JAXOPT)
def test_values_and_gradients_are_those_of_jaxopt(name: str) -> None:
    x = (MATRIX[0] if name == "affine" else POINT).clone().requires_grad_()
    value = SAME_AS_JAXOPT[name](x)
    weights = torch.arange(1.0, value.numel() + 1, dtype=DOUBLE).reshape(value.shape)
    (gradient,) = torch.autograd.grad((weights * value).sum(), x)
    expected, slopes = JAXOPT[name]
    torch.testing.assert_close(value.detach().ravel(), data(*expected), atol=2e-9, rtol=0)
    torch.testing.assert_close(gradient.ravel(), data(*slopes), atol=2e-9, rtol=0)


def test_the_polyhedron_and_transport_projections_are_those_of_scipy() -> None:
    x, a, b = MATRIX, data(0.4, 0.6), data(0.3, 0.3, 0.4)
    sums = [
        {"type": "eq", "fun": lambda y: y.reshape(2, 3).sum(1) - a.numpy()},
        {"type": "eq", "fun": lambda y: (y.reshape(2, 3).sum(0) - b.numpy())[:2]},
    ]
    reference = scipy.optimize.minimize(
        lambda y: ((y - x.numpy().ravel()) ** 2).sum(),
        [1 / 6] * 6,
        bounds=[(0, None)] * 6,
        constraints=sums,
        tol=1e-12,
    )
    expected = torch.from_numpy(reference.x).reshape(2, 3)
    torch.testing.assert_close(project_transport(x, a, b), expected, atol=1e-6, rtol=0)
    G = torch.cat((-torch.eye(6, dtype=DOUBLE), torch.zeros(1, 6, dtype=DOUBLE)))
    A = torch.stack(
        [torch.kron(e, torch.ones(3, dtype=DOUBLE)) for e in torch.eye(2, dtype=DOUBLE)]
        + [torch.kron(torch.ones(2, dtype=DOUBLE), e) for e in torch.eye(3, dtype=DOUBLE)[:2]]
    )
    y = project_polyhedron(x.reshape(-1), G, torch.zeros(7).double(), A, torch.cat((a, b[:2])))
    torch.testing.assert_close(y.reshape(2, 3), expected, atol=1e-6, rtol=0)


TREE = {"w": POINT, "b": (torch.tensor(0.7, dtype=DOUBLE), None), "m": MATRIX}
WHOLE = torch.cat((TREE["b"][0].reshape(1), MATRIX.reshape(-1), POINT))  # optree sorts keys


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: project_l1_ball(x, 1.5),
        lambda x: project_l2_ball(x, 1.5),
        lambda x: project_linf_ball(x, 0.5),
        lambda x: project_hyperplane(x, 0.5, 0.3),
        lambda x: project_halfspace(x, 0.5, 0.3),
        lambda x: project_box(x, -0.5, 0.5),
        project_nonnegative,
        prox_l1,
        prox_elastic_net,
        prox_nonnegative_l1,
    ],
)
def test_a_tree_is_taken_as_one_vector(operator: Callable[[Any], Any]) -> None:
    tree = operator(TREE)
    assert tree["b"][1] is None
    flat = torch.cat((tree["b"][0].reshape(1), tree["m"].reshape(-1), tree["w"]))
    torch.testing.assert_close(flat, operator(WHOLE))


def test_rows_and_groups_of_a_tree_are_those_of_its_leaves() -> None:
    tree = {"w": POINT, "m": MATRIX}
    for operator in (project_simplex, project_simplex_kl, prox_group_l1):
        mapped = operator(tree, 1.2)
        torch.testing.assert_close(mapped, {key: operator(x, 1.2) for key, x in tree.items()})


def test_parameters_may_be_trees_like_the_point() -> None:
    tree, weight = {"w": POINT, "m": MATRIX}, {"w": 0.3, "m": torch.tensor([0.1, 0.2, 0.3])}
    got = prox_l1(tree, weight)
    torch.testing.assert_close(got["m"], prox_l1(MATRIX, weight["m"].double()))
    torch.testing.assert_close(got["w"], prox_l1(POINT, 0.3))
    with pytest.raises(ValueError, match=r"`weight` must be .* a tree like `x`"):
        prox_l1(tree, {"w": 0.3})
    with pytest.raises(TypeError, match=r"`weight` .* got str at \['m'\]"):
        prox_l1(tree, {"w": 0.3, "m": "much"})


@pytest.mark.parametrize(
    "operator",
    [
        project_l1_ball,
        project_l2_ball,
        project_linf_ball,
        prox_l1,
        prox_elastic_net,
        prox_squared_l2,
        prox_group_l1,
        lambda x: project_hyperplane(x, POINT + 1j, 0.3),
        lambda x: project_halfspace(x, POINT + 1j, 0.3),
    ],
)
def test_complex_points_have_right_derivatives(operator: Callable[..., Any]) -> None:
    x = torch.complex(POINT, POINT.flip(0) + 0.3).requires_grad_()
    torch.autograd.gradcheck(operator, (x,), check_forward_ad=True)


@pytest.mark.parametrize("operator", [project_semidefinite, prox_nuclear])
def test_complex_matrices_have_right_derivatives(operator: Callable[..., Any]) -> None:
    x = torch.complex(SQUARE, SQUARE.mT + 0.3).requires_grad_()
    torch.autograd.gradcheck(operator, (x,), check_forward_ad=True)
    torch.autograd.gradgradcheck(operator, (x,))


@pytest.mark.parametrize(
    "operator",
    [
        lambda x: project_box(x, 0.0, 1.0),
        project_nonnegative,
        project_simplex,
        prox_nonnegative_l1,
        lambda x: project_transport(x.reshape(1, -1), torch.ones(1), torch.full((4,), 0.25)),
        lambda x: project_polyhedron(x, torch.eye(4), torch.ones(4)),
    ],
)
def test_what_needs_an_order_refuses_complex_numbers(operator: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="complex numbers have no order"):
        operator(torch.complex(POINT, POINT))


@pytest.mark.parametrize("shape", [(), (0,), (0, 3)], ids=str)
@pytest.mark.parametrize(
    "operator",
    [
        lambda x: project_box(x, -1.0, 1.0),
        project_nonnegative,
        project_l1_ball,
        project_l2_ball,
        project_linf_ball,
        lambda x: project_halfspace(x, 1.0, 0.5),
        prox_l1,
        prox_nonnegative_l1,
        prox_elastic_net,
        prox_squared_l2,
        prox_group_l1,
    ],
)
def test_0_dim_and_empty_points(operator: Callable[..., Any], shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 3.0, requires_grad=True)
    y = operator(x)
    assert y.shape == shape
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(gradient).all()


def test_empty_matrices() -> None:
    assert project_semidefinite(torch.zeros(2, 0, 0)).shape == (2, 0, 0)
    assert prox_nuclear(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
    A, b = POINT.new_zeros(0, 4), POINT.new_zeros(0)
    torch.testing.assert_close(project_affine(POINT, A, b), POINT)


@pytest.mark.parametrize(
    "operator", [project_l2_ball, project_l1_ball, prox_group_l1, prox_l1, prox_nuclear]
)
def test_derivatives_at_zero_are_finite(operator: Callable[..., Any]) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(operator(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x, allow_unused=True, materialize_grads=True)
    inside = operator in (project_l2_ball, project_l1_ball)
    assert torch.equal(gradient.detach(), torch.full_like(x, float(inside)))
    assert torch.equal(second, torch.zeros_like(x))


def test_eigenvalues_and_singular_values_may_repeat() -> None:
    eye = torch.eye(3, dtype=DOUBLE)
    both = torch.diag(data(2.0, 2.0, -1.0, -1.0))
    for x in (eye, -eye, both):
        x = x.clone().requires_grad_()
        torch.autograd.gradcheck(project_semidefinite, (x,), check_forward_ad=True)
        torch.autograd.gradgradcheck(project_semidefinite, (x,))
    rank_one = torch.outer(POINT, POINT[:3]).requires_grad_()
    for x in (eye.clone().requires_grad_(), rank_one):
        torch.autograd.gradcheck(lambda x: prox_nuclear(x, 0.4), (x,), check_forward_ad=True)
        torch.autograd.gradgradcheck(lambda x: prox_nuclear(x, 0.4), (x,))


def test_third_derivatives_of_the_semidefinite_projection() -> None:
    def along(t: torch.Tensor) -> torch.Tensor:
        return (project_semidefinite(SQUARE + t) ** 3).sum()

    def forward(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda t: jvp(function, (t,), (torch.ones_like(t),))[1]

    zero, step = torch.tensor(0.0, dtype=DOUBLE), 1e-5
    second = grad(grad(along))
    torch.testing.assert_close(forward(forward(along))(zero), second(zero))
    expected = (second(zero + step) - second(zero - step)) / (2 * step)
    for modes in itertools.product((grad, forward), repeat=3):
        function = along
        for mode in modes:
            function = mode(function)
        if modes[1:] == (forward, forward):
            with pytest.raises(NotImplementedError, match="reverse mode between them"):
                function(zero)
        else:
            torch.testing.assert_close(function(zero), expected, atol=1e-6, rtol=1e-6)


def test_lengths_that_would_overflow_when_squared() -> None:
    huge = torch.tensor([3e25, 4e25])
    torch.testing.assert_close(project_l2_ball(huge), torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(
        prox_group_l1(1e-30 * huge.double(), 1e-5), 0.8 * 1e-30 * huge.double()
    )
    half = torch.tensor([300.0, 400.0], dtype=torch.float16)
    torch.testing.assert_close(project_l2_ball(half), torch.tensor([0.6, 0.8], dtype=half.dtype))


def test_rows_of_equations_may_depend_on_each_other() -> None:
    A = torch.stack((SQUARE[0], 2 * SQUARE[0]))
    y = project_affine(POINT[:3], A, data(0.3, 0.6))
    torch.testing.assert_close(A @ y, data(0.3, 0.6))


def test_sums_that_differ_and_empty_polyhedra_are_told() -> None:
    with pytest.warns(FailedSolveWarning, match=r"project_transport failed.*have the same sum"):
        project_transport(MATRIX, data(1.0, 1.0), data(1.0, 1.0, 1.0))
    with pytest.raises(FailedSolveError, match="INFEASIBLE"):
        project_polyhedron(data(0.0), data([1.0], [-1.0]), data(-1.0, -1.0), throw=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_simplex(torch.tensor(1.0)), r"`x` must have the shape \(..., n\)"),
        (lambda: project_simplex(torch.zeros(3, 0)), "with n at least 1"),
        (lambda: project_simplex(POINT, -1.0), "`total` must be non-negative, got -1.0"),
        (lambda: project_l1_ball(POINT, -1.0), "`radius` must be non-negative, got -1.0"),
        (lambda: prox_l1(POINT, -1.0), "`weight` must be non-negative, got -1.0"),
        (lambda: project_affine(POINT, torch.eye(3), torch.ones(3)), r"\(..., p, 4\)"),
        (lambda: project_transport(MATRIX, torch.ones(3), torch.ones(2)), "`rows` and `columns`"),
        (lambda: project_semidefinite(MATRIX), r"\(..., n, n\), got \(2, 3\)"),
        (lambda: prox_nuclear(POINT), r"\(..., m, n\), got \(4,\)"),
        (lambda: project_l2_ball({"w": POINT}, 1.0, {"v": 0.0}), "`center` must be"),
    ],
)
def test_wrong_values_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project_box({"w": [1.0]}, 0.0, 1.0), r"got float at \['w'\]\[0\]"),
        (lambda: project_l2_ball(torch.arange(3)), "got torch.int64 at the root"),
        (lambda: project_semidefinite(torch.ones(2, 2, dtype=torch.int64)), "floating point"),
        (lambda: from_projection(3), "`projection` must be callable"),
    ],
)
def test_wrong_types_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_under_autocast_and_another_default_device() -> None:
    expected = {name: case.operator(case.x, *case.parameters) for name, case in CASES.items()}
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        for name, case in CASES.items():
            if name == "polyhedron":  # whose quadratic program reads its flags
                continue
            got = case.operator(case.x, *case.parameters)
            tol = 1e-1 if name in ("affine", "transport") else 1e-7
            torch.testing.assert_close(got, expected[name], atol=tol, rtol=tol)


def test_every_public_operator_is_in_the_table() -> None:
    listed = {case.operator for case in CASES.values()}
    names = {"project_transport", "prox_group_l1", "prox_box", "prox_nonnegative"}
    public = {*projections.__all__, *proximal.__all__} - names - {"from_projection"}
    modules = vars(projections) | vars(proximal)
    assert {name for name in public if modules[name] not in listed} == set()
