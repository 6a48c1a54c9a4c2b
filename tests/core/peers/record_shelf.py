"""Record what optimizers of other libraries do, for `test_shelf.py` to hold ours against.

    python tests/core/peers/record_shelf.py pytorch_optimizer|optax

is run in an environment that has the library (and torch or jax); it writes `shelf_LIBRARY.json`
beside this file. Two parameters take eight steps along given gradients, in float64.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

SHAPES = [(3, 2), (4,)]
STEPS = 8


def numbers(seed: int, shape: tuple[int, ...]) -> list[float]:
    """Numbers like noise, which every library makes alike."""
    count = math.prod(shape)
    return [math.sin(12.9898 * (seed + 1) + 78.233 * (i + 1)) * 1.5 for i in range(count)]


# by the name of our functional form: options of ours, name there, options there
PYTORCH_OPTIMIZER: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "adabelief": (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
        "AdaBelief",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1},
    ),
    "yogi": (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
        "Yogi",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.0},
    ),
    "laprop": (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.0},
        "LaProp",
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 0.0},
    ),
    "adan": (
        {"lr": 0.1, "betas": (0.9, 0.8, 0.95)},
        "Adan",
        {"lr": 0.1, "betas": (0.9, 0.8, 0.95), "weight_decay": 0.0, "max_grad_norm": 0.0},
    ),
    "qhm": (
        {"lr": 0.1, "momentum": 0.9, "nu": 0.7},
        "QHM",
        {"lr": 0.1, "momentum": 0.9, "nu": 0.7},
    ),
    "qhadam": (
        {"lr": 0.1, "betas": (0.9, 0.95), "nus": (0.7, 0.8)},
        "QHAdam",
        {"lr": 0.1, "betas": (0.9, 0.95), "nus": (0.7, 0.8)},
    ),
    "fromage": ({"lr": 0.1}, "Fromage", {"lr": 0.1, "p_bound": None}),
    "lion": (
        {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1},
        "Lion",
        {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
}
# that library computes their bias corrections in float32
IN_SINGLE = {"pytorch_optimizer": {"laprop", "qhadam"}, "optax": set()}
OPTAX: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "yogi": (
        {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
        "yogi",
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3},
    ),
    "lamb": (
        {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1},
        "lamb",
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-6, "weight_decay": 0.1},
    ),
    "lars": (
        {"lr": 0.1, "momentum": 0.8, "trust_coefficient": 0.5},
        "lars",
        {"learning_rate": 0.1, "momentum": 0.8, "trust_coefficient": 0.5},
    ),
    "fromage": ({"lr": 0.1}, "fromage", {"learning_rate": 0.1, "min_norm": 0.0}),
    "signum": (
        {"lr": 0.1, "momentum": 0.0},
        "sign_sgd",
        {"learning_rate": 0.1},
    ),
    "lion": (
        {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1},
        "lion",
        {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "weight_decay": 0.1},
    ),
}


def of_pytorch_optimizer(name: str, options: dict[str, Any]) -> list[list[float]]:
    import pytorch_optimizer
    import torch

    torch.set_default_dtype(torch.float64)
    params = [
        torch.tensor(numbers(i, shape), dtype=torch.float64).reshape(shape).requires_grad_()
        for i, shape in enumerate(SHAPES)
    ]
    optimizer = getattr(pytorch_optimizer, name)(params, **options)
    for t in range(STEPS):
        for i, (p, shape) in enumerate(zip(params, SHAPES, strict=True)):
            grad = numbers(10 * (t + 1) + i, shape)
            p.grad = torch.tensor(grad, dtype=torch.float64).reshape(shape)
        optimizer.step()
    return [p.detach().reshape(-1).tolist() for p in params]


def of_optax(name: str, options: dict[str, Any]) -> list[list[float]]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    params = [jnp.array(numbers(i, shape)).reshape(shape) for i, shape in enumerate(SHAPES)]
    optimizer = getattr(optax, name)(**options)
    state = optimizer.init(params)
    for t in range(STEPS):
        grads = [
            jnp.array(numbers(10 * (t + 1) + i, shape)).reshape(shape)
            for i, shape in enumerate(SHAPES)
        ]
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return [p.reshape(-1).tolist() for p in params]


def main() -> None:
    library = sys.argv[1]
    rows = {"pytorch_optimizer": PYTORCH_OPTIMIZER, "optax": OPTAX}[library]
    run = {"pytorch_optimizer": of_pytorch_optimizer, "optax": of_optax}[library]
    import importlib.metadata

    recorded: dict[str, Any] = {"version": importlib.metadata.version(library), "rows": {}}
    for ours, (kwargs, name, options) in rows.items():
        recorded["rows"][ours] = {
            "name": name,
            "kwargs": kwargs,
            "rtol": 1e-7 if ours in IN_SINGLE[library] else 1e-10,
            "params": run(name, options),
        }
    path = Path(__file__).with_name(f"shelf_{library}.json")
    path.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
