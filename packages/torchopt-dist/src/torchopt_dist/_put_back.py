"""What a task may change of `params`, put back by value before the next one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchopt import extract_state_dict, recover_state_dict
from torchopt_dist._checksum import tensor_checksum
from torchopt_dist._sharded import is_sharded, local, reshard

__all__ = ["Snapshot"]


class _Saved(NamedTuple):
    """A tensor as it was."""

    tensor: Tensor
    # its memory at that time, which the tensor may be made to leave
    memory: Tensor
    # the numbers in it
    value: Tensor
    requires_grad: bool
    grad: Tensor | None
    grad_value: Tensor | None

    @classmethod
    def of(cls, tensor: Tensor) -> _Saved:
        grad = tensor.grad if _may_have_grad(tensor) else None
        grad_value = None if grad is None else local(grad).clone()
        memory = local(tensor)
        return cls(tensor, memory, memory.clone(), tensor.requires_grad, grad, grad_value)

    def version(self) -> tuple[int, int, torch.Size]:
        """Return what tells of most writes: how many there were, and to which memory."""
        now = local(self.tensor)
        count = 0 if self.tensor.is_inference() else self.tensor._version
        return count, now.data_ptr(), now.shape

    def put_back_value(self) -> None:
        now = local(self.tensor)
        if now.data_ptr() != self.memory.data_ptr() or now.shape != self.memory.shape:
            self.tensor.data = self.memory
        with torch.no_grad():
            local(self.tensor).copy_(self.value)

    def put_back_grad(self) -> None:
        tensor = self.tensor
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if _may_have_grad(tensor) and tensor.grad is not self.grad:
            tensor.grad = self.grad
        if self.grad is not None and self.grad_value is not None:
            with torch.no_grad():
                local(self.grad).copy_(self.grad_value)


def _may_have_grad(tensor: Tensor) -> bool:
    # asking others, which have a history, is a warning
    return tensor.is_leaf or tensor.retains_grad


class Snapshot:
    """The modules and tensors of `params` as they are before each task.

    That is which tensors a module holds, the numbers in them, whether they require a gradient,
    their ``.grad``, and the modes of modules. It costs a copy of the parameters once a meta-step,
    and a checksum of them after each task.
    """

    def __init__(self, modules: Iterable[nn.Module], tensors: Iterable[Tensor]) -> None:
        self.modules = [
            (module, extract_state_dict(module), [(m, m.training) for m in module.modules()])
            for module in modules
        ]
        unique = {id(tensor): tensor for tensor in tensors if tensor.device.type != "meta"}
        self.saved = [_Saved.of(tensor) for tensor in unique.values()]
        self.versions = [saved.version() for saved in self.saved]
        #: Of every bit of the tensors, this rank's shards of those that are sharded.
        self.checksum = self._checksum()

    @property
    def whole_checksum(self) -> int:
        """The checksum of the tensors that are not sharded."""
        whole = [saved.tensor for saved in self.saved if not is_sharded(saved.tensor)]
        return int(tensor_checksum(map(local, whole)))

    def _checksum(self) -> int:
        return int(tensor_checksum(local(saved.tensor) for saved in self.saved))

    def put_back(self) -> None:
        """Undo what a task did."""
        for module, state, modes in self.modules:
            reshard(module)
            recover_state_dict(module, state)
            for submodule, training in modes:
                submodule.training = training
        for saved, version in zip(self.saved, self.versions, strict=True):
            if saved.version() != version:
                saved.put_back_value()
            saved.put_back_grad()
        if self._checksum() != self.checksum:  # a write by `.data` leaves no other trace
            for saved in self.saved:
                saved.put_back_value()
        self.versions = [saved.version() for saved in self.saved]
