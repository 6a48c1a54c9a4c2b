"""Walks of optimizers over functions of two variables, drawn."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from torchopt_viz._animate import Progress, check_animation, save_animation
from torchopt_viz._functions import Domain, Function, TestFunction
from torchopt_viz._steppers import Optimizer, is_transformation
from torchopt_viz._trajectory import Trajectory, as_test_function, compute, warn_of_non_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchopt_viz._draw import Scale

Hyperparameters = Mapping[str, Any]

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
    # the file of the animation, if one was asked for
    animation: Path | None


def plot_trajectory(
    optimizer: Optimizer | Sequence[Optimizer] | Mapping[str, Optimizer],
    function: str | TestFunction | Function = "beale",
    steps: int = 200,
    hyperparameters: Hyperparameters | Sequence[Hyperparameters] | None = None,
    *,
    domain: Sequence[float] | None = None,
    start: Sequence[float] | None = None,
    layout: Literal["side", "overlay"] = "side",
    follow: bool = False,
    ax: Axes | Sequence[Axes] | None = None,
    title: str | None = None,
    animate: str | os.PathLike[str] | None = None,
    fps: int = 20,
    progress: Progress | None = None,
    line_color: Any = None,
    line_width: float = 1.6,
    line_style: str = "-",
    step_marker: str | None = None,
    start_color: Any = "#5050ff",
    start_marker: str = "o",
    end_color: Any = "#ff5050",
    end_marker: str = "o",
    marker_size: float = 7.5,
    cmap: str = "viridis",
    levels: int | Sequence[float] = 32,
    scale: Scale = "auto",
    resolution: int = 200,
    contours: int = 10,
    contour_color: Any = (1.0, 1.0, 1.0, 0.5),
    contour_labels: bool = False,
    show_minima: bool = True,
    dtype: torch.dtype = torch.float64,
    parameter_shape: Sequence[int] = (2,),
) -> TrajectoryPlot:
    """Let optimizers walk over a function of two variables, and draw where they go.

    Start, path and end are drawn over filled contours of the function, low values dark, with stars
    at its known minima. What cannot be seen is said in the picture: points outside of it, and from
    which step on the walk is not finite, with a cross at the last finite point.

    Also called `test_optim`, after the function of the R package `torchopt` by Camara et al.

    Args:
        optimizer: What :func:`run_trajectory` takes, or several: a sequence, or a mapping from
            labels.
        function: The name of a function in :data:`test_functions`, a :class:`TestFunction`, or a
            function of your own, of two 0-dim tensors. Default: ``"beale"``.
        steps: How many steps each takes. Default: 200.
        hyperparameters: Keyword arguments to the optimizers, such as ``{"lr": 0.1}``. For several,
            a sequence as long, or a mapping from their labels, gives each its own.
        domain: The rectangle to draw, ``(xmin, xmax, ymin, ymax)``. Default: that of the
            :class:`TestFunction`; needed for a function of your own.
        start: Where to start, ``(x0, y0)``. Default: that of the :class:`TestFunction`; needed for
            a function of your own.
        layout: Several optimizers side by side (``"side"``, the default), or over one another
            (``"overlay"``).
        follow: Whether to enlarge the rectangle until it holds the finite parts of all
            paths.
        ax: Where to draw: axes, as many as there are panels. Default: a new pyplot figure.
        title: What stands above. Default: the optimizer and the function.
        animate: Where to save an animation of ``steps + 1`` frames, from the start to the end: a
            ``.gif``, or an ``.mp4``, which needs ffmpeg.
        fps: Frames per second of the animation. Default: 20.
        progress: Called with the number of each frame, and how many there are.
        line_color: The colour of the path; a list of colours for several. Default: red, and a
            colour for each in an overlay.
        line_width: Of the path, in points. Default: 1.6.
        line_style: Of the path, in matplotlib's notation. Default: ``"-"``.
        step_marker: The marker of every point on the path. Default: none.
        start_color: Of the first point.
        start_marker: Of the first point.
        end_color: Of the last point. In an overlay it has the colour of its path.
        end_marker: Of the last point.
        marker_size: Of the first and last point, in points. Default: 7.5.
        cmap: The palette: the name of a matplotlib colormap. Default: ``"viridis"``.
        levels: How many bands of values are told apart by colour, or the values between them.
            Default: 32.
        scale: How the values are divided into bands: evenly (``"linear"``), or finer towards the
            lowest (``"log"``). Default: ``"auto"``, which chooses by how crowded even bands are.
        resolution: How many points a side the function is evaluated on. Default: 200.
        contours: How many contour lines are drawn. Default: 10.
        contour_color: Of the contour lines. Default: translucent white.
        contour_labels: Whether to write the values on the contour lines.
        show_minima: Whether to mark known minima.
        dtype: Of the point. Default: float64.
        parameter_shape: The shape in which the optimizers see the two coordinates, as in
            :func:`run_trajectory`.

    Returns:
        The figure, its axes, the trajectories, and the path of the animation.

    Raises:
        ValueError: If a name is unknown, a number is out of range, a function of your own comes
            without `domain` or `start`, or the numbers of optimizers, hyperparameters and axes
            don't match.
        TypeError: If an optimizer or the function is of another kind.
        ImportError: If an MP4 is asked for and there is no ffmpeg.

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
    from torchopt_viz._draw import Look, Panel

    look = Look(
        line_width=line_width,
        line_style=line_style,
        step_marker=step_marker,
        start_color=start_color,
        start_marker=start_marker,
        end_color=end_color,
        end_marker=end_marker,
        marker_size=marker_size,
        cmap=cmap,
        levels=levels,
        scale=scale,
        resolution=resolution,
        contours=contours,
        contour_color=contour_color,
        contour_labels=contour_labels,
        show_minima=show_minima,
    )
    look.check()
    if layout not in ("side", "overlay"):
        raise ValueError(f"`layout` must be 'side' or 'overlay', got {layout!r}")
    problem = as_test_function(function, domain, start)
    path = None if animate is None else check_animation(animate, fps)

    entries = _list_entries(optimizer, hyperparameters)
    trajectories = tuple(
        compute(one, problem, steps, options, label, dtype, parameter_shape)
        for label, one, options in entries
    )
    for trajectory in trajectories:
        warn_of_non_finite(trajectory, problem, stacklevel=3)

    panels: list[tuple[Trajectory, ...]] = [(trajectory,) for trajectory in trajectories]
    if layout == "overlay":
        panels = [trajectories]
    colors = _list_colors(line_color, len(trajectories), layout)
    figure, axes = _find_axes(ax, len(panels))
    alone = len(panels) == 1
    drawn = []
    for k, (place, shown) in enumerate(zip(axes, panels, strict=True)):
        heading = problem.name if len(shown) > 1 else shown[0].label
        if alone and len(shown) == 1:
            heading += f" on {problem.name}"
        drawn.append(
            Panel(
                place,
                problem,
                _enlarge(problem.domain, shown) if follow else problem.domain,
                shown,
                colors if layout == "overlay" else colors[k : k + 1],
                look,
                title if alone and title is not None else heading,
            )
        )
    if not alone and (ax is None or title is not None):
        figure.suptitle(problem.name if title is None else title, fontweight="bold")

    def show(step: int) -> None:
        for panel in drawn:
            panel.show(step)

    if path is not None:
        save_animation(figure, show, steps + 1, path, fps, progress)
    show(steps)
    return TrajectoryPlot(figure, axes, trajectories, path)


plot_trajectory.__test__ = False  # type: ignore[attr-defined]  # its other name is not for pytest
test_optim = plot_trajectory


def _list_entries(
    optimizer: Any, hyperparameters: Any
) -> list[tuple[str | None, Optimizer, Hyperparameters]]:
    """Return label, optimizer and hyperparameters of each."""
    labels: list[Any]
    if isinstance(optimizer, Mapping):
        labels, optimizers = list(optimizer), list(optimizer.values())
    elif isinstance(optimizer, (list, tuple)) and not is_transformation(optimizer):
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
        return figure, tuple(figure.add_subplot(rows, columns, k + 1) for k in range(count))
    is_array = hasattr(ax, "flat")  # as plt.subplots returns
    axes = tuple(ax.flat if is_array else ax if isinstance(ax, Sequence) else (ax,))
    if len(axes) != count:
        raise ValueError(f"`ax` must hold {count} axes, one for each panel, got {len(axes)}")
    return axes[0].figure.canvas.figure, axes


def _enlarge(domain: Domain, trajectories: Sequence[Trajectory]) -> Domain:
    """Return the smallest rectangle around a domain and all finite points, with a margin."""
    points = torch.cat([trajectory.points[: trajectory.non_finite] for trajectory in trajectories])
    corners = torch.tensor(domain, dtype=torch.float64).view(2, 2).T
    everything = torch.cat([points.double(), corners])
    low, high = everything.min(dim=0).values, everything.max(dim=0).values
    margin = 0.05 * (high - low)
    low, high = (
        torch.where(low < corners[0], low - margin, low),
        torch.where(high > corners[1], high + margin, high),
    )
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])
