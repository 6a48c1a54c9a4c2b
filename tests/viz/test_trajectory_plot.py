"""Pictures of trajectories show what was computed, and say what they cannot show."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from torch import Tensor

import torchopt
from torchopt_viz import (
    NonFiniteStepWarning,
    TrajectoryPlot,
    TrajectoryStyle,
    plot_trajectory,
    run_trajectory,
    test_functions,
    test_optim,
)
from torchopt_viz._draw import evaluate_grid, make_levels

RED = "#ff3b30"


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def lines(plot: TrajectoryPlot, panel: int = 0) -> list[Any]:
    """Return what is drawn over the contours, from below: stars, then for each path 4 artists."""
    return list(plot.axes[panel].lines)


def texts(plot: TrajectoryPlot, panel: int = 0) -> list[str]:
    axes = plot.axes[panel]
    shown = [text.get_text() for text in axes.texts if text.get_visible()]
    return [axes.get_title(loc="left"), *shown]


def test_start_path_end_and_minima_lie_over_filled_contours() -> None:
    plot = plot_trajectory(torchopt.Adam, "himmelblau", 60, {"lr": 0.3})
    (trajectory,) = plot.trajectories
    expected = run_trajectory(torchopt.Adam, "himmelblau", 60, {"lr": 0.3})
    assert torch.equal(trajectory.points, expected.points)
    stars, path, start, end, cross = lines(plot)
    np.testing.assert_array_equal(stars.get_xydata(), test_functions["himmelblau"].minima)
    np.testing.assert_array_equal(path.get_xydata(), expected.points)
    np.testing.assert_array_equal(start.get_xydata(), expected.points[:1])
    np.testing.assert_array_equal(end.get_xydata(), expected.points[-1:])
    assert len(cross.get_xydata()) == 0
    (axes,) = plot.axes
    assert (*axes.get_xlim(), *axes.get_ylim()) == test_functions["himmelblau"].domain
    filled, contours = axes.collections
    assert len(filled.get_paths()) >= 32
    assert len(contours.get_paths()) == 10
    x, y = expected.points[-1].tolist()
    value = float(expected.values[-1])
    assert texts(plot) == [
        "Adam(lr=0.3) on Himmelblau",
        f"step 60 of 60: f({x:.3g}, {y:.3g}) = {value:.4g}",
    ]


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plot = plot_trajectory(torchopt.Adam, "himmelblau", 60, {"lr": 0.3})
    plot.figure.savefig(tmp_path / "walk.png", dpi=50)
    pixels = plt.imread(tmp_path / "walk.png")[..., :3]
    for color in (to_rgba(RED), to_rgba("#5050ff"), plt.colormaps["viridis"](0.0)):
        assert np.abs(pixels - color[:3]).max(axis=-1).min() < 0.05


def test_the_positional_order_follows_the_tool_of_r() -> None:
    assert test_optim is plot_trajectory
    plot = test_optim(torchopt.Adam, "booth", 5, {"lr": 0.5})
    assert plot.trajectories[0].label == "Adam(lr=0.5)"
    assert len(test_optim(torchopt.Adam).trajectories[0].points) == 201
    assert "on Beale" in texts(test_optim(torchopt.Adam))[0]


@pytest.mark.parametrize(
    ("option", "value", "artist", "getter"),
    [
        ("line_color", "black", 1, "get_color"),
        ("line_width", 4.0, 1, "get_linewidth"),
        ("line_style", "--", 1, "get_linestyle"),
        ("step_marker", "s", 1, "get_marker"),
        ("start_color", "pink", 2, "get_color"),
        ("start_marker", "v", 2, "get_marker"),
        ("end_color", "gold", 3, "get_color"),
        ("end_marker", "P", 3, "get_marker"),
        ("marker_size", 20.0, 2, "get_markersize"),
        ("marker_size", 20.0, 3, "get_markersize"),
    ],
)
def test_line_and_point_styles(option: str, value: Any, artist: int, getter: str) -> None:
    plot = plot_trajectory(
        torchopt.Adam, steps=3, style=TrajectoryStyle(resolution=20, **{option: value})
    )
    assert getattr(lines(plot)[artist], getter)() == value


def test_palette_levels_and_contour_lines() -> None:
    plot = plot_trajectory(
        torchopt.Adam,
        "sphere",
        3,
        style=TrajectoryStyle(
            cmap="magma",
            levels=[0, 1, 2, 4, 8],
            contours=3,
            contour_color="red",
            contour_labels=True,
        ),
    )
    filled, contours = plot.axes[0].collections
    assert filled.get_cmap().name == "magma"
    np.testing.assert_array_equal(filled.norm.boundaries, [0, 1, 2, 4, 8])
    assert contours.levels.tolist() == [1, 2, 4]
    np.testing.assert_array_equal(contours.get_edgecolor(), [to_rgba("red")] * 3)
    assert {text.get_text() for text in contours.labelTexts} <= {"1", "2", "4"}
    assert contours.labelTexts
    bare = plot_trajectory(
        torchopt.Adam, "sphere", 3, style=TrajectoryStyle(contours=0, show_minima=False)
    )
    assert len(bare.axes[0].collections) == 1
    assert len(lines(bare)) == 4


def test_domain_start_and_title_can_be_chosen() -> None:
    plot = plot_trajectory(
        torchopt.Adam, "sphere", 3, domain=(-1, 2, -3, 4), start=(1, 1), title="mine"
    )
    assert (*plot.axes[0].get_xlim(), *plot.axes[0].get_ylim()) == (-1, 2, -3, 4)
    assert texts(plot)[0] == "mine"
    assert plot.trajectories[0].points[0].tolist() == [1, 1]


def test_it_takes_an_axes_and_a_few_options() -> None:
    parameters = inspect.signature(plot_trajectory).parameters
    assert list(parameters) == [
        *("optimizer", "function", "steps", "hyperparameters", "ax", "domain", "start", "layout"),
        *("follow", "title", "style"),
    ]
    with pytest.raises(TypeError, match="`style` must be a TrajectoryStyle, got dict"):
        plot_trajectory(torchopt.Adam, style={"cmap": "magma"})  # type: ignore[arg-type]


def test_a_walk_that_was_run_before_is_drawn_as_it_is() -> None:
    walks = [
        run_trajectory(torch.optim.Muon, "booth", 5, {"lr": 0.1}, parameter_shape=(1, 2)),
        run_trajectory(torchopt.Adam, "booth", 5, dtype=torch.float32, label="single"),
    ]
    assert plot_trajectory(walks[0], "booth").trajectories == (walks[0],)
    plot = plot_trajectory({"a": walks[0], "b": torchopt.SGD}, "booth", 5, {"b": {"lr": 0.1}})
    assert [walk.label for walk in plot.trajectories] == ["a", "b"]
    assert [w.label for w in plot_trajectory(walks, "booth").trajectories][1] == "single"
    with pytest.raises(ValueError, match=r"all trajectories must have as many steps, got \[5, 7\]"):
        plot_trajectory([walks[0], torchopt.SGD], "booth", 7)
    with pytest.raises(ValueError, match="`hyperparameters` must be empty for a Trajectory"):
        plot_trajectory(walks[0], "booth", 5, {"lr": 0.1})


def test_functional_optimizers_are_called_by_their_names() -> None:
    clipped = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(0.1, 0.9))
    own = torchopt.GradientTransformation(lambda p: (), lambda u, s, **k: (u, s))  # type: ignore[arg-type]
    made = [torchopt.adam(0.1), torchopt.sgd(0.1), clipped, torchopt.adamw(cosine), own]
    plot = plot_trajectory(made, "sphere", 2)
    assert [trajectory.label for trajectory in plot.trajectories] == [
        *("adam(lr=0.1)", "sgd(lr=0.1)", "ClipNorm(max_norm=1.0), sgd(lr=0.1, momentum=0.9)"),
        *("adamw(lr=cosine)", "transformation"),
    ]


def cosine(count: Any) -> float:
    return 0.1


def test_a_bar_tells_the_values_of_the_colours() -> None:
    plot = plot_trajectory(torchopt.Adam, "sphere", 2)
    (bar,) = (axes for axes in plot.figure.axes if axes not in plot.axes)
    ticks = [float(text.get_text()) for text in bar.get_yticklabels()]
    assert 5 <= len(ticks) <= 10
    assert ticks == sorted(ticks)
    shared = plot_trajectory([torchopt.Adam] * 3, "sphere", 2)
    assert len(shared.figure.axes) == 4
    bare = plot_trajectory(torchopt.Adam, "sphere", 2, style=TrajectoryStyle(colorbar=False))
    assert bare.figure.axes == list(bare.axes)


def test_titles_are_names_for_people() -> None:
    shown = {name: plot_trajectory(torchopt.SGD, name, 1, {"lr": 0.0}) for name in TITLED}
    assert {name: texts(plot)[0] for name, plot in shown.items()} == {
        name: f"SGD(lr=0) on {title}" for name, title in TITLED.items()
    }


TITLED = {
    "goldstein_price": "Goldstein\N{EN DASH}Price",
    "levi_n13": "L\N{LATIN SMALL LETTER E WITH ACUTE}vi N. 13",
    "bukin_n6": "Bukin N. 6",
    "flower": "Flower",
}


def test_a_star_is_seen_beneath_a_path_that_ends_at_it() -> None:
    plot = plot_trajectory(torchopt.SGD, "sphere", 100, {"lr": 0.4})
    stars, _, _, end, _ = lines(plot)
    assert plot.trajectories[0].points[-1].abs().max() < 1e-6
    assert stars.get_markersize() >= 2 * end.get_markersize()


@pytest.mark.parametrize(("count", "last"), [(5, 2), (4, 2), (7, 1), (6, 3)])
def test_panels_leave_no_hole(count: int, last: int) -> None:
    plot = plot_trajectory([torchopt.SGD] * count, "sphere", 1, {"lr": 0.1})
    plot.figure.draw_without_rendering()
    spots = [axes.get_position() for axes in plot.axes]
    bottom = [spot for spot in spots if spot.y0 == pytest.approx(min(s.y0 for s in spots))]
    assert len(bottom) == last
    middle = (min(s.x0 for s in spots) + max(s.x1 for s in spots)) / 2
    assert (bottom[0].x0 + bottom[-1].x1) / 2 == pytest.approx(middle, abs=0.01)


def test_no_path_is_out_of_sight() -> None:
    rates = [{"lr": rate} for rate in (0.5, 1e-3, 1e-4, 1e-5, 0.0)]
    plot = plot_trajectory(
        [torchopt.SGD] * 5, "sphere", 10, rates, start=(20, -9), layout="overlay"
    )
    (axes,) = plot.axes
    (xmin, xmax), (ymin, ymax) = axes.get_xlim(), axes.get_ylim()
    for trajectory in plot.trajectories:
        x, y = trajectory.points.T
        assert bool(((xmin < x) & (x < xmax) & (ymin < y) & (y < ymax)).all())


RATES = [{"lr": 0.01}, {"lr": 0.1}, {"lr": 0.7}]


def test_several_optimizers_side_by_side() -> None:
    plot = plot_trajectory([torchopt.AdamW] * 3, "flower", 20, RATES, start=(2, 1))
    labels = [f"AdamW(lr={rate['lr']})" for rate in RATES]
    assert [trajectory.label for trajectory in plot.trajectories] == labels
    assert [texts(plot, panel)[0] for panel in range(3)] == labels
    assert plot.figure.get_suptitle() == "Flower"
    for panel, trajectory in enumerate(plot.trajectories):
        np.testing.assert_array_equal(lines(plot, panel)[1].get_xydata(), trajectory.points)


def test_several_optimizers_over_one_another() -> None:
    optimizers = {"Adam": torchopt.adam(0.1), "L-BFGS": torch.optim.LBFGS, "SGD": torchopt.SGD}
    options = {"SGD": {"lr": 0.05}}
    plot = plot_trajectory(optimizers, "sphere", 20, options, layout="overlay")
    (axes,) = plot.axes
    _, *drawn = lines(plot)
    paths = drawn[::4]
    for path, trajectory in zip(paths, plot.trajectories, strict=True):
        np.testing.assert_array_equal(path.get_xydata(), trajectory.points)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(optimizers)
    assert len({path.get_color() for path in paths}) == 3
    assert [end.get_color() for end in drawn[2::4]] == [path.get_color() for path in paths]
    assert texts(plot)[:2] == ["Sphere", "step 20 of 20"]
    torch.testing.assert_close(
        plot.trajectories[2].points,
        run_trajectory(torchopt.SGD, "sphere", 20, options["SGD"]).points,
    )
    colored = plot_trajectory(
        optimizers,
        "sphere",
        2,
        layout="overlay",
        style=TrajectoryStyle(line_color=["red", "blue", "black"]),
    )
    assert [line.get_color() for line in lines(colored)[1::4]] == ["red", "blue", "black"]


def test_hyperparameters_may_be_shared() -> None:
    plot = plot_trajectory([torchopt.Adam, torch.optim.SGD], "sphere", 2, {"lr": 0.2})
    assert [t.label for t in plot.trajectories] == ["Adam(lr=0.2)", "SGD(lr=0.2)"]


def test_it_draws_on_given_axes() -> None:
    figure, axes = plt.subplots(1, 2)
    plot = plot_trajectory([torchopt.Adam, torchopt.SGD], "sphere", 2, ax=axes)
    assert plot.figure is figure
    assert plot.axes == tuple(axes)
    assert plot_trajectory(torchopt.Adam, "sphere", 2, ax=axes[0]).axes == (axes[0],)
    assert plt.get_fignums() == [figure.number]
    grid = plt.subplots(2, 2)[1]
    assert plot_trajectory(PAIR * 2, "sphere", 2, ax=grid).axes == tuple(grid.flat)


def test_points_outside_of_the_picture_are_counted() -> None:
    plot = plot_trajectory(torchopt.AdamW, "flower", 200, {"lr": 0.1, "weight_decay": 1e-6})
    outside = int((plot.trajectories[0].points.abs() > 3).any(dim=1).sum())
    assert 0 < outside < 201
    assert texts(plot)[2] == f"{outside} of 201 points outside of the picture"


def test_the_picture_follows_the_path_when_asked() -> None:
    plot = plot_trajectory(torchopt.AdamW, "flower", 200, {"lr": 0.1}, follow=True)
    (xmin, xmax), (ymin, ymax) = plot.axes[0].get_xlim(), plot.axes[0].get_ylim()
    assert xmin == ymin == -3
    assert 20 < xmax == ymax < 22
    assert len(texts(plot)) == 2


def test_steps_that_are_not_finite_are_shown_and_reported() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        return x.sqrt() + y.square()

    with pytest.warns(NonFiniteStepWarning, match="f: after step 2 .* value nan") as caught:
        plot = plot_trajectory(
            torchopt.SGD, f, 10, {"lr": 0.5}, domain=(-1, 2, -1, 1), start=(0.4, 0.5)
        )
    assert caught[0].filename == __file__
    (trajectory,) = plot.trajectories
    assert trajectory.non_finite == 2
    assert texts(plot)[2] == "1 of 11 points outside of the picture\nnot finite from step 2"
    path, _, _, cross = lines(plot)
    np.testing.assert_array_equal(cross.get_xydata(), trajectory.points[1:2])
    np.testing.assert_array_equal(path.get_xydata(), trajectory.points)
    plot.figure.canvas.draw()


@pytest.mark.parametrize("follow", [False, True])
def test_walks_to_the_end_of_the_floating_point_numbers_can_be_drawn(follow: bool) -> None:
    with pytest.warns(NonFiniteStepWarning):
        plot = plot_trajectory(torchopt.SGD, "rosenbrock", 20, {"lr": 0.01}, follow=follow)
    assert plot.trajectories[0].points.isfinite().logical_not().any()
    plot.figure.canvas.draw()


def test_where_a_function_has_no_value_the_picture_is_grey() -> None:
    plot = plot_trajectory(
        torchopt.SGD, lambda x, y: x.log() + y.square(), 3, domain=(-1, 1, -1, 1), start=(0.5, 0.5)
    )
    filled = plot.axes[0].collections[0]
    assert min(path.vertices[:, 0].min() for path in filled.get_paths() if len(path)) > 0


@pytest.mark.parametrize(
    "function", [lambda x, y: 0 * x * y + 3, lambda x, y: (x + y) * torch.nan], ids=["flat", "nan"]
)
@pytest.mark.filterwarnings("ignore::torchopt_viz.NonFiniteStepWarning")
def test_flat_functions_and_functions_without_values_can_be_drawn(function: Any) -> None:
    plot = plot_trajectory(torchopt.SGD, function, 2, domain=(-1, 1, -1, 1), start=(0, 0))
    plot.figure.canvas.draw()


def normalized(x: Tensor, y: Tensor) -> Tensor:
    """Not elementwise: wrong if a whole grid is passed at once."""
    point = torch.stack((x.reshape(-1), y.reshape(-1)))
    return (point / point.norm()).sum() + point.pow(2).sum()


def branching(x: Tensor, y: Tensor) -> Tensor:
    """Not for vmap: Python looks at the values."""
    return x.square() if x > y else y.square() * x.detach().numpy().item()


@pytest.mark.parametrize(
    "function", [normalized, branching, test_functions["flower"].function], ids=lambda f: f.__name__
)
def test_contours_are_evaluated_point_by_point(function: Any) -> None:
    plot_trajectory(
        torchopt.SGD,
        function,
        1,
        domain=(-1, 2, 1, 4),
        start=(0.5, 1),
        style=TrajectoryStyle(resolution=5),
    )
    problem = test_functions["sphere"].__class__("f", function, (-1, 2, 1, 4), (0, 0))
    x, y, z = evaluate_grid(problem, problem.domain, 6)
    assert z.shape == (6, 6)
    for i, j in np.ndindex(6, 6):
        expected = function(torch.tensor(x[j]), torch.tensor(y[i]))
        assert z[i, j] == pytest.approx(float(expected), rel=1e-12)


def test_levels_are_even_or_finer_towards_the_minimum() -> None:
    even = np.ma.masked_invalid(np.linspace(1, 5, 10_000))
    skewed = np.ma.masked_invalid(np.linspace(0, 10, 10_000) ** 5 + 1)
    np.testing.assert_allclose(make_levels(even, 4, "auto"), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(make_levels(skewed, 4, "linear"), np.linspace(1, 100_001, 5))
    for values, scale in ((skewed, "auto"), (even, "log")):
        levels = make_levels(values, 6, scale)
        assert (levels[0], levels[-1]) == pytest.approx((values.min(), values.max()))
        ratios = np.diff(levels)[1:] / np.diff(levels)[:-1]
        np.testing.assert_allclose(ratios, ratios[0])
        assert ratios[0] > 1


def test_it_works_headless_and_importing_it_loads_no_matplotlib() -> None:
    program = (
        "import sys, torchopt, torchopt.visual as visual\n"
        "assert 'matplotlib' not in sys.modules\n"
        "visual.plot_trajectory(torchopt.Adam, steps=2).figure.canvas.draw()\n"
    )
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


PAIR = [torchopt.Adam, torchopt.SGD]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: plot_trajectory(torchopt.Adam, lambda x, y: x, start=(0, 0)),
            ValueError,
            r"needs `domain`=\(xmin, xmax, ymin, ymax\) and `start`=\(x0, y0\), got `domain`=None",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, domain=(1, -1, 0, 1)),
            ValueError,
            r"`domain` must be .* with xmin < xmax and ymin < ymax, got \(1, -1, 0, 1\)",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, domain=(1, 2)),
            ValueError,
            r"`domain` must be 4 finite numbers, got \(1, 2\)",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, "bohachevsky"),
            ValueError,
            "`function` must be one of ackley, beale",
        ),
        (
            lambda: plot_trajectory([]),
            ValueError,
            r"`optimizer` must be one .* or several, got \[\]",
        ),
        (
            lambda: plot_trajectory(PAIR, "beale", 3, RATES),
            ValueError,
            "`hyperparameters` must have an entry for each of 2 optimizers, got 3",
        ),
        (
            lambda: plot_trajectory({"a": torchopt.SGD}, "beale", 3, {"a": {}, "b": {}}),
            ValueError,
            r"`hyperparameters` must be of the optimizers \['a'\], got also \['b'\]",
        ),
        (
            lambda: plot_trajectory(PAIR, "beale", 3, [0.1, 0.2]),  # type: ignore[list-item]
            TypeError,
            r"`hyperparameters` must be keyword arguments .*, got 0\.1",
        ),
        (
            lambda: plot_trajectory(PAIR, ax=plt.subplots()[1]),
            ValueError,
            "`ax` must hold 2 axes, one for each panel, got 1",
        ),
        (
            lambda: plot_trajectory(PAIR, style=TrajectoryStyle(line_color=["red"])),
            ValueError,
            "`line_color` must have an entry for each of 2 optimizers, got 1",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, layout="stack"),  # type: ignore[arg-type]
            ValueError,
            "`layout` must be 'side' or 'overlay', got 'stack'",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(cmap="virdis")),
            ValueError,
            "`cmap` must be the name of a matplotlib colormap, .* got 'virdis'",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(scale="sqrt")),  # type: ignore[arg-type]
            ValueError,
            "`scale` must be 'auto', 'linear' or 'log', got 'sqrt'",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(levels=0)),
            ValueError,
            "`levels` must be positive, got 0",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(levels=[2, 1])),
            ValueError,
            r"`levels` must be a number, or two or more increasing values, got \[2, 1\]",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(resolution=1)),
            ValueError,
            "`resolution` must be at least 2, got 1",
        ),
        (
            lambda: plot_trajectory(torchopt.Adam, style=TrajectoryStyle(contours=-1)),
            ValueError,
            "`contours` must be non-negative, got -1",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    assert len(plt.get_fignums()) == message.startswith("`ax`")  # no half-drawn figure stays
