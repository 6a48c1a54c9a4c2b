"""Where `torchopt` meets the kernels: one step of an optimizer, if they cover it."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from torchopt import kernels
from torchopt.kernels import Formula, NotCoveredError, Request, Result
from torchopt_accel import _native
from torchopt_accel._autograd import apply
from torchopt_accel._kernels import Kernel, find_kernel
from torchopt_accel._levels import is_transforming, unwrapped
from torchopt_accel._step import Row, Step

__all__ = ["PROVIDER", "CompiledStep"]

# steps that an optimizer remembers
_REMEMBERED = 64
# with fewer, a differentiable step of a linear rule is faster without a kernel
_FEW_LEAVES = 24


class _Provider:
    """What `torchopt` asks for kernels."""

    protocol = 1

    def kernel(self, formula: Formula) -> CompiledStep:
        """Return what takes the steps of a rule."""
        kernel = find_kernel(formula.name)
        if kernel is None:
            raise NotCoveredError(f"there is no kernel for the formula {formula.name!r}")
        return CompiledStep(formula, kernel)


PROVIDER: kernels.Provider = _Provider()


class CompiledStep:
    """The steps of one rule."""

    def __init__(self, formula: Formula, kernel: Kernel) -> None:
        """Take the rule and its kernel."""
        self.formula, self.kernel = formula, kernel
        self._is_nonlinear = any(kernel.needs)
        # the steps made last: episodes repeat them
        self._steps: dict[tuple[Any, ...], Step] = {}

    def step(self, request: Request) -> Result:
        """Take a step."""
        _check_context(request)
        if [x for moment in request.moments for x in moment if x is None]:
            raise NotCoveredError("the state is None where there is a gradient")
        counts = request.counts
        numbers: int | list[int] = 0
        if self.formula.counted:
            assert counts is not None
            # under transforms counts are plain tensors too, unless somebody batches them
            counts = [unwrapped(x) for x in counts] if is_transforming() else counts
            numbers = _numbers(counts)
        step = self._step(request, numbers)
        inputs: list[Any] = [
            request.gradients,
            request.parameters if step.with_params else None,
            *request.moments,
        ]
        if request.inplace:
            return self._step_in_place(request, step, inputs)

        out, *moments = apply(step, inputs)
        if counts is not None:
            if isinstance(numbers, int) and self.formula.counted and not _is_batched(counts):
                total = torch.full((len(counts),), numbers + 1, dtype=torch.int64, device="cpu")
                counts = list(total.unbind())
            else:
                counts = [count + 1 for count in request.counts or ()]
        return Result(out, moments, counts)

    @staticmethod
    def _step_in_place(request: Request, step: Step, inputs: list[Any]) -> Result:
        out, moments = request.parameters, request.moments
        if not request.keep:
            out = [torch.empty_like(x) for x in request.gradients]
        assert out is not None
        step.run(_native.FORWARD, inputs, [out, *moments])
        overwritten = [out, *moments] if request.keep else moments
        increment_version([x for stream in overwritten for x in stream])
        if request.counts is not None:
            try:
                _native.load("cpu").increment(request.counts)
            except TypeError:
                torch._foreach_add_(request.counts, 1)
        return Result(out, moments, request.counts)

    def pays(self, leaves: int, inplace: bool, weight_decay: float) -> bool:
        """Return whether the kernel is faster than the operations of autograd that it replaces.

        Not so for linear rules, whose derivatives autograd has at hand, but for forward mode. For
        others the kernels win from one leaf on, whatever its size (``benchmarks/transforms.py``).
        """
        if self._is_nonlinear or forward_ad._current_level >= 0:
            return True
        if self.kernel.name == "sgd" and not weight_decay:
            return False
        return inplace or leaves >= _FEW_LEAVES

    def _step(self, request: Request, numbers: int | list[int]) -> Step:
        """Return the step, given how many each leaf has made."""
        rate, keep, decay = request.rate, request.keep, request.weight_decay
        grads = request.gradients
        if decay and request.parameters is None and (rate is not None or not request.decoupled):
            raise NotCoveredError("the weight decay needs the parameters")
        device = "cpu" if grads[0].is_cpu else grads[0].device.type
        n = len(grads)
        if isinstance(numbers, int) and (request.decays is None or not decay):
            key = (numbers, rate, keep, request.inplace, device, n, request.scale, decay)
            if (known := self._steps.get(key)) is None:
                if len(self._steps) >= _REMEMBERED:
                    self._steps.clear()
                rows = [self._row(numbers, True, request)]
                known = self._steps[key] = self._make(rows, None, device, request)
            return known

        counts = [numbers] * n if isinstance(numbers, int) else numbers
        chosen = set(range(n)) if request.decays is None else set(request.decays)
        keys = [(count, i in chosen) for i, count in enumerate(counts)]
        distinct = {key: k for k, key in enumerate(dict.fromkeys(keys))}
        rows = [self._row(*key, request) for key in distinct]
        return self._make(rows, [distinct[key] for key in keys], device, request)

    def _row(self, number: int, decays: bool, request: Request) -> Row:
        rate, decay = request.rate, request.weight_decay if decays else 0.0
        decoupled = request.decoupled
        return Row(
            scale=request.scale,
            decay=0.0 if decoupled else decay,
            alpha=request.keep - (decay * (rate or 0.0) if decoupled else 0.0),
            beta=1.0 if rate is None else -rate,
            lifted=not request.inplace,
            number=number + 1,
        )

    def _make(
        self, rows: list[Row], row_of: list[int] | None, device: str, request: Request
    ) -> Step:
        decays = any(x.decay for x in rows)
        gradients, *states = self.kernel.needs
        try:
            module = _native.load(device)
        except ImportError as error:
            raise NotCoveredError(str(error)) from error
        return Step(
            kernel=self.kernel,
            formula=request.composite,
            module=module,
            rows=rows,
            coefficients=[(*x[:5], *self.formula.coefficients(x.number)) for x in rows],
            row_of=row_of,
            leaves=len(request.gradients),
            with_params=decays or request.keep != 0 or any(x.alpha for x in rows),
            decays=decays,
            passes_params=not decays and all(x.alpha == 1 for x in rows),
            kept=(gradients, gradients and decays, *states),
        )


def _is_batched(counts: list[torch.Tensor]) -> bool:
    return True in [x.ndim > 0 for x in counts]


def _numbers(counts: list[torch.Tensor]) -> int | list[int]:
    """Return the numbers of steps made so far: one if all leaves agree."""
    if _is_batched(counts):
        numbers = [_number(x) for x in counts]
        return numbers[0] if len(set(numbers)) == 1 else numbers
    try:
        found: int | list[int] = _native.load("cpu").counts(counts)
    except (ImportError, TypeError) as error:
        raise NotCoveredError(str(error)) from error
    return found


def _check_context(request: Request) -> None:
    """Raise where something else has to see every operation."""
    if torch.compiler.is_compiling():
        raise NotCoveredError("the step is being compiled")
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        raise NotCoveredError("the step is being traced")
    if request.inplace and forward_ad._current_level >= 0:
        raise NotCoveredError("a step in place has no tangents")


def _number(count: torch.Tensor) -> int:
    """Return the number that the step counts of a batch hold."""
    numbers = set(count.flatten().tolist())
    if len(numbers) != 1:
        raise NotCoveredError("the optimizers of a batch have made different numbers of steps")
    return int(numbers.pop())
