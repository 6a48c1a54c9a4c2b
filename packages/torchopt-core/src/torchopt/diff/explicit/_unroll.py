"""The inner loop, differentiable in everything it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, NamedTuple

import torch

from torchopt._types import OptState
from torchopt.base import GradientTransformation, check_transformation
from torchopt.diff.explicit._memory import FullGraph, Memory, Plan
from torchopt.diff.explicit._mixed import mixed
from torchopt.diff.explicit._problem import Carry, Problem
from torchopt.diff.explicit._segment import Run, run_replayed
from torchopt.diff.explicit._target import target_of

__all__ = ["Unrolled", "unroll"]


class Unrolled(NamedTuple):
    """What an inner loop has come to."""

    #: The adapted parameters: a tree or a module like the one given.
    params: Any
    #: The optimizer's state after the last step.
    state: OptState
    #: The loss before each step, of shape ``(steps,)``; None unless asked for.
    losses: torch.Tensor | None


def unroll(
    loss: Callable[..., torch.Tensor],
    optimizer: GradientTransformation,
    params: Any,
    *args: Any,
    steps: int | None = None,
    batches: Iterable[Any] | Callable[[int], Any] | None = None,
    state: OptState | None = None,
    memory: Memory | None = None,
    losses: bool = False,
) -> Unrolled:
    r"""Return the parameters after some steps of an optimizer, differentiable in everything.

    .. math:: \theta_{t + 1}, s_{t + 1}
        = \mathrm{step}(\theta_t, s_t, \nabla_\theta L(\theta_t, b_t, a)), \qquad t < K.

    Derivatives reach the initial parameters and state, ``args``, ``batches``, hyperparameters that
    are tensors, and tensors in the closure of ``loss``, to any order and in both modes, inside and
    outside of `torch.func` transforms. Under `torch.vmap` it unrolls a batch of tasks.

    Args:
        loss: :math:`L`, called as ``loss(params, *args)``, or with ``batches`` as
            ``loss(params, batch, *args)``; returns a scalar. It must not write to tensors in its
            closure if ``memory`` evaluates it again.
        optimizer: The transformation, for example ``torchopt.adam(1e-2)`` or a chain.
        params: :math:`\theta_0`: a tree, whose leaves that are None, integers or no tensors stay;
            or a module, which ``loss`` is then called with, other parameters and buffers in the
            places of its own. Tied ones stay tied; parameters that do not require grad stay, and
            the optimizer sees a dict of the others by name. The module itself is not changed.
        *args: What else the loss depends on; trees of anything.
        steps: :math:`K`. May be left out if ``batches`` is a sequence.
        batches: :math:`b_t`: a sequence with one batch for each step; a function of the number of
            the step; or an iterator, where ``memory`` evaluates no step again.
        state: :math:`s_0`, from ``optimizer.init(params)`` or an earlier call; by default the
            former.
        memory: What is stored for derivatives, and what is computed again: :class:`FullGraph` by
            default, or :class:`Checkpointed`, :class:`Binomial`, :class:`Offloaded`,
            :class:`MixedMode`, all of which give the same derivatives; or :class:`Truncated` or
            :class:`FirstOrder`, which do not.
        losses: Whether to return the losses, too.

    Returns:
        An :class:`Unrolled`. For a module its ``params`` is a module like it, with the adapted
        tensors in their places.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there is nothing to adapt, the loss is no scalar or does not depend on the
            parameters, batches are fewer than steps or cannot be read again, or ``memory`` would
            lose a derivative in something that the loss reads.
        RuntimeError: In the backward pass, if data have been written to that are read again.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.diff.explicit import Checkpointed, unroll
        >>> target = torch.tensor(3.0, requires_grad=True)
        >>> adapted = unroll(
        ...     lambda x, target: (x - target) ** 2,
        ...     torchopt.sgd(0.25),
        ...     torch.tensor(0.0),
        ...     target,
        ...     steps=4,
        ...     memory=Checkpointed(),
        ... )
        >>> torch.autograd.grad(adapted.params, target)  # 1 - (1 - 2 * 0.25)**4
        (tensor(0.9375),)
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be callable, got {type(loss).__name__}")
    check_transformation(optimizer, "`optimizer`")
    memory = FullGraph() if memory is None else memory
    if not isinstance(memory, Memory):
        raise TypeError(f"`memory` must be a policy such as Checkpointed(), got {_shown(memory)}")
    source = _batches(batches, steps)
    plan = memory.plan(source.steps)
    if not source.again and _reads_again(plan):
        raise ValueError(
            f"`memory={memory}` evaluates steps again, but `batches` is an iterator, which gives "
            "each batch once: pass a sequence, or a function of the number of the step"
        )
    target = target_of(params)
    problem = Problem(loss, optimizer, target, args, source.batch, plan.gradient)
    carry = problem.start(state)
    number = source.steps
    found: list[torch.Tensor] = []
    if plan.last is not None and plan.last < number:
        number = plan.last
        with torch.no_grad():
            carry, found = _run(problem, carry, range(source.steps - number), losses)
        carry = _detached(carry)
        found = [x.detach() for x in found]
    if number and _reads_again(plan):
        problem.find_shared(carry, source.known)
    if plan.schedule is not None and number:
        run = Run(problem, losses, plan.on_host)
        carry, found = run_replayed(run, carry, number, plan.schedule)
    else:
        rest = range(source.steps - number, source.steps)
        carry, more = _run(problem, carry, rest, losses)
        found.extend(more)
    trace = None
    if losses:
        trace = torch.stack(found) if found else carry.leaves[0].new_zeros((0,))
    return Unrolled(target.result(carry.leaves, carry.buffers), carry.state, trace)


def _reads_again(plan: Plan) -> bool:
    return plan.schedule is not None or plan.gradient is mixed


def _run(
    problem: Problem, carry: Carry, steps: Iterable[int], losses: bool
) -> tuple[Carry, list[torch.Tensor]]:
    """Take steps one after the other, with the graph that autograd makes."""
    found = []
    for index in steps:
        carry, value = problem.step(index, carry)
        if losses:
            found.append(value)
    return carry, found


def _detached(carry: Carry) -> Carry:
    tensors, layout = carry.pack()
    return layout.unpack([x.detach() for x in tensors])


class _Batches(NamedTuple):
    """Where a step finds its batch."""

    steps: int
    #: From the number of a step to its batch in a tuple.
    batch: Callable[[int], tuple[Any, ...]]
    #: The batches that are there already.
    known: Sequence[Any] = ()
    #: Whether a batch can be had again.
    again: bool = True


def _batches(batches: Any, steps: int | None) -> _Batches:
    """Return where batches come from, and how many steps there are."""
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool)):
        raise TypeError(f"`steps` must be an integer, got {steps!r}")
    if steps is not None and steps < 0:
        raise ValueError(f"`steps` must be non-negative, got {steps}")
    if batches is None:
        if steps is None:
            raise ValueError("`steps` or `batches` must say how many steps to take")
        return _Batches(steps, lambda index: ())
    if isinstance(batches, (Sequence, torch.Tensor)) or _is_indexed(batches):
        number = len(batches)
        if steps is not None and number < steps:
            raise ValueError(
                f"`batches` has {number} entries, but `steps` is {steps}: pass a batch for each "
                "step, or fewer steps"
            )
        number = number if steps is None else steps
        if not isinstance(batches, (list, tuple, torch.Tensor)):  # it may make them when asked
            return _Batches(number, lambda index: (batches[index],))
        known = [batches[index] for index in range(number)]
        return _Batches(number, lambda index: (known[index],), known)
    if callable(batches):
        if steps is None:
            raise ValueError("`batches` is a function, so `steps` must say how many steps to take")
        return _Batches(steps, lambda index: (batches(index),))
    if not isinstance(batches, Iterable):
        raise TypeError(
            "`batches` must be a sequence, a function of the number of the step, or an iterable, "
            f"got {type(batches).__name__}"
        )
    if steps is None:
        if not isinstance(batches, Sized):
            raise ValueError("`batches` is an iterator, so `steps` must say how many to take")
        steps = len(batches)
    return _Batches(steps, _Stream(batches, steps), again=False)


def _is_indexed(batches: Any) -> bool:
    kind = type(batches)
    return (
        hasattr(kind, "__len__") and hasattr(kind, "__getitem__") and not isinstance(batches, dict)
    )


class _Stream:
    """The batches of an iterable, each read once."""

    def __init__(self, batches: Iterable[Any], steps: int) -> None:
        self._iterator, self._steps = iter(batches), steps
        self._index, self._batch = -1, None

    def __call__(self, index: int) -> tuple[Any, ...]:
        if index != self._index:  # an optimizer may evaluate the loss of a step more than once
            try:
                self._index, self._batch = index, next(self._iterator)
            except StopIteration:
                raise ValueError(
                    f"`batches` ended after {index} batches, but `steps` is {self._steps}: pass "
                    "more batches, or fewer steps"
                ) from None
        return (self._batch,)


def _shown(value: object) -> str:
    return f"the class {value.__name__}: call it" if isinstance(value, type) else repr(value)
