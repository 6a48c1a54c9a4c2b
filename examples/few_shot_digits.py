"""Learn to learn handwritten digits: MAML on scikit-learn's digits, judged on unseen classes.

The data are 1797 real digits of 8 x 8 pixels that come with scikit-learn. Meta-training draws tasks
from six digits, turned and mirrored (48 classes); each task shows a few images of four classes
under random labels. Testing draws tasks from the four digits that were left out: the network has
never seen them, and adapts to each task from five images a class by five steps of gradient descent.

MAML (Finn, Abbeel, Levine 2017) learns the initial parameters from which these few steps do best.
The gradient of the loss after adaptation flows through the steps: that is what `MetaSGD` is for.

For comparison the same network adapts from random initial parameters: by the same steps, and, in
fairness, by the learning rate that suits it best, chosen on the training classes.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from _digits import Classes, Task, load_classes
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import torchopt

UNSEEN = (2, 5, 6, 9)
SEEN = tuple(digit for digit in range(10) if digit not in UNSEEN)
WAYS, SHOTS, QUERIES = 4, 5, 10
INNER_STEPS = 5
#: By how many points MAML must beat the random start, at the lower end of the 95 % interval.
MARGIN = 20.0
RATES = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)


def make_network() -> nn.Module:
    """Return a small convolutional network: 8 x 8 pixels to the scores of the labels."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(32, WAYS),
    )


def make_inner(net: nn.Module, name: str, lr: float) -> torchopt.MetaOptimizer:
    """Return the differentiable optimizer of the inner loop."""
    if name == "adam":
        return torchopt.MetaAdam(net, lr=lr / 10, eps=1e-3)
    return torchopt.MetaSGD(net, lr=lr)


def task_loss(net: nn.Module, task: Task, args: argparse.Namespace) -> tuple[torch.Tensor, float]:
    """Adapt ``net`` to a task; return the loss on the images held back, and the accuracy.

    The steps stay in the graph, and the adapted parameters in ``net``: recover them afterwards.
    """
    inner = make_inner(net, args.inner_optimizer, args.inner_lr)
    for _ in range(INNER_STEPS):
        inner.step(F.cross_entropy(net(task.support), task.support_labels))
    scores = net(task.query)
    return F.cross_entropy(scores, task.query_labels), accuracy(scores, task.query_labels)


def one_by_one(net: nn.Module, tasks: list[Task], args: argparse.Namespace) -> tuple[float, float]:
    """Add the gradient of the mean loss to ``.grad``; return the mean loss and accuracy."""
    initial = torchopt.extract_state_dict(net)
    losses, accuracies = [], []
    for task in tasks:
        loss, correct = task_loss(net, task, args)
        (loss / len(tasks)).backward()
        torchopt.recover_state_dict(net, initial)
        losses.append(loss.item())
        accuracies.append(correct)
    return sum(losses) / len(tasks), sum(accuracies) / len(tasks)


def meta_train(
    net: nn.Module,
    classes: Classes,
    args: argparse.Namespace,
    differentiate: Callable[..., tuple[float, float]] = one_by_one,
    quiet: bool = False,
) -> list[tuple[float, float]]:
    """Learn the initial parameters of ``net``.

    Args:
        net: The network.
        classes: Where tasks come from.
        args: The command line.
        differentiate: How the gradient over a meta-batch is found, like :func:`one_by_one`.
        quiet: Whether to show no progress.

    Returns:
        The query loss and accuracy of each iteration.
    """
    generator = torch.Generator().manual_seed(args.seed)
    outer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, args.iterations)
    curve = []
    iterations = range(args.iterations)
    progress = tqdm(iterations, desc="meta-training", file=sys.stderr, disable=quiet)
    for _ in progress:
        tasks = [classes.draw(WAYS, SHOTS, QUERIES, generator) for _ in range(args.tasks)]
        outer.zero_grad()
        curve.append(differentiate(net, tasks, args))
        outer.step()
        schedule.step()
        recent = [correct for _, correct in curve[-20:]]
        progress.set_postfix(accuracy=f"{sum(recent) / len(recent):.1f}%", refresh=False)
    return curve


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of right answers in per cent."""
    return (scores.argmax(dim=-1) == labels).float().mean().item() * 100


def adapt(net: nn.Module, task: Task, name: str, lr: float) -> nn.Module:
    """Return a copy of ``net`` after the inner steps on the task; nothing to differentiate here."""
    learner = copy.deepcopy(net)
    optim: torchopt.Optimizer = torchopt.SGD(learner.parameters(), lr=lr)
    if name == "adam":
        optim = torchopt.Adam(learner.parameters(), lr=lr / 10, eps=1e-3)
    for _ in range(INNER_STEPS):
        optim.zero_grad()
        F.cross_entropy(learner(task.support), task.support_labels).backward()
        optim.step()
    return learner


class Result(NamedTuple):
    """A mean and the half-width of its 95 % interval, in per cent."""

    mean: float
    half_width: float

    @staticmethod
    def of(values: list[float]) -> Result:
        """Return the mean over tasks, with the normal interval."""
        x = torch.tensor(values, dtype=torch.float64)
        return Result(x.mean().item(), 1.96 * x.std().item() / math.sqrt(len(values)))

    def __str__(self) -> str:
        return f"{self.mean:5.1f}% ± {self.half_width:.1f}"


@torch.no_grad()
def score(net: nn.Module, task: Task) -> float:
    """Return the accuracy on the images that are held back."""
    return accuracy(net(task.query), task.query_labels)


def best_random_rate(tasks: list[Task], args: argparse.Namespace) -> float:
    """Return the learning rate that suits random initial parameters best."""

    def mean(lr: float) -> float:
        scores = [score(adapt(make_network(), t, args.inner_optimizer, lr), t) for t in tasks]
        return sum(scores) / len(scores)

    return max(RATES, key=mean)


class Accuracies(NamedTuple):
    """Accuracies on the same tasks of unseen digits, in per cent."""

    before: list[float]
    after: list[float]
    #: From random initial parameters, by the same steps.
    random: list[float]
    #: The same by the learning rate that suits it best.
    tuned: list[float]


def evaluate(
    net: nn.Module, tasks: list[Task], rate: float, args: argparse.Namespace
) -> Accuracies:
    """Return the accuracies on ``tasks``, with ``rate`` the best one for a random start."""
    result = Accuracies([], [], [], [])
    for task in tqdm(tasks, desc="testing", file=sys.stderr):
        fresh = make_network()
        learners = (
            net,
            adapt(net, task, args.inner_optimizer, args.inner_lr),
            adapt(fresh, task, args.inner_optimizer, args.inner_lr),
            adapt(fresh, task, args.inner_optimizer, rate),
        )
        for values, learner in zip(result, learners, strict=True):
            values.append(score(learner, task))
    return result


def report(result: Accuracies, rate: float) -> bool:
    """Print the accuracies; return whether the margin over the random start is met."""
    digits = ", ".join(map(str, UNSEEN))
    count = len(result.after)
    gain, fair_gain = (
        Result.of([x - y for x, y in zip(result.after, others, strict=True)])
        for others in (result.random, result.tuned)
    )
    print(f"\n{WAYS}-way {SHOTS}-shot, digits never seen ({digits}), {count} tasks, 95% intervals")
    print(f"  before adaptation                       {Result.of(result.before)}")
    print(f"  after {INNER_STEPS} steps                           {Result.of(result.after)}")
    print(f"  random start, same steps                {Result.of(result.random)}")
    print(f"  random start, its best learning rate    {Result.of(result.tuned)}   (lr {rate:g})")
    print(
        f"margin over the random start: {gain.mean:.1f} ± {gain.half_width:.1f} points; "
        f"over its best: {fair_gain.mean:.1f} ± {fair_gain.half_width:.1f}"
    )
    return gain.mean - gain.half_width > MARGIN


def draw_picture(
    net: nn.Module, task: Task, curve: list[float], result: Accuracies, args: argparse.Namespace
) -> None:
    """Save the learning curve, and the answers to one task of unseen digits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35))
    axes = left.subplots()
    window = max(1, len(curve) // 25)
    smooth = torch.tensor(curve).unfold(0, window, 1).mean(-1)
    axes.plot(curve, color="0.85", linewidth=0.8)
    axes.plot(range(window - 1, len(curve)), smooth, color="C0", label="seen digits, adapted")
    for values, style, label in (
        (result.after, "C2-", "unseen digits, adapted"),
        (result.tuned, "C1--", "unseen, random start at its best"),
        (result.random, "C3--", "unseen, random start"),
        (result.before, "k:", "unseen, before adaptation"),
    ):
        mean = sum(values) / len(values)
        axes.plot([0, len(curve)], [mean, mean], style, label=f"{label}: {mean:.0f} %")
    axes.set(
        xlabel="meta-iteration",
        ylabel="accuracy (%)",
        ylim=(0, 102),
        title=f"MAML, {WAYS}-way {SHOTS}-shot",
    )
    axes.legend(loc="lower right", fontsize=9)

    learner = adapt(net, task, args.inner_optimizer, args.inner_lr)
    with torch.no_grad():
        predicted = learner(task.query).argmax(dim=-1)
    right.suptitle("Unseen digits: what it adapts to (left), and its answers (right)")
    grid = right.subplots(WAYS, SHOTS + 1 + QUERIES)
    for axis in grid.flat:
        axis.axis("off")
    for row, name in enumerate(task.names):
        for k in range(SHOTS):
            grid[row, k].imshow(task.support[row * SHOTS + k, 0], cmap="gray_r")
            grid[row, k].set_title(name, fontsize=9, color="0.4")
        for k in range(QUERIES):
            answer = task.names[predicted[row * QUERIES + k]]
            color = "tab:green" if answer == name else "tab:red"
            axis = grid[row, SHOTS + 1 + k]
            axis.imshow(task.query[row * QUERIES + k, 0], cmap="gray_r")
            axis.set_title(answer, fontsize=9, color=color, fontweight="bold")
    figure.savefig(args.output, dpi=130)
    print(f"saved {args.output}")


def main() -> int:
    """Meta-train, test, draw; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fast", action="store_true", help="a few seconds, without a promise")
    parser.add_argument("--output", default="few_shot_digits.png", help="where to save the picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, help="meta-iterations (default: 600)")
    parser.add_argument("--tasks", type=int, default=4, help="tasks in a meta-batch")
    parser.add_argument("--inner-optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument("--inner-lr", type=float, default=0.3)
    args = parser.parse_args()
    args.iterations = args.iterations or (40 if args.fast else 600)

    torch.set_num_threads(1)  # the fastest for a network this small
    torch.manual_seed(args.seed)
    seen, unseen = load_classes(SEEN, symmetries=True), load_classes(UNSEEN, symmetries=False)
    generator = torch.Generator().manual_seed(args.seed + 1)
    sizes = (10, 40) if args.fast else (50, 500)
    validation, test = (
        [classes.draw(WAYS, SHOTS, QUERIES, generator) for _ in range(size)]
        for classes, size in zip((seen, unseen), sizes, strict=True)
    )

    net = make_network()
    curve = [correct for _, correct in meta_train(net, seen, args)]
    rate = best_random_rate(validation, args)
    result = evaluate(net, test, rate, args)
    enough = report(result, rate)
    draw_picture(net, test[0], curve, result, args)
    if not args.fast and not enough:
        print(f"FAILED: the margin must exceed {MARGIN:g} points", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
