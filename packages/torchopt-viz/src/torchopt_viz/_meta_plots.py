"""What people look at while they meta-learn: losses of inner loops, learned learning rates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchopt_viz._trajectory import NonFiniteStepWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Number = float | Tensor

# so many lines have the colours of matplotlib's cycle, and their legend among them
MANY_LINES = 8
LEGEND_ROWS = 24


def plot_inner_losses(
    losses: Tensor | Sequence[Tensor | Sequence[Number]],
    *,
    label: str = "mean",
    color: Any = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw the losses of inner loops: a thin line for each task, and their mean.

    The band is the 95 % interval of the mean, :math:`\pm 1.96\, s / \sqrt n` over the :math:`n`
    tasks that have a loss at that step. Losses that are not finite are left out of both, and said:
    the task's line has a cross where it ends, and the legend the number of such tasks.

    Args:
        losses: Tasks by steps: a tensor, or one row of numbers for each task, which may differ in
            length. The entry at position k is the loss after k steps.
        label: What the legend calls the mean. Default: ``"mean"``.
        color: Of the tasks, their mean and its band. Default: the next of the axes.
        log: Whether the axis of losses is logarithmic.
        ax: Where to draw; call again with the same axes to compare. Default: a new pyplot figure.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no losses, `losses` is not tasks by steps, or `log` is asked for
            and a loss is not positive.

    Warns:
        NonFiniteStepWarning: If a loss is not finite.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> import torch
        >>> from torchopt_viz import plot_inner_losses
        >>> losses = torch.rand(8, 1) * 0.5 ** torch.arange(6)
        >>> ax = plot_inner_losses(losses, log=True)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('inner step', 'loss')
        >>> matplotlib.pyplot.close(ax.figure)
    """
    rows = _as_rows(losses)
    interval = f"{label}, 95 % interval"
    if log:
        _check_positive("losses", torch.cat(rows))
    table = torch.full((len(rows), max(map(len, rows))), math.nan, dtype=torch.float64)
    broken = []
    for task, row in enumerate(rows):
        finite = row.isfinite()
        table[task, : len(row)] = row.where(finite, math.nan)
        if not finite.all():
            broken.append((task, int(finite.int().argmin())))
    if broken:
        label = f"{label} ({len(broken)} of {len(rows)} tasks not finite)"
        task, step = broken[0]
        _warn(
            f"`losses` of {len(broken)} of {len(rows)} tasks are not finite, first of task {task} "
            f"at step {step}; they are left out of the mean from there"
        )
    for task, step in broken:  # nothing after it is to be trusted
        table[task, step:] = math.nan

    ax = _new_axes() if ax is None else ax
    if color is None:
        (next_line,) = ax.plot([], [])
        color = next_line.get_color()
        next_line.remove()
    ax.plot(table.T.numpy(), color=color, linewidth=0.7, alpha=0.3)
    for task, step in broken:
        last = max(step - 1, 0)
        ax.plot(last, float(table[task, last]), "x", color="C3")
    count = table.isfinite().sum(dim=0)
    mean = table.nanmean(dim=0)
    deviation = ((table - mean).square().nansum(dim=0) / (count - 1)).sqrt()
    half = 1.96 * deviation / count.sqrt()  # NaN where there is one task, which has no interval
    low, high = (mean - half), (mean + half)
    if log:
        low = low.clamp(min=float(table[table.isfinite()].min()))
        ax.set_yscale("log")
    steps = range(table.shape[1])
    if half.isfinite().any():
        ax.fill_between(
            steps, low.numpy(), high.numpy(), color=color, alpha=0.25, linewidth=0, label=interval
        )
    ax.plot(steps, mean.numpy(), color=color, linewidth=2, label=label)
    ax.set(xlabel="inner step", ylabel="loss")
    _count_along(ax)
    ax.legend(frameon=False)
    return ax


def plot_learning_rates(
    rates: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    initial: float | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw learned learning rates by layer, as they are or over meta-iterations.

    One mapping is drawn as a bar for each layer if each has one rate, and otherwise as a box
    (quartiles, and whiskers to the extremes). Several mappings, one for each meta-iteration, are
    drawn as a line for each layer: the mean, with a band from the lowest to the highest rate.

    Args:
        rates: The rates by name: numbers or tensors, in a mapping that may be nested, such as the
            `lr` of :class:`torchopt.MetaSGD`; or a sequence of such mappings.
        initial: The rate before meta-learning, drawn as a dashed line.
        log: Whether the axis of rates is logarithmic.
        ax: Where to draw. Default: a new pyplot figure.

    Returns:
        The axes.

    Raises:
        TypeError: If `rates` is neither a mapping nor a sequence of mappings.
        ValueError: If there are no rates, the mappings have other names than the first, or `log`
            is asked for and a rate is not positive.

    Warns:
        NonFiniteStepWarning: If a rate is not finite; it is left out.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("Agg")
        >>> import torch
        >>> from torchopt_viz import plot_learning_rates
        >>> net = torch.nn.Linear(3, 2)
        >>> rates = {name: torch.rand_like(p) for name, p in net.named_parameters()}
        >>> ax = plot_learning_rates(rates, initial=0.1)
        >>> [text.get_text() for text in ax.get_xticklabels()]
        ['weight', 'bias']
        >>> matplotlib.pyplot.close(ax.figure)
    """
    history = [rates] if isinstance(rates, Mapping) else rates
    if not isinstance(history, Sequence) or not all(isinstance(x, Mapping) for x in history):
        raise TypeError(
            f"`rates` must be a mapping from names to tensors, or a sequence of such mappings, got "
            f"{type(rates).__name__}"
        )
    tables = [dict(_flatten(x)) for x in history]
    names = list(tables[0]) if tables else []
    if not names:
        raise ValueError("`rates` must hold at least one rate, got none")
    for position, table in enumerate(tables):
        if list(table) != names:
            raise ValueError(
                f"`rates` must have the same names throughout, got {names} at first and "
                f"{list(table)} at position {position}"
            )
    values = torch.cat([x for table in tables for x in table.values()])
    if not values.isfinite().all():
        wrong = [name for name in names if not all(t[name].isfinite().all() for t in tables)]
        _warn(f"`rates` of {', '.join(wrong)} are not all finite; those are left out")
    if log:
        _check_positive("rates", values)

    ax = _new_axes() if ax is None else ax
    if log:
        ax.set_yscale("log")
    if initial is not None:
        ax.axhline(initial, color="0.5", linestyle="--", linewidth=1, label="initial", zorder=3)
    if isinstance(rates, Mapping):
        _draw_layers(ax, tables[0])
    else:
        _draw_history(ax, tables)
    ax.set_ylabel("learning rate")
    return ax


def _draw_layers(ax: Axes, table: Mapping[str, Tensor]) -> None:
    """Draw a bar or a box for each layer."""
    positions = range(len(table))
    finite = [x[x.isfinite()].numpy() for x in table.values()]
    if all(len(x) <= 1 for x in table.values()):
        heights = [float(x[0]) if len(x) else math.nan for x in finite]
        ax.bar(positions, heights, width=0.7)
        if ax.get_yscale() == "log":  # where a bar has no natural foot
            ax.set_ylim(bottom=min(heights) / 2)
    else:
        boxes = ax.boxplot(
            finite, positions=positions, whis=(0, 100), widths=0.6, patch_artist=True
        )
        for box in boxes["boxes"]:
            box.set(facecolor="C0", alpha=0.4)
        for line in boxes["medians"]:
            line.set(color="C0", linewidth=2)
    slanted = max(map(len, table)) * len(table) > 40
    turn: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(positions, list(table), **(turn if slanted else {}))


def _draw_history(ax: Axes, tables: Sequence[Mapping[str, Tensor]]) -> None:
    """Draw a line with a band for each layer."""
    from matplotlib import colormaps

    many = len(tables[0]) > MANY_LINES
    colors = [None] * len(tables[0])
    if many:  # more than the cycle has
        colors = list(colormaps["turbo"]([k / (len(colors) - 1) for k in range(len(colors))]))
    for name, color in zip(tables[0], colors, strict=True):
        rows = [table[name][table[name].isfinite()] for table in tables]
        low, mean, high = (
            [float(f(row)) if len(row) else math.nan for row in rows]
            for f in (torch.min, torch.mean, torch.max)
        )
        (line,) = ax.plot(mean, label=name, color=color)
        ax.fill_between(range(len(rows)), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_xlabel("meta-iteration")
    _count_along(ax)
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    columns = 1 + (len(tables[0]) - 1) // LEGEND_ROWS
    ax.legend(fontsize="small", frameon=False, ncols=columns, **(beside if many else {}))


def _as_rows(losses: Any) -> list[Tensor]:
    """Return the losses of each task as a vector."""
    if isinstance(losses, Tensor) and losses.ndim != 2:
        raise ValueError(
            f"`losses` must have two dimensions, tasks by steps, got shape {tuple(losses.shape)}: "
            f"add one with `losses.unsqueeze(0)` for a single task"
        )
    rows = []
    for task, row in enumerate(losses):
        try:
            numbers = [float(x.detach() if isinstance(x, Tensor) else x) for x in row]
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"`losses` must hold a row of numbers for each task, got {row!r} at position {task}"
            ) from error
        if not numbers:
            raise ValueError(f"`losses` must not be empty, but those of task {task} are")
        rows.append(torch.tensor(numbers, dtype=torch.float64))
    if not rows:
        raise ValueError("`losses` must not be empty: give a row of losses for each task")
    return rows


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield names, joined by dots, and rates as vectors."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            rates = torch.as_tensor(value, dtype=torch.float64).detach().cpu().reshape(-1)
            if not len(rates):
                raise ValueError(f"`rates` must not be empty, but {prefix + name!r} is")
            yield f"{prefix}{name}", rates


def _check_positive(argument: str, values: Tensor) -> None:
    lowest = float(values.nan_to_num(nan=math.inf).min())
    if lowest <= 0:
        raise ValueError(
            f"`{argument}` must be positive for a logarithmic axis, got {lowest:g}: leave out `log`"
        )


def _count_along(ax: Axes) -> None:
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _new_axes() -> Axes:
    from matplotlib import pyplot as plt

    return plt.subplots(layout="constrained")[1]


def _warn(message: str) -> None:
    warnings.warn(message, NonFiniteStepWarning, stacklevel=3)
