"""The test functions are what the literature says: formulas, minima, domains."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from torchopt_viz import TestFunction, test_functions

NAMES = [
    *("ackley", "beale", "booth", "bukin_n6", "easom", "goldstein_price", "himmelblau"),
    *("levi_n13", "matyas", "rastrigin", "rosenbrock", "sphere", "flower"),
]
MINIMA = [(f, point) for f in test_functions.values() for point in f.minima if f.attained]
# where the literature searches, where that is more than what is drawn
SEARCHED = {"easom": (-100.0, 100.0, -100.0, 100.0), "levi_n13": (-10.0, 10.0, -10.0, 10.0)}

every_function = pytest.mark.parametrize("f", test_functions.values(), ids=lambda f: f.name)
every_minimum = pytest.mark.parametrize(
    ("f", "minimum"), MINIMA, ids=[f"{f.name}-{x:.1f},{y:.1f}" for f, (x, y) in MINIMA]
)


def at(f: TestFunction, x: float, y: float) -> float:
    return float(f(torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)))


def test_there_are_thirteen_and_they_cannot_be_changed() -> None:
    assert list(test_functions) == NAMES
    assert all(f.name == name for name, f in test_functions.items())
    with pytest.raises(TypeError, match="does not support item assignment"):
        test_functions["mine"] = test_functions["sphere"]  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot assign to field"):
        test_functions["sphere"].minimum = -1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "x", "y", "value"),
    [
        ("ackley", 1.0, -1.0, 20 * (1 - math.exp(-0.2))),
        ("ackley", 0.5, 0.5, 20 * (1 - math.exp(-0.1)) + math.e - math.exp(-1)),
        ("beale", 0.0, 0.0, 1.5**2 + 2.25**2 + 2.625**2),
        ("beale", 1.0, 2.0, 2.5**2 + 5.25**2 + 9.625**2),
        ("booth", 0.0, 0.0, 74.0),
        ("booth", 1.0, -2.0, 10**2 + 5**2),
        ("bukin_n6", -10.0, 0.0, 100.0),
        ("bukin_n6", -6.0, 4.36, 200.04),
        ("easom", math.pi, 2 * math.pi, math.exp(-(math.pi**2))),
        ("goldstein_price", -0.6, -0.4, 30.0),
        ("goldstein_price", 1.8, 0.2, 84.0),
        ("goldstein_price", 1.2, 0.8, 840.0),
        ("himmelblau", 0.0, 0.0, 170.0),
        ("himmelblau", 1.0, 2.0, 68.0),
        ("levi_n13", 0.0, 0.0, 2.0),
        ("levi_n13", 0.5, 1.25, 1 + 0.25 * 1.5 + 0.0625 * 2),
        ("matyas", 1.0, 1.0, 0.04),
        ("matyas", -2.0, 1.0, 2.26),
        ("rastrigin", 0.5, 1.0, 21.25),
        ("rosenbrock", -1.2, 1.0, 24.2),
        ("sphere", 3.0, -4.0, 25.0),
        ("flower", 1.0, 0.0, 1.0),
        ("flower", -3.0, 0.0, 3.0),
        ("flower", 2 * math.cos(math.pi / 8), 2 * math.sin(math.pi / 8), 3.0),
    ],
)
def test_formulas(name: str, x: float, y: float, value: float) -> None:
    assert at(test_functions[name], x, y) == pytest.approx(value, rel=1e-12)


@every_function
def test_formula_and_reference_are_documented(f: TestFunction) -> None:
    documentation = f.function.__doc__ or ""
    assert ".. math::" in documentation
    assert "References:" in documentation or f.name == "sphere"


@every_function
def test_derivatives_of_both_orders(f: TestFunction) -> None:
    start = [torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in f.start]
    torch.autograd.gradcheck(f.function, start)
    torch.autograd.gradgradcheck(f.function, start)


@every_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_on_grids_and_under_vmap(f: TestFunction, dtype: torch.dtype) -> None:
    xmin, xmax, ymin, ymax = f.domain
    x = torch.linspace(xmin, xmax, 5, dtype=dtype)[:, None].expand(5, 4)
    y = torch.linspace(ymin, ymax, 4, dtype=dtype)[None].expand(5, 4)
    z = f(x, y)
    assert z.dtype == dtype
    points = zip(x.reshape(-1), y.reshape(-1), strict=True)
    torch.testing.assert_close(z.reshape(-1), torch.stack([f(*point) for point in points]))
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(f.function))(x, y), z)


@every_function
def test_domains_hold_the_minima_and_all_starts_but_that_of_the_flower(f: TestFunction) -> None:
    xmin, xmax, ymin, ymax = f.domain
    assert f.minima
    assert all(xmin < x < xmax and ymin < y < ymax for x, y in f.minima)
    x, y = f.start
    assert (xmin < x < xmax and ymin < y < ymax) == (f.name != "flower")
    assert f.name != "flower" or (f.start, f.domain) == ((20, 20), (-3, 3, -3, 3))


@every_minimum
def test_minima_have_the_lowest_value(f: TestFunction, minimum: tuple[float, float]) -> None:
    assert at(f, *minimum) == pytest.approx(f.minimum, abs=1e-13)


@pytest.mark.parametrize(
    ("f", "minimum"), [(f, minimum) for f, minimum in MINIMA if f.name != "bukin_n6"]
)
def test_gradients_vanish_at_minima_that_are_no_kinks(
    f: TestFunction, minimum: tuple[float, float]
) -> None:
    point = [torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in minimum]
    gradient = torch.stack(torch.autograd.grad(f(*point), point))
    # a coordinate's rounding, times the largest curvature, about 1000
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-11, rtol=0)


@every_minimum
def test_everything_around_a_minimum_is_higher(
    f: TestFunction, minimum: tuple[float, float]
) -> None:
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    for radius in (1e-4, 1e-3, 1e-2, 1e-1):
        x, y = (c + radius * g(angle) for c, g in zip(minimum, (torch.cos, torch.sin), strict=True))
        assert (f(x, y) > f.minimum).all()


@every_function
def test_a_global_search_finds_nothing_lower(f: TestFunction) -> None:
    xmin, xmax, ymin, ymax = SEARCHED.get(f.name, f.domain)

    def value(point: Any) -> Any:
        x, y = torch.from_numpy(np.ascontiguousarray(point))
        return f(x, y).numpy()

    found = scipy.optimize.differential_evolution(
        value,
        [(xmin, xmax), (ymin, ymax)],
        seed=0,
        tol=0,
        popsize=200,
        maxiter=120,
        vectorized=True,
        updating="deferred",
        polish=False,
    )
    assert found.fun >= f.minimum - 1e-12
    if f.name != "bukin_n6":  # whose valley floor no search follows to its lowest point
        assert found.fun == pytest.approx(f.minimum, abs=1e-5)
        assert min(math.dist(found.x, point) for point in f.minima) < 1e-3


def test_the_flower_comes_close_to_its_infimum_only_along_four_rays() -> None:
    flower = test_functions["flower"]
    assert not flower.attained
    radius = torch.logspace(-12, 3, 200, dtype=torch.float64)
    for k in range(4):
        angle = 3 * math.pi / 8 + k * math.pi / 2
        along = flower(radius * math.cos(angle), radius * math.sin(angle))
        torch.testing.assert_close(along, radius - 1, atol=1e-13, rtol=1e-13)
        assert (along[radius > 1e-10] > -1).all()
    ridge = flower(radius * math.cos(math.pi / 8), radius * math.sin(math.pi / 8))
    torch.testing.assert_close(ridge, radius + 1)
    assert at(flower, 0.0, 0.0) == 0.0


USER_TESTS = """
from torchopt.visual import TestFunction, plot_trajectory, test_functions, test_optim

def test_mine():
    assert test_optim is plot_trajectory
    assert isinstance(test_functions["beale"], TestFunction)
"""


def test_importing_the_names_into_a_test_module_collects_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(USER_TESTS)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
    assert "warning" not in run.stdout
