"""Where `torchopt` meets the kernels: one step of an optimizer, if they cover it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from torchopt._mask import mask_positions
from torchopt._workspace import is_transforming
from torchopt_accel import _native
from torchopt_accel._autograd import apply
from torchopt_accel._kernels import Kernel, kernel_for
from torchopt_accel._step import NotCoveredError, Row, Step

if TYPE_CHECKING:
    from torchopt._arithmetic import Leaves
    from torchopt._workspace import Workspace
    from torchopt.optim._descent import Descent
    from torchopt.typing import OptState

__all__ = ["CompiledDescent", "NotCoveredError", "compile_descent"]


def compile_descent(descent: Descent) -> CompiledDescent | None:
    """Return the compiled form of an optimizer's step, or None if there is none for its rule.

    Raises:
        NotCoveredError: If there is none and the optimizer insists on it.
    """
    kernel: Kernel | str = kernel_for(descent.direction)
    if isinstance(descent.weight_decay, torch.Tensor):
        kernel = "its weight decay is a tensor"
    if isinstance(kernel, Kernel):
        return CompiledDescent(descent, kernel)
    if descent.use_accelerated_op:
        raise NotCoveredError(_refusal(kernel))
    return None


def _refusal(reason: str) -> str:
    return (
        f"`use_accelerated_op=True`, but {reason}; with `use_accelerated_op=None` the optimizer "
        "takes the compiled step where it can, and an equal one elsewhere"
    )


class CompiledDescent:
    """The step of one optimizer."""

    def __init__(self, descent: Descent, kernel: Kernel) -> None:
        """Take the optimizer and the kernel of its direction."""
        self.descent = descent
        self.kernel = kernel

    def run(
        self,
        grads: Leaves,
        state: Any,
        params: Leaves | None,
        work: Workspace,
        rate: float | None,
        keep: float,
    ) -> tuple[Leaves, OptState] | None:
        r"""Return ``keep * params`` plus the updates, and the next state of the direction.

        Args:
            grads: The gradients.
            state: The state of the direction.
            params: The parameters, if they are given.
            work: The workspace. In place, the state is overwritten, and so are the parameters if
                ``keep`` is 1.
            rate: The learning rate; None asks for the direction alone.
            keep: 1 for the next parameters, 0 for updates.

        Returns:
            None if the kernels do not cover the inputs; nothing has been changed then.

        Raises:
            NotCoveredError: If they do not, and the optimizer insists.
        """
        try:
            return self._run(grads, state, params, work, rate, keep)
        except NotCoveredError as error:
            if self.descent.use_accelerated_op:
                raise NotCoveredError(_refusal(str(error))) from error
            return None

    def _run(
        self,
        grads: Leaves,
        state: Any,
        params: Leaves | None,
        work: Workspace,
        rate: float | None,
        keep: float,
    ) -> tuple[Leaves, OptState]:
        _check_context(work)
        kernel = self.kernel
        records = state if kernel.chained else (state,)
        fields = [
            work.read(record, kind, checked=False) if kind._fields else []
            for record, kind in zip(records, kernel.records, strict=True)
        ]
        moments, counts = kernel.take_apart(fields)
        if [x for stream in moments for x in stream if x is None]:
            raise NotCoveredError("the state is None where there is a gradient")
        numbers = _numbers(counts) if kernel.counted else 0
        step = self._step(grads, numbers, params, work, rate, keep)
        inputs = [grads, params if step.with_params else None, *moments]

        if work.inplace:
            out = params if keep else [torch.empty_like(x) for x in grads]
            assert out is not None
            step.run(_native.FORWARD, inputs, [out, *moments])
            overwritten = [out, *moments] if keep else moments
            increment_version([x for stream in overwritten for x in stream])
            if kernel.counted:
                _native.load("cpu").increment(counts)
            return out, state

        out, *moments = apply(step, inputs)
        if isinstance(numbers, int) and not is_transforming():
            counts = torch.full((len(grads),), numbers + 1, dtype=torch.int64).unbind()
        elif kernel.counted:
            counts = work.reuse.add(counts, 1)
        remaining = iter(moments)
        written = [
            work.write(record, *_fields(kind, remaining, counts)) if kind._fields else record
            for record, kind in zip(records, kernel.records, strict=True)
        ]
        return out, tuple(written) if kernel.chained else written[0]

    def _step(
        self,
        grads: Leaves,
        numbers: int | list[int],
        params: Leaves | None,
        work: Workspace,
        rate: float | None,
        keep: float,
    ) -> Step:
        """Return the step, given how many each leaf has made."""
        descent = self.descent
        decay: Any = descent.weight_decay
        if decay and params is None and (rate is not None or not descent.decoupled):
            raise NotCoveredError("the weight decay needs the parameters")
        coupled = 0.0 if descent.decoupled else decay
        shrink = decay * (rate or 0.0) if descent.decoupled else 0.0
        sign = -1.0 if descent.maximize else 1.0
        beta = 1.0 if rate is None else -rate
        lifted = not work.inplace

        def row(count: int, decays: bool) -> Row:
            if decays:
                return Row(sign, coupled, keep - shrink, beta, lifted, count + 1)
            return Row(sign, 0.0, keep, beta, lifted, count + 1)

        row_of = None
        if isinstance(numbers, int) and (descent.mask is None or not decay):
            rows = [row(numbers, True)]
        else:
            n = len(grads)
            counts = [numbers] * n if isinstance(numbers, int) else numbers
            chosen = set(range(n))
            if decay and params is not None:
                chosen = set(mask_positions(descent.mask, params, work))
            keys = [(count, i in chosen) for i, count in enumerate(counts)]
            distinct = {key: k for k, key in enumerate(dict.fromkeys(keys))}
            rows, row_of = [row(*key) for key in distinct], [distinct[key] for key in keys]
        decays = any(x.decay for x in rows)
        keeps = any(x.alpha for x in rows)
        return Step(
            kernel=self.kernel,
            rule=descent.direction,
            module=_module(grads),
            rows=rows,
            row_of=row_of,
            leaves=len(grads),
            with_params=decays or keeps,
            decays=decays,
            passes_params=not decays and not [x for x in rows if x.alpha != 1],
        )


def _fields(kind: type[Any], moments: Iterator[Leaves], counts: Any) -> list[Leaves]:
    return [counts if name == "count" else next(moments) for name in kind._fields]


def _module(grads: Leaves) -> ModuleType:
    try:
        return _native.load("cpu" if grads[0].is_cpu else grads[0].device.type)
    except ImportError as error:
        raise NotCoveredError(str(error)) from error


def _numbers(counts: Leaves) -> int | list[int]:
    """Return the numbers of steps made so far: one if all leaves agree."""
    if is_transforming():
        numbers = [_number(x) for x in counts]
        return numbers[0] if len(set(numbers)) == 1 else numbers
    try:
        found: int | list[int] = _native.load("cpu").counts(counts)
    except (ImportError, TypeError) as error:
        raise NotCoveredError(str(error)) from error
    return found


def _check_context(work: Workspace) -> None:
    """Raise where something else has to see every operation."""
    if torch.compiler.is_compiling():
        raise NotCoveredError("the step is being compiled")
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        raise NotCoveredError("the step is being traced")
    if work.inplace and forward_ad._current_level >= 0:
        raise NotCoveredError("a step in place has no tangents")


def _number(count: torch.Tensor) -> int:
    """Return the number that a step count holds under `torch.func` transforms."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(count):
        count = functorch.get_unwrapped(count)
    if count.ndim == 0:
        return int(count)
    numbers = set(count.flatten().tolist())
    if len(numbers) != 1:
        raise NotCoveredError("the optimizers of a batch have made different numbers of steps")
    return int(numbers.pop())
