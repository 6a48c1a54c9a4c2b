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
    alias,
    base,
    clip,
    diff,
    hook,
    nn,
    optim,
    pytree,
    schedule,
    transform,
    typing,
    update,
    utils,
)
from torchopt._extensions import accelerated_op_available, attributes
from torchopt.alias import adadelta, adagrad, adam, adamax, adamw, radam, rmsprop, sgd
from torchopt.base import GradientTransformation, chain, identity
from torchopt.clip import clip_by_global_norm, clip_by_value, clip_grad_norm
from torchopt.hook import register_hook
from torchopt.optim import (
    SGD,
    AdaDelta,
    Adadelta,
    AdaGrad,
    Adagrad,
    Adam,
    AdaMax,
    Adamax,
    AdamW,
    FuncOptimizer,
    Optimizer,
    RAdam,
    RMSProp,
    RMSprop,
)
from torchopt.optim.meta import (
    MetaAdaDelta,
    MetaAdadelta,
    MetaAdaGrad,
    MetaAdagrad,
    MetaAdam,
    MetaAdaMax,
    MetaAdamax,
    MetaAdamW,
    MetaOptimizer,
    MetaRAdam,
    MetaRMSProp,
    MetaRMSprop,
    MetaSGD,
)
from torchopt.transform import nan_to_num
from torchopt.update import apply_updates
from torchopt.utils import (
    extract_state_dict,
    module_clone,
    module_detach_,
    recover_state_dict,
    stop_gradient,
)

__all__ = [
    "SGD",
    "AdaDelta",
    "AdaGrad",
    "AdaMax",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "FuncOptimizer",
    "GradientTransformation",
    "MetaAdaDelta",
    "MetaAdaGrad",
    "MetaAdaMax",
    "MetaAdadelta",
    "MetaAdagrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaAdamax",
    "MetaOptimizer",
    "MetaRAdam",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaSGD",
    "Optimizer",
    "RAdam",
    "RMSProp",
    "RMSprop",
    "accelerated_op_available",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "alias",
    "apply_updates",
    "base",
    "chain",
    "clip",
    "clip_by_global_norm",
    "clip_by_value",
    "clip_grad_norm",
    "diff",
    "extract_state_dict",
    "hook",
    "identity",
    "module_clone",
    "module_detach_",
    "nan_to_num",
    "nn",
    "optim",
    "pytree",
    "radam",
    "recover_state_dict",
    "register_hook",
    "rmsprop",
    "schedule",
    "sgd",
    "stop_gradient",
    "transform",
    "typing",
    "update",
    "utils",
]

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
