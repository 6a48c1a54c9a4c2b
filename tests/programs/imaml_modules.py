"""iMAML (Rajeswaran, Finn, Kakade, Levine 2019) with an `ImplicitMetaGradientModule`."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

import torchopt
from torchopt.nn import ImplicitMetaGradientModule


class InnerNet(
    ImplicitMetaGradientModule,
    linear_solve=torchopt.linear_solve.solve_normal_cg(maxiter=5, atol=0),
):
    def __init__(self, meta_net, n_inner_iter, reg_param):
        super().__init__()
        # Declares the meta-parameters; the parameters are a detached copy of them
        self.meta_net = meta_net
        self.net = torchopt.module_clone(meta_net, by="deepcopy", detach_buffers=True)
        self.n_inner_iter = n_inner_iter
        self.reg_param = reg_param
        self.reset_parameters()

    def reset_parameters(self):
        with torch.no_grad():
            for p1, p2 in zip(self.parameters(), self.meta_parameters()):
                p1.data.copy_(p2.data)
                p1.detach_().requires_grad_()

    def forward(self, x):
        return self.net(x)

    def objective(self, x, y):
        # We define the objective function, whose gradient is zero at the solution
        y_pred = self(x)
        loss = F.cross_entropy(y_pred, y)
        regularization_loss = 0
        for p1, p2 in zip(self.parameters(), self.meta_parameters()):
            regularization_loss += 0.5 * torch.sum(torch.square(p1 - p2))
        return loss + self.reg_param * regularization_loss

    def solve(self, x, y):
        params = tuple(self.parameters())
        inner_optim = torchopt.SGD(params, lr=1e-1)
        with torch.enable_grad():
            # Temporarily enable gradient computation for conducting the optimization
            for _ in range(self.n_inner_iter):
                loss = self.objective(x, y)
                inner_optim.zero_grad()
                loss.backward(inputs=params)
                inner_optim.step()
        return self


def sample_tasks(centers, task_num, n_way, k_shot):
    for _ in range(task_num):
        classes = torch.randperm(len(centers))[:n_way]
        y = torch.arange(n_way).repeat(2 * k_shot)
        x = centers[classes][y] + 0.5 * torch.randn(len(y), centers.shape[1])
        yield x.chunk(2) + y.chunk(2)


def main():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    centers = torch.randn(10, 6)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    meta_opt = optim.Adam(net.parameters(), lr=1e-2)
    inner_nets = [InnerNet(net, n_inner_iter=5, reg_param=2.0) for _ in range(3)]
    for batch_idx in range(4):
        qry_losses, qry_accs = [], []
        meta_opt.zero_grad()
        tasks = sample_tasks(centers, len(inner_nets), n_way=3, k_shot=2)
        for inner_net, (x_spt, x_qry, y_spt, y_qry) in zip(inner_nets, tasks):
            inner_net.reset_parameters()
            optimal_inner_net = inner_net.solve(x_spt, y_spt)
            qry_logits = optimal_inner_net(x_qry)
            qry_losses.append(F.cross_entropy(qry_logits, y_qry))
            qry_accs.append((qry_logits.argmax(dim=1) == y_qry).double().mean().item())
        qry_loss = torch.mean(torch.stack(qry_losses))
        qry_loss.backward()
        norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        meta_opt.step()
        print(
            f"iter {batch_idx} loss {qry_loss.item():.14g} "
            f"acc {100 * sum(qry_accs) / len(qry_accs):.14g} meta-gradient {norm.item():.14g}"
        )


if __name__ == "__main__":
    main()
