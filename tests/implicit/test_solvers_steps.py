"""Solvers driven step by step: resumed, watched, batched, and given their derivatives."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch.func import jacrev, vmap

from implicit.test_solvers import CASES, build, each_case
from torchopt_implicit import Status
from torchopt_implicit.solvers import SolverState, _numbers, newton


@each_case
def test_updates_give_what_a_run_gives_and_leave_earlier_states_as_they_were(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    x, info = solver.run(start, a)
    states = [solver.init_state(start, a)]
    kept = pickle.dumps(states[0])
    errors = []
    while states[-1].is_running:
        states.append(solver.update(states[-1], a))
        errors.append(states[-1].info.residual_norm)
    assert torch.equal(states[-1].solution, x)
    assert states[-1].info == info
    assert len(states) == info.iterations + 1
    assert errors[-1] == info.residual_norm
    assert pickle.dumps(states[0]) == kept
    # what has ended stays where it is
    assert solver.update(states[-1], a).info == info


@each_case
def test_a_state_is_saved_and_gone_on_from(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    state = solver.update(solver.update(solver.init_state(start, a), a), a)
    state = pickle.loads(pickle.dumps(state))
    assert isinstance(state, SolverState)
    while state.is_running:
        state = solver.update(state, a)
    x, info = solver.run(start, a)
    assert torch.equal(state.solution, x)
    assert state.info == info


@each_case
def test_updates_of_a_batch_stop_problem_by_problem(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    batch = a * torch.tensor([1.0, 0.1, -0.5], dtype=a.dtype).unsqueeze(-1)
    x, info = vmap(solver.run, in_dims=(None, 0))(start, batch)
    state = vmap(solver.init_state, in_dims=(None, 0))(start, batch)
    for _ in range(int(info.iterations.max())):
        state = vmap(solver.update)(state, batch)
    torch.testing.assert_close(state.solution, x, atol=0, rtol=0)
    assert state.info.iterations.tolist() == info.iterations.tolist()
    assert not state.is_running.any()


@each_case
def test_a_solution_found_otherwise_gets_its_derivatives(name: str) -> None:
    solver, start, a = build(name, torch.float64)
    x = solver(start, a)
    attached = jacrev(lambda a: solver.attach(x, a))(a)
    torch.testing.assert_close(attached, jacrev(lambda a: solver(start, a))(a))


@each_case
def test_steps_are_the_same_where_numbers_cannot_be_read(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver, start, a = build(name, torch.float64)
    x, info = solver.run(start, a)
    monkeypatch.setattr(_numbers, "is_host", lambda device: False)  # as on a device
    state = solver.init_state(start, a)
    assert all(isinstance(v, torch.Tensor) for v in state.search.state[-2:])
    on_device, same = solver.run(start, a)
    torch.testing.assert_close(on_device, x, atol=1e-12, rtol=1e-12)
    assert same.iterations == info.iterations
    assert same.status is info.status


def test_a_failed_search_is_not_running() -> None:
    solver = newton(lambda x: x**2 - 1)
    state = solver.init_state(torch.zeros(2))
    assert not state.is_running
    assert state.info.status is Status.BREAKDOWN


def test_progress_is_shown_before_the_end() -> None:
    solver, start, a = build("newton", torch.float64)
    state = solver.update(solver.init_state(start, a), a)
    assert state.is_running
    assert state.info.status is Status.ITERATION_LIMIT
    assert state.info.iterations == 1
    residual = CASES["newton"].condition(state.solution, a)
    assert state.info.residual_norm == pytest.approx(residual.norm().item())


def test_updates_record_gradients_as_any_function_does() -> None:
    a = torch.tensor([4.0, 9.0], dtype=torch.float64, requires_grad=True)
    solver = newton(lambda x, a: x**2 - a)
    state: Any = solver.init_state(torch.ones_like(a), a)
    for _ in range(8):
        state = solver.update(state, a)
    (gradient,) = torch.autograd.grad(state.solution.sum(), a)
    torch.testing.assert_close(gradient, 0.5 * a.detach() ** -0.5)
    with torch.no_grad():
        assert not solver.update(solver.init_state(a, a), a).solution.requires_grad
