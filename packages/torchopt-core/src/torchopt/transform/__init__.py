"""Gradient transformations, to be composed by :func:`torchopt.chain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchopt._extensions import attributes

# where checkpoints of TorchOpt 0.7 look for the classes of states
from torchopt._legacy_state import (  # noqa: F401
    MaskedNode,
    ScaleByAdadeltaState,
    ScaleByAdamaxState,
    ScaleByAdamState,
    ScaleByRAdamState,
    ScaleByRmsState,
    ScaleByRssState,
    ScaleByRStdDevState,
    ScaleByScheduleState,
    TraceState,
)
from torchopt._masked import MaskedState, masked  # noqa: F401
from torchopt._partition import partition
from torchopt.clip import clip_by_global_norm, clip_by_value, clip_grad_norm
from torchopt.hook import register_hook
from torchopt.optim.adabelief import scale_by_belief
from torchopt.optim.adadelta import scale_by_adadelta
from torchopt.optim.adagrad import scale_by_rss
from torchopt.optim.adam import scale_by_adam
from torchopt.optim.adamax import scale_by_adamax
from torchopt.optim.adan import scale_by_adan
from torchopt.optim.laprop import scale_by_laprop
from torchopt.optim.layerwise import scale_by_trust_ratio
from torchopt.optim.lion import scale_by_lion
from torchopt.optim.nadam import scale_by_nadam
from torchopt.optim.radam import scale_by_radam
from torchopt.optim.rmsprop import scale_by_rms, scale_by_stddev
from torchopt.optim.sgd import trace
from torchopt.optim.signum import scale_by_signum
from torchopt.optim.yogi import scale_by_yogi
from torchopt.transform._elementary import (
    add_decayed_weights,
    nan_to_num,
    scale,
    scale_by_schedule,
)

__all__ = [
    "add_decayed_weights",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_grad_norm",
    "masked",
    "nan_to_num",
    "partition",
    "register_hook",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_belief",
    "scale_by_laprop",
    "scale_by_lion",
    "scale_by_nadam",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_signum",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "trace",
]

if TYPE_CHECKING:
    import torchopt_accel

    # assigned for the reason given in `torchopt.nn`
    scale_by_accelerated_adam = torchopt_accel.scale_by_accelerated_adam
    __all__ += ["scale_by_accelerated_adam"]
else:
    __getattr__, __dir__ = attributes(__name__)
