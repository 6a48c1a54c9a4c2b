"""The loss that learns the input of a solver from its solutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt_zero.discrete._perturbed import Perturbed

__all__ = ["fenchel_young_loss"]


def fenchel_young_loss(perturbed: Perturbed, x: Tensor, target: Tensor) -> Tensor:
    r"""Return how far a solver's input is from one whose solution is the target.

    .. math::
        L(x; y) = \mathbb E\big[\max_{y' \in \mathcal Y} \langle y', x + \sigma Z \rangle\big]
            - \langle y, x \rangle
        \qquad
        \nabla_x L(x; y) = y_\sigma(x) - y

    for a solver that maximizes; for one that minimizes, of ``-x``. It is convex in ``x``, and
    least, up to a constant of the target that is left out, where the mean of perturbed solutions is
    the target. Its gradient needs no derivative of the solver.

    Args:
        perturbed: The solver, smoothed. Its solutions must be of the shape of its inputs.
        x: Of shape ``(*batch, *event)``. Differentiable.
        target: The solution to learn, or a mean of several; like ``x``. Not differentiated.

    Returns:
        The loss of each instance, of shape ``batch``.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the shapes of ``x``, ``target`` and the solutions differ.

    Example:
        >>> import torch
        >>> from torchopt_zero.discrete import Perturbed, argmax, fenchel_young_loss
        >>> soft = Perturbed(argmax(), num_samples=100, generator=torch.Generator().manual_seed(0))
        >>> x, target = torch.zeros(3, requires_grad=True), torch.tensor([0.0, 1.0, 0.0])
        >>> fenchel_young_loss(soft, x, target).backward()
        >>> bool(x.grad[1] < 0) and bool(x.grad[0] > 0)
        True

    Reference:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, Learning with differentiable perturbed
        optimizers, 2020, sec. 4.
    """
    if not isinstance(perturbed, Perturbed):
        raise TypeError(
            f"`perturbed` must be a Perturbed, got {type(perturbed).__name__}; write "
            f"`Perturbed(solver, ...)`"
        )
    perturbed.solver.check(x)
    if not isinstance(target, Tensor) or target.shape != x.shape:
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"`target` must be a tensor of the shape of `x`, {tuple(x.shape)}, got {got}"
        )
    mean, value = perturbed.solve(x)
    if mean.shape != x.shape:
        raise ValueError(
            f"the solutions of `perturbed` must be of the shape of `x`, {tuple(x.shape)}, got "
            f"{tuple(mean.shape)}"
        )
    dim = perturbed.solver.event_dim
    potential: Tensor = _Potential.apply(x, mean, value, dim)  # type: ignore[no-untyped-call]
    loss = potential - (target.detach().to(x.dtype) * x).flatten(x.ndim - dim).sum(-1)
    return loss if perturbed.solver.maximize else -loss


class _Potential(torch.autograd.Function):
    """The expected optimal value, whose gradient is the mean solution."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, value: Tensor, dim: int) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mean, _, ctx.dim = inputs
        ctx.save_for_backward(mean)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        (mean,) = ctx.saved_tensors
        cotangent = cotangents[0]
        return cotangent.reshape(*cotangent.shape, *(1,) * ctx.dim) * mean, None, None, None
