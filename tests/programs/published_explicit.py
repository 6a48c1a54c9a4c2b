"""The explicit-gradient programs of 0.7's documentation, with what they elide filled in."""

import torch
import torch.nn as nn
from functorch import make_functional

import torchopt

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
xs, ys, iter_times = torch.randn(6, 2), torch.randn(6, 1), 3
model = nn.Linear(2, 1)


def inner_loss(fmodel, params, meta_params):
    return (meta_params * (fmodel(params, xs) - ys).square()).mean()


def outer_loss(fmodel, params, meta_params):
    return (meta_params.mean() * (fmodel(params, xs.flip(0)) - ys).square()).mean()


opt = torchopt.adam()
# Define meta and inner parameters
meta_params = torch.rand(6, 1, requires_grad=True)
fmodel, params = make_functional(model)
# Initialize optimizer state
state = opt.init(params)
for iter in range(iter_times):
    loss = inner_loss(fmodel, params, meta_params)
    grads = torch.autograd.grad(loss, params)
    # Apply non-inplace parameter update
    updates, state = opt.update(grads, state, inplace=False)
    params = torchopt.apply_updates(params, updates)
loss = outer_loss(fmodel, params, meta_params)
meta_grads = torch.autograd.grad(loss, meta_params)
print("functional", f"{loss.item():.14g}", *(f"{g:.14g}" for g in meta_grads[0].flatten().tolist()))

# the same, differentiable in truth
opt = torchopt.adam(lr=0.1)
fmodel, params = make_functional(model)
state = opt.init(params)
for iter in range(iter_times):
    loss = inner_loss(fmodel, params, meta_params)
    grads = torch.autograd.grad(loss, params, create_graph=True)
    updates, state = opt.update(grads, state, inplace=False)
    params = torchopt.apply_updates(params, updates, inplace=False)
loss = outer_loss(fmodel, params, meta_params)
meta_grads = torch.autograd.grad(loss, meta_params)
print("unrolled", f"{loss.item():.14g}", *(f"{g:.14g}" for g in meta_grads[0].flatten().tolist()))

# Low-level and high-level API
for optim_class in (
    lambda net: torchopt.MetaOptimizer(net, torchopt.sgd(lr=1.0)),
    lambda net: torchopt.MetaSGD(net, lr=1.0),
    lambda net: torchopt.MetaAdam(net, lr=0.1),
    lambda net: torchopt.MetaAdaDelta(net),
    lambda net: torchopt.MetaAdaGrad(net),
    lambda net: torchopt.MetaAdamW(net),
    lambda net: torchopt.MetaAdaMax(net),
    lambda net: torchopt.MetaRAdam(net),
    lambda net: torchopt.MetaRMSProp(net),
):
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, 0.5)
    nn.init.constant_(net.bias, -0.5)
    optim = optim_class(net)
    for iter in range(iter_times):
        # Perform the inner update
        loss = (meta_params * (net(xs) - ys).square()).mean()
        optim.step(loss)
    loss = (meta_params.mean() * (net(xs.flip(0)) - ys).square()).mean()
    (grads,) = torch.autograd.grad(loss, meta_params)
    print("meta", f"{loss.item():.14g}", *(f"{g:.14g}" for g in grads.flatten().tolist()))

# CPU/GPU accelerated optimizer; 0.7's derivative of it leaves out `eps`, of 1e-8
if torchopt.accelerated_op_available(torch.device("cpu")):
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, 0.5)
    nn.init.constant_(net.bias, -0.5)
    optim = torchopt.MetaAdam(net, lr=0.1, use_accelerated_op=True)
    for iter in range(iter_times):
        optim.step((meta_params * (net(xs) - ys).square()).mean())
    loss = (meta_params.mean() * (net(xs.flip(0)) - ys).square()).mean()
    (grads,) = torch.autograd.grad(loss, meta_params)
    print("accelerated", f"{loss.item():.6g}", *(f"{g:.6g}" for g in grads.flatten().tolist()))


# General utilities
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0), requires_grad=True)

    def forward(self, x):
        return self.a * (x**2)


net = Net()
x = nn.Parameter(torch.tensor(2.0), requires_grad=True)
optim = torchopt.MetaAdam(net, lr=1.0)

# Get the reference of state dictionary
init_net_state = torchopt.extract_state_dict(net, by="reference")
init_optim_state = torchopt.extract_state_dict(optim, by="reference")
# If set `detach_buffers=True`, the parameters are referenced as references while buffers are
# detached copies
init_net_state = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)

# Set `copy` to get the copy of the state dictionary
init_net_state_copy = torchopt.extract_state_dict(net, by="copy")
init_optim_state_copy = torchopt.extract_state_dict(optim, by="copy")

# Set `deepcopy` to get the detached copy of state dictionary
init_net_state_deepcopy = torchopt.extract_state_dict(net, by="deepcopy")
init_optim_state_deepcopy = torchopt.extract_state_dict(optim, by="deepcopy")

for states in (
    (init_net_state, init_optim_state),
    (init_net_state_copy, init_optim_state_copy),
    (init_net_state_deepcopy, init_optim_state_deepcopy),
):
    # Conduct 2 inner-loop optimization
    for i in range(2):
        inner_loss_ = net(x)
        optim.step(inner_loss_)
    print(f"a = {net.a.item():.14g}")
    # Recover and reconduct 2 inner-loop optimization
    torchopt.recover_state_dict(net, states[0])
    torchopt.recover_state_dict(optim, states[1])
    for i in range(2):
        inner_loss_ = net(x)
        optim.step(inner_loss_)
    print(f"a = {net.a.item():.14g}")  # the same result
