"""How a step goes through the levels of `torch.func`, and those of batched cotangents.

A transform puts a level on functorch's stack, and tensors are wrapped once for each level that they
depend on. A function of tensors is applied level by level, from the top: it is recorded, given
tangents or batched there, and what it computes is left to the level below. torch does so itself for
each `torch.autograd.Function`, in `custom_function_call`, but flattens all arguments as trees many
times and makes a class in each call: ten times the work of a step of a small network. So it is done
here, for lists of tensors.

These are all private names of torch that derivatives need:

- `_functorch`: the stack, and the wrappers of its levels. There is no public way to them.
- `_SingleLevelFunction`: what records a node on one level; `torch.autograd.Function` refuses to run
  while there are levels.
- `_add_batch_dim`, `_remove_batch_dim`: the batches of `torch.autograd.grad(...,
  is_grads_batched=True)` and of `vectorize=True`, which are older than functorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
from torch._C import _functorch
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from torchopt.kernels import NotCoveredError

__all__ = [
    "LeveledFunction",
    "has_nested_tangents",
    "has_wrapped",
    "is_transforming",
    "run",
    "unwrapped",
]

Tensors: TypeAlias = "Sequence[torch.Tensor | None]"

# levels of batched cotangents that torch allows
_BATCH_LEVELS = 64

_torch: Any = torch
_make_dual: Any = forward_ad.make_dual
_unpack_dual: Any = forward_ad.unpack_dual
_peek = _functorch.peek_interpreter_stack
_unwrap = _functorch._unwrap_for_grad
_wrap = _functorch._wrap_for_grad
_is_batched = _functorch.is_legacy_batchedtensor


def is_transforming() -> bool:
    """Return whether a `torch.func` transform is running."""
    return _functorch.get_dynamic_layer_stack_depth() > 0


def unwrapped(x: torch.Tensor) -> torch.Tensor:
    """Return what is inside of the wrappers of all levels, with the dimensions of all batches."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


def has_nested_tangents() -> bool:
    """Return whether forward mode runs inside of forward mode."""
    levels = _functorch.get_interpreter_stack() or ()
    return [x.key() for x in levels].count(TransformType.Jvp) > 1


class LeveledFunction(torch.autograd.Function):
    """A function of one object and of tensors, that :func:`run` applies under all transforms.

    Its `forward`, `setup_context` and `backward` are those of a `torch.autograd.Function`.
    """

    #: What records the function on one level.
    on_level: ClassVar[Any]
    #: `apply` without the binding of keyword arguments, which takes longer than a small step.
    apply_plainly: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        """Make what records the function on one level."""
        methods = {
            "forward": staticmethod(_forward_on_level(cls)),
            "setup_context": staticmethod(cls.setup_context),
            "backward": staticmethod(cls.backward),
        }
        cls.on_level = type(cls.__name__, (_SingleLevelFunction,), methods)
        cls.apply_plainly = super(torch.autograd.Function, cls).apply  # type: ignore[misc]

    #: From the object and the tensors to the results, where no kernel covers the tensors.
    composite: Callable[[Any, Tensors], Tensors] | None = None

    @staticmethod
    def tangents(call: Any, tensors: Tensors, tangents: Tensors) -> Tensors:
        """Return the tangents of the results."""
        raise NotImplementedError


def run(function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    """Return the results of a function, on all levels that there are.

    Raises:
        NotCoveredError: If no kernel covers the tensors and the function has no composite form, or
            there is a transform that has no rule here.
    """
    alive = [x if x is None else _alive(x) for x in tensors]
    return _descend(function, call, alive)


def _alive(x: torch.Tensor) -> torch.Tensor:
    """Return the tensor without the wrappers of levels that have ended."""
    while (inner := _functorch.unwrap_if_dead(x)) is not x:
        x = inner
    return x


def _descend(function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    top: Any = _peek()  # typed as if there always was one
    if top is None:
        return _on_the_ground(function, call, tensors)
    rule = _RULES.get(top.key())
    if rule is None:
        raise NotCoveredError(f"there is no rule for the transform {top.key().name}")
    return rule(top, function, call, tensors)


class _Below:
    """Leaves the top level for a while; a generator would take as long as some kernels do."""

    __slots__ = ("top",)

    def __enter__(self) -> None:
        self.top = _functorch.pop_dynamic_layer_stack()

    def __exit__(self, *error: object) -> None:
        _functorch.push_dynamic_layer_stack(self.top)


def _batched(top: Any, function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    """The rule of `vmap`: a batch is a larger leaf."""
    level, size = top.level(), _functorch.CVmapInterpreterPtr(top).batchSize()
    pairs = [(None, None) if x is None else _functorch._unwrap_batched(x, level) for x in tensors]
    with _Below():
        if not [dim for _, dim in pairs if dim is not None]:
            return _descend(function, call, tensors)
        results = _descend(function, call, [_in_front(x, dim, size) for x, dim in pairs])
    return [None if y is None else _functorch._add_batch_dim(y, 0, level) for y in results]


def _in_front(x: torch.Tensor | None, dim: int | None, size: int) -> torch.Tensor | None:
    if x is None or dim == 0:
        return x
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def _recorded(top: Any, function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    """The rule of `grad` and `vjp`: a node of the level's graph, if there is anything to record."""
    level = top.level()
    inner = [x if x is None else _unwrap(x, level) for x in tensors]
    tracked = [x for x, y in zip(tensors, inner, strict=True) if y is not x and x.requires_grad]  # type: ignore[union-attr]
    if not tracked or not torch.is_grad_enabled():
        with _Below():
            results = _descend(function, call, inner)
        return [None if y is None else _wrap(y, level) for y in results]
    # what is not of this level may be tracked on another one, which is not this node's business
    lifted = [
        x if x is None or y is not x else _wrap(x, level)
        for x, y in zip(tensors, inner, strict=True)
    ]
    allowed = _functorch.get_single_level_autograd_function_allowed()
    _functorch.set_single_level_autograd_function_allowed(True)
    try:
        found: Tensors = function.on_level.apply(call, *lifted)
    finally:
        _functorch.set_single_level_autograd_function_allowed(allowed)
    return found


def _forward_on_level(function: type[LeveledFunction]) -> Callable[..., Any]:
    def forward(call: Any, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        top: Any = _peek()
        level = top.level()
        inner = [x if x is None else _unwrap(x, level) for x in tensors]
        # torch turns both off before it calls this; the levels below have modes of their own
        torch._C._set_grad_enabled(_functorch.CGradInterpreterPtr(top).prevGradMode())
        torch._C._set_fwd_grad_enabled(True)
        try:
            with _Below():
                results = _descend(function, call, inner)
        finally:
            torch._C._set_grad_enabled(False)
            torch._C._set_fwd_grad_enabled(False)
        return tuple([None if y is None else _wrap(y, level) for y in results])

    return forward


def _dual(top: Any, function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    """The rule of `jvp`: the results and their tangents, both left to the levels below."""
    level, enabled = top.level(), torch._C._is_fwd_grad_enabled()
    inner = [x if x is None else _unwrap(x, level) for x in tensors]
    tangents: list[torch.Tensor | None] = [None] * len(inner)
    if enabled:
        for k, (x, y) in enumerate(zip(tensors, inner, strict=True)):
            if x is not None and y is not x:
                tangent = _unpack_dual(x).tangent
                tangents[k] = None if tangent is None else _unwrap(tangent, level)
    torch._C._set_fwd_grad_enabled(enabled and _functorch.CJvpInterpreterPtr(top).prevFwdGradMode())
    try:
        with _Below():
            results = _descend(function, call, inner)
            dots: Tensors = [None] * len(results)
            if [x for x in tangents if x is not None]:
                dots = function.tangents(call, inner, tangents)
    finally:
        torch._C._set_fwd_grad_enabled(enabled)
    found = []
    for y, dot in zip(results, dots, strict=True):
        wrapped = y if y is None else _wrap(y, level)
        if wrapped is not None and dot is not None:
            wrapped = _make_dual(wrapped, _wrap(dot, level))
        found.append(wrapped)
    return found


_RULES: dict[TransformType, Callable[..., Tensors]] = {
    TransformType.Vmap: _batched,
    TransformType.Grad: _recorded,
    TransformType.Jvp: _dual,
}


def has_wrapped(saved: Tensors, others: Tensors) -> bool:
    """Return whether tensors have no memory to read: to find out by trying takes milliseconds.

    Args:
        saved: What a function has saved: all of it on one level, which may have ended, or none.
        others: Its cotangents or tangents.
    """
    for x in saved:
        if x is not None:
            if _functorch.is_functorch_wrapped_tensor(x):
                return True
            break
    return True in [_is_batched(x) for x in others if x is not None]


def _on_the_ground(function: type[LeveledFunction], call: Any, tensors: Tensors) -> Tensors:
    """Apply the function below all levels, where plain autograd records it."""
    if True in [_is_batched(x) for x in tensors if x is not None]:
        return _with_batched_cotangents(function, call, tensors)
    try:
        results: Tensors = function.apply_plainly(call, *tensors)
    except NotCoveredError:
        if function.composite is None:
            raise
        return function.composite(call, tensors)
    return results


def _with_batched_cotangents(
    function: type[LeveledFunction], call: Any, tensors: Tensors
) -> Tensors:
    """The rule of batched cotangents, whose levels are not on functorch's stack.

    Autograd is below them: it records what is done with the tensors inside of a batch.
    """
    for level in range(1, _BATCH_LEVELS + 1):
        # a tensor that is not of this level gets as many rows as asked for: none
        peeled = [
            _torch._remove_batch_dim(x, level, 0, 0) if x is not None and _is_batched(x) else None
            for x in tensors
        ]
        sizes = [len(x) for x in peeled if x is not None and len(x)]
        if sizes:
            inner = [
                x if x is None else y if y is not None and len(y) else x.expand(sizes[0], *x.shape)
                for x, y in zip(tensors, peeled, strict=True)
            ]
            results = _on_the_ground(function, call, inner)
            return [None if y is None else _torch._add_batch_dim(y, 0, level) for y in results]
    raise NotCoveredError("a batch is empty")
