"""Zero-order gradient estimators: gradients of what cannot be differentiated.

:func:`zero_order` decorates a function, :class:`ZeroOrderGradientModule` is a module; both take any
of the estimators. :class:`PersistentES` and :class:`NoiseReuseES` are for unrolled computations,
:class:`MeZO` trains with the memory of inference, :func:`diagnose` measures an estimate.
:mod:`~torchopt_zero.discrete` is for discrete and combinatorial choices.
"""

from torchopt_zero import discrete
from torchopt_zero._decorator import zero_order
from torchopt_zero._diagnostics import Diagnostics, diagnose
from torchopt_zero._low_rank import LowRank
from torchopt_zero._mezo import MeZO
from torchopt_zero._module import ZeroOrderGradientModule, enable_zero_order_gradients
from torchopt_zero._noise import Gaussian, Noise, Rademacher
from torchopt_zero._noise_reuse_es import NoiseReuseES
from torchopt_zero._orthogonal import Orthogonal
from torchopt_zero._persistent_es import PersistentES
from torchopt_zero._sobol import Sobol
from torchopt_zero._workers import Workers
from torchopt_zero.estimators import (
    SPSA,
    Antithetic,
    Estimator,
    FiniteDifference,
    Forward,
    GuidedES,
    LeaveOneOut,
    LinearControl,
    Naive,
    RankShaped,
)

__all__ = [
    "SPSA",
    "Antithetic",
    "Diagnostics",
    "Estimator",
    "FiniteDifference",
    "Forward",
    "Gaussian",
    "GuidedES",
    "LeaveOneOut",
    "LinearControl",
    "LowRank",
    "MeZO",
    "Naive",
    "Noise",
    "NoiseReuseES",
    "Orthogonal",
    "PersistentES",
    "Rademacher",
    "RankShaped",
    "Sobol",
    "Workers",
    "ZeroOrderGradientModule",
    "diagnose",
    "discrete",
    "enable_zero_order_gradients",
    "zero_order",
]
