"""Values on their way between workers, with the gradients of what is inside.

torch's own wire carries gradients of plain tensors and detaches parameters: `nn.Parameter` pickles
its data alone, so a module arrives as a copy that no gradient leaves. Here the pickle holds
everything but tensors, and the tensors travel next to it, a parameter as an alias of itself that is
a part of the graph. Within a context of distributed autograd, it arrives as the tensor that the
graph goes on from, in the module's own dict; otherwise, as a parameter again, and intermediate
results arrive as constants, so that asking for gradients across the wire is an error there.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NamedTuple

import torch
from torch import nn

__all__ = ["Parcel", "pack", "unpack"]


class Parcel(NamedTuple):
    """A value, apart from its tensors, and its tensors."""

    pickled: bytes
    tensors: list[torch.Tensor]


class _Place(NamedTuple):
    """Stands for a tensor in the pickle."""

    # where it is among the tensors
    place: int
    is_parameter: bool
    requires_grad: bool
    is_leaf: bool


class _Packer(pickle.Pickler):
    """Puts tensors aside: the same one once, however often it occurs."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._places: dict[int, int] = {}
        self._originals: list[torch.Tensor] = []  # alive, so that their addresses stay theirs

    def persistent_id(self, obj: Any) -> _Place | None:
        kind = type(obj)
        if kind is not torch.Tensor and kind is not nn.Parameter:
            return None
        place = self._places.get(id(obj))
        if place is None:
            place = self._places[id(obj)] = len(self.tensors)
            self._originals.append(obj)
            # an alias is a plain tensor, and connected to the parameter
            self.tensors.append(obj.view_as(obj) if kind is nn.Parameter else obj)
        return _Place(place, kind is nn.Parameter, obj.requires_grad, obj.is_leaf)


class _Unpacker(pickle.Unpickler):
    """Puts the tensors back."""

    def __init__(self, file: io.BytesIO, tensors: list[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._parameters: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: _Place) -> torch.Tensor:
        tensor = self._tensors[pid.place]
        if tensor.grad_fn is not None:
            return tensor
        if not pid.is_parameter:
            return tensor if pid.is_leaf else tensor.detach()
        if pid.place not in self._parameters:
            parameter = nn.Parameter(tensor.detach(), pid.requires_grad)
            self._parameters[pid.place] = parameter
        return self._parameters[pid.place]


def pack(value: object) -> Parcel:
    """Return what to send for a value, of any type that pickles.

    Raises:
        TypeError: Something in it does not pickle.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"a value cannot be sent to another worker: {error}. Functions and classes travel by "
            f"their names, so they must be at the top level of a module that every worker has"
        ) from error
    return Parcel(file.getvalue(), packer.tensors)


def unpack(parcel: Parcel) -> Any:
    """Return the value of a parcel."""
    return _Unpacker(io.BytesIO(parcel.pickled), parcel.tensors).load()
