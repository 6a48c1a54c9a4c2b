"""`torchopt.pytree`: optree's functions, and arithmetic on trees of tensors."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from torchopt import pytree


class Pair(NamedTuple):
    first: Any
    second: Any


# A blueprint is a tree of shapes (as strings, so that they are leaves) and None.
SHAPES = {"()": (), "(3,)": (3,), "(2, 2)": (2, 2), "(0,)": (0,)}
BLUEPRINTS = st.recursive(
    st.sampled_from([*SHAPES, None]),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.tuples(children, children),
        st.dictionaries(st.sampled_from("abc"), children, max_size=3),
        st.builds(Pair, children, children),
    ),
    max_leaves=6,
)
SCALARS = st.floats(-10, 10, allow_subnormal=False)
DTYPES = st.sampled_from([torch.float64, torch.complex128])


def grow(blueprint: Any, dtype: torch.dtype = torch.float64) -> Any:
    """Return a tree of random tensors, away from zero; None stays."""
    return optree.tree_map(
        lambda shape: None if shape is None else torch.randn(SHAPES[shape], dtype=dtype) + 2,
        blueprint,
        none_is_leaf=True,
    )


def vector(tree: Any, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return all entries of a tree as one vector."""
    leaves = optree.tree_leaves(tree)
    return torch.cat([torch.zeros(0, dtype=dtype), *(leaf.reshape(-1) for leaf in leaves)])


def assert_same(tree: Any, expected: Any) -> None:
    assert optree.tree_structure(tree) == optree.tree_structure(expected)
    torch.testing.assert_close(vector(tree), vector(expected))


def test_the_functions_of_optree_are_here_unchanged() -> None:
    assert {name: getattr(pytree, name) for name in optree.__all__} == {
        name: getattr(optree, name) for name in optree.__all__
    }
    assert set(optree.__all__) < set(pytree.__all__)


# name, the same operation on vectors, number of operands
OPERATIONS: list[tuple[str, Callable[..., Any], Callable[..., torch.Tensor], int]] = [
    ("pos", pytree.tree_pos, lambda x: x, 1),
    ("neg", pytree.tree_neg, lambda x: -x, 1),
    ("add of one", pytree.tree_add, lambda x: x, 1),
    ("add", pytree.tree_add, lambda x, y: x + y, 2),
    ("add of three", pytree.tree_add, lambda x, y, z: x + y + z, 3),
    ("sub", pytree.tree_sub, lambda x, y: x - y, 2),
    ("mul", pytree.tree_mul, lambda x, y: x * y, 2),
    ("mul of three", pytree.tree_mul, lambda x, y, z: x * y * z, 3),
    ("truediv", pytree.tree_truediv, lambda x, y: x / y, 2),
    ("scalar_mul", lambda x: pytree.tree_scalar_mul(-1.5, x), lambda x: -1.5 * x, 1),
    ("add_scalar_mul", pytree.tree_add_scalar_mul, lambda x, y: x + y, 2),
    ("sub_scalar_mul", pytree.tree_sub_scalar_mul, lambda x, y: x - y, 2),
    (
        "add_scalar_mul with alpha",
        lambda x, y: pytree.tree_add_scalar_mul(x, y, 0.3),
        lambda x, y: x + 0.3 * y,
        2,
    ),
    (
        "sub_scalar_mul with alpha",
        lambda x, y: pytree.tree_sub_scalar_mul(x, y, alpha=torch.tensor(0.3)),
        lambda x, y: x - 0.3 * y,
        2,
    ),
]
operations = pytest.mark.parametrize(
    ("function", "on_vectors", "operands"),
    [operation[1:] for operation in OPERATIONS],
    ids=[operation[0] for operation in OPERATIONS],
)


class TestElementwise:
    @operations
    @given(blueprint=BLUEPRINTS, dtype=DTYPES)
    def test_equals_the_operation_on_one_vector_and_passes_none_through(
        self, function: Any, on_vectors: Any, operands: int, blueprint: Any, dtype: torch.dtype
    ) -> None:
        trees = [grow(blueprint, dtype) for _ in range(operands)]
        result = function(*trees)
        assert optree.tree_structure(result) == optree.tree_structure(trees[0])
        torch.testing.assert_close(
            vector(result, dtype), on_vectors(*(vector(tree, dtype) for tree in trees))
        )

    @operations
    def test_is_differentiable_twice(self, function: Any, on_vectors: Any, operands: int) -> None:
        def on_leaves(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            trees = [{"w": x, "none": None, "b": [x[0].exp()]} for x in leaves]
            return tuple(optree.tree_leaves(function(*trees)))

        leaves = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(operands)]
        assert gradcheck(on_leaves, leaves)
        assert gradgradcheck(on_leaves, leaves)

    @operations
    def test_vmap_equals_a_loop(self, function: Any, on_vectors: Any, operands: int) -> None:
        def on_leaves(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
            trees = [{"a": x, "b": (None, x[0])} for x in leaves]
            return tuple(optree.tree_leaves(function(*trees)))

        leaves = [torch.randn(4, 3) + 2 for _ in range(operands)]
        batched = torch.vmap(on_leaves)(*leaves)
        for i in range(4):
            torch.testing.assert_close(
                tuple(x[i] for x in batched), on_leaves(*(x[i] for x in leaves))
            )

    @operations
    @pytest.mark.compile
    def test_compiles_without_graph_breaks(
        self, function: Any, on_vectors: Any, operands: int
    ) -> None:
        trees = [
            {"a": torch.randn(3) + 2, "b": (None, torch.rand(()) + 1)} for _ in range(operands)
        ]
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(
            optree.tree_leaves(compiled(*trees)), optree.tree_leaves(function(*trees))
        )

    def test_matmul_multiplies_leaf_by_leaf(self) -> None:
        x = {"a": torch.randn(2, 3), "b": None}
        y = {"a": torch.randn(3, 4), "b": None}
        z = {"a": torch.randn(4), "b": None}
        assert torch.equal(pytree.tree_matmul(x, y, z)["a"], x["a"] @ y["a"] @ z["a"])

    def test_leaves_broadcast_and_promote_as_in_torch(self) -> None:
        (result,) = pytree.tree_add([torch.ones(2, 1)], [torch.ones(3, dtype=torch.float64)])
        assert result.shape == (2, 3)
        assert result.dtype == torch.float64

    def test_kinds_of_dictionaries_mix(self) -> None:
        result = pytree.tree_sub({"b": 3, "a": 5}, OrderedDict(b=1, a=2))
        assert result == {"a": 3, "b": 2}

    def test_the_scalar_may_be_learned(self) -> None:
        alpha = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        x = torch.randn(3, dtype=torch.float64)
        for function in (
            lambda a: pytree.tree_scalar_mul(a, [x])[0],
            lambda a: pytree.tree_add_scalar_mul([x], [x.exp()], a)[0],
            lambda a: pytree.tree_sub_scalar_mul([x], [x.exp()], a)[0],
        ):
            assert gradcheck(function, [alpha])


class TestIdentities:
    @given(blueprint=BLUEPRINTS)
    def test_flatten_and_unflatten_are_inverse(self, blueprint: Any) -> None:
        tree = grow(blueprint)
        for none_is_leaf in (False, True):
            leaves, spec = pytree.tree_flatten_as_tuple(tree, none_is_leaf=none_is_leaf)
            assert isinstance(leaves, tuple)
            restored = pytree.tree_unflatten(spec, leaves)
            assert all(
                a is b
                for a, b in zip(
                    optree.tree_leaves(restored, none_is_leaf=True),
                    optree.tree_leaves(tree, none_is_leaf=True),
                    strict=True,
                )
            )
            assert optree.tree_structure(restored) == optree.tree_structure(tree)

    def test_flatten_as_tuple_takes_the_options_of_tree_flatten(self) -> None:
        tree = {"a": (1, None), "b": [2]}
        leaves, spec = pytree.tree_flatten_as_tuple(
            tree, lambda node: isinstance(node, tuple), none_is_leaf=True
        )
        assert leaves == ((1, None), 2)
        assert spec.none_is_leaf

    @given(blueprint=BLUEPRINTS, alpha=SCALARS)
    def test_add_scalar_mul_is_add_of_scalar_mul(self, blueprint: Any, alpha: float) -> None:
        x, y = grow(blueprint), grow(blueprint)
        scaled = pytree.tree_scalar_mul(alpha, y)
        assert_same(pytree.tree_add_scalar_mul(x, y, alpha), pytree.tree_add(x, scaled))
        assert_same(pytree.tree_sub_scalar_mul(x, y, alpha), pytree.tree_sub(x, scaled))

    @given(blueprint=BLUEPRINTS)
    def test_sub_is_add_of_neg(self, blueprint: Any) -> None:
        x, y = grow(blueprint), grow(blueprint)
        assert_same(pytree.tree_sub(x, y), pytree.tree_add(x, pytree.tree_neg(y)))

    @given(blueprint=BLUEPRINTS)
    def test_truediv_undoes_mul(self, blueprint: Any) -> None:
        x, y = grow(blueprint), grow(blueprint)
        assert_same(pytree.tree_truediv(pytree.tree_mul(x, y), y), x)


class TestInnerProduct:
    @given(blueprint=BLUEPRINTS, dtype=DTYPES)
    def test_equals_that_of_vectors(self, blueprint: Any, dtype: torch.dtype) -> None:
        x, y = grow(blueprint, dtype), grow(blueprint, dtype)
        result = pytree.tree_vdot_real(x, y)
        expected = torch.vdot(vector(x, dtype), vector(y, dtype)).real
        torch.testing.assert_close(result, expected, check_dtype=False)

    @given(blueprint=BLUEPRINTS, dtype=DTYPES)
    def test_is_symmetric(self, blueprint: Any, dtype: torch.dtype) -> None:
        x, y = grow(blueprint, dtype), grow(blueprint, dtype)
        torch.testing.assert_close(pytree.tree_vdot_real(x, y), pytree.tree_vdot_real(y, x))

    @given(blueprint=BLUEPRINTS, dtype=DTYPES, alpha=SCALARS)
    def test_is_linear(self, blueprint: Any, dtype: torch.dtype, alpha: float) -> None:
        x, y, z = (grow(blueprint, dtype) for _ in range(3))
        torch.testing.assert_close(
            pytree.tree_vdot_real(x, pytree.tree_add_scalar_mul(y, z, alpha)),
            pytree.tree_vdot_real(x, y) + alpha * pytree.tree_vdot_real(x, z),
        )

    @given(blueprint=BLUEPRINTS)
    def test_conjugates_its_first_argument(self, blueprint: Any) -> None:
        x, y = (grow(blueprint, torch.complex128) for _ in range(2))
        imaginary = pytree.tree_scalar_mul(1j, x)
        torch.testing.assert_close(
            pytree.tree_vdot_real(imaginary, pytree.tree_scalar_mul(1j, y)),
            pytree.tree_vdot_real(x, y),
        )
        torch.testing.assert_close(
            pytree.tree_vdot_real(x, imaginary),
            torch.zeros(()),
            check_dtype=False,
            atol=1e-12,
            rtol=0,
        )

    @pytest.mark.parametrize("tree", [None, {}, [None], ((), {"a": None})])
    def test_is_zero_without_leaves(self, tree: Any) -> None:
        assert torch.equal(pytree.tree_vdot_real(tree, tree), torch.zeros(()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_keeps_the_dtype(self, dtype: torch.dtype) -> None:
        x = [torch.ones(2, dtype=dtype), torch.ones((), dtype=dtype)]
        assert pytree.tree_vdot_real(x, x).dtype == dtype

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    def test_is_differentiable_twice(self, dtype: torch.dtype) -> None:
        x, y = (torch.randn(2, 3, dtype=dtype, requires_grad=True) for _ in range(2))

        def inner(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return pytree.tree_vdot_real({"a": x, "b": x[0]}, {"a": y, "b": y[1]})

        assert gradcheck(inner, (x, y))
        assert gradgradcheck(inner, (x, y))

    def test_runs_under_vmap_and_jvp(self) -> None:
        x, y = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
        batched = torch.vmap(lambda x, y: pytree.tree_vdot_real([x], [y]))(x, y)
        torch.testing.assert_close(batched, (x * y).sum((1, 2)))
        _, tangent = torch.func.jvp(lambda x: pytree.tree_vdot_real([x], [x]), (x,), (y,))
        torch.testing.assert_close(tangent, 2 * (x * y).sum())

    def test_does_not_promote_silently(self) -> None:
        with pytest.raises(RuntimeError, match="same dtype"):
            pytree.tree_vdot_real([torch.ones(2)], [torch.ones(2, dtype=torch.float64)])

    def test_leaves_of_other_shapes_are_an_error(self) -> None:
        with pytest.raises(ValueError, match=r"`tree_vdot_real`.*\(2, 3\) and \(3, 2\)"):
            pytree.tree_vdot_real([torch.ones(2, 3)], [torch.ones(3, 2)])


BINARY = [
    pytree.tree_add,
    pytree.tree_sub,
    pytree.tree_mul,
    pytree.tree_matmul,
    pytree.tree_truediv,
    pytree.tree_add_scalar_mul,
    pytree.tree_sub_scalar_mul,
    pytree.tree_vdot_real,
]


@pytest.mark.parametrize("function", BINARY, ids=lambda function: function.__name__)
class TestMistakes:
    @pytest.mark.parametrize(
        ("x", "y"),
        [
            ({"a": torch.ones(1)}, {"b": torch.ones(1)}),
            ([torch.ones(1)], [torch.ones(1), torch.ones(1)]),
            ([torch.ones(1)], {0: torch.ones(1)}),
            ([torch.ones(1)], [[torch.ones(1)]]),
            ([[torch.ones(1)]], [torch.ones(1)]),
        ],
    )
    def test_other_structures_are_named(self, function: Any, x: Any, y: Any) -> None:
        with pytest.raises(ValueError, match=f"`{function.__name__}`") as caught:
            function(x, y)
        for tree in (x, y):
            assert str(optree.tree_structure(tree, none_is_leaf=True)) in str(caught.value)

    @pytest.mark.parametrize("swap", [False, True])
    def test_none_with_a_tensor_is_named(self, function: Any, swap: bool) -> None:
        x = {"layer": [torch.ones(1), torch.ones(1)]}
        y = {"layer": [torch.ones(1), None]}
        with pytest.raises(ValueError, match=r"None.*leaf \['layer'\]\[1\] is") as caught:
            function(*((y, x) if swap else (x, y)))
        assert f"`{function.__name__}`" in str(caught.value)

    def test_none_with_a_tensor_at_the_root(self, function: Any) -> None:
        with pytest.raises(ValueError, match="leaf at the root is Tensor, None"):
            function(torch.ones(1), None)


@pytest.mark.parametrize("function", [pytree.tree_add, pytree.tree_mul, pytree.tree_matmul])
def test_no_tree_at_all_is_an_error(function: Any) -> None:
    with pytest.raises(TypeError, match=f"`{function.__name__}` needs at least one tree"):
        function()


class TestRemote:
    def test_wait_returns_the_results_of_futures(self) -> None:
        futures = {"a": torch.futures.Future(), "b": [torch.futures.Future(), None]}
        futures["a"].set_result(torch.ones(2))
        futures["b"][0].set_result("done")
        result = pytree.tree_wait(futures)
        assert torch.equal(result["a"], torch.ones(2))
        assert result["b"] == ["done", None]

    def test_wait_raises_the_error_of_a_future(self) -> None:
        future: torch.futures.Future[int] = torch.futures.Future()
        future.set_exception(ValueError("failed over there"))
        with pytest.raises(ValueError, match="failed over there"):
            pytree.tree_wait([future])

    @pytest.mark.skipif(not torch.distributed.rpc.is_available(), reason="torch without RPC")
    def test_values_travel_as_remote_references(self) -> None:
        code = """
            import tempfile, torch
            from torch.distributed import rpc
            from torchopt import pytree
            store = f"file://{tempfile.mkdtemp()}/store"
            rpc.init_rpc(
                "worker", rank=0, world_size=1,
                rpc_backend_options=rpc.TensorPipeRpcBackendOptions(init_method=store),
            )
            rrefs = pytree.tree_as_rref({"a": torch.arange(3), "b": (None, 1)})
            assert isinstance(rrefs["a"], rpc.RRef) and rrefs["b"][0] is None
            for values in (pytree.tree_to_here(rrefs), pytree.tree_to_here(rrefs, timeout=5.0)):
                assert torch.equal(values["a"], torch.arange(3)) and values["b"] == (None, 1)
            rpc.shutdown()
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)

    def test_remote_references_without_rpc_are_an_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.distributed.rpc, "is_available", lambda: False)
        with pytest.raises(RuntimeError, match="`tree_as_rref` needs RPC"):
            pytree.tree_as_rref([1])
