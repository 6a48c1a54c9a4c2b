"""MeZO trains in place, with the memory of inference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchopt_zero import MeZO, Workers
from torchopt_zero._mezo import _SLICE
from torchopt_zero._rounding import perturb


def noise_of(parameter: Tensor, sigma: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return where the closure saw a parameter, for one step without learning."""
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(parameter.detach().clone())
        return parameter.sum()

    MeZO([parameter], 0.0, sigma, generator=torch.Generator().manual_seed(seed)).step(closure)
    return seen[0], seen[1]


@pytest.mark.parametrize("shape", [(), (3, 5), (_SLICE + 7,), (0,)])
def test_the_two_points_mirror_each_other(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    plus, minus = noise_of(parameter, 0.5, seed=1)
    torch.testing.assert_close(plus + minus, 2 * torch.ones(shape, dtype=torch.float64))
    torch.testing.assert_close(parameter.detach(), torch.ones(shape, dtype=torch.float64))
    z = (plus - 1) / 0.5
    if z.numel() > 1000:
        assert abs(z.mean()) < 5 / z.numel() ** 0.5
        assert abs(z.std() - 1) < 0.02


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_a_step_is_the_formula(weight_decay: float) -> None:
    start = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).view(2, 3)
    lr, sigma = 0.1, 0.01
    z = (noise_of(nn.Parameter(start.clone()), sigma, seed=4)[0] - start) / sigma
    w = nn.Parameter(start.clone())
    optimizer = MeZO([w], lr, sigma, weight_decay, generator=torch.Generator().manual_seed(4))
    loss = optimizer.step(lambda: w.pow(3).sum())
    values = [(start + s * sigma * z).pow(3).sum() for s in (1, -1)]
    slope = (values[0] - values[1]) / (2 * sigma)
    torch.testing.assert_close(w.detach(), start - lr * (slope * z + weight_decay * start))
    torch.testing.assert_close(loss, (values[0] + values[1]) / 2)
    assert w.grad is None


@pytest.mark.parametrize("shape", [(), (0,), (7,), (33, 5), (2 * _SLICE + 3,)])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64]
)
def test_a_step_restores_every_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    w = nn.Parameter(torch.randn(shape, dtype=dtype))
    with torch.no_grad():
        if w.ndim:
            w[::7] *= 1e-6  # much smaller than the noise
            w[1::7] = 0
            w[2::50] = torch.inf
            w[3::50] = torch.nan
    before = w.detach().clone()
    optimizer = MeZO([w], lr=0.0, sigma=1.0)
    moved = []

    def closure() -> Tensor:
        moved.append(not torch.equal(w.detach().nan_to_num(), before.nan_to_num()))
        return torch.zeros(())

    for _ in range(3):
        optimizer.step(closure)
    assert moved == [w.numel() > 0] * 6
    as_bytes = [x.detach().reshape(-1).view(torch.uint8) for x in (before, w)]
    assert torch.equal(*as_bytes)


def test_half_precision_does_not_drift() -> None:
    w = nn.Parameter(torch.linspace(-0.5, 0.5, 64, dtype=torch.bfloat16))
    before = w.detach().clone()
    optimizer = MeZO([w], lr=0.0)
    for _ in range(1000):
        optimizer.step(lambda: w.float().sum())
    assert torch.equal(w.detach(), before)


def test_what_rounding_takes_away_is_kept_in_little_memory() -> None:
    flat = torch.empty(2**16).uniform_(-1 / 32, 1 / 32)  # as layers with 1024 inputs begin
    for dtype in (torch.float32, torch.bfloat16):
        lost = perturb(flat.to(dtype), torch.randn(2**16), 1e-3)
        kept = lost.codes.numel() + lost.entries.numel() * dtype.itemsize
        assert kept < 0.2 * 2**16 * dtype.itemsize


def test_a_step_of_half_precision_rounds_once() -> None:
    start = torch.linspace(0.5, 2.0, 50)
    w = nn.Parameter(start.bfloat16())
    wide = nn.Parameter(w.detach().float())
    found = []
    for parameter in (w, wide):
        values = iter([3.0, 1.0])
        optimizer = MeZO([parameter], 0.05, 0.5, 0.1, generator=torch.Generator().manual_seed(2))
        optimizer.step(lambda values=values: torch.tensor(next(values)))
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1].bfloat16())


def test_groups_have_their_own_numbers_and_frozen_parameters_stay() -> None:
    a, b = (nn.Parameter(torch.ones(4)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(4), requires_grad=False)
    optimizer = MeZO([{"params": [a, frozen]}, {"params": [b], "lr": 0.0}], lr=0.01)
    optimizer.step(lambda: (a + b + frozen).sum())
    assert not torch.allclose(a, torch.ones(4), atol=1e-4)
    torch.testing.assert_close(b.detach(), torch.ones(4))
    assert torch.equal(frozen, torch.ones(4))


def test_schedules_and_state_dicts_work() -> None:
    w = nn.Parameter(torch.ones(4))
    optimizer = MeZO([w], lr=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    optimizer.step(lambda: w.sum())
    schedule.step()
    other = MeZO([w])
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("when", [1, 2])
def test_a_failure_puts_the_parameters_back(when: int) -> None:
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == when:
            raise KeyError("mine")
        return w.sum()

    with pytest.raises(KeyError, match="mine"):
        MeZO([w], lr=1.0, sigma=1.0).step(closure)
    assert torch.equal(w.detach(), torch.ones(4, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="`output` must be a tensor"):
        MeZO([w], lr=1.0, sigma=1.0).step(lambda: 1.0)  # type: ignore[arg-type,return-value]
    assert torch.equal(w.detach(), torch.ones(4, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="the loss is not finite: nan and nan"):
        MeZO([w], lr=1.0, sigma=1.0).step(lambda: w.sum() * torch.nan)
    torch.testing.assert_close(w.detach(), torch.ones(4, dtype=torch.float64))


def test_strided_parameters() -> None:
    w = nn.Parameter(torch.ones(6, 4).T)
    optimizer = MeZO([w], lr=0.02)
    for _ in range(200):
        loss = optimizer.step(lambda: w.square().mean() * 24)
    assert loss < 1.0


def test_workers_average_slopes_and_stay_equal() -> None:
    from .test_reproducible import in_threads

    data = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)

    def work(workers: Workers) -> Tensor:
        w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        generator = torch.Generator().manual_seed(workers.rank)
        optimizer = MeZO([w], lr=0.01, generator=generator, workers=workers)
        for _ in range(5):
            optimizer.step(lambda: (w * data[workers.rank]).sum())
        return w.detach()

    first, second = in_threads(2, work)
    assert torch.equal(first, second)
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    alone = MeZO([w], lr=0.01, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        alone.step(lambda: (w * data).sum(1).mean())
    torch.testing.assert_close(first, w.detach())


def test_a_network_trains() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(64, 4)
    y = x[:, :1] - x[:, 1:2]

    def loss() -> Tensor:
        return nn.functional.mse_loss(net(x), y)

    before = float(loss().detach())
    optimizer = MeZO(net.parameters(), lr=0.005)
    for _ in range(1500):
        optimizer.step(loss)
    assert float(loss().detach()) < before / 5


PEAK = """
import torch
from torch import nn
from torchopt_zero import MeZO

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

def peak(run):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    run()
    return status("VmHWM") - base

torch.set_num_threads(1)
base = status("VmRSS")
net = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(1024, 1024), nn.ReLU())])
x = torch.randn(4096, 1024)
loss = lambda: net(x).square().mean()
optimizer = MeZO(net.parameters())
def inference():
    with torch.no_grad():
        loss()
def step():
    optimizer.step(loss)
inference(), step()
print(peak(inference), peak(step), peak(lambda: loss().backward()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_has_the_memory_of_a_forward_pass_without_gradients() -> None:
    """Parameters and data included, what was imported left out."""
    # Freed memory goes back to the system, so that its peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    result = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=environment
    )
    inference, step, backward = map(int, result.stdout.split())
    assert step <= 1.05 * inference
    assert backward > 1.3 * inference  # so the measurement sees what it should


def test_it_is_an_optimizer() -> None:
    optimizer: Any = MeZO([nn.Parameter(torch.ones(1))])
    assert isinstance(optimizer, torch.optim.Optimizer)
    defaults = {name: optimizer.defaults[name] for name in ("lr", "sigma", "weight_decay")}
    assert defaults == {"lr": 1e-6, "sigma": 1e-3, "weight_decay": 0.0}
