"""Gradients across workers: torch's distributed autograd with the interface of local autograd.

Calls made inside a :class:`context` are recorded on both sides, and `backward` or `grad` then goes
back over all workers that took part. Within a worker, anything differentiates as ever,
meta-optimizers with steps inside the graph included; across the wire, gradients are of first order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
import torch.distributed.autograd as engine

from torchopt_dist._info import require_rpc, unavailable

if engine.is_available():
    from torch._C._distributed_autograd import DistAutogradContext, get_gradients
    from torch._C._distributed_autograd import backward as _engine_backward
else:
    get_gradients = _engine_backward = unavailable

    class DistAutogradContext:  # type: ignore[no-redef]
        """What a context refers to, where torch has RPC."""

        __init__ = unavailable


__all__ = [
    "DistAutogradContext",
    "backward",
    "context",
    "get_gradients",
    "grad",
    "is_available",
]

TensorOrTensors: TypeAlias = "torch.Tensor | Sequence[torch.Tensor]"


class context(engine.context):
    """Records calls on other workers, for `backward` and `grad`; entering it gives its number.

    Raises:
        RpcUnavailableError: On entering, if this build of torch has no RPC.
        RuntimeError: On entering, before RPC is up, or within another context of this thread.

    Example:
        >>> import torchopt.distributed as todist
        >>> @todist.auto_init_rpc()
        ... def main():
        ...     with todist.autograd.context() as context_id:
        ...         return todist.autograd.get_gradients(context_id)
        >>> main()
        {}
    """

    def __enter__(self) -> int:
        require_rpc()
        return super().__enter__()


def is_available() -> bool:
    """Return whether this build of torch differentiates across workers."""
    return engine.is_available()


def backward(
    autograd_ctx_id: int,
    tensors: TensorOrTensors,
    retain_graph: bool = False,
    inputs: TensorOrTensors | None = None,
) -> None:
    """Accumulate the gradients of scalars into ``.grad`` of this worker's leaves.

    Leaves of other workers keep theirs in the context, as :func:`get_gradients` shows there.

    Args:
        autograd_ctx_id: What :class:`context` returned on entering.
        tensors: The scalars whose sum is differentiated.
        retain_graph: Whether the graph is kept for another pass.
        inputs: The leaves whose ``.grad`` is written; ``None`` is all of them.

    Raises:
        RpcUnavailableError: This build of torch has no RPC.
        ValueError: A tensor is no scalar, needs no gradient, or an input is no leaf.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> weight = torch.tensor(3.0, requires_grad=True)
        >>> @todist.auto_init_rpc()
        ... def main():
        ...     with todist.autograd.context() as context_id:
        ...         square = todist.remote_sync_call(
        ...             torch.square, args=(weight,), partitioner=0, reducer=todist.sum_reducer
        ...         )
        ...         todist.autograd.backward(context_id, square)
        >>> main()
        >>> weight.grad
        tensor(6.)
    """
    wanted = None if inputs is None else _listed("inputs", inputs)
    for tensor in wanted or ():
        if not (tensor.is_leaf and tensor.requires_grad):
            raise ValueError(
                "`inputs` must be leaves that require gradients; use `grad` for others"
            )
    with _pass(autograd_ctx_id, _listed("tensors", tensors), retain_graph) as gradients:
        for leaf, gradient in gradients.items():
            if wanted is None or any(leaf is tensor for tensor in wanted):
                leaf.grad = gradient.clone() if leaf.grad is None else leaf.grad + gradient


def grad(
    autograd_ctx_id: int,
    outputs: TensorOrTensors,
    inputs: TensorOrTensors,
    retain_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of scalars in tensors of this worker, and leave ``.grad`` alone.

    Args:
        autograd_ctx_id: What :class:`context` returned on entering.
        outputs: The scalars whose sum is differentiated.
        inputs: What to differentiate in: leaves, or tensors on the way to the outputs.
        retain_graph: Whether the graph is kept for another pass.
        allow_unused: Whether an input that the outputs do not depend on gives ``None``.

    Raises:
        RpcUnavailableError: This build of torch has no RPC.
        ValueError: An output is no scalar, a tensor needs no gradient, or an input is unused.
    """
    wanted = _listed("inputs", inputs)
    captured: dict[int, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for place, tensor in enumerate(wanted):
            if not tensor.requires_grad:
                raise ValueError("`inputs` must require gradients")
            if not tensor.is_leaf:
                hooks.enter_context(_capture(tensor, captured, place))
        with _pass(autograd_ctx_id, _listed("outputs", outputs), retain_graph) as gradients:
            for place, tensor in enumerate(wanted):
                if tensor in gradients:
                    captured[place] = gradients[tensor].clone()
    found = tuple(captured.get(place) for place in range(len(wanted)))
    if not allow_unused and None in found:
        raise ValueError(
            f"`outputs` do not depend on `inputs[{found.index(None)}]`; pass allow_unused=True if "
            f"that is meant"
        )
    return found


def _listed(name: str, tensors: TensorOrTensors) -> list[torch.Tensor]:
    listed = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    if not listed or not all(isinstance(tensor, torch.Tensor) for tensor in listed):
        raise ValueError(f"`{name}` must be a tensor or a sequence of tensors, got {tensors!r}")
    return listed


@contextlib.contextmanager
def _capture(tensor: torch.Tensor, captured: dict[int, torch.Tensor], place: int) -> Iterator[None]:
    """Take the gradient that comes by a tensor; only leaves have theirs in the context."""

    def take(gradient: torch.Tensor) -> None:
        captured[place] = gradient

    handle = tensor.register_hook(take)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _pass(
    context_id: int, roots: list[torch.Tensor], retain_graph: bool
) -> Iterator[dict[torch.Tensor, torch.Tensor]]:
    """Go back over all workers; yield what this pass alone adds to the gradients of leaves here."""
    require_rpc()
    for root in roots:
        if root.numel() != 1 or not root.requires_grad:
            raise ValueError(
                f"gradients go back from scalars that require gradients, got shape "
                f"{tuple(root.shape)} with requires_grad={root.requires_grad}"
            )
    # The context sums over passes. The tensors it hands out are its own.
    earlier = {leaf: total.clone() for leaf, total in get_gradients(context_id).items()}
    for total in get_gradients(context_id).values():
        total.zero_()
    _engine_backward(context_id, roots, retain_graph)
    gradients = get_gradients(context_id)
    yield gradients
    for leaf, total in earlier.items():
        gradients[leaf].add_(total)
