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

    def is_unchanged(self) -> bool:
        """Return whether every bit is as it was."""
        return torch.equal(_bits(local(self.tensor)), _bits(self.value))

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


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> Tensor:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(_WORDS[tensor.itemsize])


class Snapshot:
    """The modules and tensors of `params` as they are before each task.

    That is which tensors a module holds, the numbers in them, whether they require a gradient,
    their ``.grad``, and the modes of modules. It costs a copy of the parameters once a meta-step,
    and a look at them after each task.
    """

    def __init__(self, modules: Iterable[nn.Module], tensors: Iterable[Tensor]) -> None:
        self.modules = [
            (module, extract_state_dict(module), [(m, m.training) for m in module.modules()])
            for module in modules
        ]
        unique = {id(tensor): tensor for tensor in tensors if tensor.device.type != "meta"}
        self.saved = [_Saved.of(tensor) for tensor in unique.values()]
        self.versions = [saved.version() for saved in self.saved]
        # elsewhere, a checksum of all is one synchronization; a comparison is one for each tensor
        self.on_cpu = all(saved.memory.device.type == "cpu" for saved in self.saved)
        self.expected = None if self.on_cpu else self.checksum

    @property
    def whole_checksum(self) -> int:
        """The checksum of the tensors that are not sharded."""
        whole = [saved.tensor for saved in self.saved if not is_sharded(saved.tensor)]
        return int(tensor_checksum(map(local, whole)))

    @property
    def checksum(self) -> int:
        """The checksum of the tensors as they are, this rank's shards of those that are sharded."""
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
        if not self._is_unchanged():  # a write by `.data` leaves no other trace
            for saved in self.saved:
                saved.put_back_value()
        self.versions = [saved.version() for saved in self.saved]

    def _is_unchanged(self) -> bool:
        if self.on_cpu:
            return all(saved.is_unchanged() for saved in self.saved)
        return self.checksum == self.expected
