"""Wrong use of discrete estimators says what is wrong, what it got and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt_zero.discrete import (
    Blackbox,
    Perturbed,
    Solver,
    argmax,
    assignment,
    fenchel_young_loss,
    gumbel_softmax,
    ranking,
    shortest_path,
    sorting,
    sorting_scores,
    straight_through,
    straight_through_bernoulli,
    straight_through_categorical,
)

x = torch.rand(3)
nan = torch.tensor([0.0, torch.nan])
soft = Perturbed(argmax(), num_samples=2)


def _solver(solve: Any) -> Solver:
    return Solver(solve, event_dim=1, maximize=True)


CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: Solver(3, 1, True), TypeError, "`solve` must be callable, got int"),  # type: ignore[arg-type]
    (lambda: Solver.from_numpy(None, 1, True), TypeError, "`solve` must be callable"),  # type: ignore[arg-type]
    (lambda: Solver(torch.sign, 0, True), ValueError, "`event_dim` must be .*at least 1, got 0"),
    (lambda: Solver(torch.sign, 1.5, True), ValueError, "`event_dim` must be .*got 1.5"),  # type: ignore[arg-type]
    (lambda: argmax()([1.0]), TypeError, "`x` must be a tensor, got list"),  # type: ignore[arg-type]
    (
        lambda: argmax()(torch.arange(3)),
        TypeError,
        r"floating-point tensor, got torch.int64.*\.float",
    ),
    (lambda: argmax()(torch.tensor(1.0)), ValueError, r"at least 1 dimension.*shape \(\)"),
    (lambda: assignment()(x), ValueError, r"at least 2 dimension.*shape \(3,\)"),
    (lambda: argmax()(nan), ValueError, "`x` must be finite"),
    (lambda: argmax()(torch.rand(2, 0)), ValueError, r"at least one entry.*\(2, 0\)"),
    (lambda: shortest_path()(torch.rand(0, 3)), ValueError, r"at least one cell.*\(0, 3\)"),
    (lambda: shortest_path(6), ValueError, "`connectivity` must be 4 or 8, got 6"),  # type: ignore[arg-type]
    (lambda: _solver(lambda x: x.sum())(torch.rand(2, 3)), ValueError, r"`solve` must.*got shape"),
    (lambda: _solver(lambda x: None)(x), ValueError, "`solve` must return a tensor.*got NoneType"),
    (lambda: sorting_scores(torch.tensor(1.0)), ValueError, "`x` must be .*at least one dimension"),
    (lambda: Perturbed(torch.sign), TypeError, r"`solver` must be a Solver.*Solver\(function"),  # type: ignore[arg-type]
    (
        lambda: Perturbed(argmax(), num_samples=0),
        ValueError,
        "`num_samples` must be at least 1, got 0",
    ),
    (lambda: Perturbed(argmax(), num_samples=1.0), TypeError, "`num_samples` must be an integer"),  # type: ignore[arg-type]
    (lambda: Perturbed(argmax(), num_samples=True), TypeError, "`num_samples` must be an integer"),
    (
        lambda: Perturbed(argmax(), sigma=0),
        ValueError,
        "`sigma` must be positive and finite, got 0",
    ),
    (lambda: Perturbed(argmax(), sigma=-1.0), ValueError, "`sigma` must be positive.*got -1.0"),
    (lambda: Perturbed(argmax(), sigma=float("nan")), ValueError, "`sigma` must be positive.*nan"),
    (
        lambda: Perturbed(argmax(), sigma="1"),
        TypeError,
        "`sigma` must be a positive number, got str",
    ),  # type: ignore[arg-type]
    (
        lambda: Perturbed(argmax(), chunk_size=0),
        ValueError,
        "`chunk_size` must be at least 1, got 0",
    ),
    (
        lambda: Perturbed(argmax(), distribution="cauchy"),  # type: ignore[arg-type]
        ValueError,
        "`distribution` must be one of 'normal', 'gumbel', got 'cauchy'",
    ),
    (lambda: Perturbed(argmax(), generator=0), TypeError, "`generator` must be .*manual_seed"),  # type: ignore[arg-type]
    (lambda: soft(torch.arange(3)), TypeError, "floating-point tensor, got torch.int64"),
    (lambda: soft(nan), ValueError, "`x` must be finite"),
    (lambda: fenchel_young_loss(argmax(), x, x), TypeError, "`perturbed` must be a Perturbed"),  # type: ignore[arg-type]
    (lambda: fenchel_young_loss(soft, x, x[:2]), ValueError, r"`target`.*\(3,\), got \(2,\)"),
    (lambda: fenchel_young_loss(soft, x, None), ValueError, "`target`.*got NoneType"),  # type: ignore[arg-type]
    (
        lambda: fenchel_young_loss(Perturbed(sorting()), x, x),
        ValueError,
        r"of the shape of `x`, \(3,\), got \(3, 3\)",
    ),
    (lambda: Blackbox(torch.sign), TypeError, "`solver` must be a Solver"),  # type: ignore[arg-type]
    (lambda: Blackbox(argmax(), lambd=0.0), ValueError, "`lambd` must be positive.*got 0.0"),
    (lambda: Blackbox(sorting())(x), ValueError, r"\(3, 3\).*sorting_scores"),
    (lambda: Blackbox(ranking())(torch.arange(3)), TypeError, "floating-point tensor"),
    (lambda: gumbel_softmax(torch.arange(3)), TypeError, "`logits` must be .*got torch.int64"),
    (lambda: gumbel_softmax(torch.tensor(1.0)), ValueError, "`logits` must have at least 1"),
    (lambda: gumbel_softmax(x, tau=0.0), ValueError, "`tau` must be positive.*got 0.0"),
    (lambda: gumbel_softmax(x, dim=1), IndexError, "Dimension out of range"),
    (lambda: gumbel_softmax(x, generator=1), TypeError, "`generator` must be"),  # type: ignore[arg-type]
    (lambda: straight_through(1.0, x), TypeError, "`hard` must be a tensor, got float"),  # type: ignore[arg-type]
    (lambda: straight_through(x, x > 0), TypeError, "`soft` must be a floating-point"),
    (lambda: straight_through(x[:1], x), ValueError, r"`hard`.*\(3,\), got \(1,\)"),
    (lambda: straight_through_bernoulli(x > 0), TypeError, "`logits` must be .*got torch.bool"),
    (lambda: straight_through_categorical(torch.tensor(1.0)), ValueError, "`logits` must have"),
]


@pytest.mark.parametrize(("call", "error", "message"), CASES, ids=[case[2] for case in CASES])
def test_wrong_use_is_explained(
    call: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_cotangent_that_is_not_finite_is_refused() -> None:
    inputs = torch.rand(3, requires_grad=True)
    y = Blackbox(argmax())(inputs)
    with pytest.raises(ValueError, match="must be finite"):
        y.backward(torch.full((3,), torch.nan))
