"""Values on their way between workers, with the gradients of what is inside.

torch's own wire carries gradients of plain tensors and detaches parameters: `nn.Parameter` pickles
its data alone, so a module arrives as a copy that no gradient leaves. Here the pickle holds
everything but tensors, and the tensors travel next to it, a parameter as an alias of itself that is
a part of the graph. Within a context of distributed autograd, it arrives as the tensor that the
graph goes on from, in the module's own dict; otherwise, as a parameter again, and intermediate
results arrive as constants, so that asking for gradients across the wire is an error there.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed import rpc
from torch.nn.parameter import is_lazy

__all__ = ["Parcel", "pack", "unpack"]


class Parcel(NamedTuple):
    """A value, apart from its tensors and remote references, and these."""

    pickled: bytes
    tensors: list[torch.Tensor]
    # torch counts the references that its wire has carried, so they are left to it
    references: list[Any]


#: The classes of remote references: to what a worker owns itself, and to what another one does.
REFERENCES: tuple[type, ...] = ()
if rpc.is_available():
    from torch._C._distributed_rpc import PyRRef

    REFERENCES = (rpc.RRef, PyRRef)


class _Packer(pickle.Pickler):
    """Puts tensors and references aside: one once, for the pickle refers to it from then on."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self.references: list[Any] = []
        own: dict[type, Callable[[Any], Any]] = {
            torch.Tensor: self._put_aside,
            nn.Parameter: self._put_aside,
            OrderedDict: _reduce_ordered_dict,
            **dict.fromkeys(REFERENCES, self._put_reference_aside),
        }
        self.dispatch_table = _Reducers(
            own, copyreg.dispatch_table, of_subclass=self._put_subclass_aside
        )

    def _put_aside(self, tensor: torch.Tensor) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        is_parameter = isinstance(tensor, nn.Parameter)
        # an alias is a plain tensor, and connected to the parameter
        self.tensors.append(tensor.view_as(tensor) if is_parameter else tensor)
        flags = (is_parameter, tensor.requires_grad, tensor.is_leaf)
        return _put_back, (len(self.tensors) - 1, *flags)

    def _put_subclass_aside(self, tensor: torch.Tensor) -> Any:
        kind = type(tensor)
        if not tensor.requires_grad or is_lazy(tensor):
            return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        is_wrapper = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
        if is_wrapper or isinstance(tensor, nn.Parameter):
            raise _LostGradientError(
                f"a {kind.__name__} that requires a gradient cannot be sent to another worker: the "
                f"gradient would not come back; send plain tensors and parameters"
            )
        # the class is no more than a name and attributes, which the plain tensor is given back
        with torch._C.DisableTorchFunctionSubclass():
            plain = tensor.as_subclass(torch.Tensor)
        return _as_subclass, (plain, kind, dict(vars(tensor)))

    def _put_reference_aside(self, reference: Any) -> tuple[Callable[..., Any], tuple[int]]:
        self.references.append(reference)
        return _put_reference_back, (len(self.references) - 1,)


class _LostGradientError(TypeError):
    """A tensor whose gradient does not travel."""


class _Reducers(ChainMap[type, Callable[[Any], Any]]):
    """By class, also for subclasses of tensors, which pickle their numbers alone."""

    def __init__(
        self, *maps: dict[type, Callable[[Any], Any]], of_subclass: Callable[[Any], Any]
    ) -> None:
        super().__init__(*maps)
        self._of_subclass = of_subclass

    def __missing__(self, key: type) -> Callable[[Any], Any]:
        if issubclass(key, torch.Tensor):
            return self._of_subclass
        raise KeyError(key)


def _as_subclass(
    tensor: torch.Tensor, kind: type[torch.Tensor], attributes: dict[str, Any]
) -> torch.Tensor:
    """Return a tensor as one of a subclass, connected to it."""
    found = tensor.as_subclass(kind)
    vars(found).update(attributes)
    return found


def _reduce_ordered_dict(value: OrderedDict[Any, Any]) -> str | tuple[Any, ...]:
    """Reduce empty ones at once: a module has a dozen, and they took most of its time."""
    return value.__reduce__() if value or vars(value) else (OrderedDict, ())


def _put_back(place: int, is_parameter: bool, requires_grad: bool, is_leaf: bool) -> torch.Tensor:
    """Name, in a pickle, the method of the unpickler that has the tensors."""
    raise pickle.UnpicklingError("a parcel's pickle needs the parcel's tensors")


def _put_reference_back(place: int) -> Any:
    """Name the method that has the references."""
    raise pickle.UnpicklingError("a parcel's pickle needs the parcel's references")


class _Unpacker(pickle.Unpickler):
    """Puts the tensors and references back."""

    def __init__(self, parcel: Parcel) -> None:
        super().__init__(io.BytesIO(parcel.pickled))
        self._tensors = parcel.tensors
        self._references = parcel.references

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__ and name == _put_back.__name__:
            return self._put_back
        if module == __name__ and name == _put_reference_back.__name__:
            return self._references.__getitem__
        return super().find_class(module, name)

    def _put_back(
        self, place: int, is_parameter: bool, requires_grad: bool, is_leaf: bool
    ) -> torch.Tensor:
        tensor = self._tensors[place]
        if tensor.grad_fn is not None:
            return tensor
        if is_parameter:
            return nn.Parameter(tensor.detach(), requires_grad)
        return tensor if is_leaf else tensor.detach()


def pack(value: object) -> Parcel:
    """Return what to send for a value, of any type that pickles.

    Raises:
        TypeError: Something in it does not pickle, or its gradient would be lost.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(value)
    except _LostGradientError:
        raise
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"a value cannot be sent to another worker: {error}. Functions and classes travel by "
            f"their names, so they must be at the top level of a module that every worker has"
        ) from error
    return Parcel(file.getvalue(), packer.tensors, packer.references)


def unpack(parcel: Parcel) -> Any:
    """Return the value of a parcel."""
    return _Unpacker(parcel).load()
