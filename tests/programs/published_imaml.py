"""The iMAML program that users of 0.7 read on the web, with what it elides filled in.

Filled in: the constants, the network, the labels' meaning, a `helpers.seed_everything`, float64,
and lines that print.
"""

import types

import functorch
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.types
from torch.utils import data

import torchopt
from torchopt import pytree

BATCH_SIZE, NUM_UPDATES, MODEL_NUM_INPUTS, MODEL_NUM_CLASSES = 4, 4, 8, 3
lr, inner_lr, inner_update, dtype = 0.1, 0.05, 50, torch.float64
helpers = types.SimpleNamespace(seed_everything=lambda seed: torch.manual_seed(seed))


class FcNet(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.fc = nn.Linear(in_features=dim, out_features=out, bias=True)
        nn.init.ones_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        return self.fc(x)


@torch.no_grad()
def get_model_torch(
    device: torch.types.Device = None, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, data.DataLoader]:
    helpers.seed_everything(seed=42)
    model = FcNet(MODEL_NUM_INPUTS, MODEL_NUM_CLASSES).to(dtype=dtype)
    if device is not None:
        model = model.to(device=torch.device(device))
    dataset = data.TensorDataset(
        torch.randint(0, 2, (BATCH_SIZE * NUM_UPDATES, MODEL_NUM_INPUTS)),
        torch.randint(0, MODEL_NUM_CLASSES, (BATCH_SIZE * NUM_UPDATES,)),
    )
    loader = data.DataLoader(dataset, BATCH_SIZE, shuffle=False)
    return model, loader


model, loader = get_model_torch(device="cpu", dtype=dtype)
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
            loss = F.cross_entropy(pred, y)  # compute loss
            # Compute regularization loss
            regularization_loss = 0
            for p1, p2 in zip(params, meta_params):
                regularization_loss += 0.5 * torch.sum(torch.square(p1 - p2))
            final_loss = loss + regularization_loss
            grads = torch.autograd.grad(final_loss, params)  # compute gradients
            updates, opt_state = optimizer.update(grads, opt_state, inplace=True)  # get updates
            params = torchopt.apply_updates(params, updates, inplace=True)
    return params, (0, {"a": 1, "b": 2})


for xs, ys in loader:
    xs = xs.to(dtype=dtype)
    data = (xs, ys, fmodel)
    inner_params = pytree.tree_map(
        lambda t: t.clone().detach_().requires_grad_(requires_grad=t.requires_grad), params
    )
    optimal_inner_params, aux = inner_solver_torchopt(inner_params, params, data)
    assert aux == (0, {"a": 1, "b": 2})
    outer_loss = fmodel(optimal_inner_params, xs).mean()
    grads = torch.autograd.grad(outer_loss, params)
    updates, optim_state = optim.update(grads, optim_state)
    params = torchopt.apply_updates(params, updates)
    print(f"outer loss {outer_loss.item():.14g}")
    xs = xs.numpy()
    ys = ys.numpy()
for p in params:
    print("parameters", *(f"{value:.14g}" for value in p.flatten().tolist()))
