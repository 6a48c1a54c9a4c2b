"""The two differentiable operations under every implicit derivative.

Let :math:`F(x, t) = 0` define :math:`x(t)`, and :math:`A = \\partial_x F(x, t)`.

- :func:`solve` gives :math:`u = A^{-1} b` or :math:`A^{-\\top} b`, as a function of :math:`b`, of
  the point :math:`x` and of :math:`t`.
- :func:`attach` gives the solution :math:`x` as a function of :math:`t`.

Their derivatives are made of themselves and of derivatives of :math:`F`, so they exist again,
in reverse and in forward mode. `vmap` batches them for good: below it one solver runs on all
problems at once, with plain tensors, so that it can look at residuals and stop.

As torch's own solves, they compute without autocast; functions of a user bring their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from torchopt_implicit._functorch import (
    innermost_is_jvp,
    is_transforming,
    jvp_levels,
    rebatched,
    unbatched,
    unwrap_dead,
    without_autocast,
)
from torchopt_implicit._system import System, Tensors

__all__ = ["attach", "solve"]


def solve(
    system: System, transposed: bool, b: torch.Tensor, x: torch.Tensor, tensors: Tensors
) -> torch.Tensor:
    """Return the solution of a linear system with ``A`` at ``(x, tensors)``, or its transpose.

    Args:
        system: Whose residual ``A`` is the derivative of.
        transposed: Whether to solve with the transpose.
        b: Vectors ``(*extra, *batch, n)``.
        x: The point, ``(*batch, n)``.
        tensors: The tensors of the system.
    """
    if has_torch_function(tensors):
        # whoever watches what torch is called with sees these, too
        return handle_torch_function(solve, tensors, system, transposed, b, x, tensors)
    tangents = _tangents((b, x, *tensors))
    if tangents is None:
        return _Solve.apply(system, transposed, b, x, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    b, x, *tensors_ = tangents.primals
    u = solve(system, transposed, b, x, tuple(tensors_))
    return tangents.attach(
        u, _solve_tangent(system, transposed, u, x, tuple(tensors_), tangents.of)
    )


def attach(system: System, x: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """Return ``x``, a solution of the system, with derivatives in the tensors.

    Args:
        system: The system that it solves.
        x: The solution, ``(*batch, n)``, detached from everything.
        tensors: The tensors of the system.
    """
    if has_torch_function(tensors):
        return handle_torch_function(attach, tensors, system, x, tensors)
    tangents = _tangents(tensors)
    if tangents is None:
        return _Attach.apply(system, x, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    primals = tuple(tangents.primals)
    solution = attach(system, x, primals)
    return tangents.attach(solution, _attach_tangent(system, solution, primals, tangents.of))


class _Tangents:
    """Forward-mode tensors of the current level, taken apart."""

    def __init__(self, primals: list[torch.Tensor], of: list[torch.Tensor | None]) -> None:
        self.primals = primals
        self.of = of

    @staticmethod
    def attach(primal: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
        dual: torch.Tensor = forward_ad.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
        return dual


# Autograd functions switch forward mode off in their `jvp`, and so lose the tangents of outer
# levels without a word. Where `torch.func.jvp` is innermost, tangents are carried by hand.
def _tangents(tensors: Sequence[torch.Tensor]) -> _Tangents | None:
    if not innermost_is_jvp():
        return None
    pairs = [_unpack(tensor) for tensor in tensors]
    if all(pair.tangent is None for pair in pairs):
        return None
    return _Tangents([pair.primal for pair in pairs], [pair.tangent for pair in pairs])


def _unpack(tensor: torch.Tensor) -> forward_ad.UnpackedDualTensor:
    return forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call, no-any-return]


def _is_final(tensors: Sequence[torch.Tensor]) -> bool:
    """Return whether no derivative of what is computed from the tensors can be asked for."""
    return (
        not torch.is_grad_enabled()
        and not is_transforming()
        and all(_unpack(tensor).tangent is None for tensor in tensors)
    )


def _nonzero(tangents: Sequence[torch.Tensor | None], like: Sequence[torch.Tensor]) -> Tensors:
    return tuple(
        torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True)
    )


def _push(
    pullback: Callable[[torch.Tensor], Tensors], like: torch.Tensor, tangents: Tensors
) -> torch.Tensor:
    """Return the transpose of a linear ``pullback``, applied: forward mode from reverse mode."""
    pushed: torch.Tensor = torch.func.vjp(pullback, torch.zeros_like(like))[1](tangents)[0]
    return pushed


@without_autocast()
def _attach_tangent(
    system: System, x: torch.Tensor, tensors: Tensors, tangents: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    varying = system.varying(tensors)
    chosen = [t for t, d in zip(tangents, system.differentiable, strict=True) if d]
    given = _nonzero(chosen, varying)
    change = _push(lambda u: system.pullback(x, tensors, u), x, given)
    return -solve(system, False, change, x, tensors)


@without_autocast()
def _solve_tangent(
    system: System,
    transposed: bool,
    u: torch.Tensor,
    x: torch.Tensor,
    tensors: Tensors,
    tangents: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    db, dx, *rest = tangents
    chosen = [t for t, d in zip(rest, system.differentiable, strict=True) if d]
    change = torch.zeros_like(u) if db is None else db
    if dx is not None or any(t is not None for t in chosen):
        given = _nonzero([dx, *chosen], [x, *system.varying(tensors)])

        def pullback(probe: torch.Tensor) -> Tensors:
            left, right = (u, probe) if transposed else (probe, u)
            return system.bilinear_gradient(left, right, x, tensors)

        change = change - _push(pullback, u, given)
    return solve(system, transposed, change, x, tensors)


def _check_single_forward_level() -> None:
    if jvp_levels() > 1:
        raise NotImplementedError(
            "forward mode over forward mode with reverse mode between them is not supported by "
            "torch's autograd functions; take one of the forward derivatives in reverse mode, as "
            "torch.func.jacrev does"
        )


def _saved(ctx: Any) -> list[torch.Tensor]:
    """Return the saved tensors, of transforms that are still at work."""
    return [unwrap_dead(tensor) for tensor in ctx.saved_tensors]


def _each_cotangent(
    backward: Callable[[Any, torch.Tensor], tuple[Any, ...]],
) -> Callable[[Any, torch.Tensor], tuple[Any, ...]]:
    """Return a backward that takes batches of `is_grads_batched`, too: as those of `vmap`."""

    @functools.wraps(backward)
    def batched(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        rows, level = unbatched(gradient)
        if not level:
            return backward(ctx, gradient)
        present: list[bool] = []

        def single(row: torch.Tensor) -> Tensors:
            results = backward(ctx, row)
            present[:] = [result is not None for result in results]
            return tuple(result for result in results if result is not None)

        results = iter(torch.func.vmap(single)(rows))
        return tuple(rebatched(next(results), level) if here else None for here in present)

    return batched


class _Solve(torch.autograd.Function):
    @staticmethod
    @without_autocast()
    def forward(
        system: System, transposed: bool, b: torch.Tensor, x: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        return system.solver.run(system.trace(x, tensors), transposed, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.system, ctx.transposed, _, x, *tensors = inputs
        ctx.save_for_backward(output, x, *tensors)
        ctx.save_for_forward(output, x, *tensors)

    @staticmethod
    @without_autocast()
    @_each_cotangent
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        u, x, *tensors = _saved(ctx)
        system, transposed = ctx.system, ctx.transposed
        w = solve(system, not transposed, gradient, x, tuple(tensors))
        if not any(ctx.needs_input_grad[3:]):
            return (None, None, w, None, *(None for _ in tensors))
        left, right = (u, w) if transposed else (w, u)
        dx, *rest = system.bilinear_gradient(left, -right, x, tuple(tensors))
        return (None, None, w, dx, *system.spread(tuple(rest)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        _check_single_forward_level()
        u, x, *tensors = _saved(ctx)
        return _solve_tangent(ctx.system, ctx.transposed, u, x, tuple(tensors), tangents[2:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        system: System,
        transposed: bool,
        b: torch.Tensor,
        x: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        _, _, b_dim, x_dim, *dims = in_dims
        if x_dim is None and all(dim is None for dim in dims):
            return solve(system, transposed, b.movedim(b_dim, 0), x, tensors), 0
        inner, x, tensors = _batch(system, info.batch_size, x, x_dim, tensors, dims)
        # the system's batch comes right before its vectors; what is in front are right-hand sides
        extra = b.ndim - (b_dim is not None) - system.batch_ndim - 1
        if b_dim is None:
            b = b.unsqueeze(extra).expand(*b.shape[:extra], info.batch_size, *b.shape[extra:])
        else:
            b = b.movedim(b_dim, extra)
        return solve(inner, transposed, b, x, tensors), extra


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(system: System, x: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.system, _, *tensors = inputs
        ctx.save_for_backward(output, *tensors)
        ctx.save_for_forward(output, *tensors)

    @staticmethod
    @without_autocast()
    @_each_cotangent
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        x, *tensors = _saved(ctx)
        if _is_final((gradient, x, *tensors)):
            # nothing differentiates this again, so that one graph serves all
            trace = ctx.system.take(x, tuple(tensors))
            u = ctx.system.solver.run(trace, True, gradient)
            return (None, None, *ctx.system.spread(trace.pullback(-u)))
        u = solve(ctx.system, True, gradient, x, tuple(tensors))
        pulled = ctx.system.pullback(x, tuple(tensors), -u)
        return (None, None, *ctx.system.spread(pulled))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> torch.Tensor:
        _check_single_forward_level()
        x, *tensors = _saved(ctx)
        return _attach_tangent(ctx.system, x, tuple(tensors), tangents[2:])

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        system: System,
        x: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, int]:
        _, x_dim, *dims = in_dims
        inner, x, tensors = _batch(system, info.batch_size, x, x_dim, tensors, dims)
        return attach(inner, x, tensors), 0


def _batch(
    system: System,
    size: int,
    x: torch.Tensor,
    x_dim: int | None,
    tensors: Tensors,
    dims: Sequence[int | None],
) -> tuple[System, torch.Tensor, Tensors]:
    """Return the system with the batch that `vmap` adds, in front of all its tensors."""
    x = x.expand(size, *x.shape) if x_dim is None else x.movedim(x_dim, 0)
    moved = tuple(
        t if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims, strict=True)
    )
    return system.batched(tuple(None if dim is None else 0 for dim in dims)), x, moved
