"""The module paths and the names by which programs written for 0.7 find what has another place now.

`CORE` says which module of core stands for which path, `SUBMODULES` of :mod:`torchopt._extensions`
which one of an extension; nothing is defined twice.
"""

from __future__ import annotations

import sys
from typing import Any

from torchopt._types import Scalar, ScalarOrSchedule
from torchopt.base import GradientTransformation, chain
from torchopt.optim.sgd import sgd
from torchopt.transform import (
    add_decayed_weights,
    masked,
    scale,
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adamax,
    scale_by_radam,
    scale_by_rms,
    scale_by_rss,
    scale_by_schedule,
    scale_by_stddev,
    trace,
)

__all__ = [
    "CORE",
    "_get_use_chain_flat",
    "_set_use_chain_flat",
    "chain",
    "chain_flat",
    "flip_sign_and_add_weight_decay",
    "register",
    "scale_by_neg_lr",
]

_FAMILIES = {
    **{x: x for x in ("adadelta", "adagrad", "adam", "adamax", "radam", "rmsprop", "sgd")},
    "adamw": "adam",
}
_TRANSFORMS = (
    "add_decayed_weights",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_radam",
    "scale_by_rms",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_stddev",
    "trace",
)
#: Path in 0.7, below `torchopt`, and the module of core that has its names.
CORE = {
    **{f"alias.{name}": f"optim.{home}" for name, home in _FAMILIES.items()},
    "alias.utils": "_paths",
    "combine": "_paths",
    "nn.module": "nn._meta_gradient_module",
    "nn.stateless": "nn._stateless",
    "optim.adamw": "optim.adam",
    "optim.base": "optim._stateful",
    "optim.func.base": "optim.func",
    **{f"optim.meta.{name}": f"optim.{home}" for name, home in _FAMILIES.items()},
    "optim.meta.base": "optim._meta",
    "schedule.exponential_decay": "schedule._exponential",
    "schedule.polynomial": "schedule._polynomial",
    # of which checkpoints of 0.7 want the classes of its states
    **dict.fromkeys((f"transform.{name}" for name in _TRANSFORMS), "transform"),
    "transform.nan_to_num": "transform._elementary",
    "transform.scale": "transform._elementary",
    "version": "",
}


def register() -> None:
    """Let the modules be found by their paths in 0.7, by import and as attributes."""
    for path, home in CORE.items():
        name = f"torchopt.{path}"
        module = sys.modules[f"torchopt.{home}".rstrip(".")]
        sys.modules[name] = module
        parent, _, attribute = name.rpartition(".")
        # a function of that name, as in 0.7, hides the module
        if attribute not in vars(sys.modules[parent]):
            setattr(sys.modules[parent], attribute, module)


def _get_use_chain_flat() -> bool:
    """Return whether there is a second form of the transformations for flat trees: there is none.

    Trees are flattened once for all links of a chain.
    """
    return False


def _set_use_chain_flat(use_chain_flat: bool) -> None:
    """Do nothing; see :func:`_get_use_chain_flat`."""


chain_flat = chain


def flip_sign_and_add_weight_decay(
    weight_decay: Scalar = 0.0, maximize: bool = False
) -> GradientTransformation:
    r"""Return the transformation of :math:`g` into :math:`\pm g + \lambda \theta`.

    Args:
        weight_decay: :math:`\lambda`.
        maximize: Whether to take :math:`-g`.
    """
    links = [scale(-1.0)] if maximize else []
    if not (isinstance(weight_decay, float) and weight_decay == 0):
        links.append(add_decayed_weights(weight_decay))
    return chain(*links)


def scale_by_neg_lr(lr: ScalarOrSchedule) -> GradientTransformation:
    r"""Return the transformation of :math:`u` into :math:`-\eta u`.

    Args:
        lr: :math:`\eta`, a number, a 0-dim tensor or a schedule.
    """
    return sgd(lr)


# the forms of 0.7 for flat trees
_FLAT: tuple[Any, ...] = (
    add_decayed_weights,
    chain,
    flip_sign_and_add_weight_decay,
    masked,
    scale,
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adamax,
    scale_by_neg_lr,
    scale_by_radam,
    scale_by_rms,
    scale_by_rss,
    scale_by_schedule,
    scale_by_stddev,
    trace,
)
for _function in _FLAT:
    _function.flat = _function
