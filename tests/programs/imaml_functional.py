"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019) with functions: few-shot sinusoids."""

import functorch
import torch
import torch.nn as nn
import torch.nn.functional as F

import torchopt

REG_PARAM, N_INNER_ITER, TASK_NUM = 0.5, 8, 4


def sample_tasks():
    amplitude = 0.1 + 4.9 * torch.rand(TASK_NUM, 1, 1)
    phase = torch.pi * torch.rand(TASK_NUM, 1, 1)
    x = 10 * torch.rand(TASK_NUM, 20, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]


def imaml_objective(params, meta_params, data):
    x_spt, y_spt, fmodel = data
    y_pred = fmodel(params, x_spt)
    regularization_loss = 0
    for p1, p2 in zip(params, meta_params):
        regularization_loss += 0.5 * REG_PARAM * torch.sum(torch.square(p1 - p2))
    loss = F.mse_loss(y_pred, y_spt) + regularization_loss
    return loss


@torchopt.diff.implicit.custom_root(
    functorch.grad(imaml_objective, argnums=0),
    argnums=1,
    has_aux=False,
    solve=torchopt.linear_solve.solve_normal_cg(maxiter=5, atol=0),
)
def train_inner_solver(params, meta_params, data):
    # Initial functional optimizer based on TorchOpt
    optimizer = torchopt.sgd(lr=5e-2)
    opt_state = optimizer.init(params)
    with torch.enable_grad():
        # Temporarily enable gradient computation for conducting the optimization
        for _ in range(N_INNER_ITER):
            loss = imaml_objective(params, meta_params, data)
            grads = torch.autograd.grad(loss, params)
            updates, opt_state = optimizer.update(grads, opt_state, inplace=True)
            params = torchopt.apply_updates(params, updates, inplace=True)
    return params


def test_inner_solver(params, meta_params, data):
    optimizer = torchopt.FuncOptimizer(torchopt.adam(lr=5e-2))
    for _ in range(N_INNER_ITER):
        params = optimizer.step(imaml_objective(params, meta_params, data), params)
    return params


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    fmodel, params = functorch.make_functional(net)
    meta_opt = torchopt.adam(lr=1e-2)
    meta_opt_state = meta_opt.init(params)

    def clone(params):
        return torchopt.pytree.tree_map(
            lambda t: t.clone().detach_().requires_grad_(requires_grad=t.requires_grad), params
        )

    for batch_idx in range(4):
        qry_losses = []
        for x_spt, y_spt, x_qry, y_qry in zip(*sample_tasks()):
            optimal_params = train_inner_solver(clone(params), params, (x_spt, y_spt, fmodel))
            qry_losses.append(F.mse_loss(fmodel(optimal_params, x_qry), y_qry))
        qry_loss = torch.mean(torch.stack(qry_losses))
        grads = torch.autograd.grad(qry_loss, params)
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        updates, meta_opt_state = meta_opt.update(grads, meta_opt_state)
        params = torchopt.apply_updates(params, updates)
        print(f"iter {batch_idx} loss {qry_loss.item():.14g} meta-gradient {norm.item():.14g}")

    for x_spt, y_spt, x_qry, y_qry in zip(*sample_tasks()):
        adapted = test_inner_solver(clone(params), params, (x_spt, y_spt, fmodel))
        loss = F.mse_loss(fmodel(adapted, x_qry), y_qry)
        print(f"test loss {loss.item():.14g}")


if __name__ == "__main__":
    main()
