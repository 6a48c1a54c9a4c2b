"""Learn to learn digits on several processes: the loop of few_shot_digits.py through both doors.

    python few_shot_distributed.py --door tasks                         # one process
    torchrun --nproc-per-node 2 few_shot_distributed.py --door tasks    # each rank takes its tasks
    torchrun --nproc-per-node 2 few_shot_distributed.py --door rpc      # rank 0 calls the others

All of them print the same losses (to rounding; compare them with --double). Through the door of
tasks every rank runs the program and `map_tasks` shares the meta-batch out; through RPC, rank 0
runs it and calls the others.
"""

from __future__ import annotations

import argparse

import torch
from _digits import Task, load_classes
from few_shot_digits import SEEN, make_network, meta_train, one_by_one, task_loss
from torch import nn

import torchopt
import torchopt.distributed as todist


def by_tasks(net: nn.Module, tasks: list[Task], args: argparse.Namespace) -> tuple[float, float]:
    """Differentiate this rank's tasks and reduce over the ranks, in one collective."""

    def fn(net: nn.Module, task: Task) -> tuple[torch.Tensor, dict[str, float]]:
        loss, correct = task_loss(net, task, args)
        return loss, {"accuracy": correct}

    result = todist.map_tasks(
        fn, tasks, net, metrics=["accuracy"], deterministic=args.deterministic
    )
    result.accumulate_grad(net)
    return result.loss.item(), result.metrics["accuracy"].mean().item()


@todist.parallelize()  # splits the batch of tasks over the workers, and averages what they return
def mean_loss(
    net: nn.Module,
    support: torch.Tensor,
    support_labels: torch.Tensor,
    query: torch.Tensor,
    query_labels: torch.Tensor,
    args: argparse.Namespace,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean loss and accuracy of tasks, (tasks, images, ...) each; runs on a worker."""
    initial = torchopt.extract_state_dict(net)
    losses, accuracies = [], []
    for images in zip(support, support_labels, query, query_labels, strict=True):
        loss, correct = task_loss(net, Task(*images, names=[]), args)
        torchopt.recover_state_dict(net, initial)
        losses.append(loss)
        accuracies.append(correct)
    return torch.stack(losses).mean(), torch.tensor(accuracies).mean()


def by_rpc(net: nn.Module, tasks: list[Task], args: argparse.Namespace) -> tuple[float, float]:
    """Let the workers evaluate tasks, and go back through all of them."""
    stacked = [torch.stack([task[field] for task in tasks]) for field in range(4)]
    with todist.autograd.context() as context_id:
        loss, correct = mean_loss(net, *stacked, args)
        todist.autograd.backward(context_id, loss)
    return loss.item(), correct.item()


def train(args: argparse.Namespace) -> None:
    """Meta-train, and print the losses on rank zero."""
    torch.manual_seed(args.seed)
    net = make_network()
    classes = load_classes(SEEN, symmetries=True)
    differentiate = {"none": one_by_one, "tasks": by_tasks, "rpc": by_rpc}[args.door]
    speaks = todist.get_rank() == 0
    curve = meta_train(net, classes, args, differentiate, quiet=not speaks)
    if speaks:
        for iteration, (loss, correct) in enumerate(curve):
            print(f"iteration {iteration}: loss {loss!r}, accuracy {correct:.1f}%")


def main() -> None:
    """Read the command line and open a door."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--door", choices=("none", "tasks", "rpc"), default="tasks")
    parser.add_argument("--fast", action="store_true", help="a few seconds, without a promise")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--deterministic", action="store_true", help="the same bits on any ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, help="meta-iterations (default: 600)")
    parser.add_argument("--tasks", type=int, default=4, help="tasks in a meta-batch")
    parser.add_argument("--inner-optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--inner-lr", type=float, default=0.3)
    args = parser.parse_args()
    args.iterations = args.iterations or (5 if args.fast else 600)

    torch.set_num_threads(1)  # the fastest for a network this small
    if args.double:
        torch.set_default_dtype(torch.float64)
    if args.door == "rpc":
        todist.auto_init_rpc()(todist.rank_zero_only(train))(args)
    else:
        with todist.process_group():
            train(args)


if __name__ == "__main__":
    main()
