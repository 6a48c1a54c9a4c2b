"""The names that annotations are made of; :mod:`torchopt.typing` lists them for users."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from optree import PyTree

if TYPE_CHECKING:
    TensorTree: TypeAlias = Any
    OptionalTensorTree: TypeAlias = Any
else:
    TensorTree = PyTree[torch.Tensor, "TensorTree"]
    OptionalTensorTree = PyTree[torch.Tensor | None, "OptionalTensorTree"]

#: A number, or a 0-dim tensor where it may be learned.
Scalar: TypeAlias = float | int | bool | torch.Tensor
#: A number or a tensor of any shape.
Numeric: TypeAlias = torch.Tensor | float | int | bool
#: A function from the number of steps made (an int or an integer tensor) to a value.
Schedule: TypeAlias = Callable[[Any], Numeric]
ScalarOrSchedule: TypeAlias = Scalar | Schedule

#: A tree of parameters.
Params: TypeAlias = TensorTree
#: A tree shaped like the parameters; ``None`` means "no gradient here".
Updates: TypeAlias = OptionalTensorTree
#: The state of a gradient transformation: an immutable record, or a tuple of them.
OptState: TypeAlias = TensorTree

#: A tensor for each of some leaves.
Leaves: TypeAlias = list[torch.Tensor]

#: From a tree of parameters to the loss there and its gradient.
ValueAndGrad: TypeAlias = Callable[[Params], tuple[torch.Tensor, Updates]]

__all__ = [
    "Leaves",
    "Numeric",
    "OptState",
    "OptionalTensorTree",
    "Params",
    "Scalar",
    "ScalarOrSchedule",
    "Schedule",
    "TensorTree",
    "Updates",
    "ValueAndGrad",
]
