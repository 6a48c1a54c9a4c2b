"""Noise comes from counters: chunks, workers and repetition change no bit of an estimate."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import torchopt
from torchopt_zero import Gaussian, LowRank, Rademacher, Workers
from torchopt_zero._scratch import Scratch
from torchopt_zero._seed import counter_seed

X = torch.linspace(-1.0, 1.0, 7 * 12).view(7, 12)


def make_params() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (20, 12), "b": (20,), "v": (3, 20), "scale": ()}
    return {
        name: torch.randn(shape, generator=generator).requires_grad_()
        for name, shape in shapes.items()
    }


def mlp(params: dict[str, Tensor]) -> Tensor:
    hidden = torch.relu(F.linear(X, params["w"], params["b"]))
    return (hidden @ params["v"].T * params["scale"]).square().mean()


def gradient(distribution: Any, method: Any, seed: int = 5, **options: Any) -> list[Tensor]:
    params = make_params()
    generator = torch.Generator().manual_seed(seed)
    decorate = torchopt.diff.zero_order(
        distribution, method, num_samples=23, sigma=0.1, generator=generator, **options
    )
    decorate(mlp)(params).backward()
    return [leaf.grad for leaf in params.values()]


def identical(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


DISTRIBUTIONS: dict[str, Any] = {
    "Normal": torch.distributions.Normal(0.0, 1.0),
    "Laplace": torch.distributions.Laplace(0.0, 0.7),
    "function": torch.randn,
    "Rademacher": Rademacher(),
    "LowRank": LowRank(2),
}
METHODS = ["naive", "forward", "antithetic", "leave-one-out", "rank-shaped"]


@pytest.mark.parametrize("vectorize", [None, False])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_chunk_size_changes_no_bit(method: str, distribution: str, vectorize: bool | None) -> None:
    options = {"vectorize": vectorize}
    whole = gradient(DISTRIBUTIONS[distribution], method, **options)
    assert all(leaf.any() for leaf in whole)
    for chunk_size in (1, 2, 5, 22, 23, 1000):
        chunked = gradient(DISTRIBUTIONS[distribution], method, chunk_size=chunk_size, **options)
        assert identical(whole, chunked), chunk_size


@pytest.mark.parametrize("method", ["spsa", "guided", "finite-difference"])
def test_chunk_size_changes_no_bit_of_other_methods(method: str) -> None:
    whole = gradient(torch.randn, method)
    for chunk_size in (1, 5, 1000):
        assert identical(whole, gradient(torch.randn, method, chunk_size=chunk_size))


def test_the_loop_agrees_with_vmap_to_rounding() -> None:
    for distribution in DISTRIBUTIONS.values():
        batched = gradient(distribution, "antithetic", vectorize=True)
        looped = gradient(distribution, "antithetic", vectorize=False)
        torch.testing.assert_close(batched, looped, rtol=1e-3, atol=1e-4)


def in_threads(size: int, work: Callable[[Workers], Any]) -> list[Any]:
    """Run workers that can only add tables up."""
    tables: dict[int, Tensor] = {}
    results: list[Any] = [None] * size
    barrier = threading.Barrier(size, timeout=60)

    def run(rank: int) -> None:
        def reduce(table: Tensor) -> Tensor:
            tables[rank] = table
            barrier.wait()
            total = sum(tables[i] for i in range(size))
            barrier.wait()
            return total

        results[rank] = work(Workers(rank, size, reduce))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("distribution", ["Normal", "Rademacher", "LowRank", "function"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_workers_get_the_estimate_of_one(size: int, method: str, distribution: str) -> None:
    alone = gradient(DISTRIBUTIONS[distribution], method)

    def work(workers: Workers) -> list[Tensor]:
        # The other workers' seeds do not matter: they take that of the first.
        seed = 5 + workers.rank
        return gradient(DISTRIBUTIONS[distribution], method, seed, workers=workers, chunk_size=3)

    for found in in_threads(size, work):
        assert identical(alone, found)


def test_workers_evaluate_each_sample_once_and_exchange_scalars() -> None:
    counts, sizes = [0] * 3, set()

    def work(workers: Workers) -> None:
        def reduce(table: Tensor) -> Tensor:
            sizes.add(tuple(table.shape))
            return workers.reduce(table)

        def count(x: Tensor) -> Tensor:
            counts[workers.rank] += 1
            return x.sum()

        x = torch.zeros(1000, requires_grad=True)
        decorate = torchopt.diff.zero_order(
            torch.randn,
            "antithetic",
            num_samples=10,
            vectorize=False,
            workers=Workers(workers.rank, workers.size, reduce),
        )
        decorate(count)(x).backward()

    in_threads(3, work)
    assert sum(counts) == 3 + 2 * 10
    assert sizes == {(), (10, 2)}


def test_threads_do_not_disturb_each_others_random_numbers() -> None:
    """Samplers draw from torch's global generators, which all threads share."""
    alone = gradient(torch.randn, "antithetic")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(20):
            found = in_threads(3, lambda workers: gradient(torch.randn, "antithetic"))
            for one in found:
                torch.testing.assert_close(one, alone, rtol=0.0, atol=0.0)
    finally:
        sys.setswitchinterval(interval)


def _rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = gradient(Gaussian(), "antithetic", seed=5 + rank, workers=Workers.from_group())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch lacks gloo")
def test_a_process_group_shares_samples(tmp_path: Any) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    alone = gradient(Gaussian(), "antithetic")
    for rank in range(2):
        assert identical(alone, torch.load(tmp_path / f"{rank}.pt"))


def test_a_generator_decides_everything_and_leaves_the_global_one_alone() -> None:
    for distribution in DISTRIBUTIONS.values():
        state = torch.random.get_rng_state()
        first = gradient(distribution, "naive")
        torch.random.manual_seed(77)
        after = torch.random.get_rng_state()
        second = gradient(distribution, "naive")
        assert identical(first, second)
        assert torch.equal(after, torch.random.get_rng_state())
        torch.random.set_rng_state(state)
        assert not identical(first, gradient(distribution, "naive", seed=6))


def test_the_global_seed_makes_estimates_reproducible() -> None:
    function = torchopt.diff.zero_order(torch.randn, "antithetic")(lambda x: x.sum())
    x = torch.zeros(5, requires_grad=True)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append([torch.autograd.grad(function(x), x)[0] for _ in range(2)])
    assert identical(*found)
    assert not torch.equal(*found[0])


def test_a_backward_can_be_repeated() -> None:
    x = torch.zeros(5, requires_grad=True)
    loss = torchopt.diff.zero_order(torch.randn)(lambda x: x.exp().sum())(x)
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert identical([*first], [*torch.autograd.grad(loss, x)])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_leaves_and_samples_have_independent_noise(distribution: str) -> None:
    points: list[tuple[Tensor, Tensor]] = []

    def function(x: Tensor, y: Tensor) -> Tensor:
        points.append((x.clone(), y.clone()))
        return x.sum() + y.sum()

    x, y = (torch.zeros(40, 50, requires_grad=True) for _ in range(2))
    decorate = torchopt.diff.zero_order(
        DISTRIBUTIONS[distribution], argnums=(0, 1), num_samples=3, vectorize=False
    )
    decorate(function)(x, y).backward()
    tensors = torch.stack([leaf.flatten() for pair in points[1:] for leaf in pair])
    correlation = torch.corrcoef(tensors) - torch.eye(6)
    # 5 deviations for 2000 independent entries; those of a low-rank matrix depend on each other
    assert correlation.abs().max() < (0.5 if distribution == "LowRank" else 5 / 2000**0.5)


def test_leaves_of_different_dtypes_have_independent_noise() -> None:
    leaves = [torch.zeros(2000), torch.zeros(2000, dtype=torch.float64)]
    rows = Gaussian().draw(leaves, 9, range(2), Scratch())
    noise = torch.cat([row.double() for row in rows])
    assert (torch.corrcoef(noise) - torch.eye(4)).abs().max() < 5 / 2000**0.5


def test_no_two_counters_share_a_seed() -> None:
    for seed in (0, 1, 2**62 - 1, 0x1234_5678_9ABC_DEF):
        assert len({counter_seed(seed, counter) for counter in range(50_000)}) == 50_000
