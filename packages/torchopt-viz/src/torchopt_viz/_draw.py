"""Trajectories over filled contours, drawn by matplotlib, which is imported with this module."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from torch import Tensor

from torchopt_viz._functions import Domain, TestFunction
from torchopt_viz._steppers import check_scalar
from torchopt_viz._style import Scale, TrajectoryStyle
from torchopt_viz._trajectory import Trajectory

# Of a function drawn with `scale="auto"`: if half of the picture would have fewer colours than this
# share of all, they follow the logarithm.
_CROWDED = 0.15


def evaluate_grid(problem: TestFunction, view: Domain, resolution: int) -> tuple[Any, Any, Any]:
    """Return coordinates and values on a grid, with what is not finite masked.

    Each point is evaluated for itself, so the function need not be elementwise: all at once by
    `torch.func.vmap`, or one by one if the function doesn't allow that, with the same values.
    """
    x = torch.linspace(*view[:2], resolution, dtype=torch.float64)
    y = torch.linspace(*view[2:], resolution, dtype=torch.float64)
    ys, xs = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))

    def value(x: Tensor, y: Tensor) -> Tensor:
        return check_scalar(problem(x, y))

    with torch.no_grad():
        try:
            z = torch.func.vmap(value, randomness="different")(xs, ys)
        except RuntimeError:  # data-dependent branches, conversions to numbers
            z = torch.stack([value(*point) for point in zip(xs, ys, strict=True)])
    grid = z.to(torch.float64).reshape(resolution, resolution).numpy()
    return x.numpy(), y.numpy(), np.ma.masked_invalid(grid)


def make_levels(z: Any, count: int, scale: Scale) -> Any:
    """Return the borders of `count` bands of values, from the lowest to the highest.

    On the logarithmic scale the bands grow like the distance to the lowest value, beginning with
    the one that only 2 % of the values are closer to.
    """
    values = z.compressed()
    low, high = float(values.min()), float(values.max())
    spread = high - low
    if spread <= 1e-12 * max(abs(low), abs(high)):
        return np.array([low - 0.5, low + 0.5])
    middle = float(np.median(values)) - low
    if scale == "linear" or (scale == "auto" and middle > _CROWDED * spread):
        return np.linspace(low, high, count + 1)
    unit = max(float(np.quantile(values, 0.02)) - low, 1e-9 * spread)
    return low + unit * np.expm1(np.linspace(0, np.log1p(spread / unit), count + 1))


def draw_backdrop(axes: Axes, problem: TestFunction, view: Domain, look: TrajectoryStyle) -> Any:
    """Draw a function as filled contours with lines, and its known minima.

    Returns:
        The contours; None if the function has no value in the picture.
    """
    axes.set(xlim=view[:2], ylim=view[2:], xlabel="x", ylabel="y")
    axes.set_box_aspect(min(max((view[3] - view[2]) / (view[1] - view[0]), 0.5), 2.0))
    axes.set_facecolor("0.85")  # of what is not finite
    axes.spines[:].set_visible(False)
    axes.tick_params(color="0.6", labelcolor="0.3", labelsize="small")
    x, y, z = evaluate_grid(problem, view, look.resolution)
    filled = None
    if z.count():
        count = look.levels
        levels = make_levels(z, count, look.scale) if isinstance(count, int) else np.array(count)
        cmap = colormaps[look.cmap]
        norm = BoundaryNorm(levels, cmap.N)
        filled = axes.contourf(x, y, z, levels, cmap=cmap, norm=norm, extend="both")
        if look.contours and len(levels) > 2:
            chosen = np.linspace(0, len(levels) - 1, look.contours + 2)[1:-1]
            lines = np.interp(np.unique(chosen), np.arange(len(levels)), levels)
            drawn = axes.contour(
                x, y, z, lines, colors=[look.contour_color], linewidths=0.6, linestyles="solid"
            )
            if look.contour_labels:
                axes.clabel(drawn, fontsize="x-small", fmt="%.3g")
    if look.show_minima and problem.minima:
        axes.plot(
            *zip(*problem.minima, strict=True),
            **_marker("*", "white", 2.4 * look.marker_size),
            zorder=3,
        )
    return filled


def draw_colorbar(axes: Sequence[Axes], filled: Any) -> None:
    """Draw a bar that tells the values of the colours."""
    levels = filled.levels
    chosen = levels[:: max(1, math.ceil(len(levels) / 9))]
    bar = axes[0].figure.colorbar(filled, ax=list(axes), ticks=chosen, format="%.3g", shrink=0.8)
    bar.ax.tick_params(color="0.6", labelcolor="0.3", labelsize="small")
    bar.outline.set_visible(False)


def _marker(marker: str, color: Any, size: float) -> dict[str, Any]:
    edge = {"markeredgecolor": "black", "markeredgewidth": 0.8}
    return {"linestyle": "none", "marker": marker, "color": color, "markersize": size, **edge}


class Track:
    """One trajectory on axes, up to any of its steps."""

    def __init__(
        self, axes: Axes, trajectory: Trajectory, color: Any, end: Any, look: TrajectoryStyle
    ) -> None:
        """Draw nothing but the start yet."""
        self.trajectory = trajectory
        self.points = trajectory.points.double().numpy()
        (self.line,) = axes.plot(
            [],
            [],
            color=color,
            linewidth=look.line_width,
            linestyle=look.line_style,
            marker=look.step_marker,
            markersize=look.line_width + 1.5,
            label=trajectory.label,
            path_effects=[
                patheffects.withStroke(
                    linewidth=look.line_width + 1.2, foreground="white", alpha=0.5
                )
            ],
            zorder=4,
        )
        size = look.marker_size
        axes.plot(
            *self.points[:1].T, **_marker(look.start_marker, look.start_color, size), zorder=5
        )
        (self.end,) = axes.plot([], [], **_marker(look.end_marker, end, size), zorder=6)
        (self.cross,) = axes.plot(
            [], [], linestyle="none", marker="x", color=end, markersize=size + 3, zorder=7
        )
        self.cross.set_markeredgewidth(2.5)

    def show(self, step: int) -> None:
        """Show the first steps, with a cross where the path stops being finite."""
        self.line.set_data(*self.points[: step + 1].T)
        self.end.set_data(*self.points[step : step + 1].T)
        broken = self.trajectory.non_finite
        if broken is not None and step >= broken:
            self.cross.set_data(*self.points[max(broken - 1, 0) : max(broken, 1)].T)
        else:
            self.cross.set_data([], [])


class Panel:
    """Axes with a function and trajectories over it, up to any step.

    Args:
        axes: Where to draw.
        problem: The function.
        view: The rectangle to show.
        trajectories: What to draw over it; all have equally many steps.
        colors: One for each.
        look: How to draw.
        title: What stands above.
    """

    def __init__(
        self,
        axes: Axes,
        problem: TestFunction,
        view: Domain,
        trajectories: Sequence[Trajectory],
        colors: Sequence[Any],
        look: TrajectoryStyle,
        title: str,
    ) -> None:
        """Draw what does not depend on the step."""
        self.trajectories = trajectories
        self.view = view
        self.last = len(trajectories[0].points) - 1
        self.axes = axes
        self.filled = draw_backdrop(axes, problem, view, look)
        alone = len(trajectories) == 1
        self.tracks = [
            Track(axes, trajectory, color, look.end_color if alone else color, look)
            for trajectory, color in zip(trajectories, colors, strict=True)
        ]
        title = textwrap.fill(title, 44)
        axes.set_title(title, loc="left", fontsize="medium", fontweight="bold", pad=20)
        self.subtitle = axes.text(
            0, 1.015, "", transform=axes.transAxes, fontsize="small", color="0.3", va="bottom"
        )
        self.note = axes.text(
            0.02,
            0.02,
            "",
            transform=axes.transAxes,
            fontsize="small",
            va="bottom",
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            zorder=8,
        )
        if not alone:
            axes.legend(loc="best", fontsize="small", framealpha=0.8)

    def show(self, step: int) -> None:
        """Show the first steps, and say in words what cannot be seen."""
        for track in self.tracks:
            track.show(step)
        text = f"step {step} of {self.last}"
        if len(self.trajectories) == 1:
            (x, y), value = self.trajectories[0].points[step], self.trajectories[0].values[step]
            text += f": f({x:.3g}, {y:.3g}) = {value:.4g}"
        self.subtitle.set_text(text)
        notes = [note for t in self.trajectories for note in self._notes(t, step)]
        self.note.set_text("\n".join(notes))
        self.note.set_visible(bool(notes))

    def _notes(self, trajectory: Trajectory, step: int) -> list[str]:
        name = f"{trajectory.label}: " if len(self.trajectories) > 1 else ""
        notes = []
        xmin, xmax, ymin, ymax = self.view
        x, y = trajectory.points[: step + 1].T
        outside = (x < xmin) | (x > xmax) | (y < ymin) | (y > ymax)
        if outside.any():
            count = int(outside.sum())
            notes.append(f"{name}{count} of {step + 1} points outside of the picture")
        if trajectory.non_finite is not None and step >= trajectory.non_finite:
            notes.append(f"{name}not finite from step {trajectory.non_finite}")
        return notes
