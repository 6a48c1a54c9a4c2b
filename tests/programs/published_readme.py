"""What 0.7's first page showed: functional, stateful and MAML loops on small data."""

import functorch
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.utils.data as data

import torchopt

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
xs, tasks, train_iters, inner_iters = torch.randn(32, 4), 3, 4, 2
teachers = torch.randn(tasks, 4, 3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


def Loader(task):
    dataset = data.TensorDataset(xs, (xs @ teachers[task]).argmax(1))
    return iter(data.DataLoader(dataset, 8))


net = Net()  # init
loader = Loader(0)
optimizer = torchopt.adam()
func, params = functorch.make_functional(net)  # use functorch extract network parameters
opt_state = optimizer.init(params)  # init optimizer
for _ in range(4):
    x, y = next(loader)  # get data
    pred = func(params, x)  # forward
    loss = F.cross_entropy(pred, y)  # compute loss
    grad = torch.autograd.grad(loss, params)  # compute gradients
    updates, opt_state = optimizer.update(grad, opt_state)  # get updates
    params = torchopt.apply_updates(params, updates)  # update network parameters
    print(f"functional loss {loss.item():.14g}")

net = Net()  # init
loader = Loader(0)
optimizer = torchopt.Adam(net.parameters())
for _ in range(4):
    x, y = next(loader)  # get data
    pred = net(x)  # forward
    loss = F.cross_entropy(pred, y)  # compute loss
    optimizer.zero_grad()  # zero gradients
    loss.backward()  # backward
    optimizer.step()  # step updates
    print(f"stateful loss {loss.item():.14g}")

net = Net()  # init
# the constructor `MetaOptimizer` takes as input the network
inner_optim = torchopt.MetaAdam(net)
outer_optim = torchopt.Adam(net.parameters())
for train_iter in range(train_iters):
    outer_loss = 0
    for task in range(tasks):
        loader = Loader(task)
        # store states at the initial points
        net_state = torchopt.extract_state_dict(net)  # extract state
        optim_state = torchopt.extract_state_dict(inner_optim)
        for inner_iter in range(inner_iters):
            # compute inner loss and perform inner update
            x, y = next(loader)
            pred = net(x)
            inner_loss = F.cross_entropy(pred, y)
            inner_optim.step(inner_loss)
        # compute outer loss and back-propagate
        x, y = next(loader)
        pred = net(x)
        outer_loss += F.cross_entropy(pred, y)

        # recover network and optimizer states at the initial point for the next task
        torchopt.recover_state_dict(inner_optim, optim_state)
        torchopt.recover_state_dict(net, net_state)

    outer_loss /= tasks  # task average
    outer_optim.zero_grad()
    outer_loss.backward()
    outer_optim.step()
    print(f"MAML loss {outer_loss.item():.14g}")

    # stop gradient if necessary
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(inner_optim)
