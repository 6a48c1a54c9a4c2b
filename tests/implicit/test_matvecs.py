"""The functions of matvecs that programs of 0.7 import."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torchopt.linalg.utils import cat_shapes, normalize_matvec
from torchopt.linear_solve.utils import (
    make_normal_matvec,
    make_ridge_matvec,
    make_rmatvec,
    materialize_matvec,
)

import torchopt

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
TREE = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}


def matvec(x: Any) -> Any:
    return {"a": A @ x["a"], "b": 3 * x["b"].mT}


def test_matvecs_of_one_vector() -> None:
    x = torch.tensor([1.0, 2.0])
    single = normalize_matvec(A)
    assert_close(single(x), A @ x)
    assert_close(make_rmatvec(single, x)(x), A.T @ x)
    assert_close(make_normal_matvec(single)(x), A.T @ A @ x)
    assert_close(make_ridge_matvec(single, 0.5)(x), A @ x + 0.5 * x)


def test_matvecs_of_trees() -> None:
    expected = {"a": A.T @ TREE["a"], "b": 3 * TREE["b"].mT}
    assert_close(make_rmatvec(matvec, TREE)(TREE), expected)
    assert_close(make_normal_matvec(matvec)(TREE), make_rmatvec(matvec, TREE)(matvec(TREE)))
    assert_close(make_ridge_matvec(matvec, 2.0)(TREE)["a"], A @ TREE["a"] + 2 * TREE["a"])
    vectors = {"a": torch.ones(2), "b": torch.ones(1)}
    matrices = {"a": A, "b": torch.full((1, 1), 5.0)}
    applied = normalize_matvec(matrices)(vectors)
    assert_close(applied, {"a": A @ vectors["a"], "b": torch.full((1,), 5.0)})
    assert normalize_matvec(matvec) is matvec


def test_an_operator_that_maps_leaves_to_themselves_is_materialized() -> None:
    matrices, apply, ravel, unravel = materialize_matvec(matvec, TREE)
    assert_close(matrices["a"], A)
    assert_close(matrices["b"] @ TREE["b"].ravel(), (3 * TREE["b"].mT).ravel())
    assert_close(unravel(apply(ravel(TREE))), matvec(TREE))
    assert_close(apply(TREE), apply(ravel(TREE)))


def test_an_operator_that_mixes_leaves_is_not_materialized_in_part() -> None:
    def mixed(x: Any) -> Any:
        return {"a": x["a"] + x["b"], "b": x["b"]}

    with pytest.raises(ValueError, match="it mixes them"):
        materialize_matvec(mixed, {"a": torch.ones(2), "b": torch.ones(2)})


def test_shapes_are_concatenated() -> None:
    assert cat_shapes(TREE) == (2, 2, 2)
    assert cat_shapes(torch.ones(())) == ()


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(2, 3), {"a": torch.ones(2)}, 3], ids=str)
def test_what_is_no_matrix_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match="must be callable or a tree of square matrices"):
        normalize_matvec(bad)


def test_trees_of_matrices_are_operators_of_solvers() -> None:
    matrices = {"a": torch.eye(2) * 2, "b": torch.eye(1) * 4}
    b = {"a": torch.ones(2), "b": torch.ones(1)}
    solved = torchopt.linalg.cg(matrices, b)
    assert_close(solved, {"a": torch.full((2,), 0.5), "b": torch.full((1,), 0.25)})
