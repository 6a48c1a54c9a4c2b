"""Watch AdamW, AdaHessian and L-BFGS walk to the middle of a flower, and past it.

The experiments follow an article on the R package torchopt (Posit AI Blog, "Enjoying torchopt"),
whose `test_optim` is the model of `plot_trajectory`. All start at (20, 20), far outside of the
region of interest, the square from -3 to 3 with the flower's four petals. For each, this prints
what was published, in words, and what is seen here, and saves a picture; `sheet.png` shows all.

Hyperparameters are those of R: weight decay 1e-6 for AdamW (PyTorch's default is 1e-2, with which
AdamW arrives a little earlier and has already left again at step 200), and for AdaHessian betas
(0.9, 0.999), eps 1e-4 and no weight decay.

The article does not print AdaHessian's power of the Hessian. With the paper's 1, the walk never
leaves its petal after 35 steps, for none of twenty seeds; with 0.5 most walks go on to explore, as
published. So 0.5 is taken here. AdaHessian draws random signs: it is run with twenty seeds, agrees
if most of them do, and the picture shows the first that does.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _adahessian import AdaHessian

import torchopt
from torchopt.visual import (
    Trajectory,
    TrajectoryStyle,
    plot_trajectory,
    run_trajectory,
    test_functions,
)

FLOWER = test_functions["flower"]
REGION = 3.0
#: What counts as the neighbourhood of the centre, where the petals meet.
NEAR = 0.5


class Seen(NamedTuple):
    """What a walk looks like in numbers."""

    #: Distances to the centre, after each step.
    distances: torch.Tensor
    #: The first step after which the walk is in the region, if any.
    entered: int | None
    #: How often a coordinate changes its sign.
    sign_changes: int
    #: How many of the four petals it has been in, beyond where they meet.
    petals: int

    @property
    def end(self) -> float:
        return float(self.distances[-1])

    def farthest(self, since: int) -> float:
        """Return the largest distance from some step on."""
        return float(self.distances[since:].max())


def look(walk: Trajectory) -> Seen:
    """Measure a walk."""
    distances = walk.points.norm(dim=1)
    inside = (walk.points.abs() <= REGION).all(dim=1)
    x, y = walk.points[inside & (distances > NEAR / 2)].T
    # the petals' axes are at 67.5 degrees and every 90 degrees from there
    sectors = ((torch.atan2(y, x) - math.pi / 8) / (math.pi / 2)).floor() % 4
    return Seen(
        distances=distances,
        entered=int(inside.int().argmax()) if inside.any() else None,
        sign_changes=int((walk.points.sign().diff(dim=0) != 0).sum()),
        petals=len(sectors.unique()),
    )


class Experiment(NamedTuple):
    """One picture of the article."""

    name: str
    title: str
    optimizer: Any
    hyperparameters: dict[str, Any]
    steps: int
    published: str
    #: Whether what is seen is what was published.
    agrees: Callable[[Seen], bool]
    #: How many random seeds to try.
    seeds: int = 1


def adamw(lr: float, steps: int, published: str, agrees: Callable[[Seen], bool]) -> Experiment:
    """Return an experiment with AdamW."""
    options = {"lr": lr, "weight_decay": 1e-6}
    title = f"AdamW, lr {lr:g}, {steps} steps"
    return Experiment(
        f"adamw_{lr:g}_{steps}", title, torchopt.AdamW, options, steps, published, agrees
    )


def adahessian(steps: int, published: str, agrees: Callable[[Seen], bool]) -> Experiment:
    """Return an experiment with AdaHessian."""
    title = f"AdaHessian, lr 0.3, {steps} steps"
    options = {"lr": 0.3, "hessian_power": 0.5}
    return Experiment(
        f"adahessian_0.3_{steps}", title, AdaHessian, options, steps, published, agrees, seeds=20
    )


def lbfgs(steps: int, published: str, agrees: Callable[[Seen], bool]) -> Experiment:
    """Return an experiment with L-BFGS."""
    options = {"line_search_fn": "strong_wolfe"}
    title = f"L-BFGS, strong Wolfe, {steps} steps"
    return Experiment(f"lbfgs_{steps}", title, torch.optim.LBFGS, options, steps, published, agrees)


EXPERIMENTS = (
    adamw(0.01, 200, "has not yet entered the region", lambda seen: seen.entered is None),
    adamw(0.1, 200, "the result is optimal", lambda seen: seen.end < NEAR),
    adamw(
        0.7,
        200,
        "hops around wildly, leaps far away and back again, repeatedly",
        lambda seen: seen.sign_changes >= 10 and seen.farthest(seen.entered or 0) > 2 * NEAR,
    ),
    adamw(
        0.1,
        300,
        "the same to-and-fro as with the higher learning rate, only later",
        lambda seen: seen.distances[:200].min() < NEAR and seen.farthest(200) > 2 * NEAR,
    ),
    *(
        adamw(0.1, steps, "explores petal after petal", lambda seen: seen.petals >= 2)
        for steps in (700, 900)
    ),
    adamw(0.1, 1300, "has explored all four petals", lambda seen: seen.petals == 4),
    adahessian(35, "an excellent result", lambda seen: seen.end < NEAR),
    adahessian(
        200,
        "explores the petals, but strays less far from the minimum than AdamW",
        lambda seen: seen.petals >= 2 and seen.farthest(35) < 2 * NEAR,
    ),
    lbfgs(3, "three steps are enough", lambda seen: seen.end < 1e-3),
    lbfgs(10, "nothing happens beyond that", lambda seen: seen.farthest(3) < 1e-3),
)


def describe(seen: Seen) -> str:
    """Say in words what is seen."""
    if seen.entered is None:
        return f"never in the region, {seen.end:.1f} from the centre at the end"
    return (
        f"in the region after step {seen.entered}, {seen.end:.2g} from the centre at the end, "
        f"{float(seen.distances.min()):.2g} at best, {seen.sign_changes} changes of sign, "
        f"in {seen.petals} of 4 petals"
    )


def agreeing_seeds(experiment: Experiment) -> list[int]:
    """Return the seeds with which an experiment shows what was published."""
    found = []
    for seed in range(experiment.seeds):
        torch.manual_seed(seed)
        walk = run_trajectory(
            experiment.optimizer, FLOWER, experiment.steps, experiment.hyperparameters
        )
        if experiment.agrees(look(walk)):
            found.append(seed)
    return found


def verdict(experiment: Experiment, seeds: list[int]) -> str:
    """Say whether an experiment agrees, given the seeds with which it does."""
    word = "agrees" if 2 * len(seeds) > experiment.seeds else "DIFFERS"
    if experiment.seeds == 1:
        return word
    return f"{word}: {len(seeds)} of {experiment.seeds} seeds"


def draw(experiment: Experiment, seed: int, **options: Any) -> Any:
    """Run an experiment and draw it."""
    torch.manual_seed(seed)
    return plot_trajectory(
        experiment.optimizer,
        FLOWER,
        experiment.steps,
        experiment.hyperparameters,
        title=experiment.title,
        **options,
    )


def main() -> None:
    """Run, compare and draw all experiments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("optimizer_walks"), metavar="DIR")
    parser.add_argument("--fast", action="store_true", help="coarse pictures")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    args.output.mkdir(parents=True, exist_ok=True)
    resolution, dpi = (60, 40) if args.fast else (300, 130)
    sheet, grid = plt.subplots(3, 4, figsize=(17.5, 14), layout="constrained")
    *places, curves = grid.flat
    longest = {(e.optimizer, e.hyperparameters.get("lr")): e for e in EXPERIMENTS}.values()
    for experiment, place in zip(EXPERIMENTS, places, strict=True):
        seeds = agreeing_seeds(experiment)
        shown = seeds[0] if seeds else 0
        plot = draw(experiment, shown, style=TrajectoryStyle(resolution=resolution))
        plot.figure.savefig(args.output / f"{experiment.name}.png", dpi=dpi)
        plt.close(plot.figure)
        plain = TrajectoryStyle(resolution=resolution, colorbar=False)
        draw(experiment, shown, style=plain, ax=place)
        seen = look(plot.trajectories[0])
        if experiment in longest:
            curves.plot(seen.distances, linewidth=1.2, label=experiment.title)
        print(experiment.title)
        print(f"  published: {experiment.published}")
        print(f"  seen:      {describe(seen)}")
        print(f"  {verdict(experiment, seeds)}")
    curves.axhspan(0, REGION, color="0.93", zorder=0)
    curves.set_title("Distance to the centre (grey: the region)", fontsize="medium", loc="left")
    curves.set(xlabel="step", xscale="symlog", yscale="log", xlim=(0, 1300), ylim=(1e-3, 50))
    curves.legend(fontsize="small", loc="lower left")
    sheet.savefig(args.output / "sheet.png", dpi=dpi)
    print(f"saved {len(EXPERIMENTS)} pictures and sheet.png in {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
