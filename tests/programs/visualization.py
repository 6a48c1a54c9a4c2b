"""Pictures of the gradient's way through a functional and a module's inner loop."""

import re

import functorch
import torch
import torch.nn as nn
from torch import optim

import torchopt


class Net(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc = nn.Linear(dim, 1, bias=True)

    def forward(self, x, meta_param):
        return self.fc(x) + meta_param


def report(dot, *names):
    """Print whether there is a box of each name, followed by the shape of the tensor."""
    for name in names:
        found = re.search(re.escape(name) + r"\s+(\([\d, ]*\))", dot.source)
        print(name, found and [int(size) for size in re.findall(r"\d+", found[1])])


def draw_torchopt():
    net = Net(4)
    inner_optim = torchopt.MetaAdam(net, lr=0.1)
    meta_param = torch.tensor(1.0, requires_grad=True)
    xs, ys = torch.ones(4, 4), torch.ones(4, 1)

    # Get the initial states
    init_net_state = torchopt.extract_state_dict(
        net, by="reference", enable_visual=True, visual_prefix="step0."
    )
    init_optim_state = torchopt.extract_state_dict(
        inner_optim, by="reference", enable_visual=True, visual_prefix="optim0."
    )
    states = [init_net_state]
    for step in range(1, 3):
        loss = nn.functional.mse_loss(net(xs, meta_param), ys)
        inner_optim.step(loss)
        states.append(
            torchopt.extract_state_dict(
                net, by="reference", enable_visual=True, visual_prefix=f"step{step}."
            )
        )
    loss = nn.functional.mse_loss(net(xs, meta_param), ys)
    dot = torchopt.visual.make_dot(loss, params=[*states, {"meta_param": meta_param, "loss": loss}])
    names = [f"step{step}.fc.{name}" for step in range(3) for name in ("weight", "bias")]
    report(dot, *names, "meta_param", "loss")
    print(dot.save("module.gv"), dot.format)
    torchopt.recover_state_dict(net, init_net_state)
    torchopt.recover_state_dict(inner_optim, init_optim_state)
    (grad,) = torch.autograd.grad(loss, meta_param)
    print(f"loss {loss.item():.14g} gradient {grad.item():.14g}")


def draw_functional():
    fmodel, params = functorch.make_functional(nn.Linear(4, 1))
    meta_param = torch.tensor(1.0, requires_grad=True)
    optimizer = torchopt.sgd(lr=0.03)
    state = optimizer.init(params)
    new_params = params
    for _ in range(2):
        loss = meta_param * fmodel(new_params, torch.ones(4, 4)).square().mean()
        grads = torch.autograd.grad(loss, new_params, create_graph=True)
        updates, state = optimizer.update(grads, state, inplace=False)
        new_params = torchopt.apply_updates(new_params, updates, inplace=False)
    loss = fmodel(new_params, torch.ones(4, 4)).square().mean()
    dot = torchopt.visual.make_dot(
        loss, {"weight": params[0], "bias": params[1], "meta_param": meta_param}
    )
    report(dot, "weight", "bias", "meta_param")
    dot.save("functional.gv")
    print(f"loss {loss.item():.14g}")


def draw_plain():
    net = nn.Linear(2, 1)
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    loss = net(torch.ones(1, 2)).sum()
    dot = torchopt.visual.make_dot(loss, dict(net.named_parameters()), show_attrs=True)
    report(dot, "weight", "bias")
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    draw_torchopt()
    draw_functional()
    draw_plain()
