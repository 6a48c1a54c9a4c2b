"""Few-shot classification by MAML with modules: `MetaSGD` adapts, states are taken and put back."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

import torchopt


class Net(nn.Module):
    def __init__(self, n_way):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=1.0, affine=True), nn.ReLU(),
            nn.MaxPool2d(2, 2), nn.Flatten(),
        )  # fmt: skip
        self.fc = nn.Linear(36, n_way)

    def forward(self, x):
        return self.fc(self.features(x))


def episode(prototypes, n_way, k_shot):
    """Draw classes, and noisy pictures of them."""
    classes = torch.randperm(len(prototypes))[:n_way]
    y = torch.arange(n_way).repeat(k_shot)
    x = prototypes[classes][y].unsqueeze(1)
    return x + 0.3 * torch.randn_like(x), y


def adapt(net, inner_opt, n_inner_iter, x_spt, y_spt):
    for _ in range(n_inner_iter):
        spt_logits = net(x_spt)
        spt_loss = F.cross_entropy(spt_logits, y_spt)
        inner_opt.step(spt_loss)


def train(prototypes, net, meta_opt, epoch, n_train_iter, task_num, n_way):
    net.train()
    n_inner_iter = 3
    inner_opt = torchopt.MetaSGD(net, lr=1e-1)
    for batch_idx in range(n_train_iter):
        qry_losses = []
        qry_accs = []
        meta_opt.zero_grad()
        net_state_dict = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
        optim_state_dict = torchopt.extract_state_dict(inner_opt, by="reference")
        for i in range(task_num):
            x_spt, y_spt = episode(prototypes, n_way, 1)
            x_qry, y_qry = episode(prototypes, n_way, 1)
            adapt(net, inner_opt, n_inner_iter, x_spt, y_spt)
            qry_logits = net(x_qry)
            qry_loss = F.cross_entropy(qry_logits, y_qry)
            qry_losses.append(qry_loss)
            qry_accs.append((qry_logits.argmax(dim=1) == y_qry).double().mean().item())
            torchopt.recover_state_dict(net, net_state_dict)
            torchopt.recover_state_dict(inner_opt, optim_state_dict)
        qry_losses = torch.mean(torch.stack(qry_losses))
        qry_losses.backward()
        meta_opt.step()
        if batch_idx % 4 == 0:
            accs = 100.0 * sum(qry_accs) / task_num
            print(f"epoch {epoch} iter {batch_idx} loss {qry_losses.item():.14g} acc {accs:.14g}")


def test(prototypes, net, epoch, n_test_iter, n_way):
    # the tests adapt the network too, and must not change it
    net.train()
    inner_opt = torchopt.MetaSGD(net, lr=1e-1)
    init_net_state_dict = torchopt.extract_state_dict(net, by="copy")
    init_optim_state_dict = torchopt.extract_state_dict(inner_opt, by="copy")
    qry_losses = []
    for _ in range(n_test_iter):
        net_state_dict = torchopt.extract_state_dict(net, by="deepcopy")
        optim_state_dict = torchopt.extract_state_dict(inner_opt, by="deepcopy")
        x_spt, y_spt = episode(prototypes, n_way, 1)
        x_qry, y_qry = episode(prototypes, n_way, 1)
        adapt(net, inner_opt, 3, x_spt, y_spt)
        qry_losses.append(F.cross_entropy(net(x_qry), y_qry).detach())
        torchopt.recover_state_dict(net, net_state_dict)
        torchopt.recover_state_dict(inner_opt, optim_state_dict)
    print(f"epoch {epoch} test loss {torch.mean(torch.stack(qry_losses)).item():.14g}")
    torchopt.recover_state_dict(net, init_net_state_dict)
    torchopt.recover_state_dict(inner_opt, init_optim_state_dict)
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(inner_opt)


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    prototypes = torch.randn(12, 8, 8)
    n_way = 4
    net = Net(n_way)
    meta_opt = optim.Adam(net.parameters(), lr=1e-2)
    for epoch in range(2):
        train(prototypes, net, meta_opt, epoch, n_train_iter=5, task_num=3, n_way=n_way)
        running = net.features[1].running_mean
        print("running mean", *(f"{value:.14g}" for value in running.tolist()))
    test(prototypes, net, epoch, n_test_iter=4, n_way=n_way)
    total = torch.cat([p.detach().flatten() for p in net.parameters()]).square().sum()
    print(f"squared weights {total.item():.14g}")


if __name__ == "__main__":
    main()
