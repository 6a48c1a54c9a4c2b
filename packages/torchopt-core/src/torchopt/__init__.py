"""Differentiable optimization for PyTorch.

Three faces of every optimizer: functional (:func:`adam`), stateful (:class:`Adam`, a
:class:`torch.optim.Optimizer`) and differentiable (:class:`MetaAdam`, for inner loops). The
extensions appear here when they are installed: :mod:`torchopt.diff`, :mod:`torchopt.linalg`,
:mod:`torchopt.linear_solve`, :mod:`torchopt.distributed`, :mod:`torchopt.visual`,
:mod:`torchopt.accelerated_op`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchopt import (
    _paths,
    alias,
    base,
    clip,
    diff,
    hook,
    kernels,
    nn,
    optim,
    pytree,
    rules,
    schedule,
    transform,
    typing,
    update,
    utils,
)
from torchopt._extensions import accelerated_op_available, attributes
from torchopt.alias import (
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamax,
    adamw,
    asgd,
    lbfgs,
    lion,
    lookahead,
    muon,
    nadam,
    prodigy,
    radam,
    rmsprop,
    rprop,
    sam,
    schedule_free,
    sgd,
)
from torchopt.base import GradientTransformation, chain, eval_params, identity
from torchopt.clip import clip_by_global_norm, clip_by_value, clip_grad_norm
from torchopt.hook import register_hook
from torchopt.optim import (
    ASGD,
    LBFGS,
    SAM,
    SGD,
    AdaDelta,
    Adadelta,
    Adafactor,
    AdaGrad,
    Adagrad,
    Adam,
    AdaMax,
    Adamax,
    AdamW,
    FuncOptimizer,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    Prodigy,
    RAdam,
    RMSProp,
    RMSprop,
    Rprop,
    ScheduleFree,
)
from torchopt.optim.meta import (
    MetaAdaDelta,
    MetaAdadelta,
    MetaAdafactor,
    MetaAdaGrad,
    MetaAdagrad,
    MetaAdam,
    MetaAdaMax,
    MetaAdamax,
    MetaAdamW,
    MetaASGD,
    MetaLBFGS,
    MetaLion,
    MetaLookahead,
    MetaMuon,
    MetaNAdam,
    MetaOptimizer,
    MetaProdigy,
    MetaRAdam,
    MetaRMSProp,
    MetaRMSprop,
    MetaRprop,
    MetaSAM,
    MetaScheduleFree,
    MetaSGD,
)
from torchopt.transform import masked, nan_to_num, partition
from torchopt.update import apply_updates
from torchopt.utils import (
    extract_state_dict,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)

__all__ = [
    "ASGD",
    "LBFGS",
    "SAM",
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FuncOptimizer",
    "GradientTransformation",
    "Lion",
    "Lookahead",
    "MetaASGD",
    "MetaAdaDelta",
    "MetaAdaGrad",
    "MetaAdaMax",
    "MetaAdadelta",
    "MetaAdafactor",
    "MetaAdagrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaAdamax",
    "MetaLBFGS",
    "MetaLion",
    "MetaLookahead",
    "MetaMuon",
    "MetaNAdam",
    "MetaOptimizer",
    "MetaProdigy",
    "MetaRAdam",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaRprop",
    "MetaSAM",
    "MetaSGD",
    "MetaScheduleFree",
    "Muon",
    "NAdam",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSProp",
    "RMSprop",
    "Rprop",
    "ScheduleFree",
    "accelerated_op_available",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "alias",
    "apply_updates",
    "asgd",
    "base",
    "chain",
    "clip",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_grad_norm",
    "diff",
    "eval_params",
    "extract_state_dict",
    "hook",
    "identity",
    "kernels",
    "lbfgs",
    "lion",
    "lookahead",
    "masked",
    "module_clone",
    "module_detach_",
    "muon",
    "nadam",
    "nan_to_num",
    "nn",
    "optim",
    "partition",
    "prodigy",
    "pytree",
    "radam",
    "recover_state_dict",
    "register_hook",
    "rmsprop",
    "rprop",
    "rules",
    "sam",
    "schedule",
    "schedule_free",
    "sgd",
    "stop_gradient",
    "transform",
    "typing",
    "update",
    "utils",
]

_paths.register()

if TYPE_CHECKING:
    import torchopt_accel as accelerated_op
    import torchopt_dist as distributed
    import torchopt_implicit.linalg as linalg
    import torchopt_implicit.linear_solve as linear_solve
    import torchopt_viz as visual

    __all__ += ["accelerated_op", "distributed", "linalg", "linear_solve", "visual"]
    __version__: str
else:
    _find, __dir__ = attributes(__name__)

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("torchopt-core")
        return _find(name)
