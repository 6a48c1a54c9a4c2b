"""Animations hold one frame a step, in files that others can open."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

import torchopt
from torchopt_viz import TrajectoryStyle, plot_trajectory

STEPS = 6
COARSE = TrajectoryStyle(resolution=20, contours=0)


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def animate(path: Path, **options: Any) -> Any:
    optimizers = [torchopt.adam(0.3), torchopt.sgd(0.1)]
    plot = plot_trajectory(optimizers, "sphere", STEPS, style=COARSE)
    assert plot.animate(path, **options) == Path(path)
    return plot


def test_a_gif_has_a_frame_for_the_start_and_each_step(tmp_path: Path) -> None:
    path = tmp_path / "walk.gif"
    seen: list[tuple[int, int]] = []
    animate(path, fps=5, progress=lambda frame, frames: seen.append((frame, frames)))
    assert seen == [(k, STEPS + 1) for k in range(STEPS + 1)]
    with Image.open(path) as film:
        assert film.n_frames == STEPS + 1
        frames = []
        for k in range(film.n_frames):
            film.seek(k)
            assert film.info["duration"] == 200
            frames.append(np.asarray(film.convert("RGB"), dtype=float))
    for before, after in itertools.pairwise(frames):
        assert np.abs(before - after).max() > 50
    still = np.asarray(frames[0]).shape[0] // 2  # below the titles: only the paths change
    backdrop = [np.unique(frame[still:].reshape(-1, 3), axis=0) for frame in frames]
    common = {tuple(color) for color in backdrop[-1]}
    assert {tuple(color) for color in backdrop[0]} <= common
    red = [(np.abs(frame - (255, 59, 48)).max(axis=-1) < 30).sum() for frame in frames]
    assert red[-1] > red[0]  # the path grows


def test_a_walk_that_stands_still_has_all_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "walk.gif"
    plot_trajectory(torchopt.sgd(0.0), "sphere", STEPS, style=COARSE).animate(path)
    with Image.open(path) as film:
        assert film.n_frames == STEPS + 1


@pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs the extra `video`"
)
def test_an_mp4_has_a_frame_for_the_start_and_each_step(tmp_path: Path) -> None:
    path = tmp_path / "walk.mp4"
    animate(path, fps=5)
    count, seconds = importlib.import_module("imageio_ffmpeg").count_frames_and_secs(str(path))
    assert count == STEPS + 1
    assert seconds == pytest.approx((STEPS + 1) / 5, abs=0.1)


def test_the_figure_is_left_as_the_picture_of_the_last_step(tmp_path: Path) -> None:
    settings = dict(mpl.rcParams)
    plot = animate(str(tmp_path / "walk.GIF"))
    for axes, trajectory in zip(plot.axes, plot.trajectories, strict=True):
        np.testing.assert_array_equal(axes.lines[1].get_xydata(), trajectory.points)
        assert axes.texts[0].get_text().startswith(f"step {STEPS} of {STEPS}: ")
    assert isinstance(plot.figure.get_layout_engine(), ConstrainedLayoutEngine)
    assert dict(mpl.rcParams) == settings


def test_without_ffmpeg_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r'pip install "torchopt-viz\[video\]"'):
        animate(tmp_path / "walk.mp4")
    assert not (tmp_path / "walk.mp4").exists()
    animate(tmp_path / "walk.gif")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("walk.avi", {}, r"`animate` must be the path of a \.gif or \.mp4 file, got '.*walk\.avi'"),
        ("walk.gif", {"fps": 0}, "`fps` must be positive, got 0"),
    ],
)
def test_bad_input(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        animate(tmp_path / name, **options)
