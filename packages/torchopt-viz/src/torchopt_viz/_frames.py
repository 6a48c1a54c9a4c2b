"""Which line of the user's program is running."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Literal, NamedTuple

import optree
import torch

import torchopt

__all__ = ["Caller", "Place", "find_caller", "find_place"]

Owner = Literal["user", "torch", "torchopt", "entrance"]


class Caller(NamedTuple):
    """Who called a function of torch."""

    owner: Owner
    # whether that was within a function with a derivative of its own: a `torch.autograd.Function`,
    # implicit differentiation or a zero-order estimate
    in_function: bool


class Place(NamedTuple):
    """Where a program is."""

    # the innermost line that is the user's own, like "train.py:31"
    line: str | None
    # the call of an optimizer's step that this line makes, if any
    step: FrameType | None


def _folder(file: str | None) -> str:
    return os.path.dirname(os.path.abspath(file or "")) + os.sep


_TORCH = _folder(torch.__file__)
_TORCHOPT = _folder(torchopt.__file__)
_EXTENSIONS = tuple(
    f"{os.sep}torchopt_{part}{os.sep}" for part in ("accel", "dist", "implicit", "viz", "zero")
)
_OWN = _folder(__file__)
_OPTREE = _folder(optree.__file__)
# where torch's public functions hand over to `__torch_function__`
_ENTRANCES = tuple(
    os.path.join(_TORCH, *path.split("/"))
    for path in (
        "overrides.py",
        "functional.py",
        "_tensor.py",
        "nn/functional.py",
        "autograd/__init__.py",
    )
)
# every way to take a step ends in one of these, whatever name it was called by, and whenever that
# name was bound
_STEPS = {
    inspect.unwrap(step).__code__
    for step in (
        torchopt.MetaOptimizer.step,
        torchopt.FuncOptimizer.step,
        torchopt.apply_updates,
    )
}
_APPLY = torch.autograd.Function.apply.__code__
# what they run is not differentiated itself: a solver, a function that is sampled
_WITH_DERIVATIVE = tuple(
    f"{os.sep}{name}{os.sep}" for name in ("torchopt_implicit", "torchopt_zero")
)


@functools.lru_cache(maxsize=4096)
def _owner(file: str) -> Owner:
    file = os.path.abspath(file)
    if file.startswith(_OWN) or file in _ENTRANCES:
        return "entrance"
    if file.startswith(_TORCHOPT) or any(part in file for part in _EXTENSIONS):
        return "torchopt"
    if file.startswith((_TORCH, _OPTREE)):
        return "torch"
    return "user"


@functools.lru_cache(maxsize=4096)
def _has_derivative(file: str) -> bool:
    return any(part in os.path.abspath(file) for part in _WITH_DERIVATIVE)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def find_place() -> Place:
    """Return the line of the user's program that is running, and the step that it takes."""
    step = None
    for frame in _frames():
        if frame.f_code in _STEPS:
            step = frame
        elif _owner(frame.f_code.co_filename) == "user":
            line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
            return Place(line, step)
    return Place(None, step)


def find_caller() -> Caller:
    """Return who called the function of torch that is running."""
    owner: Owner = "entrance"
    for frame in _frames():
        if owner == "entrance":
            owner = _owner(frame.f_code.co_filename)
        if frame.f_code is _APPLY or _has_derivative(frame.f_code.co_filename):
            return Caller(owner, True)
    return Caller(owner, False)
