"""Where `torchopt` meets the kernels: one step of an optimizer, if they cover it."""

from __future__ import annotations

from collections.abc import Iterator
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

# steps that an optimizer remembers
_REMEMBERED = 64


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
        # the steps made last: episodes repeat them
        self._steps: dict[tuple[Any, ...], Step] = {}

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
        device = "cpu" if grads[0].is_cpu else grads[0].device.type
        lifted = not work.inplace
        if isinstance(numbers, int) and (descent.mask is None or not decay):
            key = (numbers, rate, keep, lifted, device, len(grads))
            if (known := self._steps.get(key)) is None:
                if len(self._steps) >= _REMEMBERED:
                    self._steps.clear()
                rows = [self._row(numbers, True, rate, keep, lifted)]
                known = self._steps[key] = self._make(rows, None, device, len(grads), keep)
            return known

        n = len(grads)
        counts = [numbers] * n if isinstance(numbers, int) else numbers
        chosen = set(range(n))
        if decay and params is not None:
            chosen = set(mask_positions(descent.mask, params, work))
        keys = [(count, i in chosen) for i, count in enumerate(counts)]
        distinct = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        rows = [self._row(*key, rate, keep, lifted) for key in distinct]
        return self._make(rows, [distinct[key] for key in keys], device, n, keep)

    def _row(self, number: int, decays: bool, rate: float | None, keep: float, lifted: bool) -> Row:
        descent = self.descent
        decay: Any = descent.weight_decay if decays else 0.0
        return Row(
            sign=-1.0 if descent.maximize else 1.0,
            decay=0.0 if descent.decoupled else decay,
            alpha=keep - (decay * (rate or 0.0) if descent.decoupled else 0.0),
            beta=1.0 if rate is None else -rate,
            lifted=lifted,
            number=number + 1,
        )

    def _make(
        self, rows: list[Row], row_of: list[int] | None, device: str, leaves: int, keep: float
    ) -> Step:
        kernel, rule = self.kernel, self.descent.direction
        decays = any(x.decay for x in rows)
        gradients, *states = kernel.needs
        try:
            module = _native.load(device)
        except ImportError as error:
            raise NotCoveredError(str(error)) from error
        return Step(
            kernel=kernel,
            rule=rule,
            module=module,
            rows=rows,
            coefficients=[(*x[:5], *kernel.coefficients(rule, x.number)) for x in rows],
            row_of=row_of,
            leaves=leaves,
            with_params=decays or keep != 0 or any(x.alpha for x in rows),
            decays=decays,
            passes_params=not decays and all(x.alpha == 1 for x in rows),
            kept=(gradients, gradients and decays, *states),
        )


def _fields(kind: type[Any], moments: Iterator[Leaves], counts: Any) -> list[Leaves]:
    return [counts if name == "count" else next(moments) for name in kind._fields]


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
