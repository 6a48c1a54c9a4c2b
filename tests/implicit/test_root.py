"""`custom_root` and `custom_fixed_point`: any tree, any transform, any order of derivatives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchopt_implicit import affine_root, custom_fixed_point, custom_root
from torchopt_implicit.linear_solve import LU, solve_cg, solve_gmres, solve_lu, solve_normal_cg

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated"),
]


def iterate(u: torch.Tensor, v: torch.Tensor, a: Any) -> tuple[torch.Tensor, torch.Tensor]:
    for _ in range(60):
        u, v = (a["p"] * v + 1) ** (1 / 3), a["q"] * torch.cos(u)
    return u, v


def mapped(x: Any, a: Any) -> Any:
    return {"u": (a["p"] * x["v"] + 1) ** (1 / 3), "v": a["q"] * torch.cos(x["u"])}


def residual(x: Any, a: Any) -> Any:
    return {"u": x["u"] ** 3 - a["p"] * x["v"] - 1, "v": x["v"] - a["q"] * torch.cos(x["u"])}


def opaque(A: Any, b: Any) -> Any:
    return solve_normal_cg(rtol=1e-14)(A, b)


WAYS = {
    "root, normal CG": (custom_root, residual, solve_normal_cg(rtol=1e-14)),
    "root, LU": (custom_root, residual, solve_lu()),
    "root, any function": (custom_root, residual, opaque),
    "fixed point, GMRES": (custom_fixed_point, mapped, solve_gmres(rtol=1e-14)),
}


def build(way: str) -> Callable[[torch.Tensor], torch.Tensor]:
    decorate, function, solve = WAYS[way]

    @decorate(function, argnums=1, solve=solve)
    def solver(init: None, a: Any) -> Any:
        one = torch.ones_like(a["p"])
        u, v = iterate(one, one, a)
        return {"u": u, "v": v}

    def f(a: torch.Tensor) -> torch.Tensor:
        x = solver(None, {"p": a[0], "q": a[1]})
        return x["u"] * x["v"] + x["u"]

    return f


def unrolled(a: torch.Tensor) -> torch.Tensor:
    one = torch.ones_like(a[0])
    u, v = iterate(one, one, {"p": a[0], "q": a[1]})
    return u * v + u


TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "grad": grad,
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "jvp": lambda f: lambda a: jvp(f, (a,), (a.flip(0),)),
    "vjp": lambda f: lambda a: vjp(f, a)[1](torch.tensor(2.0)),
    "hessian": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "third, reverse": lambda f: jacrev(jacrev(jacrev(f))),
    "third, mixed": lambda f: jacfwd(jacrev(jacfwd(f))),
}
POINT = (0.5, 0.7)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("way", WAYS)
def test_derivatives_equal_those_of_the_unrolled_solver(way: str, transform: str) -> None:
    a = torch.tensor(POINT)
    ours, expected = (TRANSFORMS[transform](f)(a) for f in (build(way), unrolled))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transform", ["grad", "jacfwd", "hessian", "reverse over forward"])
@pytest.mark.parametrize("way", WAYS)
def test_vmap_over_problems_equals_a_loop(way: str, transform: str) -> None:
    a = torch.rand(4, 2) / 2 + 0.3
    f = TRANSFORMS[transform](build(way))
    expected = torch.stack([TRANSFORMS[transform](unrolled)(row) for row in a])
    torch.testing.assert_close(vmap(f)(a), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(vmap(vmap(f))(a[None])[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_derivatives_of_batched_problems(way: str) -> None:
    a = torch.rand(3, 2) / 2 + 0.3
    ours = build(way)
    for transform in (grad, hessian):
        computed = transform(lambda a: vmap(ours)(a).square().sum())(a)
        expected = transform(lambda a: vmap(unrolled)(a).square().sum())(a)
        torch.testing.assert_close(computed, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_first_and_second_derivatives_equal_finite_differences(way: str) -> None:
    a = torch.tensor(POINT, requires_grad=True)
    f = build(way)
    assert torch.autograd.gradcheck(f, (a,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (a,), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_tangents_survive_a_backward_without_create_graph() -> None:
    f = build("root, LU")
    a = torch.tensor(POINT, requires_grad=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(a, torch.ones(2))
        (gradient,) = torch.autograd.grad(f(dual), a)
        tangent = forward_ad.unpack_dual(gradient).tangent
    torch.testing.assert_close(tangent, hessian(unrolled)(a.detach()).sum(1))


def test_unsupported_nesting_of_forward_mode_raises() -> None:
    with pytest.raises(NotImplementedError, match="take one of the forward derivatives in reverse"):
        jacfwd(jacfwd(jacrev(build("root, LU"))))(torch.tensor(POINT))


@optree.dataclasses.dataclass(namespace=optree.registry.__GLOBAL_NAMESPACE)  # type: ignore[attr-defined]
class Pair:
    first: torch.Tensor
    second: torch.Tensor


TREES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, [y]],
    "dict": lambda x, y: {"b": x, "a": {"c": y}},
    "ordered dict": lambda x, y: OrderedDict(z=x, a=y),
    "dataclass": Pair,
    "with None": lambda x, y: (x, None, {"y": y}),
}


@pytest.mark.parametrize("argument", TREES)
@pytest.mark.parametrize("solution", TREES)
def test_solutions_and_arguments_are_any_trees(solution: str, argument: str) -> None:
    @custom_root(
        lambda x, t: optree.tree_unflatten(
            optree.tree_structure(x),
            [a**3 - b for a, b in zip(optree.tree_leaves(x), optree.tree_leaves(t), strict=True)],
        ),
        argnums=1,
        solve=solve_cg(rtol=1e-12),
    )
    def cube_root(init: Any, t: Any) -> Any:
        leaves = [leaf ** (1 / 3) for leaf in optree.tree_leaves(t)]
        return optree.tree_unflatten(structure, leaves)

    x, y = torch.rand(2, 3).add(1).requires_grad_(), torch.tensor(2.0, requires_grad=True)
    structure = optree.tree_structure(TREES[solution](x, y))
    root = cube_root(None, TREES[argument](x, y))
    assert optree.tree_structure(root) == structure
    total = sum(leaf.sum() for leaf in optree.tree_leaves(root))
    for leaf, gradient in zip((x, y), torch.autograd.grad(total, (x, y)), strict=True):
        torch.testing.assert_close(gradient, leaf ** (-2 / 3) / 3)


def test_trees_of_a_registered_namespace() -> None:
    @optree.dataclasses.dataclass(namespace="mine")
    class Box:
        value: torch.Tensor

    @custom_root(lambda x, t: Box(x.value - t.value**2), argnums=1, namespace="mine")
    def square(init: Any, t: Box) -> Box:
        return Box(t.value**2)

    t = torch.tensor([3.0], requires_grad=True)
    square(None, Box(t)).value.sum().backward()
    torch.testing.assert_close(t.grad, torch.tensor([6.0]))


@pytest.mark.parametrize(
    "make",
    [lambda: torch.tensor(4.0), lambda: torch.full((1,), 4.0), lambda: torch.full((0,), 4.0)],
    ids=["0-dim", "size 1", "size 0"],
)
@pytest.mark.parametrize("solve", [None, solve_cg(), solve_gmres(), solve_lu()])
def test_defaults_work_at_any_size(solve: Any, make: Callable[[], torch.Tensor]) -> None:
    @custom_root(lambda x, a: x**2 - a, argnums=1, solve=solve)
    def root(init: None, a: torch.Tensor) -> torch.Tensor:
        return a.sqrt()

    a = make().requires_grad_()
    root(None, a).sum().backward()
    torch.testing.assert_close(a.grad, torch.full_like(a, 0.25))


def test_complex_leaves_are_differentiated_by_torchs_convention() -> None:
    @custom_root(lambda x, a: x**2 - a, argnums=1, solve=solve_lu())
    def root(init: None, a: torch.Tensor) -> torch.Tensor:
        return a.sqrt()

    a = torch.tensor([1.0 + 2.0j, -0.5 + 1.0j], requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: root(None, a), (a,))


def test_leaves_of_different_dtypes_keep_theirs() -> None:
    @custom_root(lambda x, a: (x[0] - a[0] ** 2, x[1] - a[1] ** 2), argnums=1)
    def square(init: None, a: Any) -> Any:
        return a[0] ** 2, a[1] ** 2

    a = (torch.tensor(3.0, dtype=torch.float32), torch.tensor(4.0, dtype=torch.float64))
    a = tuple(t.requires_grad_() for t in a)
    x = square(None, a)
    assert [leaf.dtype for leaf in x] == [torch.float32, torch.float64]
    gradients = torch.autograd.grad(x[0].double() + x[1], a)
    assert [g.dtype for g in gradients] == [torch.float32, torch.float64]
    torch.testing.assert_close(torch.stack([g.double() for g in gradients]), torch.tensor([6.0, 8]))


def test_other_arguments_are_anything_and_keywords_resolve_by_signature() -> None:
    seen = []

    def F(x: torch.Tensor, a: Any, net: Any, mode: str, power: int = 1, *, sign: int) -> Any:
        seen.append((mode, power, sign))
        return x - sign * net(a) ** power

    @custom_root(F, argnums=(1,))
    def solver(
        init: Any, a: Any, net: Any, mode: Any, power: int = 1, *, sign: int = 1, steps: int = 3
    ) -> Any:
        assert steps == 5
        return sign * net(a) ** power

    net = torch.nn.Linear(2, 2)
    a = torch.ones(2, requires_grad=True)
    x = solver(None, mode="fast", net=net, a=a, power=2, steps=5)
    x.sum().backward()
    expected = grad(lambda a: net(a).square().sum())(torch.ones(2))
    torch.testing.assert_close(a.grad, expected)
    assert set(seen) == {("fast", 2, 1)}
    assert net.weight.grad is None


def test_auxiliary_data_is_untouched() -> None:
    data = {"history": [torch.ones(1)], "name": "x", "none": None}

    @custom_root(lambda x, a: x - a, argnums=1, has_aux=True)
    def solver(init: None, a: torch.Tensor) -> Any:
        return a.clone(), data

    x, aux = solver(None, torch.ones(2, requires_grad=True))
    assert x.requires_grad
    assert aux is data


def test_only_arguments_in_argnums_get_gradients() -> None:
    @custom_root(lambda x, a, b, c: x - a * b * c, argnums=(1, 3))
    def solver(init: None, a: Any, b: Any, c: Any) -> Any:
        return a * b * c

    a, b, c = (torch.tensor(v, requires_grad=True) for v in (2.0, 3.0, 5.0))
    gradients = torch.autograd.grad(solver(None, a, b, c), (a, b, c), allow_unused=True)
    assert gradients[1] is None
    assert [float(gradients[0]), float(gradients[2])] == pytest.approx([15.0, 6.0])


def test_the_solver_runs_without_gradients_and_the_solution_may_be_written_to() -> None:
    @custom_root(lambda x, a: tuple(x_ - a for x_ in x), argnums=1)
    def solver(init: Any, a: torch.Tensor) -> Any:
        assert not torch.is_grad_enabled()
        return a.clone(), a.clone()

    a = torch.ones(2, requires_grad=True)
    x, y = solver(None, a)
    x.mul_(3.0)
    (x + y).sum().backward()
    torch.testing.assert_close(a.grad, torch.full((2,), 4.0))


@pytest.mark.parametrize("argnums", [0, -1, (0, 1), [1, 0]])
def test_argnums_start_at_1(argnums: Any) -> None:
    with pytest.raises(ValueError, match="`argnums` must be positions from 1 on"):
        custom_root(lambda x, a: x, argnums=argnums)


def untyped(*args: Any) -> Any:
    return args[1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: custom_root(3, 1), TypeError, "`optimality_fn` must be callable, got 3"),
        (lambda: custom_fixed_point(3, 1), TypeError, "`fixed_point_fn` must be callable"),
        (lambda: custom_root(untyped, "1"), TypeError, "`argnums` must be an integer or a tuple"),
        (lambda: custom_root(untyped, True), TypeError, "`argnums` must be an integer or a tuple"),
        (lambda: custom_root(untyped, 1, solve=3), TypeError, "`solve` must be callable, got 3"),
        (lambda: custom_root(untyped, 1)(3), TypeError, "decorated solver` must be callable"),
        (
            lambda: custom_root(untyped, 2)(lambda x, a: x),
            ValueError,
            r"`argnums` must be positions of the solver's 2 arguments \(x, a\), got 2",
        ),
        (lambda: custom_root(untyped, 2)(untyped)(0, 1), ValueError, "there are 2, got 2"),
        (
            lambda: custom_root(untyped, 1)(untyped)(None, {"a": [1.0, 2.0]}),
            TypeError,
            r"argument 1, .*must be a tree with tensors in it, got float at \['a'\]\[0\]",
        ),
        (
            lambda: custom_root(untyped, 1)(lambda x, a: 3.0)(None, torch.ones(1)),
            TypeError,
            "`the solution` must be a tree of floating point tensors, got float at the root",
        ),
        (
            lambda: custom_root(untyped, 1, has_aux=True)(untyped)(None, torch.ones(1)),
            TypeError,
            "must return a pair",
        ),
    ],
)
def test_wrong_arguments_are_named(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "F",
    [lambda x, a: [x[0] - a], lambda x, a: (x[0] - a, x[0]), lambda x, a: (x[0].sum() - a.sum(),)],
    ids=["list", "two", "shape"],
)
def test_a_residual_unlike_the_solution_names_both_structures(F: Callable[..., Any]) -> None:
    @custom_root(F, argnums=1)
    def solver(init: None, a: torch.Tensor) -> Any:
        return (a.clone(),)

    with pytest.raises(ValueError, match=r"`optimality_fn` returns.*\(\[3\],\), got .*"):
        solver(None, torch.ones(3, requires_grad=True))[0].sum().backward()


@pytest.mark.parametrize("transform", ["grad", "jacfwd", "hessian", "third, reverse"])
@pytest.mark.parametrize("solve", [None, solve_cg(rtol=1e-13)], ids=["LU", "CG"])
def test_affine_equations_need_no_solver(solve: Any, transform: str) -> None:
    X, y = torch.randn(6, 3), torch.randn(6)
    ridge = affine_root(lambda w, p: X.T @ (X @ w - y) + p * w, argnums=1, solve=solve)

    def ours(p: torch.Tensor) -> torch.Tensor:
        return ridge(torch.ones(3), p).sin().sum()

    def closed_form(p: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(X.T @ X + p * torch.eye(3), X.T @ y).sin().sum()

    p = torch.tensor([0.5, 1.0, 2.0])
    expected = torch.stack([TRANSFORMS[transform](closed_form)(row) for row in p])
    torch.testing.assert_close(vmap(TRANSFORMS[transform](ours))(p), expected)
    torch.testing.assert_close(TRANSFORMS[transform](ours)(p[0]), expected[0])


def test_one_factorization_serves_an_affine_equation_and_its_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    factorize = LU.factorize
    monkeypatch.setattr(LU, "factorize", lambda *args: calls.append(1) or factorize(*args))
    solver = affine_root(lambda x, A, b: A @ x - b, argnums=(1, 2))
    A, b = (torch.eye(3) * 2).requires_grad_(), torch.ones(3, requires_grad=True)
    (first,) = torch.autograd.grad(solver(torch.zeros(3), A, b).sum(), A, create_graph=True)
    torch.autograd.grad(first.sum(), (A, b))
    assert len(calls) == 1


@pytest.mark.parametrize("returns", ["tuple", "tensor"])
def test_any_function_solves_for_tuples_of_tensors(returns: str) -> None:
    def solve(matvec: Any, b: Any) -> Any:
        (only,) = b
        (twice,) = matvec((only,))
        torch.testing.assert_close(twice, 2 * only)
        return (only / 2,) if returns == "tuple" else only / 2

    @custom_root(lambda x, t: 2 * x - t, argnums=1, solve=solve)
    def half(init: None, t: torch.Tensor) -> torch.Tensor:
        return t / 2

    t = torch.ones(2, 3, requires_grad=True)
    half(None, t).sum().backward()
    torch.testing.assert_close(t.grad, torch.full((2, 3), 0.5))
    slopes = vmap(grad(lambda t: half(None, t).sum()))(torch.ones(4, 3))
    torch.testing.assert_close(slopes, torch.full((4, 3), 0.5))
