"""One step of all leaves: what the kernels are asked, and the same in `torchopt`'s own arithmetic.

The step is a function of streams, each a list with one tensor for each leaf:
``(gradients, parameters, state...) -> (result, next state...)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import optree
import torch

from torchopt._rule import Direction
from torchopt._workspace import Workspace

if TYPE_CHECKING:
    from torchopt._rule import Rule
    from torchopt_accel._kernels import Kernel

__all__ = ["NotCoveredError", "Step", "Stream", "chunks"]

#: A tensor or None for each leaf; None if no leaf has one.
Stream: TypeAlias = "Sequence[torch.Tensor | None] | None"


class NotCoveredError(RuntimeError):
    """A compiled kernel was insisted on, and there is none for these inputs."""


def chunks(flat: Sequence[Any], size: int) -> list[Any]:
    """Cut a sequence into lists of ``size`` elements."""
    return [list(flat[i : i + size]) for i in range(0, len(flat), size)]


class Row(NamedTuple):
    """How a step is made: ``alpha * params + beta * direction(sign * grads + decay * params)``."""

    sign: float
    decay: float
    alpha: float
    beta: float
    #: Whether roots are kept from zero, where their derivatives are not finite.
    lifted: bool
    #: The number of the step, counted from 1.
    number: int


class Step(NamedTuple):
    """A step with its coefficients."""

    kernel: Kernel
    #: The direction's rule.
    rule: Rule
    #: The kernels for the device.
    module: ModuleType
    #: Distinct ways in which leaves are stepped.
    rows: list[Row]
    #: The same as the kernel takes them.
    coefficients: list[tuple[float, ...]]
    #: For each leaf its row; None: all have the first.
    row_of: list[int] | None
    leaves: int
    #: Whether the parameters are an input.
    with_params: bool
    #: Whether the gradients depend on the parameters.
    decays: bool
    #: Whether the cotangents of the parameters are those of the result.
    passes_params: bool
    #: Whether the backward pass depends on each input stream.
    kept: tuple[bool, ...]

    @property
    def inputs(self) -> int:
        """The number of input streams."""
        return 1 + len(self.kernel.needs)

    def saved(self, tensors: Sequence[Any], kept: Sequence[bool]) -> Sequence[Any]:
        """Return those of the input tensors whose streams are kept."""
        if False not in kept:
            return tensors
        streams = zip(self.split(tensors), kept, strict=True)
        return [x for stream, keep in streams if keep for x in stream or ()]

    def split(self, tensors: Sequence[Any]) -> list[Stream]:
        """Return the input streams, given all tensors one after the other."""
        streams: list[Stream] = chunks(tensors, self.leaves)
        if not self.with_params:
            streams.insert(1, None)
        return streams

    def run(self, operation: int, inputs: Sequence[Stream], outputs: Sequence[Stream]) -> None:
        """Run an operation of the kernel.

        Raises:
            NotCoveredError: If the tensors of a leaf differ in shape, dtype or device, or there
                are no kernels for them. Nothing has been written then.
        """
        rule, threads = self.module.RULES[self.kernel.name], torch.get_num_threads()
        call, coefficients = self.module.run, self.coefficients
        try:
            strided = call(operation, rule, coefficients, self.row_of, inputs, outputs, threads)
            if strided is None:
                return
            streams, targets = _alike([*inputs, *outputs], len(inputs), strided)
            dense, results = streams[: len(inputs)], streams[len(inputs) :]
            call(operation, rule, coefficients, self.row_of, dense, results, threads)
        except (TypeError, ValueError) as error:
            raise NotCoveredError(str(error)) from error
        with torch.no_grad():
            for target, result in targets:
                target.copy_(result)

    def composite(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the forward operation returns, differentiable to any order."""
        every: list[Any] = self.split(tensors)
        grads, params, *moments = every
        row_of = [0] * self.leaves if self.row_of is None else self.row_of
        rows = [self.rows[k] for k in row_of]
        grads = [g if row.sign == 1 else row.sign * g for row, g in zip(rows, grads, strict=True)]
        if params is not None:
            terms = zip(rows, grads, params, strict=True)
            grads = [g + row.decay * p if row.decay else g for row, g, p in terms]
        work = Workspace.over(
            grads, optree.tree_structure(cast(Any, grads), none_is_leaf=True), False
        )
        counts = [torch.tensor(row.number - 1) for row in rows]
        state = self.kernel.assemble(moments, counts)
        direction, state = self.rule.update(Direction(grads), state, None, work)
        out = direction.materialize(work)
        if params is None:
            out = [row.beta * d for row, d in zip(rows, out, strict=True)]
        else:
            terms = zip(rows, out, params, strict=True)
            out = [_shifted(row.alpha, p, row.beta, d) for row, d, p in terms]
        moments, _ = self.kernel.take_apart(state if self.kernel.chained else (state,))
        return (*out, *(x for stream in moments for x in stream))


def _shifted(alpha: float, p: torch.Tensor, beta: float, d: torch.Tensor) -> torch.Tensor:
    """Return ``alpha * p + beta * d``; where ``alpha`` is 0, ``p`` may be infinite."""
    if alpha == 0:
        return beta * d
    return torch.add(p if alpha == 1 else alpha * p, d, alpha=beta)


def _alike(
    streams: list[Any], inputs: int, strided: Sequence[tuple[int, int, torch.Tensor | None]]
) -> tuple[list[Stream], list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return streams whose leaves lie alike, and results with what has to be copied to them.

    Args:
        streams: The inputs, then the outputs.
        inputs: The number of inputs.
        strided: The stream and the leaf of each tensor that has to be replaced, and a tensor that
            the new one is to lie like.
    """
    targets = []
    changed = {k: list(streams[k]) for k in {k for k, _, _ in strided}}
    for k, i, like in strided:
        old = changed[k][i].detach()
        if like is None:
            new = torch.empty_like(old, memory_format=torch.contiguous_format)
        else:
            new = torch.empty_like(like.detach())
        if k < inputs:
            new.copy_(old)
        else:
            targets.append((old, new))
        changed[k][i] = new
    return [changed.get(k, stream) for k, stream in enumerate(streams)], targets
