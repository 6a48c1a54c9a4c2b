"""How trajectories are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

__all__ = ["Scale", "TrajectoryStyle"]

Scale = Literal["auto", "linear", "log"]


class TrajectoryStyle(NamedTuple):
    """How :func:`plot_trajectory` draws; colours and markers are matplotlib's.

    Example:
        >>> from torchopt_viz import TrajectoryStyle
        >>> TrajectoryStyle(cmap="magma", line_color="white").cmap
        'magma'
    """

    # of the path; a list of colours for several. None: red, and a colour for each in an overlay
    line_color: Any = None
    # of the path, in points
    line_width: float = 1.6
    # of the path, in matplotlib's notation
    line_style: str = "-"
    # of every point on the path; None: none
    step_marker: str | None = None
    # of the first point
    start_color: Any = "#5050ff"
    start_marker: str = "o"
    # of the last point; in an overlay it has the colour of its path
    end_color: Any = "#ff5050"
    end_marker: str = "o"
    # of the first and last point, in points
    marker_size: float = 7.5
    # the palette: the name of a matplotlib colormap
    cmap: str = "viridis"
    # how many bands of values are told apart by colour, or the values between them
    levels: int | Sequence[float] = 32
    # how the values are divided into bands: evenly ("linear"), or finer towards the lowest ("log");
    # "auto" chooses by how crowded even bands are
    scale: Scale = "auto"
    # how many points a side the function is evaluated on
    resolution: int = 200
    # how many contour lines are drawn
    contours: int = 10
    contour_color: Any = (1.0, 1.0, 1.0, 0.5)
    # whether to write the values on the contour lines
    contour_labels: bool = False
    # whether a bar tells the values of the colours
    colorbar: bool = True
    # whether to mark known minima
    show_minima: bool = True

    def check(self) -> None:
        """Raise if a choice is impossible."""
        from matplotlib import colormaps

        if self.cmap not in colormaps:
            raise ValueError(
                f"`cmap` must be the name of a matplotlib colormap, such as 'viridis' or 'magma', "
                f"got {self.cmap!r}"
            )
        if self.scale not in ("auto", "linear", "log"):
            raise ValueError(f"`scale` must be 'auto', 'linear' or 'log', got {self.scale!r}")
        if isinstance(self.levels, int):
            if self.levels < 1:
                raise ValueError(f"`levels` must be positive, got {self.levels}")
        elif len(self.levels) < 2 or any(
            after <= before for before, after in zip(self.levels, self.levels[1:], strict=False)
        ):
            raise ValueError(
                f"`levels` must be a number, or two or more increasing values, got {self.levels}"
            )
        if self.resolution < 2:
            raise ValueError(f"`resolution` must be at least 2, got {self.resolution}")
        if self.contours < 0:
            raise ValueError(f"`contours` must be non-negative, got {self.contours}")
