"""Learning to reweight examples (Ren, Zeng, Yang, Urtasun 2018) on an imbalanced problem."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import torchopt


class LeNet(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x):
        return self.model(x).squeeze(dim=-1)

    def outer_loss(self, valid_x, valid_y):
        return F.binary_cross_entropy(self.forward(valid_x), valid_y, reduction="mean")


class MetaWeights(nn.Module):
    """The weights of the examples of a batch, which start at zero."""

    def __init__(self, size):
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(size))


def get_imbalance_dataset(n_major, n_minor, n_valid, n_test, dim=10):
    direction = F.normalize(torch.randn(dim), dim=0)

    def draw(n, label):
        return torch.randn(n, dim) + (1.2 if label else -1.2) * direction, torch.full((n,), label)

    def both(n_0, n_1):
        (x0, y0), (x1, y1) = draw(n_0, 0.0), draw(n_1, 1.0)
        order = torch.randperm(n_0 + n_1)
        return TensorDataset(torch.cat([x0, x1])[order], torch.cat([y0, y1])[order])

    return (
        both(n_major, n_minor),
        both(n_valid, n_valid).tensors,
        both(n_test, n_test).tensors,
    )


def run_l2r(train_set, valid, test, epochs):
    valid_x, valid_y = valid
    net = LeNet(train_set.tensors[0].shape[1])
    real_optim = torch.optim.Adam(net.parameters(), lr=1e-2)
    inner_optim = torchopt.MetaSGD(net, lr=1e-1)
    for epoch in range(epochs):
        for train_x, train_label in DataLoader(train_set, batch_size=50):
            # reset meta-parameter weights
            meta = MetaWeights(len(train_x))
            net_state_dict = torchopt.extract_state_dict(net)
            optim_state_dict = torchopt.extract_state_dict(inner_optim)

            # train
            losses = F.binary_cross_entropy(net(train_x), train_label, reduction="none")
            train_loss = (meta.eps * losses).sum()
            inner_optim.step(train_loss)

            # calculate outer_loss, derive meta-gradient and normalise
            outer_loss = net.outer_loss(valid_x, valid_y)
            (grad_eps,) = torch.autograd.grad(outer_loss, meta.eps)
            weights = torch.clamp(-grad_eps, min=0)
            total = weights.sum()
            weights = weights / (total + (total == 0).to(total.dtype))

            # reset the model and model optimizer, and train with the weights found
            torchopt.recover_state_dict(net, net_state_dict)
            torchopt.recover_state_dict(inner_optim, optim_state_dict)
            losses = F.binary_cross_entropy(net(train_x), train_label, reduction="none")
            real_loss = (weights.detach() * losses).sum()
            real_optim.zero_grad()
            real_loss.backward()
            real_optim.step()
        with torch.no_grad():
            accuracy = ((net(test[0]) > 0.5) == test[1].bool()).double().mean()
        print(
            f"epoch {epoch} outer loss {outer_loss.item():.14g} "
            f"real loss {real_loss.item():.14g} "
            f"weight of the minority {weights[train_label == 1].sum().item():.14g} "
            f"accuracy {accuracy.item():.14g}"
        )


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    run_l2r(*get_imbalance_dataset(475, 25, 5, 500), epochs=3)
