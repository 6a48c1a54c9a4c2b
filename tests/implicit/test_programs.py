"""Published programs run as printed; classical problems give their closed forms."""

from __future__ import annotations

import sys
import types
from typing import Any

import functorch
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.types
from torch.utils import data as torch_data

import torchopt
from torchopt import pytree
from torchopt_implicit import custom_root
from torchopt_implicit.linear_solve import solve_cg, solve_cholesky, solve_lu

PRINTED = """
@torch.no_grad()
def get_model_torch(
    device: torch.types.Device = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, data.DataLoader]:
    helpers.seed_everything(seed=42)
    model = FcNet(MODEL_NUM_INPUTS, MODEL_NUM_CLASSES).to(dtype=dtype)
    if device is not None:
        model = model.to(device=torch.device(device))
    dataset = data.TensorDataset(
        torch.randint(0, 1, (BATCH_SIZE * NUM_UPDATES, MODEL_NUM_INPUTS)),
        torch.randint(0, MODEL_NUM_CLASSES, (BATCH_SIZE * NUM_UPDATES,)),
    )
    loader = data.DataLoader(dataset, BATCH_SIZE, shuffle=False)
    return model, loader
model, loader = get_model_torch(device='cpu')
fmodel, params = functorch.make_functional(model)
optim = torchopt.sgd(lr)
optim_state = optim.init(params)
def imaml_objective_torchopt(params, meta_params, data):
    x, y, f = data
    y_pred = f(params, x)
    regularization_loss = 0
    for p1, p2 in zip(params, meta_params):
        regularization_loss += 0.5 * torch.sum(torch.square(p1 - p2))
    loss = F.cross_entropy(y_pred, y) + regularization_loss
    return loss
@torchopt.diff.implicit.custom_root(
    functorch.grad(imaml_objective_torchopt, argnums=0),
    argnums=1,
    has_aux=True,
    solve=torchopt.linear_solve.solve_normal_cg(),
)
def inner_solver_torchopt(params, meta_params, data):
    # Initial functional optimizer based on TorchOpt
    x, y, f = data
    optimizer = torchopt.sgd(lr=inner_lr)
    opt_state = optimizer.init(params)
    with torch.enable_grad():
        # Temporarily enable gradient computation for conducting the optimization
        for _ in range(inner_update):
            pred = f(params, x)
            loss = F.cross_entropy(pred, y) # compute loss
            # Compute regularization loss
            regularization_loss = 0
            for p1, p2 in zip(params, meta_params):
                regularization_loss += 0.5 * torch.sum(torch.square(p1 - p2))
            final_loss = loss + regularization_loss
            grads = torch.autograd.grad(final_loss, params) # compute gradients
            updates, opt_state = optimizer.update(grads, opt_state, inplace=True) # get updates
            params = torchopt.apply_updates(params, updates, inplace=True)
    return params, (0, {'a': 1, 'b': 2})
for xs, ys in loader:
    xs = xs.to(dtype=dtype)
    data = (xs, ys, fmodel)
    inner_params = pytree.tree_map(
        lambda t: t.clone().detach_().requires_grad_(requires_grad=t.requires_grad), params
    )
    optimal_inner_params, aux = inner_solver_torchopt(inner_params, params, data)
    assert aux == (0, {'a': 1, 'b': 2})
    outer_loss = fmodel(optimal_inner_params, xs).mean()
    grads = torch.autograd.grad(outer_loss, params)
    updates, optim_state = optim.update(grads, optim_state)
    params = torchopt.apply_updates(params, updates)
    xs = xs.numpy()
    ys = ys.numpy()
"""


class FcNet(nn.Module):
    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, out, bias=True)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x)


@pytest.mark.filterwarnings(r"ignore:[\s\S]*`functorch\.\w+` is deprecated:FutureWarning")
def test_the_printed_imaml_program_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers = types.ModuleType("helpers")
    helpers.seed_everything = lambda seed: torch.manual_seed(seed)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    scope: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "F": F,
        "data": torch_data,
        "functorch": functorch,
        "torchopt": torchopt,
        "pytree": pytree,
        "helpers": helpers,
        "FcNet": FcNet,
        "dtype": torch.float32,
        "MODEL_NUM_INPUTS": 10,
        "MODEL_NUM_CLASSES": 4,
        "BATCH_SIZE": 8,
        "NUM_UPDATES": 3,
        "lr": 0.1,
        "inner_lr": 0.5,
        "inner_update": 40,
    }
    exec(PRINTED, scope)
    # of the last round: (I + H) u = dL/dp, by the matrix, and the derivative in meta_params is -I
    optimum = tuple(p.detach() for p in scope["optimal_inner_params"])
    xs, ys = torch.as_tensor(scope["xs"]), torch.as_tensor(scope["ys"])
    f = scope["fmodel"]
    hessian = torch.func.hessian(lambda p: F.cross_entropy(f(p, xs), ys))(optimum)
    size = sum(p.numel() for p in optimum)
    H = torch.cat(
        [
            torch.cat(
                [h.reshape(p.numel(), q.numel()) for h, q in zip(row, optimum, strict=True)], 1
            )
            for row, p in zip(hessian, optimum, strict=True)
        ]
    )
    outer = torch.func.grad(lambda p: f(p, xs).mean())(optimum)
    b = torch.cat([g.reshape(-1) for g in outer])
    expected = torch.linalg.solve(H + torch.eye(size), b)
    computed = torch.cat([g.reshape(-1) for g in scope["grads"]])
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solve", [solve_cg(rtol=1e-12), solve_lu(), solve_cholesky()])
def test_ridge_regression_equals_its_closed_form(solve: Any, float64: None) -> None:
    X, y = torch.randn(60, 30), torch.randn(60)

    def closed_form(penalty: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(X.T @ X + penalty * torch.eye(30), X.T @ y)

    @custom_root(lambda w, penalty: X.T @ (X @ w - y) + penalty * w, argnums=1, solve=solve)
    def ridge(init: None, penalty: torch.Tensor) -> torch.Tensor:
        return closed_form(penalty)

    penalty = torch.tensor(0.7)
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        computed = transform(lambda p: ridge(None, p))(penalty)
        torch.testing.assert_close(computed, transform(closed_form)(penalty), rtol=1e-8, atol=0)


def test_logistic_regression_equals_the_unrolled_reference(float64: None) -> None:
    X = torch.randn(40, 5)
    y = (X @ torch.randn(5) > 0).double()

    def objective(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        loss = F.binary_cross_entropy_with_logits(X @ w, y)
        return loss + 0.5 * (penalty.exp() * w * w).sum()

    gradient = torch.func.grad(objective)

    def descend(init: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        w = init
        for _ in range(2000):
            w = w - 0.8 * gradient(w, penalty)
        return w

    solver = custom_root(gradient, argnums=1, solve=solve_cg(rtol=1e-12))(descend)
    penalty = torch.full((5,), -2.0, requires_grad=True)
    valid = torch.randn(5)
    (computed,) = torch.autograd.grad(solver(torch.zeros(5), penalty) @ valid, penalty)
    (expected,) = torch.autograd.grad(descend(torch.zeros(5), penalty) @ valid, penalty)
    torch.testing.assert_close(computed, expected, rtol=1e-8, atol=1e-10)


def test_the_front_door_leads_here() -> None:
    import torchopt_implicit

    assert torchopt.diff.implicit is torchopt_implicit
    assert torchopt.linalg is torchopt_implicit.linalg
    assert torchopt.linear_solve is torchopt_implicit.linear_solve
    assert torchopt.nn.ImplicitMetaGradientModule is torchopt_implicit.ImplicitMetaGradientModule
