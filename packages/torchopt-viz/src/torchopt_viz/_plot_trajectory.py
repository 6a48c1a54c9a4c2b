"""Walks of optimizers over functions of two variables, drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from torchopt_viz._animate import Progress, check_animation, save_animation
from torchopt_viz._functions import Domain, Function, TestFunction
from torchopt_viz._steppers import Optimizer, is_transformation
from torchopt_viz._style import TrajectoryStyle
from torchopt_viz._trajectory import Trajectory, as_test_function, compute, warn_of_non_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Hyperparameters = Mapping[str, Any]
Drawn = Optimizer | Trajectory

_STYLE = TrajectoryStyle()

_LINE_COLOR = "#ff3b30"
# of several trajectories in one picture: told apart from each other and from the default palette
_LINE_COLORS = ("#ff3b30", "#ffffff", "#ff9f0a", "#0a84ff", "#ff6ad5", "#000000", "#64d2ff")


class TrajectoryPlot(NamedTuple):
    """A picture of trajectories, and what it shows."""

    figure: Figure
    # one for each optimizer, or a single one if they are drawn over one another
    axes: tuple[Axes, ...]
    # one for each optimizer
    trajectories: tuple[Trajectory, ...]
    # draws the first so many steps
    show: Callable[[int], None]

    def animate(
        self, path: str | os.PathLike[str], *, fps: int = 20, progress: Progress | None = None
    ) -> Path:
        """Save an animation with a frame for the start and for each step.

        Args:
            path: A ``.gif``, or an ``.mp4``, which needs ffmpeg.
            fps: Frames per second. Default: 20.
            progress: Called with the number of each frame, and how many there are.

        Returns:
            The path of the file.

        Raises:
            ValueError: If the file is of another kind, or `fps` is not positive.
            ImportError: If an MP4 is asked for and there is no ffmpeg.
        """
        file = check_animation(path, fps)
        frames = len(self.trajectories[0].points)
        save_animation(self.figure, self.show, frames, file, fps, progress)
        self.show(frames - 1)
        return file


def plot_trajectory(
    optimizer: Drawn | Sequence[Drawn] | Mapping[str, Drawn],
    function: str | TestFunction | Function = "beale",
    steps: int = 200,
    hyperparameters: Hyperparameters | Sequence[Hyperparameters] | None = None,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    domain: Sequence[float] | None = None,
    start: Sequence[float] | None = None,
    layout: Literal["side", "overlay"] = "side",
    follow: bool = False,
    title: str | None = None,
    style: TrajectoryStyle = _STYLE,
) -> TrajectoryPlot:
    """Let optimizers walk over a function of two variables, and draw where they go.

    Start, path and end are drawn over filled contours of the function, low values dark, with stars
    at its known minima. What cannot be seen is said in the picture: points outside of it, and from
    which step on the walk is not finite, with a cross at the last finite point. Where a path would
    not be seen at all, the picture is enlarged until it holds the start.

    Also called `test_optim`, after the function of the R package `torchopt` by Camara et al.

    Args:
        optimizer: What :func:`run_trajectory` takes, or what it has returned for this function, or
            several: a sequence, or a mapping from labels.
        function: The name of a function in :data:`test_functions`, a :class:`TestFunction`, or a
            function of your own, of two 0-dim tensors. Default: ``"beale"``.
        steps: How many steps each takes. Default: 200. Trajectories have taken theirs: as many
            each.
        hyperparameters: Keyword arguments to the optimizers, such as ``{"lr": 0.1}``. For several,
            a sequence as long, or a mapping from their labels, gives each its own.
        ax: Where to draw: axes, as many as there are panels. Default: a new pyplot figure.
        domain: The rectangle to draw, ``(xmin, xmax, ymin, ymax)``. Default: that of the
            :class:`TestFunction`; needed for a function of your own.
        start: Where to start, ``(x0, y0)``. Default: that of the :class:`TestFunction`; needed for
            a function of your own.
        layout: Several optimizers side by side (``"side"``, the default), or over one another
            (``"overlay"``).
        follow: Whether to enlarge the rectangle until it holds the finite parts of all
            paths.
        title: What stands above. Default: the optimizer and the function.
        style: Colours, lines, markers and contours.

    Returns:
        The figure, its axes and the trajectories. Its method `animate` saves a film.

    Raises:
        ValueError: If a name is unknown, a number is out of range, a function of your own comes
            without `domain` or `start`, or the numbers of optimizers, hyperparameters and axes
            don't match.
        TypeError: If an optimizer, the function or the style is of another kind.

    Warns:
        NonFiniteStepWarning: If a coordinate or a value is not finite.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> import torchopt
        >>> from torchopt_viz import plot_trajectory
        >>> rates = [{"lr": 0.01}, {"lr": 0.1}]
        >>> plot = plot_trajectory([torchopt.AdamW] * 2, "flower", 50, rates, start=(2, 1))
        >>> [trajectory.label for trajectory in plot.trajectories]
        ['AdamW(lr=0.01)', 'AdamW(lr=0.1)']
        >>> matplotlib.pyplot.close(plot.figure)
    """
    from torchopt_viz._draw import Panel, draw_colorbar

    if not isinstance(style, TrajectoryStyle):
        raise TypeError(f"`style` must be a TrajectoryStyle, got {type(style).__name__}")
    style.check()
    if layout not in ("side", "overlay"):
        raise ValueError(f"`layout` must be 'side' or 'overlay', got {layout!r}")
    problem = as_test_function(function, domain, start)
    trajectories = _compute(_list_entries(optimizer, hyperparameters), problem, steps)
    for trajectory in trajectories:
        warn_of_non_finite(trajectory, problem, stacklevel=3)

    panels: list[tuple[Trajectory, ...]] = [(trajectory,) for trajectory in trajectories]
    if layout == "overlay":
        panels = [trajectories]
    colors = _list_colors(style.line_color, len(trajectories), layout)
    figure, axes = _find_axes(ax, len(panels))
    alone = len(panels) == 1
    drawn = []
    for k, (place, shown) in enumerate(zip(axes, panels, strict=True)):
        heading = problem.title if len(shown) > 1 else shown[0].label
        if alone and len(shown) == 1:
            heading += f" on {problem.title}"
        drawn.append(
            Panel(
                place,
                problem,
                _view(problem.domain, shown, follow),
                shown,
                colors if layout == "overlay" else colors[k : k + 1],
                style,
                title if alone and title is not None else heading,
            )
        )
    if not alone and (ax is None or title is not None):
        figure.suptitle(problem.title if title is None else title, fontweight="bold")
    if style.colorbar:
        alike: dict[Domain, list[Panel]] = {}
        for panel in drawn:
            alike.setdefault(panel.view, []).append(panel)
        for group in alike.values():
            if group[0].filled is not None:
                draw_colorbar([panel.axes for panel in group], group[0].filled)

    def show(step: int) -> None:
        for panel in drawn:
            panel.show(step)

    show(len(trajectories[0].points) - 1)
    return TrajectoryPlot(figure, axes, trajectories, show)


def _compute(
    entries: Sequence[tuple[str | None, Drawn, Hyperparameters]],
    problem: TestFunction,
    steps: int,
) -> tuple[Trajectory, ...]:
    """Return the trajectories, those that are there already as they are."""
    found = []
    for label, one, options in entries:
        if not isinstance(one, Trajectory):
            found.append(compute(one, problem, steps, options, label, torch.float64, (2,)))
        elif options:
            raise ValueError(
                f"`hyperparameters` must be empty for a Trajectory, which is computed already, got "
                f"{dict(options)}"
            )
        else:
            found.append(one if label is None else one._replace(label=label))
    lengths = {len(trajectory.points) - 1 for trajectory in found}
    if len(lengths) > 1:
        raise ValueError(f"all trajectories must have as many steps, got {sorted(lengths)}")
    return tuple(found)


plot_trajectory.__test__ = False  # type: ignore[attr-defined]  # its other name is not for pytest
test_optim = plot_trajectory


def _list_entries(
    optimizer: Any, hyperparameters: Any
) -> list[tuple[str | None, Optimizer, Hyperparameters]]:
    """Return label, optimizer and hyperparameters of each."""
    labels: list[Any]
    if isinstance(optimizer, Mapping):
        labels, optimizers = list(optimizer), list(optimizer.values())
    elif _is_several(optimizer):
        labels, optimizers = [None] * len(optimizer), list(optimizer)
    else:
        labels, optimizers = [None], [optimizer]
    if not optimizers:
        raise ValueError(f"`optimizer` must be one optimizer or several, got {optimizer!r}")

    options = [hyperparameters or {}] * len(optimizers)
    if isinstance(hyperparameters, (list, tuple)):
        if len(hyperparameters) != len(optimizers):
            raise ValueError(
                f"`hyperparameters` must have an entry for each of {len(optimizers)} optimizers, "
                f"got {len(hyperparameters)}"
            )
        options = [one or {} for one in hyperparameters]
    elif isinstance(hyperparameters, Mapping) and not hyperparameters.keys().isdisjoint(labels):
        if unknown := hyperparameters.keys() - set(labels):
            raise ValueError(
                f"`hyperparameters` must be of the optimizers {labels}, got also {sorted(unknown)}"
            )
        options = [hyperparameters.get(label) or {} for label in labels]
    for one in options:
        if not isinstance(one, Mapping):
            raise TypeError(
                f"`hyperparameters` must be keyword arguments such as {{'lr': 0.1}}, or a list of "
                f"such, got {one!r}"
            )
    return list(zip(labels, optimizers, options, strict=True))


def _is_several(optimizer: Any) -> bool:
    is_one = is_transformation(optimizer) or isinstance(optimizer, Trajectory)
    return isinstance(optimizer, (list, tuple)) and not is_one


def _list_colors(line_color: Any, count: int, layout: str) -> list[Any]:
    """Return the colour of each path."""
    if isinstance(line_color, list):
        if len(line_color) != count:
            raise ValueError(
                f"`line_color` must have an entry for each of {count} optimizers, got "
                f"{len(line_color)}"
            )
        return line_color
    if line_color is None and layout == "overlay":
        return [_LINE_COLORS[k % len(_LINE_COLORS)] for k in range(count)]
    return [_LINE_COLOR if line_color is None else line_color] * count


def _find_axes(ax: Any, count: int) -> tuple[Figure, tuple[Axes, ...]]:
    """Return what to draw on: the given axes, or those of a new figure."""
    if ax is None:
        from matplotlib import pyplot as plt

        columns = min(count, 2 if count == 4 else 3)
        rows = math.ceil(count / columns)
        size = (4.6 * columns, 4.9 * rows)
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(rows, 2 * columns)
        places = []
        for k in range(count):
            row, column = divmod(k, columns)
            # those of the last row stand in its middle
            missing = rows * columns - count if row == rows - 1 else 0
            left = 2 * column + missing
            places.append(figure.add_subplot(grid[row, left : left + 2]))
        return figure, tuple(places)
    is_array = hasattr(ax, "flat")  # as plt.subplots returns
    axes = tuple(ax.flat if is_array else ax if isinstance(ax, Sequence) else (ax,))
    if len(axes) != count:
        raise ValueError(f"`ax` must hold {count} axes, one for each panel, got {len(axes)}")
    return axes[0].figure.canvas.figure, axes


def _view(domain: Domain, trajectories: Sequence[Trajectory], follow: bool) -> Domain:
    """Return the rectangle to draw."""
    if follow:
        return _enlarge(domain, [t.points[: t.non_finite] for t in trajectories])
    xmin, xmax, ymin, ymax = domain
    hidden = []
    for trajectory in trajectories:
        x, y = trajectory.points.T
        inside = (x >= xmin) & (x <= xmax) & (y >= ymin) & (y <= ymax)
        if not inside.any():
            hidden.append(trajectory.points[:1])
    return _enlarge(domain, hidden) if hidden else domain


def _enlarge(domain: Domain, parts: Sequence[torch.Tensor]) -> Domain:
    """Return the smallest rectangle around a domain and all points, with a margin."""
    points = torch.cat(list(parts))
    corners = torch.tensor(domain, dtype=torch.float64).view(2, 2).T
    everything = torch.cat([points.double(), corners])
    low, high = everything.min(dim=0).values, everything.max(dim=0).values
    margin = 0.05 * (high - low)
    low, high = (
        torch.where(low < corners[0], low - margin, low),
        torch.where(high > corners[1], high + margin, high),
    )
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])
