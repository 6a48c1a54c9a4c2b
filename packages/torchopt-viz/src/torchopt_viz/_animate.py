"""Pictures that move: one frame a step, to GIF or MP4."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# called with the number of a frame and the number of frames
Progress = Callable[[int, int], object]


def find_ffmpeg() -> str:
    """Return the path of ffmpeg: of the system, or else of ``imageio-ffmpeg``.

    Raises:
        ImportError: If there is none.
    """
    if found := shutil.which("ffmpeg"):
        return found
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except ImportError as error:
        raise ImportError(
            'an MP4 needs ffmpeg: install it, or `pip install "torchopt-viz[video]"`, or write a '
            "GIF instead",
            name="imageio_ffmpeg",
        ) from error


def check_animation(path: str | os.PathLike[str], fps: int) -> Path:
    """Return where an animation is to be saved, if that will be possible.

    Raises:
        ValueError: If it is neither a GIF nor an MP4, or `fps` is not positive.
        ImportError: If it is an MP4 and there is no ffmpeg.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"`animate` must be the path of a .gif or .mp4 file, got '{path}'")
    if not fps > 0:
        raise ValueError(f"`fps` must be positive, got {fps}")
    if path.suffix.lower() == ".mp4":
        find_ffmpeg()
    return path


def save_animation(
    figure: Figure,
    show: Callable[[int], object],
    frames: int,
    path: Path,
    fps: int,
    progress: Progress | None,
) -> None:
    """Save what ``show(0)``, ``show(1)``, ... draw in a figure."""
    import matplotlib as mpl
    from matplotlib.animation import FFMpegWriter

    gif = path.suffix.lower() == ".gif"
    show(frames - 1)
    figure.draw_without_rendering()
    layout = figure.get_layout_engine()
    figure.set_layout_engine("none")  # the axes stay where they are
    try:
        with mpl.rc_context():
            if gif:
                _save_gif(figure, show, frames, path, fps, progress)
                return
            mpl.rcParams["animation.ffmpeg_path"] = find_ffmpeg()
            writer = FFMpegWriter(fps=fps, codec="h264")
            with writer.saving(figure, path, dpi=100):
                for frame in range(frames):
                    show(frame)
                    writer.grab_frame()
                    if progress is not None:
                        progress(frame, frames)
    finally:
        figure.set_layout_engine(layout)


def _save_gif(
    figure: Figure,
    show: Callable[[int], object],
    frames: int,
    path: Path,
    fps: int,
    progress: Progress | None,
) -> None:
    """Save a GIF whose frames all have one palette: that of the last frame, the fullest."""
    from PIL import Image

    def drawn(frame: int) -> Image.Image:
        show(frame)
        buffer = BytesIO()
        figure.savefig(buffer, format="rgba", dpi=100)
        width, height = (int(x) for x in figure.get_size_inches() * 100)
        return Image.frombytes("RGBA", (width, height), buffer.getvalue()).convert("RGB")

    palette = drawn(frames - 1).quantize(256)
    film = []
    for frame in range(frames):
        film.append(drawn(frame).quantize(palette=palette, dither=Image.Dither.NONE))
        if progress is not None:
            progress(frame, frames)
    film[0].save(
        path, save_all=True, append_images=film[1:], duration=int(1000 / fps), loop=0, disposal=1
    )
