r"""Functions of two variables on which optimizers are watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], Tensor]
Point = tuple[float, float]
Domain = tuple[float, float, float, float]

_TITLES = {
    "bukin_n6": "Bukin N. 6",
    "goldstein_price": "Goldstein\N{EN DASH}Price",
    "levi_n13": "L\N{LATIN SMALL LETTER E WITH ACUTE}vi N. 13",
}


@dataclass(frozen=True)
class TestFunction:
    """A function of two variables, where it is looked at, and what is known of it.

    It can be called like the function. The formula and its source are in ``help(f.function)``.

    Example:
        >>> import torch
        >>> from torchopt_viz import test_functions
        >>> booth = test_functions["booth"]
        >>> booth.minima, booth.minimum
        (((1.0, 3.0),), 0.0)
        >>> booth(torch.tensor(1.0), torch.tensor(3.0))
        tensor(0.)
    """

    __test__: ClassVar[bool] = False  # the name is not meant for pytest

    # what it is called in `test_functions`
    name: str
    # takes two tensors of one shape, returns the values in that shape
    function: Function
    # the rectangle that is drawn: xmin, xmax, ymin, ymax
    domain: Domain
    # where optimizers start
    start: Point
    # every point of the plane with the lowest value; empty if unknown
    minima: tuple[Point, ...] = ()
    # the lowest value; NaN if unknown
    minimum: float = math.nan
    # whether `minima` have that value; if not, the function only comes close to it near them
    attained: bool = True

    @property
    def title(self) -> str:
        """What it is called in pictures."""
        if self.name in test_functions:
            return _TITLES.get(self.name, self.name.capitalize())
        return self.name

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the values at ``(x, y)``."""
        return self.function(x, y)


def ackley(x: Tensor, y: Tensor) -> Tensor:
    r"""Ackley's function: a funnel in a field of holes.

    .. math::
        f(x, y) = 20 + e - 20 \exp\left(-0.2 \sqrt{(x^2 + y^2) / 2}\right)
        - \exp\left((\cos 2 \pi x + \cos 2 \pi y) / 2\right)

    At its minimum, a cone's tip, the gradient is taken as zero.

    References:
        D. H. Ackley. A connectionist machine for genetic hillclimbing. Kluwer (1987).
    """
    radius = _norm(x, y) / math.sqrt(2)
    waves = (torch.cos(2 * math.pi * x) + torch.cos(2 * math.pi * y)) / 2
    return -20 * torch.expm1(-0.2 * radius) - math.e * torch.expm1(waves - 1)


def beale(x: Tensor, y: Tensor) -> Tensor:
    r"""Beale's function: flat valleys between steep corners.

    .. math::
        f(x, y) = (1.5 - x + x y)^2 + (2.25 - x + x y^2)^2 + (2.625 - x + x y^3)^2

    References:
        E. M. L. Beale. On an iterative method of finding a local minimum of a function of more than
        one variable. Princeton University (1958).
    """
    return (
        (1.5 - x + x * y).square()
        + (2.25 - x + x * y.square()).square()
        + (2.625 - x + x * y.pow(3)).square()
    )


def booth(x: Tensor, y: Tensor) -> Tensor:
    r"""Booth's function: an ellipse-shaped bowl.

    .. math::
        f(x, y) = (x + 2 y - 7)^2 + (2 x + y - 5)^2

    References:
        M. Jamil, X.-S. Yang. A literature survey of benchmark functions for global optimisation
        problems. Int. J. Math. Model. Numer. Optim. 4 (2013).
    """
    return (x + 2 * y - 7).square() + (2 * x + y - 5).square()


def bukin_n6(x: Tensor, y: Tensor) -> Tensor:
    r"""Bukin's function number 6: a curved ridge of kinks, upside down.

    .. math::
        f(x, y) = 100 \sqrt{|y - 0.01 x^2|} + 0.01 |x + 10|

    On the valley floor :math:`y = 0.01 x^2` the slope is infinite to both sides.

    References:
        M. Jamil, X.-S. Yang. A literature survey of benchmark functions for global optimisation
        problems. Int. J. Math. Model. Numer. Optim. 4 (2013).
    """
    return 100 * (y - 0.01 * x.square()).abs().sqrt() + 0.01 * (x + 10).abs()


def easom(x: Tensor, y: Tensor) -> Tensor:
    r"""Easom's function: one hole in a plain.

    .. math::
        f(x, y) = -\cos x \cos y \, \exp\left(-(x - \pi)^2 - (y - \pi)^2\right)

    It is usually searched in :math:`[-100, 100]^2`, where all but the drawn domain is flat.

    References:
        E. E. Easom. A survey of global optimization techniques. University of Louisville (1990).
    """
    bell = torch.exp(-(x - math.pi).square() - (y - math.pi).square())
    return -torch.cos(x) * torch.cos(y) * bell


def goldstein_price(x: Tensor, y: Tensor) -> Tensor:
    r"""Goldstein and Price's function: four minima in values from 3 to a million.

    .. math::
        f(x, y) = &\left(1 + (x + y + 1)^2 (19 - 14 x + 3 x^2 - 14 y + 6 x y + 3 y^2)\right) \\
        &\left(30 + (2 x - 3 y)^2 (18 - 32 x + 12 x^2 + 48 y - 36 x y + 27 y^2)\right)

    References:
        A. A. Goldstein, J. F. Price. On descent from local minima. Math. Comput. 25 (1971).
    """
    xx, xy, yy = x.square(), x * y, y.square()
    first = (x + y + 1).square() * (19 - 14 * x + 3 * xx - 14 * y + 6 * xy + 3 * yy)
    second = (2 * x - 3 * y).square() * (18 - 32 * x + 12 * xx + 48 * y - 36 * xy + 27 * yy)
    return (1 + first) * (30 + second)


def himmelblau(x: Tensor, y: Tensor) -> Tensor:
    r"""Himmelblau's function: four equal minima.

    .. math::
        f(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2

    References:
        D. M. Himmelblau. Applied nonlinear programming. McGraw-Hill (1972).
    """
    return (x.square() + y - 11).square() + (x + y.square() - 7).square()


def levi_n13(x: Tensor, y: Tensor) -> Tensor:
    r"""Lévi's function number 13: a bowl with ripples in both directions.

    .. math::
        f(x, y) = \sin^2 3 \pi x + (x - 1)^2 (1 + \sin^2 3 \pi y) + (y - 1)^2 (1 + \sin^2 2 \pi y)

    It is usually searched in :math:`[-10, 10]^2`.

    References:
        A. V. Levy, A. Montalvo. The tunneling algorithm for the global minimization of functions.
        SIAM J. Sci. Stat. Comput. 6 (1985).
    """
    return (
        torch.sin(3 * math.pi * x).square()
        + (x - 1).square() * (1 + torch.sin(3 * math.pi * y).square())
        + (y - 1).square() * (1 + torch.sin(2 * math.pi * y).square())
    )


def matyas(x: Tensor, y: Tensor) -> Tensor:
    r"""Matyas's function: a long valley, 25 times as flat along as across.

    .. math::
        f(x, y) = 0.26 (x^2 + y^2) - 0.48 x y

    References:
        M. Jamil, X.-S. Yang. A literature survey of benchmark functions for global optimisation
        problems. Int. J. Math. Model. Numer. Optim. 4 (2013).
    """
    return 0.26 * (x.square() + y.square()) - 0.48 * x * y


def rastrigin(x: Tensor, y: Tensor) -> Tensor:
    r"""Rastrigin's function: a bowl full of holes.

    .. math::
        f(x, y) = 20 + x^2 - 10 \cos 2 \pi x + y^2 - 10 \cos 2 \pi y

    References:
        L. A. Rastrigin. Systems of extremal control. Nauka (1974).
    """
    cosines = torch.cos(2 * math.pi * x) + torch.cos(2 * math.pi * y)
    return 20 + x.square() + y.square() - 10 * cosines


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    r"""Rosenbrock's function: a curved, nearly flat valley.

    .. math::
        f(x, y) = (1 - x)^2 + 100 (y - x^2)^2

    References:
        H. H. Rosenbrock. An automatic method for finding the greatest or least value of a function.
        Comput. J. 3 (1960).
    """
    return (1 - x).square() + 100 * (y - x.square()).square()


def sphere(x: Tensor, y: Tensor) -> Tensor:
    r"""The simplest bowl.

    .. math::
        f(x, y) = x^2 + y^2
    """
    return x.square() + y.square()


def flower(x: Tensor, y: Tensor) -> Tensor:
    r"""The flower: four petals around a centre where it is not defined.

    .. math::
        f(x, y) = a \sqrt{x^2 + y^2} + b \sin\left(c \operatorname{atan2}(y, x)\right),
        \qquad a = b = 1,\; c = 4

    Everywhere :math:`f > -1`. Along the four rays :math:`\theta = 3 \pi / 8 + k \pi / 2`, on which
    the sine is -1, :math:`f` is the distance to the origin minus one and comes as close to -1 as
    one likes; the value is not attained. At the origin, which has no angle, the formula is
    undefined and floating point arithmetic says 0. The start lies far outside of the domain.

    References:
        M. J. Kochenderfer, T. A. Wheeler. Algorithms for optimization. MIT Press (2019), appendix
        B.
    """
    return _norm(x, y) + torch.sin(4 * torch.atan2(y, x))


def _square(half: float) -> Domain:
    return (-half, half, -half, half)


def _norm(x: Tensor, y: Tensor) -> Tensor:
    """Return the distance to the origin, with a zero gradient there."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack((x, y)), dim=0)
    return norm


_FOUR_MINIMA = (
    (3.0, 2.0),
    (-2.805118086952745, 3.131312518250573),
    (-3.779310253377747, -3.2831859912861696),
    (3.5844283403304917, -1.8481265269644036),
)
_CENTRE = ((0.0, 0.0),)

#: The functions by name; read-only.
test_functions: Mapping[str, TestFunction] = MappingProxyType(
    {
        function.name: function
        for function in (
            TestFunction("ackley", ackley, _square(5.0), (-3.7, 2.6), _CENTRE, 0.0),
            TestFunction("beale", beale, _square(4.5), (1.0, 1.5), ((3.0, 0.5),), 0.0),
            TestFunction("booth", booth, _square(10.0), (-8.0, -6.0), ((1.0, 3.0),), 0.0),
            TestFunction(
                "bukin_n6", bukin_n6, (-15.0, -5.0, -3.0, 3.0), (-6.0, 2.5), ((-10.0, 1.0),), 0.0
            ),
            TestFunction(
                "easom", easom, (0.0, 6.0, 0.0, 6.0), (1.9, 4.6), ((math.pi, math.pi),), -1.0
            ),
            TestFunction(
                "goldstein_price", goldstein_price, _square(2.0), (-1.5, -1.5), ((0.0, -1.0),), 3.0
            ),
            TestFunction("himmelblau", himmelblau, _square(5.0), (0.0, -4.0), _FOUR_MINIMA, 0.0),
            TestFunction(
                "levi_n13", levi_n13, (-4.0, 6.0, -4.0, 6.0), (-2.7, 4.4), ((1.0, 1.0),), 0.0
            ),
            TestFunction("matyas", matyas, _square(10.0), (-8.0, 3.0), _CENTRE, 0.0),
            TestFunction("rastrigin", rastrigin, _square(5.12), (-3.3, 2.4), _CENTRE, 0.0),
            TestFunction(
                "rosenbrock", rosenbrock, (-2.0, 2.0, -1.0, 3.0), (-1.5, 2.5), ((1.0, 1.0),), 0.0
            ),
            TestFunction("sphere", sphere, _square(5.0), (-4.0, 3.0), _CENTRE, 0.0),
            TestFunction("flower", flower, _square(3.0), (20.0, 20.0), _CENTRE, -1.0, False),
        )
    }
)
