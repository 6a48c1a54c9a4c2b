"""One step of all leaves: what the kernels are asked, and the same in `torchopt`'s own arithmetic.

The step is a function of streams, each a list with one tensor for each leaf:
``(gradients, parameters, state...) -> (result, next state...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def saved(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Return those of the input tensors that the backward pass depends on."""
        if False not in self.kept or (not self.with_params and False not in self.kernel.needs):
            return tensors
        streams = zip(self.split(tensors), self.kept, strict=True)
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
            dense = [_dense(stream, strided, _copy) for stream in inputs]
            results = [_dense(stream, strided, _empty) for stream in outputs]
            call(operation, rule, coefficients, self.row_of, dense, results, threads)
        except (TypeError, ValueError) as error:
            raise NotCoveredError(str(error)) from error
        with torch.no_grad():
            for stream, result in zip(outputs, results, strict=True):
                for i in strided:
                    if stream is not None and (target := stream[i]) is not None:
                        target.copy_(result[i])  # type: ignore[index]

    def composite(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return what the forward operation returns, differentiable to any order."""
        every: list[Any] = self.split(tensors)
        grads, params, *moments = every
        row_of = [0] * self.leaves if self.row_of is None else self.row_of
        rows = [self.rows[k] for k in row_of]
        grads = [row.sign * g for row, g in zip(rows, grads, strict=True)]
        if params is not None:
            terms = zip(rows, grads, params, strict=True)
            grads = [g + row.decay * p if row.decay else g for row, g, p in terms]
        work = Workspace.over(
            grads, optree.tree_structure(cast(Any, grads), none_is_leaf=True), False
        )
        counts = [torch.tensor(row.number - 1) for row in rows]
        state = self.kernel.assemble(moments, counts)
        direction, state = self.rule.update(Direction(grads), state, None, work)
        out = [row.beta * d for row, d in zip(rows, direction.materialize(work), strict=True)]
        if params is not None:
            terms = zip(rows, out, params, strict=True)
            out = [x + row.alpha * p if row.alpha else x for row, x, p in terms]
        moments, _ = self.kernel.take_apart(state if self.kernel.chained else (state,))
        return (*out, *(x for stream in moments for x in stream))


def _copy(x: torch.Tensor) -> torch.Tensor:
    return x.resolve_neg().clone(memory_format=torch.contiguous_format)


def _empty(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _dense(
    stream: Stream, positions: list[int], make: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor | None] | None:
    """Return the stream with contiguous tensors, made of its own, at some positions."""
    if stream is None:
        return None
    changed = list(stream)
    for i in positions:
        if (x := changed[i]) is not None:
            changed[i] = make(x.detach())
    return changed
