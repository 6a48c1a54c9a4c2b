"""The estimators, one per file, and their names."""

from __future__ import annotations

from collections.abc import Callable

from torchopt_zero._estimator import Estimator
from torchopt_zero.estimators.antithetic import Antithetic
from torchopt_zero.estimators.control_variate import LeaveOneOut, LinearControl
from torchopt_zero.estimators.finite_difference import FiniteDifference
from torchopt_zero.estimators.forward import Forward
from torchopt_zero.estimators.guided_es import GuidedES
from torchopt_zero.estimators.naive import Naive
from torchopt_zero.estimators.rank_shaped import RankShaped
from torchopt_zero.estimators.spsa import SPSA

METHODS: dict[str, Callable[[], Estimator]] = {
    "naive": Naive,
    "forward": Forward,
    "antithetic": Antithetic,
    "spsa": SPSA,
    "finite-difference": FiniteDifference,
    "rank-shaped": RankShaped,
    "leave-one-out": LeaveOneOut,
    "guided": GuidedES,
}

__all__ = [
    "METHODS",
    "SPSA",
    "Antithetic",
    "Estimator",
    "FiniteDifference",
    "Forward",
    "GuidedES",
    "LeaveOneOut",
    "LinearControl",
    "Naive",
    "RankShaped",
]
