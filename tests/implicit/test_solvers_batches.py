"""Solvers for objectives on batches of data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import vmap

from torchopt_implicit.solvers import armijo_sgd, lbfgs, polyak_sgd


def loss(w: torch.Tensor, penalty: torch.Tensor, batch: Any) -> torch.Tensor:
    X, y = batch
    return (X @ w - y).square().mean() + penalty * w.square().sum()


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    X = torch.randn(64, 3, dtype=torch.float64)
    true = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    return X, X @ true, true


each_solver = pytest.mark.parametrize("build", [armijo_sgd, polyak_sgd])


@each_solver
def test_batches_that_a_model_fits_lead_to_it_without_tuning(build: Any) -> None:
    X, y, true = data()
    none = torch.tensor(0.0, dtype=torch.float64)
    batches = [(X[rows], y[rows]) for _ in range(80) for rows in torch.randperm(64).split(16)]
    solver = build(loss)
    state = solver.run_iterator(torch.zeros_like(true), batches[:4], none)
    assert state.info.iterations == 4
    early = (state.solution - true).norm()
    state = solver.run_iterator(state, batches[4:], none)
    assert state.info.iterations == len(batches)
    torch.testing.assert_close(state.solution, true, atol=1e-4, rtol=0)
    assert (state.solution - true).norm() < early


@each_solver
def test_a_batched_run_gets_derivatives_of_the_problem_on_all_data(build: Any) -> None:
    X, y, true = data()
    penalty = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    exact = lbfgs(loss)(torch.zeros_like(true), penalty, (X, y))
    solver = build(loss)
    assert not solver.run_iterator(torch.zeros_like(true), [(X, y)], penalty).solution.requires_grad
    w = solver.attach(exact.detach(), penalty, (X, y))
    (gradient,) = torch.autograd.grad(w.sum(), penalty)
    (expected,) = torch.autograd.grad(exact.sum(), penalty)
    torch.testing.assert_close(gradient, expected)


@each_solver
def test_steps_under_vmap_equal_those_of_a_loop(build: Any) -> None:
    X, y, true = data()
    penalty = torch.tensor(0.1, dtype=torch.float64)
    starts = torch.randn(3, 3, dtype=torch.float64)
    solver = build(loss)

    def steps(w: torch.Tensor) -> torch.Tensor:
        state = solver.init_state(w, penalty, (X, y))
        for _ in range(3):
            state = solver.update(state, penalty, (X, y))
        return state.solution

    torch.testing.assert_close(vmap(steps)(starts), torch.stack([steps(w) for w in starts]))
    assert true.numel() == 3


def test_other_solvers_refuse_batches_and_empty_runs_are_told() -> None:
    with pytest.raises(TypeError, match=r"lbfgs needs the same problem.*armijo_sgd"):
        lbfgs(loss).run_iterator(torch.zeros(3), [1])
    with pytest.raises(ValueError, match="at least one batch"):
        armijo_sgd(loss).run_iterator(torch.zeros(3), [])
    with pytest.raises(ValueError, match=r"`decrease` is out of its range, got 1\.5"):
        armijo_sgd(loss, decrease=1.5)
    with pytest.raises(ValueError, match="`scale` must be positive"):
        polyak_sgd(loss, scale=0.0)
