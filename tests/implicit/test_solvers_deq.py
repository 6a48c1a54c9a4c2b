"""A deep equilibrium model of handwritten digits: its gradients, and what it learns."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.func import vmap

from torchopt_implicit.solvers import anderson

Parameters = dict[str, torch.Tensor]
WIDTH = 48


def layer(z: torch.Tensor, x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    W = parameters["W"]
    # a contraction, whatever is learned: the rows sum to at most 0.95
    W = W * (0.95 / W.abs().sum(-1, keepdim=True).clamp_min(0.95))
    return torch.tanh(W @ z + parameters["U"] @ x + parameters["b"])


def logits(z: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    return z @ parameters["V"].mT + parameters["c"]


def initial_parameters(dtype: torch.dtype) -> Parameters:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5

    parameters = {
        "W": 0.5 * normal(WIDTH, WIDTH),
        "U": normal(WIDTH, 64),
        "b": torch.zeros(WIDTH, dtype=dtype),
        "V": normal(10, WIDTH),
        "c": torch.zeros(10, dtype=dtype),
    }
    return {name: x.requires_grad_() for name, x in parameters.items()}


def digits(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.3, random_state=0, stratify=y)
    inputs, held_out = (torch.tensor(part, dtype=dtype) for part in parts[:2])
    labels, held_out_labels = (torch.tensor(part) for part in parts[2:])
    return inputs, labels, held_out, held_out_labels


def equilibrium(tol: float | None = None) -> Callable[..., torch.Tensor]:
    """Return the map from inputs to equilibria, each found in its own number of iterations."""
    solver = anderson(layer, tol=tol, throw=True)
    batched = vmap(solver, in_dims=(None, 0, None))

    def solve(x: torch.Tensor, parameters: Parameters) -> torch.Tensor:
        # the readout is no argument of the layer
        inner = {name: parameters[name] for name in "WUb"}
        result: torch.Tensor = batched(x.new_zeros(WIDTH), x, inner)
        return result

    return solve


def test_gradients_equal_those_of_the_unrolled_iteration() -> None:
    inputs, labels, *_ = digits(torch.float64)
    inputs, labels = inputs[:16], labels[:16]
    parameters = initial_parameters(torch.float64)
    leaves = list(parameters.values())

    z = equilibrium()(inputs, parameters)
    loss = torch.nn.functional.cross_entropy(logits(z, parameters), labels)
    implicit = torch.autograd.grad(loss, leaves)

    z = inputs.new_zeros(16, WIDTH)
    for _ in range(400):
        z = vmap(layer, in_dims=(0, 0, None))(z, inputs, parameters)
    loss = torch.nn.functional.cross_entropy(logits(z, parameters), labels)
    unrolled = torch.autograd.grad(loss, leaves)
    for name, ours, theirs in zip(parameters, implicit, unrolled, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < 1e-8, name  # what the tolerance of the solver promises


def test_a_deep_equilibrium_model_learns_handwritten_digits() -> None:
    inputs, labels, held_out, held_out_labels = digits(torch.float32)
    parameters = initial_parameters(torch.float32)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    solve = equilibrium(tol=1e-4)
    for _ in range(12):
        for rows in torch.randperm(len(inputs)).split(64):
            z = solve(inputs[rows], parameters)
            loss = torch.nn.functional.cross_entropy(logits(z, parameters), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        predictions = logits(solve(held_out, parameters), parameters).argmax(-1)
    error = (predictions != held_out_labels).float().mean().item()
    assert error <= 0.05


@pytest.mark.parametrize("mixing", [1.0, 0.7])
def test_autocast_is_for_the_layer_and_not_for_the_acceleration(mixing: float) -> None:
    weight = (torch.randn(4, 4) / 8).requires_grad_()
    x = torch.randn(4)
    # bfloat16 has 8 bits, and reaches no smaller residual
    layer = anderson(lambda z, x, weight: torch.tanh(z @ weight.T + x), mixing=mixing, tol=2e-2)
    expected = layer(torch.zeros(4), x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(torch.zeros(4), x, weight)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, expected, rtol=0.02, atol=0.01)
    slopes = [torch.autograd.grad(out.sum(), weight)[0] for out in (z, expected)]
    torch.testing.assert_close(*slopes, rtol=0.05, atol=0.02)
