"""A transformation of a user's own, in the three faces: heavy ball, with its state as a tuple."""

import torch
import torch.nn as nn

import torchopt
from torchopt.base import GradientTransformation

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
x, y = torch.randn(16, 3), torch.randn(16, 1)


def heavy_ball(lr, beta):
    def init_fn(params):
        return tuple(torch.zeros_like(p) for p in torchopt.pytree.tree_leaves(params))

    def update_fn(updates, state, *, params=None, inplace=True):
        state = torchopt.pytree.tree_map(lambda m, g: beta * m + g, state, updates)
        return torchopt.pytree.tree_map(lambda m: -lr * m, state), state

    return GradientTransformation(init_fn, update_fn)


def loss_fn(net):
    return (net(x) - y).square().mean()


def show(name, *tensors):
    print(name, *(f"{t.abs().sum().item():.12f}" for t in tensors))


net = nn.Linear(3, 1)
optim = torchopt.Optimizer(net.parameters(), heavy_ball(0.1, 0.9))
for _ in range(4):
    loss = loss_fn(net)
    optim.zero_grad()
    loss.backward()
    optim.step()
    show("stateful", loss, net.weight, net.bias)

net = nn.Linear(3, 1)
initial = torchopt.extract_state_dict(net)
meta = torchopt.MetaOptimizer(
    net, torchopt.combine.chain(torchopt.nan_to_num(0.0), heavy_ball(0.1, 0.9))
)
start = list(net.parameters())
for _ in range(4):
    meta.step(loss_fn(net))
    show("meta", net.weight, net.bias)
show("initial", *torch.autograd.grad(net.weight.sum() ** 2, start[0]))
torchopt.recover_state_dict(net, initial)
show("recovered", net.weight)

params = (torch.ones(3, 1), torch.zeros(1))
impl = heavy_ball(0.1, 0.9)
state = impl.init(params)
for _ in range(4):
    params = tuple(p.detach().requires_grad_() for p in params)
    grads = torch.autograd.grad((x @ params[0] + params[1] - y).square().mean(), params)
    updates, state = impl.update(grads, state, inplace=False)
    params = torchopt.apply_updates(params, updates, inplace=False)
    show("functional", *params)
