"""The cone of positive semidefinite matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from torchopt_implicit._functorch import innermost_is_jvp, jvp_levels, unwrap_dead
from torchopt_implicit.projections._leaves import widen

__all__ = ["positive_part", "project_semidefinite"]


def project_semidefinite(x: torch.Tensor) -> torch.Tensor:
    r"""Project onto the cone of symmetric positive semidefinite matrices.

    .. math::
        P(X) = V \max(\Lambda, 0) V^\top, \qquad \tfrac{1}{2}(X + X^\top) = V \Lambda V^\top

    Derivatives come from the equation :math:`P^2 = \tfrac{1}{2}(P X + X P)`, whose linear systems
    are Lyapunov equations with :math:`|X|`. Unlike those of eigenvectors they are right where
    eigenvalues repeat. They exist where no eigenvalue is zero.

    Args:
        x: Of shape ``(..., n, n)``; of complex matrices the Hermitian part is projected.

    Returns:
        The projection, differentiable to any order.

    Raises:
        ValueError: If ``x`` is not made of square matrices.
        TypeError: If it is not of a floating point dtype.

    Example:
        >>> import torch
        >>> from torchopt_implicit.projections import project_semidefinite
        >>> project_semidefinite(torch.diag(torch.tensor([2.0, -3.0])))
        tensor([[2., 0.],
                [0., 0.]])

    References:
        J. Malick, H. S. Sendov: Clarke generalized Jacobian of the projection onto the cone of
        positive semidefinite matrices (2006), section 2.
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"`x` must have the shape (..., n, n), got {tuple(x.shape)}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"`x` must be of a floating point dtype, got {x.dtype}")
    wide = widen(x)
    return positive_part(_symmetric(wide)).to(x.dtype)


def positive_part(x: torch.Tensor) -> torch.Tensor:
    """Return the positive part of symmetric matrices."""
    return _apply(_PositivePart, x)


def _lyapunov(a: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return _apply(_Lyapunov, a, right)


def _symmetric(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x + x.mH)


def _anticommute(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`(xy + yx) / 2` of symmetric matrices."""
    return _symmetric(x @ y)


def _apply(function: type[_PositivePart | _Lyapunov], *args: torch.Tensor) -> torch.Tensor:
    """Apply an autograd function.

    In its `jvp` forward mode is off, and the tangents of outer levels would be lost without a word.
    Where `torch.func.jvp` is innermost, tangents are carried by hand.
    """
    if innermost_is_jvp():
        duals = [forward_ad.unpack_dual(arg) for arg in args]  # type: ignore[no-untyped-call]
        if any(dual.tangent is not None for dual in duals):
            value = _apply(function, *(dual.primal for dual in duals))
            tangents = [
                torch.zeros_like(dual.primal) if dual.tangent is None else dual.tangent
                for dual in duals
            ]
            push: Callable[..., torch.Tensor] = function.push
            change = push(*(dual.primal for dual in duals), value, *tangents)
            whole: torch.Tensor = forward_ad.make_dual(value, change)  # type: ignore[no-untyped-call]
            return whole
    result: torch.Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


def _saved(ctx: Any) -> list[torch.Tensor]:
    """Return the saved tensors, of transforms that are still at work."""
    return [unwrap_dead(tensor) for tensor in ctx.saved_tensors]


def _batch(
    size: int, in_dims: tuple[int | None, ...], args: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """Return the matrices with the batch that `vmap` adds in front."""
    return [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(args, in_dims, strict=True)
    ]


def _check_single_forward_level() -> None:
    if jvp_levels() > 1:
        raise NotImplementedError(
            "forward mode over forward mode with reverse mode between them is not supported by "
            "torch's autograd functions; take one of the forward derivatives in reverse mode, as "
            "torch.func.jacrev does"
        )


class _PositivePart(torch.autograd.Function):
    r"""With :math:`F(P, X) = P^2 - (P X + X P)/2`: :math:`|X| \circ dP = P \circ dX`,

    where :math:`A \circ B = (A B + B A) / 2` and :math:`|X| = 2 P - X`.
    """

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(x)
        return _symmetric((vectors * torch.relu(values).unsqueeze(-2)) @ vectors.mH)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> torch.Tensor:
        x, part = _saved(ctx)
        return _anticommute(part, _lyapunov(2 * part - x, _symmetric(cotangents[0])))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        _check_single_forward_level()
        return _PositivePart.push(*_saved(ctx), *tangents)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        return _apply(_PositivePart, *_batch(info.batch_size, in_dims, args)), 0

    @staticmethod
    def push(x: torch.Tensor, part: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
        return _lyapunov(2 * part - x, _anticommute(part, _symmetric(tangent)))


class _Lyapunov(torch.autograd.Function):
    r"""The symmetric solution of :math:`A \circ E = R` for positive definite :math:`A`.

    As an operator on symmetric ``R`` it is its own transpose.
    """

    @staticmethod
    def forward(a: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(a)
        inner = vectors.mH @ right @ vectors
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        return _symmetric(vectors @ (2 * inner / sums) @ vectors.mH)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        a, right = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, right, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, solution = _saved(ctx)
        adjoint = _lyapunov(a, _symmetric(cotangents[0]))
        return -_anticommute(adjoint, solution), adjoint

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:
        _check_single_forward_level()
        a, right, solution = _saved(ctx)
        da, dright = (
            torch.zeros_like(x) if t is None else t
            for t, x in zip(tangents, (a, right), strict=True)
        )
        return _Lyapunov.push(a, right, solution, da, dright)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        return _apply(_Lyapunov, *_batch(info.batch_size, in_dims, args)), 0

    @staticmethod
    def push(
        a: torch.Tensor,
        right: torch.Tensor,
        solution: torch.Tensor,
        da: torch.Tensor,
        dright: torch.Tensor,
    ) -> torch.Tensor:
        change = _symmetric(dright) - _anticommute(_symmetric(da), solution)
        return _lyapunov(a, change)
