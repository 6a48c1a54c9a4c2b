"""The distributed program of the TorchOpt blog, its elided parts filled in.

Filled in: the arguments, the model, the loader, the loss, the import of `argparse` and
`setproctitle`, and `args` as a global, which the printed `worker_init_fn` reads. Where there is no
GPU, the device is the CPU. The losses are printed.
"""

import argparse

import setproctitle
import torch
import torch.nn as nn
import torch.nn.functional as F

import torchopt.distributed as todist


def parse_arguments():
    parser = argparse.ArgumentParser(description="TorchOpt Distributed Training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    return args


def worker_init_fn():
    # set process title, seeding, etc.
    setproctitle.setproctitle(f"Worker{todist.get_rank()}")
    torch.manual_seed(args.seed + todist.get_rank())


@todist.parallelize(partitioner=todist.batch_partitioner, reducer=todist.mean_reducer)
def compute_loss(model, batch):
    device = torch.device(f"cuda:{todist.get_local_rank()}" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    batch = batch.to(device)

    # Compute local loss of the given batch
    loss = F.mse_loss(model(batch[:, :-1]), batch[:, -1:])
    return loss.cpu()


def build_model():
    return nn.Sequential(
        nn.Linear(4, 16),
        nn.Tanh(),
        nn.Linear(16, 1),
    )


@todist.rank_zero_only
def train(args):
    model = build_model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)
    x = torch.randn(60, 4, dtype=torch.float64)
    data = torch.cat([x, x.prod(dim=1, keepdim=True).sin()], dim=1)
    train_loader = torch.utils.data.DataLoader(data, batch_size=7)

    for epoch in range(args.epochs):
        for batch in train_loader:
            with todist.autograd.context() as context_id:
                # Forward pass
                cloned_model = todist.module_clone(model, by="clone")
                loss = compute_loss(cloned_model, batch)

                # Backward pass
                optimizer.zero_grad()
                todist.autograd.backward(context_id, loss)

                # Update parameters
                optimizer.step()
            print(f"epoch {epoch} loss {loss.item()!r}")


@todist.auto_init_rpc(worker_init_fn)
def main():
    args = parse_arguments()
    train(args)


if __name__ == "__main__":
    args = parse_arguments()
    main()
