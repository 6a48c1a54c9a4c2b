"""Perturbed optimizers: closed forms, finite differences, transforms, chunks."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from torchopt_zero.discrete import (
    Perturbed,
    Solver,
    argmax,
    assignment,
    fenchel_young_loss,
    ranking,
    shortest_path,
    sorting,
)

pytestmark = pytest.mark.usefixtures("float64")

SIGMA = 0.7
SOLVERS = {
    "argmax": (argmax(), (3,)),
    "ranking": (ranking(), (3,)),
    "ranking, descending": (ranking(descending=True), (3,)),
    "sorting": (sorting(), (3,)),
    "assignment": (assignment(), (2, 2)),
    "shortest path": (shortest_path(connectivity=4), (2, 2)),
}


def _argmin(x: Tensor) -> Tensor:
    return argmax()(-x)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _estimates(x: Tensor, repeats: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Return independent estimates of a mean solution and of a vector-Jacobian product."""
    solver, cotangent = options.pop("solver"), options.pop("cotangent")
    many = x.expand(repeats, *x.shape).clone().requires_grad_()
    y = Perturbed(solver, sigma=SIGMA, generator=_generator(), **options)(many)
    (gradient,) = torch.autograd.grad((y * cotangent).sum(), many)
    return y.detach(), gradient


def _assert_mean(samples: Tensor, expected: Tensor) -> None:
    """Assert that a mean is within 4.5 standard errors; some 100 entries are tested in all."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - expected).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("maximize", [True, False])
def test_gumbel_noise_turns_argmax_into_softmax_and_its_jacobian(maximize: bool) -> None:
    x, cotangent = torch.tensor([0.3, -0.5, 0.8]), torch.tensor([1.0, -2.0, 0.5])
    solver = argmax() if maximize else Solver(_argmin, event_dim=1, maximize=False)
    y, gradient = _estimates(
        x, 400, solver=solver, cotangent=cotangent, num_samples=50, distribution="gumbel"
    )

    def soft(x: Tensor) -> Tensor:
        return ((x if maximize else -x) / SIGMA).softmax(-1)

    _assert_mean(y, soft(x))
    _assert_mean(gradient, cotangent @ torch.func.jacrev(soft)(x))


def test_normal_noise_turns_argmax_of_two_into_the_normal_distribution_function() -> None:
    x, cotangent = torch.tensor([0.3, -0.5]), torch.tensor([1.0, -2.0])
    y, gradient = _estimates(x, 400, solver=argmax(), cotangent=cotangent, num_samples=50)

    def smooth(x: Tensor) -> Tensor:
        first = _normal_cdf((x[0] - x[1]) / (math.sqrt(2.0) * SIGMA))
        return torch.stack([first, 1 - first])

    _assert_mean(y, smooth(x))
    _assert_mean(gradient, cotangent @ torch.func.jacrev(smooth)(x))


def test_normal_noise_turns_ranks_into_sums_of_normal_distribution_functions() -> None:
    x, cotangent = torch.tensor([0.3, -0.5, 0.8, 0.1]), torch.tensor([1.0, -2.0, 0.5, 1.5])
    y, gradient = _estimates(x, 400, solver=ranking(), cotangent=cotangent, num_samples=50)

    def smooth(x: Tensor) -> Tensor:
        beaten = _normal_cdf((x[:, None] - x) / (math.sqrt(2.0) * SIGMA))
        return 0.5 + beaten.sum(1)  # each beats itself with 1/2

    _assert_mean(y, smooth(x))
    _assert_mean(gradient, cotangent @ torch.func.jacrev(smooth)(x))


@pytest.mark.parametrize("distribution", ["normal", "gumbel"])
@pytest.mark.parametrize(("solver", "shape"), SOLVERS.values(), ids=SOLVERS)
def test_gradients_are_differences_of_the_smoothed_expectation(
    solver: Solver, shape: tuple[int, ...], distribution: str
) -> None:
    x, direction = torch.rand(shape) + 2.0, torch.randn(shape)
    cotangent = torch.randn(solver(x).shape)
    _, gradient = _estimates(
        x, 300, solver=solver, cotangent=cotangent, num_samples=20, distribution=distribution
    )

    # Common random numbers; with this step and so many samples the difference is smooth enough.
    def objective(step: float) -> Tensor:
        smooth = Perturbed(
            solver,
            num_samples=100,
            sigma=SIGMA,
            distribution=distribution,  # type: ignore[arg-type]
            generator=_generator(1),
        )
        many = (x + step * direction).expand(300, *shape)
        return (smooth(many) * cotangent).flatten(1).sum(1)

    differences = (objective(0.1) - objective(-0.1)) / 0.2
    slopes = (gradient * direction).flatten(1).sum(1)
    error = math.sqrt(float(differences.var() / 300 + slopes.var() / 300))
    truncation = 0.02 * float(direction.norm() * cotangent.norm())
    assert abs(float(differences.mean() - slopes.mean())) <= 4.5 * error + truncation
    assert error < 0.2 * float(direction.norm() * cotangent.norm())


@pytest.mark.parametrize("distribution", ["normal", "gumbel"])
@pytest.mark.parametrize("maximize", [True, False])
def test_second_derivatives_are_those_of_the_closed_form(maximize: bool, distribution: str) -> None:
    x, cotangent = torch.tensor([0.3, -0.5]), torch.tensor([1.0, -2.0])
    many = x.expand(2000, 2).clone().requires_grad_()
    soft = Perturbed(
        argmax() if maximize else Solver(_argmin, event_dim=1, maximize=False),
        num_samples=100,
        sigma=SIGMA,
        distribution=distribution,  # type: ignore[arg-type]
        generator=_generator(),
    )

    def closed(x: Tensor) -> Tensor:
        x = (x if maximize else -x) / SIGMA
        if distribution == "gumbel":
            return x.softmax(-1) @ cotangent
        first = _normal_cdf((x[0] - x[1]) / math.sqrt(2.0))
        return torch.stack([first, 1 - first]) @ cotangent

    (first,) = torch.autograd.grad((soft(many) @ cotangent).sum(), many, create_graph=True)
    rows = [torch.autograd.grad(first[:, i].sum(), many, retain_graph=True)[0] for i in (0, 1)]
    _assert_mean(torch.stack(rows, 1), torch.func.hessian(closed)(x))


def test_third_derivatives_exist() -> None:
    x = torch.tensor([0.3, -0.5], requires_grad=True)
    value = Perturbed(argmax(), num_samples=10, generator=_generator())(x)[0]
    for _ in range(3):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0
        value = gradient[0]


def test_the_unperturbed_solution_as_baseline_leaves_little_variance_where_noise_is_small() -> None:
    x = torch.tensor([0.0, 5.0, 10.0])
    _, gradient = _estimates(x, 10, solver=ranking(), cotangent=torch.ones(3), num_samples=10)
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", ["normal", "gumbel"])
@pytest.mark.parametrize("name", ["argmax", "sorting", "shortest path"])
def test_results_are_bit_identical_for_any_chunk_size(
    name: str, distribution: str, dtype: torch.dtype
) -> None:
    solver, shape = SOLVERS[name]
    x = torch.rand(2, *shape, dtype=dtype, requires_grad=True)
    results = []
    for chunk_size in (None, 1, 5, 32, 100):
        smooth = Perturbed(
            solver,
            num_samples=32,
            sigma=SIGMA,
            distribution=distribution,  # type: ignore[arg-type]
            chunk_size=chunk_size,
            generator=_generator(),
        )
        y = smooth(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        results.append((y, gradient, second))
    for y, gradient, second in results[1:]:
        assert y.dtype == dtype
        assert torch.equal(y, results[0][0])
        assert torch.equal(gradient, results[0][1])
        torch.testing.assert_close(second, results[0][2])


def test_no_more_than_a_chunk_is_solved_at_once() -> None:
    sizes = []

    def solve(x: Tensor) -> Tensor:
        sizes.append(x.shape[0] if x.ndim == 2 else 1)
        return argmax()(x)

    x = torch.zeros(3, requires_grad=True)
    solver = Solver(solve, event_dim=1, maximize=True)
    Perturbed(solver, num_samples=10, chunk_size=4)(x)[0].backward()
    assert sizes == [4, 4, 2, 1, 4, 4, 2]  # the one is the baseline
    sizes.clear()
    Perturbed(solver, num_samples=10)(x)[0].backward()
    assert sizes == [10, 1]


def test_the_generator_makes_it_reproducible_and_each_call_draws_anew() -> None:
    x = torch.zeros(100, 3)
    first, second = (Perturbed(argmax(), generator=_generator(3)) for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), first(x))
    torch.manual_seed(5)
    y = Perturbed(argmax())(x)
    torch.manual_seed(5)
    assert torch.equal(Perturbed(argmax())(x), y)


def test_members_of_a_batch_have_independent_noise() -> None:
    y = Perturbed(argmax(), generator=_generator())(torch.zeros(3000, 3))
    counts = y.sum(0)
    assert (counts - 1000).abs().max() < 4.5 * math.sqrt(3000 * 2 / 9)


@pytest.mark.parametrize(("solver", "shape"), SOLVERS.values(), ids=SOLVERS)
def test_vmap_with_the_same_noise_is_a_loop_with_the_same_seed(
    solver: Solver, shape: tuple[int, ...]
) -> None:
    x = torch.rand(4, *shape)

    def run(x: Tensor) -> Tensor:
        return Perturbed(solver, num_samples=8, generator=_generator())(x)

    def slope(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: run(x).square().sum())(x)

    for function in (run, slope):
        expected = torch.stack([function(x[i]) for i in range(4)])
        torch.testing.assert_close(torch.func.vmap(function, randomness="same")(x), expected)


def test_vmap_with_different_noise_differs_and_by_default_asks() -> None:
    x = torch.zeros(200, 3)
    soft = Perturbed(argmax(), num_samples=2)
    y = torch.func.vmap(soft, randomness="different")(x)
    assert not torch.equal(y, y[:1].expand_as(y))
    assert torch.equal(*torch.func.vmap(soft, randomness="same")(x[:2]))
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(soft)(x)


def test_gradients_compose_with_ordinary_ones_before_and_after() -> None:
    weight, x = torch.randn(3, 3), torch.randn(3)

    def run(weight: Tensor) -> Tensor:
        soft = Perturbed(argmax(), num_samples=100, generator=_generator())
        return soft(weight @ x)

    cotangent = torch.randn(3)
    chained = torch.func.grad(lambda w: run(w) @ cotangent)(weight)
    inner = torch.func.grad(
        lambda s: Perturbed(argmax(), num_samples=100, generator=_generator())(s) @ cotangent
    )(weight @ x)
    torch.testing.assert_close(chained, torch.outer(inner, x))


def test_solutions_may_be_numbers_such_as_optimal_values() -> None:
    x = torch.tensor([0.3, -0.5])
    largest = Solver(lambda x: x.amax(-1), event_dim=1, maximize=True)
    y, gradient = _estimates(x, 400, solver=largest, cotangent=torch.tensor(1.0), num_samples=50)
    gap = (x[0] - x[1]) / (math.sqrt(2.0) * SIGMA)
    density = torch.exp(-gap.square() / 2) / math.sqrt(2 * math.pi)
    first = _normal_cdf(gap)
    _assert_mean(y, x[1] + (x[0] - x[1]) * first + math.sqrt(2.0) * SIGMA * density)
    _assert_mean(gradient, torch.stack([first, 1 - first]))


@pytest.mark.parametrize(("solver", "shape"), SOLVERS.values(), ids=SOLVERS)
def test_an_empty_batch_is_no_special_case(solver: Solver, shape: tuple[int, ...]) -> None:
    x = torch.rand(0, *shape, requires_grad=True)
    y = Perturbed(solver, num_samples=3)(x)
    assert y.shape[0] == 0
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_half_precision_does_not_overflow() -> None:
    x = torch.zeros(300_000, dtype=torch.float16, requires_grad=True)
    Perturbed(argmax(), generator=_generator())(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_it_is_pickled() -> None:
    soft = Perturbed(argmax(), num_samples=7, sigma=0.2, distribution="gumbel")
    assert pickle.loads(pickle.dumps(soft)) == soft


@pytest.mark.parametrize("maximize", [True, False])
def test_the_loss_is_log_sum_exp_minus_the_score_of_the_target(maximize: bool) -> None:
    solver = argmax() if maximize else Solver(_argmin, event_dim=1, maximize=False)
    x, target = torch.tensor([0.3, -0.5, 0.8]), torch.tensor([0.0, 1.0, 0.0])
    sign = 1.0 if maximize else -1.0
    many = x.expand(2000, 3).clone().requires_grad_()
    soft = Perturbed(
        solver, num_samples=20, sigma=SIGMA, distribution="gumbel", generator=_generator()
    )
    loss = fenchel_young_loss(soft, many, target.expand_as(many))
    # The mean of a standard Gumbel variable is Euler's constant.
    expected = SIGMA * ((sign * x / SIGMA).logsumexp(-1) + 0.5772156649) - sign * target @ x
    _assert_mean(loss.detach(), expected)
    (gradient,) = torch.autograd.grad(loss.sum(), many, create_graph=True)
    _assert_mean(gradient.detach(), sign * ((sign * x / SIGMA).softmax(-1) - target))
    rows = [torch.autograd.grad(gradient[:, i].sum(), many, retain_graph=True)[0] for i in range(3)]
    p = (sign * x / SIGMA).softmax(-1)
    _assert_mean(torch.stack(rows, 1), (p.diag() - torch.outer(p, p)) / SIGMA)


@pytest.mark.parametrize("name", sorted(set(SOLVERS) - {"sorting"}))
def test_the_gradient_of_the_loss_is_the_mean_solution_minus_the_target(name: str) -> None:
    solver, shape = SOLVERS[name]
    x = (torch.rand(5, *shape) + 1).requires_grad_()
    target = solver(torch.rand(5, *shape))

    def smooth() -> Perturbed:
        return Perturbed(solver, num_samples=9, sigma=0.3, generator=_generator())

    loss = fenchel_young_loss(smooth(), x, target)
    assert loss.shape == (5,)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    expected = smooth()(x).detach() - target
    torch.testing.assert_close(gradient, expected if solver.maximize else -expected)


def test_the_loss_is_convex_along_a_line() -> None:
    start, direction, target = torch.randn(4), torch.randn(4), ranking()(torch.randn(4))

    def loss(step: Tensor) -> Tensor:
        smooth = Perturbed(ranking(), num_samples=50, generator=_generator())
        return fenchel_young_loss(smooth, start + step * direction, target)

    values = torch.stack([loss(step) for step in torch.linspace(-3, 3, 21)])
    assert (values[2:] - 2 * values[1:-1] + values[:-2] >= -1e-10).all()


def test_the_loss_runs_under_vmap_and_grad() -> None:
    x, target = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 0]]

    def loss(x: Tensor, target: Tensor) -> Tensor:
        smooth = Perturbed(argmax(), num_samples=6, generator=_generator())
        return fenchel_young_loss(smooth, x, target)

    for function in (loss, torch.func.grad(loss)):
        expected = torch.stack([function(x[i], target[i]) for i in range(4)])
        actual = torch.func.vmap(function, randomness="same")(x, target)
        torch.testing.assert_close(actual, expected)


@pytest.mark.cuda
@pytest.mark.parametrize(("solver", "shape"), SOLVERS.values(), ids=SOLVERS)
def test_on_a_gpu_it_gives_what_it_gives_on_a_cpu(solver: Solver, shape: tuple[int, ...]) -> None:
    x = torch.rand(4, *shape)
    results = []
    for device in ("cpu", "cuda"):
        smooth = Perturbed(solver, num_samples=8, generator=_generator())
        inputs = x.to(device).requires_grad_()
        y = smooth(inputs)
        (gradient,) = torch.autograd.grad(y.square().sum(), inputs)
        assert y.device == gradient.device == inputs.device
        results.append((y.cpu(), gradient.cpu()))
    torch.testing.assert_close(*results)


def test_results_are_bit_identical_where_several_threads_share_a_sum() -> None:
    x, cotangent = torch.randn(2, 40_000).float()
    results = []
    torch.set_num_threads(2)
    try:
        for chunk_size in (None, 1):
            smooth = Perturbed(
                ranking(), num_samples=2, chunk_size=chunk_size, generator=_generator()
            )
            y, pullback = torch.func.vjp(smooth, x)
            results.append((y, *pullback(cotangent)))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
