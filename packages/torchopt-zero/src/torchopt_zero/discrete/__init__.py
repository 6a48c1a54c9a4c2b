"""Discrete choices and combinatorial solvers that gradients pass through.

A :class:`Solver` is exact and has no derivative: :func:`argmax`, :func:`ranking`, :func:`sorting`,
:func:`shortest_path`, :func:`assignment`, or your own. :class:`Perturbed` smooths it with noise,
:class:`Blackbox` keeps it exact and interpolates its gradient, :func:`fenchel_young_loss` learns
its input from solutions. :func:`gumbel_softmax` and the straight-through estimators are for
samples.
"""

from torchopt_zero.discrete._argmax import argmax
from torchopt_zero.discrete._assignment import assignment
from torchopt_zero.discrete._blackbox import Blackbox
from torchopt_zero.discrete._fenchel_young import fenchel_young_loss
from torchopt_zero.discrete._gumbel_softmax import gumbel_softmax
from torchopt_zero.discrete._perturbed import Perturbed
from torchopt_zero.discrete._ranking import ranking, sorting, sorting_scores
from torchopt_zero.discrete._shortest_path import shortest_path
from torchopt_zero.discrete._solver import Solver
from torchopt_zero.discrete._straight_through import (
    straight_through,
    straight_through_bernoulli,
    straight_through_categorical,
)

__all__ = [
    "Blackbox",
    "Perturbed",
    "Solver",
    "argmax",
    "assignment",
    "fenchel_young_loss",
    "gumbel_softmax",
    "ranking",
    "shortest_path",
    "sorting",
    "sorting_scores",
    "straight_through",
    "straight_through_bernoulli",
    "straight_through_categorical",
]
