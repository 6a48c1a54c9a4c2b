"""Projections onto convex sets, differentiable in the point and in the set.

Each is differentiable, in reverse and forward mode and to any order, wherever the projection is:
not where a constraint just becomes active. Half precision is computed in float32.
"""

from torchopt_implicit.projections._affine import (
    project_affine,
    project_halfspace,
    project_hyperplane,
    project_polyhedron,
)
from torchopt_implicit.projections._balls import (
    project_l1_ball,
    project_l2_ball,
    project_linf_ball,
)
from torchopt_implicit.projections._box import project_box, project_nonnegative
from torchopt_implicit.projections._semidefinite import project_semidefinite
from torchopt_implicit.projections._simplex import project_simplex, project_simplex_kl
from torchopt_implicit.projections._transport import project_transport

__all__ = [
    "project_affine",
    "project_box",
    "project_halfspace",
    "project_hyperplane",
    "project_l1_ball",
    "project_l2_ball",
    "project_linf_ball",
    "project_nonnegative",
    "project_polyhedron",
    "project_semidefinite",
    "project_simplex",
    "project_simplex_kl",
    "project_transport",
]
