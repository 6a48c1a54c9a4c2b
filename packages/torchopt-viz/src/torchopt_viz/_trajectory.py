"""Walks of optimizers over functions of two variables, computed."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt_viz._functions import Function, TestFunction, test_functions
from torchopt_viz._steppers import Objective, Optimizer, check_scalar, label_of, walk


class NonFiniteStepWarning(UserWarning):
    """Something that was to be drawn is infinite or not a number."""


class Trajectory(NamedTuple):
    """Where an optimizer went."""

    # the optimizer, with its hyperparameters
    label: str
    # the start and the point after each step, [steps + 1, 2]
    points: Tensor
    # the function there, [steps + 1]
    values: Tensor
    # how often the optimizer evaluated the function, with its gradient
    evaluations: int
    # the first step after which a coordinate or the value is not finite (0: the start), if any
    non_finite: int | None


def run_trajectory(
    optimizer: Optimizer,
    function: str | TestFunction | Function = "beale",
    steps: int = 200,
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    start: Sequence[float] | None = None,
    label: str | None = None,
    dtype: torch.dtype = torch.float64,
    parameter_shape: Sequence[int] = (2,),
) -> Trajectory:
    """Let an optimizer walk over a function of two variables.

    The point is one parameter. Its gradient is dense and carries its graph, so second-order methods
    work; several evaluations a step are fine, as in L-BFGS.

    Args:
        optimizer: One of

            - a :class:`torch.optim.Optimizer` class of any origin, or a function that makes such an
              optimizer from a list of parameters;
            - a functional optimizer such as :func:`torchopt.adam`, or a transformation made by one
              or by :func:`torchopt.chain`;
            - a differentiable optimizer such as :class:`torchopt.MetaSGD`.
        function: The name of a function in :data:`test_functions`, a :class:`TestFunction`, or a
            function that takes two 0-dim tensors and returns one. Default: ``"beale"``.
        steps: How many steps to take. Default: 200.
        hyperparameters: Keyword arguments to the optimizer, such as ``{"lr": 0.1}``.
        start: Where to start, ``(x0, y0)``. Default: the start of the :class:`TestFunction`.
        label: What to call the optimizer. Default: its name and hyperparameters.
        dtype: Of the point. Default: float64.
        parameter_shape: The shape in which the optimizer sees the two coordinates; ``(1, 2)`` for
            optimizers of matrices, such as :class:`torch.optim.Muon`. Default: ``(2,)``.

    Returns:
        The points, values and number of evaluations.

    Raises:
        ValueError: If the name is unknown, or a number or a shape is out of range.
        TypeError: If the optimizer or the function is of another kind.

    Warns:
        NonFiniteStepWarning: If a coordinate or a value is not finite.

    Example:
        >>> import torchopt
        >>> from torchopt_viz import run_trajectory
        >>> walk = run_trajectory(torchopt.adam, "sphere", 100, {"lr": 0.1})
        >>> walk.points.shape, walk.evaluations
        (torch.Size([101, 2]), 100)
        >>> bool(walk.values[-1] < 1e-2)
        True
    """
    problem = as_test_function(function, None, start, needs_domain=False)
    options = hyperparameters or {}
    trajectory = compute(optimizer, problem, steps, options, label, dtype, parameter_shape)
    warn_of_non_finite(trajectory, problem, stacklevel=3)
    return trajectory


def compute(
    optimizer: Optimizer,
    problem: TestFunction,
    steps: int,
    hyperparameters: Mapping[str, Any],
    label: str | None,
    dtype: torch.dtype,
    parameter_shape: Sequence[int],
) -> Trajectory:
    """Return the walk of an optimizer, whether or not it is finite; see :func:`run_trajectory`."""
    _check_numbers(steps, dtype, parameter_shape)
    first = torch.tensor(problem.start, dtype=dtype).reshape(tuple(parameter_shape))
    objective = Objective(problem.function)
    after = walk(optimizer, hyperparameters, first, objective)
    points = torch.stack([first.reshape(2), *(next(after).reshape(2) for _ in range(steps))])
    with torch.no_grad():
        values = torch.stack([check_scalar(problem(x, y)) for x, y in points])
    finite = points.isfinite().all(dim=1) & values.isfinite()
    return Trajectory(
        label=label_of(optimizer, hyperparameters) if label is None else label,
        points=points,
        values=values,
        evaluations=objective.evaluations,
        non_finite=None if finite.all() else int(finite.int().argmin()),
    )


def warn_of_non_finite(trajectory: Trajectory, problem: TestFunction, stacklevel: int) -> None:
    """Warn if a trajectory has a point or a value that is not finite."""
    step = trajectory.non_finite
    if step is None:
        return
    when = f"after step {step}" if step else "at the start"
    x, y = trajectory.points[step].tolist()
    warnings.warn(
        f"{trajectory.label} on {problem.name}: {when} the point is ({x:g}, {y:g}) and the value "
        f"{float(trajectory.values[step]):g}; a smaller learning rate may help",
        NonFiniteStepWarning,
        stacklevel=stacklevel,
    )


def as_test_function(
    function: str | TestFunction | Function,
    domain: Sequence[float] | None,
    start: Sequence[float] | None,
    *,
    needs_domain: bool = True,
) -> TestFunction:
    """Return a function with its domain and start, those given first.

    Raises:
        ValueError: If the name is unknown, or domain or start are missing or wrong.
        TypeError: If it is no function.
    """
    if isinstance(function, str):
        if function not in test_functions:
            raise ValueError(
                f"`function` must be one of {', '.join(test_functions)}, or a function, got "
                f"{function!r}"
            )
        function = test_functions[function]
    if not callable(function):
        raise TypeError(
            f"`function` must be a name, a TestFunction or a function, got {function!r}"
        )
    if not isinstance(function, TestFunction):
        name = getattr(function, "__name__", "function").replace("<lambda>", "function")
        if start is None or (domain is None and needs_domain):
            missing = "`start`=(x0, y0)"
            if needs_domain:
                missing = f"`domain`=(xmin, xmax, ymin, ymax) and {missing}"
            raise ValueError(
                f"a function of your own needs {missing}, got `domain`={domain}, `start`={start}"
            )
        function = TestFunction(name, function, (0.0, 1.0, 0.0, 1.0), (0.0, 0.0))
    if domain is not None:
        function = dataclasses.replace(function, domain=_floats("domain", domain, 4))
        xmin, xmax, ymin, ymax = function.domain
        if not (xmin < xmax and ymin < ymax):
            raise ValueError(
                f"`domain` must be (xmin, xmax, ymin, ymax) with xmin < xmax and ymin < ymax, got "
                f"{tuple(domain)}"
            )
    if start is not None:
        function = dataclasses.replace(function, start=_floats("start", start, 2))
    return function


def _floats(name: str, values: Sequence[float], count: int) -> Any:
    numbers = tuple(float(value) for value in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}` must be {count} finite numbers, got {values!r}")
    return numbers


def _check_numbers(steps: int, dtype: torch.dtype, parameter_shape: Sequence[int]) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"`steps` must be a positive integer, got {steps!r}")
    if not dtype.is_floating_point:
        raise ValueError(f"`dtype` must be a floating point dtype, got {dtype}")
    if math.prod(parameter_shape) != 2 or min(parameter_shape) < 1:
        raise ValueError(
            f"`parameter_shape` must hold two numbers, as (2,) and (1, 2) do, got "
            f"{tuple(parameter_shape)}"
        )
