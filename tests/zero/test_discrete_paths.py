"""The papers' experiment, in small: learn what terrain costs from the best paths over it alone.

A map has 8 x 8 tiles of 5 kinds, seen through noisy features. A network gives each tile a cost, and
a solver finds the cheapest path; only the true path is known in training. Warcraft maps of 12 x 12
have 96% of optimal paths in Vlastelica et al. 2020, Table 2, and 23% without the solver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchopt_zero.discrete import Blackbox, Perturbed, fenchel_young_loss, shortest_path

SOLVER = shortest_path()
COSTS = torch.tensor([0.8, 1.2, 5.3, 7.7, 9.2])


class Maps(NamedTuple):
    features: Tensor
    costs: Tensor
    paths: Tensor


def _maps(count: int, looks: Tensor) -> Maps:
    tiles = torch.randint(len(COSTS), (count, 8, 8))
    features = looks[tiles] + 0.1 * torch.randn(count, 8, 8, looks.shape[1])
    return Maps(features, COSTS[tiles], SOLVER(COSTS[tiles]))


def _optimal(maps: Maps, paths: Tensor) -> float:
    """Return the share of paths that cost as little as the best."""
    spent = (maps.costs * paths).sum((1, 2))
    least = (maps.costs * maps.paths).sum((1, 2))
    return float((spent - least < 1e-3).float().mean())


def _train(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], maps: Maps) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    steps = 600
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(maps.features), (50,))
        optimizer.zero_grad()
        loss(network(maps.features[batch]), maps.paths[batch]).backward()
        optimizer.step()
        schedule.step()


def _hamming(paths: Tensor, target: Tensor) -> Tensor:
    return (paths - target).abs().sum((1, 2)).mean()


blackbox = Blackbox(SOLVER, lambd=20.0)
perturbed = Perturbed(SOLVER, num_samples=2, sigma=0.1)
METHODS = {
    "black-box": lambda costs, target: _hamming(blackbox(costs), target),
    "perturbed, Fenchel-Young": lambda costs, target: fenchel_young_loss(
        perturbed, costs, target
    ).mean(),
}


@pytest.mark.parametrize("loss", METHODS.values(), ids=METHODS)
def test_costs_learned_through_the_solver_lead_over_unseen_maps(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    looks = torch.randn(5, 8)
    seen, unseen = _maps(2000, looks), _maps(500, looks)
    network = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), nn.Softplus(), nn.Flatten(2)
    )
    before = _optimal(unseen, SOLVER(network(unseen.features)))
    _train(network, loss, seen)
    assert before < 0.1
    assert _optimal(unseen, SOLVER(network(unseen.features))) >= 0.9


def test_a_network_without_the_solver_finds_few_paths() -> None:
    looks = torch.randn(5, 8)
    seen, unseen = _maps(2000, looks), _maps(500, looks)
    network = nn.Sequential(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 64))
    network.append(nn.Unflatten(1, (8, 8)))
    _train(network, nn.functional.binary_cross_entropy_with_logits, seen)
    logits = network(unseen.features)
    exact = ((logits > 0) == (unseen.paths > 0)).flatten(1).all(1).float().mean()
    assert exact <= 0.4
    # Not even as costs for the solver.
    assert _optimal(unseen, SOLVER(1 - logits.sigmoid())) <= 0.4


def test_the_derivative_of_the_mean_path_teaches_costs_too() -> None:
    costs = torch.full((6, 6), 1.0, requires_grad=True)
    target = SOLVER(torch.rand(6, 6))
    optimizer = torch.optim.Adam([costs], lr=0.05)
    smooth = Perturbed(SOLVER, num_samples=50, sigma=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (smooth(costs) - target).square().sum().backward()
        optimizer.step()
    assert torch.equal(SOLVER(costs), target)
