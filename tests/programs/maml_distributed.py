"""MAML whose tasks are adapted on the workers of a group, by remote calls with gradients."""

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim

import torchopt
import torchopt.distributed as todist


def worker_init_fn():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1 + todist.get_rank())


def sample_tasks(task_num):
    """Draw sinusoids, with ten points to learn from and ten to be judged by."""
    amplitude = 0.1 + 4.9 * torch.rand(task_num, 1, 1)
    phase = torch.pi * torch.rand(task_num, 1, 1)
    x = 10 * torch.rand(task_num, 20, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:, :10], y[:, :10], x[:, 10:], y[:, 10:]


@todist.parallelize(partitioner=todist.batch_partitioner, reducer=todist.sum_reducer)
def inner_loop(net, x_spt, y_spt, x_qry, y_qry):
    """Return the sum of the losses after adaptation to each of the tasks."""
    inner_opt = torchopt.MetaSGD(net, lr=1e-2)
    net_state_dict = torchopt.extract_state_dict(net, by="reference", detach_buffers=True)
    optim_state_dict = torchopt.extract_state_dict(inner_opt, by="reference")
    qry_losses = []
    for i in range(len(x_spt)):
        for _ in range(3):
            inner_opt.step(F.mse_loss(net(x_spt[i]), y_spt[i]))
        qry_losses.append(F.mse_loss(net(x_qry[i]), y_qry[i]))
        torchopt.recover_state_dict(net, net_state_dict)
        torchopt.recover_state_dict(inner_opt, optim_state_dict)
    return torch.stack(qry_losses).sum()


@todist.parallelize(partitioner=todist.dim_partitioner(0, exclusive=True, keepdim=False))
def task_loss(net, x_spt, y_spt, x_qry, y_qry):
    """Return the loss after adaptation to one task."""
    inner_opt = torchopt.MetaAdam(net, lr=1e-2)
    for _ in range(3):
        inner_opt.step(F.mse_loss(net(x_spt), y_spt))
    return F.mse_loss(net(x_qry), y_qry).detach()


@todist.parallelize_async(partitioner=todist.batch_partitioner, reducer=todist.mean_reducer)
def mean_of(x):
    return x.mean()


@todist.rank_zero_only
def train():
    net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
    meta_opt = optim.Adam(net.parameters(), lr=1e-2)
    task_num = 4
    for i in range(4):
        tasks = sample_tasks(task_num)
        with todist.autograd.context() as context_id:
            # Forward pass
            cloned_net = torchopt.module_clone(net, by="clone")
            qry_loss = inner_loop(cloned_net, *tasks) / task_num
            # Backward pass
            meta_opt.zero_grad()
            todist.autograd.backward(context_id, qry_loss)
            norm = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
            meta_opt.step()
        print(f"iter {i} loss {qry_loss.item():.14g} meta-gradient {norm.item():.14g}")
    losses = task_loss(torchopt.module_clone(net, by="deepcopy"), *sample_tasks(3))
    print("test losses", *(f"{loss.item():.14g}" for loss in losses))
    print(f"mean {mean_of(torch.arange(8.0)).wait().item():.14g}")
    print("called on", todist.remote_sync_call(todist.get_rank, partitioner=1))


@todist.auto_init_rpc(worker_init_fn)
def main():
    train()


if __name__ == "__main__":
    main()
