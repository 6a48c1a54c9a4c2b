"""Names for annotations.

A *tree* is any nesting of tuples, lists, dictionaries and registered classes, as in `optree`. At
run time the tree types are `optree`'s; to a static type checker they are ``Any``, because no
annotation can say that a ``dict[str, Tensor]`` is a tree of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import torch
import torch.distributed.rpc as _rpc  # part of `import torch`, whether RPC is built or not
from optree import PyTree
from torch import Size, Tensor
from torch.distributions import Distribution
from torch.futures import Future

from torchopt._types import (
    Numeric,
    OptionalTensorTree,
    OptState,
    Params,
    Scalar,
    ScalarOrSchedule,
    Schedule,
    TensorTree,
    Updates,
)
from torchopt.base import (
    ChainedGradientTransformation,
    EmptyState,
    GradientTransformation,
    UninitializedState,
)

__all__ = [
    "ChainedGradientTransformation",
    "Device",
    "Distribution",
    "EmptyState",
    "Future",
    "GradientTransformation",
    "LinearSolver",
    "ListOfOptionalTensors",
    "ListOfTensors",
    "ModuleTensorContainers",
    "Numeric",
    "OptState",
    "OptionalTensor",
    "OptionalTensorOrOptionalTensors",
    "OptionalTensorTree",
    "Params",
    "PyTree",
    "Samplable",
    "SampleFunc",
    "Scalar",
    "ScalarOrSchedule",
    "Schedule",
    "SequenceOfOptionalTensors",
    "SequenceOfTensors",
    "Size",
    "Tensor",
    "TensorContainer",
    "TensorOrTensors",
    "TensorTree",
    "TupleOfOptionalTensors",
    "TupleOfTensors",
    "UninitializedState",
    "Updates",
]

if TYPE_CHECKING or _rpc.is_available():
    from torch.distributed.rpc import RRef

    __all__ += ["RRef"]

Device: TypeAlias = torch.device | str | int

OptionalTensor: TypeAlias = Tensor | None
ListOfTensors: TypeAlias = list[Tensor]
TupleOfTensors: TypeAlias = tuple[Tensor, ...]
SequenceOfTensors: TypeAlias = Sequence[Tensor]
TensorOrTensors: TypeAlias = Tensor | SequenceOfTensors
ListOfOptionalTensors: TypeAlias = list[OptionalTensor]
TupleOfOptionalTensors: TypeAlias = tuple[OptionalTensor, ...]
SequenceOfOptionalTensors: TypeAlias = Sequence[OptionalTensor]
OptionalTensorOrOptionalTensors: TypeAlias = OptionalTensor | SequenceOfOptionalTensors

#: The parameters or the buffers of one module, by name.
TensorContainer: TypeAlias = dict[str, OptionalTensor]
#: The same of several modules.
ModuleTensorContainers: TypeAlias = tuple[TensorContainer, ...]

#: Solves ``matvec(x) = b`` for ``x``, given ``matvec`` and ``b``.
LinearSolver: TypeAlias = Callable[[Callable[[TensorTree], TensorTree], TensorTree], TensorTree]

#: Draws noise of a given shape.
SampleFunc: TypeAlias = Callable[[Size], Tensor | Sequence[Numeric]]


@runtime_checkable
class Samplable(Protocol):
    """Whatever draws noise, such as any of `torch.distributions`."""

    def sample(self, sample_shape: Size = ..., /) -> Tensor | Sequence[Numeric]:
        """Return a sample of the given shape."""
        ...
