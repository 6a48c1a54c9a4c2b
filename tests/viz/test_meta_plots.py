"""Plots of meta-learning: inner losses by task and step, learned learning rates by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from torch import nn

import torchopt
from torchopt_viz import NonFiniteStepWarning, plot_inner_losses, plot_learning_rates

LOSSES = torch.tensor([[4.0, 2.0, 1.0], [2.0, 1.0, 0.5], [3.0, 3.0, 3.0]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def band(ax: Any, index: int = 0) -> tuple[Any, Any]:
    """Return the lower and the upper edge of a band, by position."""
    vertices = ax.collections[index].get_paths()[0].vertices
    xs = np.unique(vertices[:, 0])
    edges = [vertices[vertices[:, 0] == x, 1] for x in xs]
    return np.array([e.min() for e in edges]), np.array([e.max() for e in edges])


@pytest.mark.parametrize(
    "losses",
    [
        LOSSES,
        LOSSES.tolist(),
        [[2 * x.requires_grad_() for x in row.clone()] for row in LOSSES / 2],
        [LOSSES[0], LOSSES[1].tolist(), tuple(LOSSES[2])],
        LOSSES.float().requires_grad_(),
    ],
    ids=["tensor", "lists", "lists of tensors", "mixed", "float32 with a graph"],
)
def test_a_line_for_each_task_and_their_mean_with_its_interval(losses: Any) -> None:
    ax = plot_inner_losses(losses)
    *tasks, mean = ax.lines
    np.testing.assert_array_equal([line.get_ydata() for line in tasks], LOSSES)
    np.testing.assert_allclose(mean.get_ydata(), LOSSES.mean(dim=0))
    half = 1.96 * LOSSES.std(dim=0) / 3**0.5
    low, high = band(ax)
    np.testing.assert_allclose(low, LOSSES.mean(dim=0) - half, atol=1e-6)
    np.testing.assert_allclose(high, LOSSES.mean(dim=0) + half, atol=1e-6)
    assert ax.get_yscale() == "linear"
    assert legend(ax) == ["mean, 95 % interval", "mean"]


def test_tasks_may_differ_in_length() -> None:
    ax = plot_inner_losses([[4.0, 2.0, 1.0, 0.5], [2.0], [3.0, 1.0]])
    np.testing.assert_allclose(ax.lines[-1].get_ydata(), [3.0, 1.5, 1.0, 0.5])
    low, _ = band(ax)
    assert len(low) == 2  # a single task has no interval


def test_one_task_is_drawn_without_interval() -> None:
    ax = plot_inner_losses(LOSSES[:1])
    np.testing.assert_array_equal(ax.lines[-1].get_ydata(), LOSSES[0])
    ax.figure.canvas.draw()


def test_two_learners_compared_on_a_logarithmic_axis() -> None:
    ax = plot_inner_losses(LOSSES, label="before", log=True)
    assert plot_inner_losses(LOSSES / 2, label="after", color="C1", log=True, ax=ax) is ax
    assert ax.get_yscale() == "log"
    assert sorted(legend(ax)) == sorted(
        f"{name}{band}" for name in ("before", "after") for band in ("", ", 95 % interval")
    )
    assert band(ax)[0].min() >= LOSSES.min()  # an interval may reach below zero, the axis can't
    ax.figure.canvas.draw()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_shown_and_reported(bad: float) -> None:
    losses = [[4.0, 2.0, 1.0], [2.0, 1.0, 0.5], [3.0, bad, 7.0]]
    message = "`losses` of 1 of 3 tasks are not finite, first of task 2 at step 1"
    with pytest.warns(NonFiniteStepWarning, match=message) as caught:
        ax = plot_inner_losses(losses)
    assert caught[0].filename == __file__
    cross, mean = ax.lines[3:]
    np.testing.assert_array_equal(cross.get_xydata(), [[0.0, 3.0]])
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [3.0, np.nan, np.nan])
    np.testing.assert_allclose(mean.get_ydata(), [3.0, 1.5, 0.75])
    assert legend(ax) == ["mean, 95 % interval", "mean (1 of 3 tasks not finite)"]


def test_one_learning_rate_for_each_layer_is_a_bar() -> None:
    ax = plot_learning_rates({"conv": {"weight": 0.1, "bias": torch.tensor(0.3)}, "fc": -0.05})
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.1, 0.3, -0.05])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["conv.weight", "conv.bias", "fc"]
    assert ax.get_ylabel() == "learning rate"


def learned_rates() -> dict[str, torch.Tensor]:
    """Take one step of Meta-SGD."""
    net = nn.Linear(3, 2)
    rates = {name: torch.full_like(p, 0.1).requires_grad_() for name, p in net.named_parameters()}
    outer = torch.optim.SGD(rates.values(), lr=0.01)
    inner = torchopt.MetaSGD(net, lr=rates)
    inner.step(net(torch.ones(3)).square().sum())
    net(torch.tensor([1.0, 2.0, 3.0])).square().sum().backward()
    outer.step()
    return rates


def test_a_learning_rate_for_each_weight_is_a_box_for_each_layer() -> None:
    rates = {name: x.detach() for name, x in learned_rates().items()}
    assert all(x.unique().numel() > 1 for x in rates.values())
    ax = plot_learning_rates(rates, initial=0.1)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["weight", "bias"]
    dashed, *drawn = ax.lines
    assert set(dashed.get_ydata()) == {0.1}
    medians = [line.get_ydata()[0] for line in drawn if line.get_linewidth() == 2]
    expected = [float(np.median(x.numpy())) for x in rates.values()]
    assert medians == pytest.approx(expected)
    drawn_values = np.concatenate([line.get_ydata() for line in drawn])
    assert drawn_values.min() == pytest.approx(min(float(x.min()) for x in rates.values()))
    assert drawn_values.max() == pytest.approx(max(float(x.max()) for x in rates.values()))


def test_each_learner_has_a_colour_of_its_own() -> None:
    ax = plot_inner_losses(LOSSES, label="MAML")
    plot_inner_losses(LOSSES / 2, label="Reptile", ax=ax)
    *first, one = ax.lines[:4]
    *second, other = ax.lines[4:]
    assert {line.get_color() for line in first} == {one.get_color()}
    assert {line.get_color() for line in second} == {other.get_color()}
    assert one.get_color() != other.get_color()
    bands = [to_rgba(band.get_facecolor()[0])[:3] for band in ax.collections]
    assert bands == [to_rgba(line.get_color())[:3] for line in (one, other)]


def test_a_single_task_has_no_interval() -> None:
    assert legend(plot_inner_losses([[3.0, 2.0, 1.0]])) == ["mean"]


def test_many_layers_have_a_colour_each_and_a_legend_beside_the_lines() -> None:
    history = [{f"layer{i}": 0.1 + 0.01 * i * k for i in range(18)} for k in range(4)]
    ax = plot_learning_rates(history)
    colors = [to_rgba(line.get_color()) for line in ax.lines]
    apart = min(
        sum(abs(a - b) for a, b in zip(x, y, strict=True))
        for i, x in enumerate(colors)
        for y in colors[:i]
    )
    assert apart > 0.1
    ax.figure.draw_without_rendering()
    legend_box = ax.get_legend().get_window_extent()
    assert legend_box.x0 > ax.get_window_extent().x1
    assert legend_box.x1 < ax.figure.bbox.x1
    assert legend_box.y0 > ax.figure.bbox.y0


def test_learning_rates_over_meta_iterations_are_lines() -> None:
    first, second = torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.6])
    ax = plot_learning_rates([{"w": first, "b": 0.5}, {"w": second, "b": 0.25}], initial=0.1)
    _, w, b = ax.lines
    np.testing.assert_allclose(w.get_ydata(), [0.2, 0.4])
    np.testing.assert_allclose(b.get_ydata(), [0.5, 0.25])
    low, high = band(ax)
    np.testing.assert_allclose((low, high), [[0.1, 0.2], [0.3, 0.6]])
    assert legend(ax) == ["initial", "w", "b"]
    assert ax.get_xlabel() == "meta-iteration"


@pytest.mark.parametrize(
    "rates",
    [
        {"w": 0.1, "b": 0.2},
        {"w": torch.rand(5) + 0.1, "b": torch.rand(2) + 0.1},
        [{"w": 0.1}, {"w": 0.2}],
    ],
)
def test_learning_rates_on_a_logarithmic_axis(rates: Any) -> None:
    _, ax = plt.subplots()
    assert plot_learning_rates(rates, log=True, ax=ax) is ax
    assert ax.get_yscale() == "log"
    ax.figure.canvas.draw()
    assert ax.get_ylim()[0] > 0


@pytest.mark.parametrize(
    "rates",
    [
        {"w": float("nan"), "b": 0.2},
        {"w": torch.tensor([0.1, torch.inf, 0.3]), "b": torch.ones(2)},
        [{"w": 0.1, "b": 0.1}, {"w": float("inf"), "b": 0.2}],
    ],
)
def test_learning_rates_that_are_not_finite_are_reported(rates: Any) -> None:
    message = "`rates` of w are not all finite; those are left out"
    with pytest.warns(NonFiniteStepWarning, match=message) as caught:
        plot_learning_rates(rates).figure.canvas.draw()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: plot_inner_losses(torch.ones(3)),
            ValueError,
            r"`losses` must have two dimensions, tasks by steps, got shape \(3,\): .*unsqueeze",
        ),
        (
            lambda: plot_inner_losses([1.0, 2.0]),  # type: ignore[list-item]
            ValueError,
            r"`losses` must hold a row of numbers for each task, got 1\.0 at position 0",
        ),
        (
            lambda: plot_inner_losses([[1.0], [torch.ones(2)]]),
            ValueError,
            r"`losses` must hold a row of numbers for each task, .* at position 1",
        ),
        (lambda: plot_inner_losses([]), ValueError, "`losses` must not be empty: give a row"),
        (
            lambda: plot_inner_losses([[1.0], []]),
            ValueError,
            "`losses` must not be empty, but those of task 1 are",
        ),
        (
            lambda: plot_inner_losses([[1.0, 0.0]], log=True),
            ValueError,
            "`losses` must be positive for a logarithmic axis, got 0: leave out `log`",
        ),
        (
            lambda: plot_learning_rates({"w": -0.1}, log=True),
            ValueError,
            r"`rates` must be positive for a logarithmic axis, got -0\.1",
        ),
        (
            lambda: plot_learning_rates(torch.ones(3)),  # type: ignore[arg-type]
            TypeError,
            "`rates` must be a mapping .* got Tensor",
        ),
        (
            lambda: plot_learning_rates([torch.ones(3)]),  # type: ignore[list-item]
            TypeError,
            "`rates` must be a mapping .* got list",
        ),
        (lambda: plot_learning_rates({}), ValueError, "`rates` must hold at least one rate"),
        (lambda: plot_learning_rates([]), ValueError, "`rates` must hold at least one rate"),
        (
            lambda: plot_learning_rates({"w": torch.ones(0)}),
            ValueError,
            "`rates` must not be empty, but 'w' is",
        ),
        (
            lambda: plot_learning_rates([{"w": 1.0}, {"v": 1.0}]),
            ValueError,
            r"same names throughout, got \['w'\] at first and \['v'\] at position 1",
        ),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
    assert not plt.get_fignums()
