"""Watching a computation: where each node of its graph comes from, and where gradients stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

from torchopt_viz._cause import Found, find_cause, tensors_in
from torchopt_viz._frames import find_caller, find_place
from torchopt_viz._graph import uncompiled
from torchopt_viz._private import next_number
from torchopt_viz._recording import Context, Cut, Recording
from torchopt_viz._walk import edge_of, number_of

__all__ = ["record"]

_MARK = "torchopt_viz"
_FORGETTING = (Tensor.detach_, Tensor.requires_grad_, Tensor.requires_grad.__set__)  # type: ignore[attr-defined]


@contextmanager
def record(module: nn.Module | None = None) -> Iterator[Recording]:
    """Watch a computation, so that its graph knows modules, source lines and cuts.

    Give the recording to :func:`gradient_graph` or :func:`make_dot`. Nodes then belong to the
    module whose ``forward`` made them; those that ``create_graph=True`` makes belong to the
    module of the node that was differentiated. Inner steps are those of a
    :class:`torchopt.MetaOptimizer` or :class:`torchopt.FuncOptimizer`, and what
    :func:`torchopt.apply_updates` does. A gradient is cut where a tensor that requires grad is used
    and the result does not require it: because it was detached, made under ``no_grad``, converted
    to integers, or written in place under ``no_grad``. What torch, a
    :class:`torch.autograd.Function`, implicit differentiation and zero-order estimates do inside is
    not a cut.

    The calling thread is watched. Backward passes run in it, one device after another.

    Args:
        module: What paths of modules start from. Default: each module that is called from
            outside of all others, in a group with the name of its class.

    Yields:
        The :class:`Recording`.

    Raises:
        TypeError: If ``module`` is not a module.

    Example:
        >>> import torch
        >>> from torchopt_viz import gradient_graph, record
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> with record(net) as recording:
        ...     y = net(torch.ones(1, 2))
        ...     loss = (y - y.detach()).sum()
        >>> [group.label for group in gradient_graph(loss, recording=recording).groups]
        ['graph', '0 (Linear)', '1 (Linear)']
        >>> [(cut.cause, cut.operation) for cut in recording.cuts]
        [('detached', 'detach')]
    """
    if module is not None and not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
    recording = Recording()
    watcher = _Watcher(recording, module)
    with ExitStack() as stack:
        stack.callback(watcher.stop)
        # sequence numbers count the nodes that one thread makes
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.callback(register_module_forward_pre_hook(watcher.enter_module).remove)
        stack.callback(register_module_forward_hook(watcher.leave_module, always_call=True).remove)
        stack.enter_context(watcher)
        yield recording


class _Watcher(TorchFunctionMode):
    """Writes a recording."""

    def __init__(self, recording: Recording, module: nn.Module | None) -> None:
        super().__init__()
        self._recording = recording
        self._thread = threading.get_ident()
        self._known: dict[nn.Module, tuple[tuple[str, str], ...]] = {}
        self._stack: list[Context] = [Context()]
        self._handles: list[Any] = []
        # tells the nodes that have been hooked here, without a reference from them to the recording
        self._mark = object()
        self._next = next_number
        self._switch(self._stack[0])
        if module is not None:
            self._learn(module, ())

    def _learn(self, root: nn.Module, start: tuple[tuple[str, str], ...]) -> None:
        """Take the paths of the modules within a module."""
        for path, module in root.named_modules():
            parts = path.split(".") if path else []
            paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
            chain = [
                (uncompiled(p), f"{uncompiled(p)} ({_kind(root.get_submodule(p))})")
                for p in paths
                if not p.endswith("_orig_mod")
            ]
            self._known.setdefault(module, (*start, *chain))

    def _switch(self, context: Context) -> None:
        self._recording.contexts.switch(self._next(), context)

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """Take note that a module is being called."""
        if threading.get_ident() != self._thread:
            return
        if module not in self._known:
            label = _kind(module)
            self._learn(module, (*self._stack[-1].modules, (label, label)))
        self._stack.append(Context(self._known[module], self._stack[-1].backward))
        self._switch(self._stack[-1])

    def leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take note that a module has been called."""
        if threading.get_ident() == self._thread:
            self._stack.pop()
            self._switch(self._stack[-1])

    def stop(self) -> None:
        """Forget what was only needed while watching."""
        self._switch(Context())
        self._recording.places.switch(self._next(), None)
        self._recording.taken.stop(self._next())
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._known.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        sources = [x for x in tensors_in((*args, *kwargs.values())) if x.requires_grad]
        if not sources:
            return func(*args, **kwargs)
        differentiates = kwargs.get("create_graph") is True
        if differentiates:
            self._hook(tensors_in(args[:1]))
        # calls after which a tensor no longer knows its history
        edges = [edge_of(x) for x in sources] if func in _FORGETTING else None
        start = self._next()
        try:
            with self._watching(func):
                result = func(*args, **kwargs)
        finally:
            if self._next() != start:
                place = find_place()
                self._recording.taken.saw(place, start, self._next())
                if not differentiates:
                    self._recording.places.switch(start, place.line)
            if differentiates:
                self._switch(self._stack[-1])
            self._recording.places.switch(self._next(), None)
        found = find_cause(func, args, kwargs, sources, result)
        if found is not None and _is_of_the_program(found):
            edges = edges or [edge_of(x) for x in sources]
            for i in found.sources:
                self._add_cut(found, sources[i], edges[i])
        return result

    def _watching(self, func: Any) -> AbstractContextManager[None]:
        """Return the context in which to call a function: torch hides what some of them save."""
        if getattr(func, "__name__", "").startswith("_foreach_"):
            return self._recording.held.watching(self._next)
        return nullcontext()

    def _add_cut(self, found: Found, source: Tensor, edge: GradientEdge) -> None:
        where = find_place().line
        cut = Cut(found.cause, found.operation, where, tuple(source.shape), edge)
        key = (edge.node, edge.output_nr, found.cause, found.operation, where)
        self._recording.found.setdefault(key, cut)

    def _hook(self, outputs: Iterable[Tensor]) -> None:
        """Have the nodes that can be differentiated say so before they are."""
        todo = [x.grad_fn for x in outputs]
        while todo:
            node: Any = todo.pop()
            if node is None or node.metadata.get(_MARK) is self._mark:
                continue
            node.metadata[_MARK] = self._mark
            self._handles.append(node.register_prehook(self._before(number_of(node))))
            todo += [following for following, _ in node.next_functions]

    def _before(self, number: int) -> Callable[[Any], None]:
        def switch(grads: Any) -> None:
            start = self._next()
            context = self._recording.context(number)
            self._recording.contexts.switch(start, context._replace(backward=True))
            self._recording.places.switch(start, self._recording.where(number))

        return switch


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class, before :func:`torch.compile` wrapped it."""
    return type(getattr(module, "_orig_mod", module)).__name__


def _is_of_the_program(found: Found) -> bool:
    """Return whether a gradient stops by the program's choice, not within torch."""
    caller = find_caller()
    if caller.in_function:
        return False
    if caller.owner == "torch":
        return found.cause == "in-place"
    return caller.owner == "user" or found.operation in ("detach", "detach_", "grad")
