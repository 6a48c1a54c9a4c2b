"""Training with the memory of inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from torchopt_zero._seed import counter_seed, draw_seed
from torchopt_zero._workers import Workers

# How many numbers of noise exist at once.
_SLICE = 2**16


class MeZO(torch.optim.Optimizer):
    r"""Stochastic gradient descent on antithetic estimates from one sample, in place.

    .. math::
        s = \frac{f(\theta + \sigma z) - f(\theta - \sigma z)}{2 \sigma}, \qquad
        \theta \leftarrow \theta - \eta\,(s z + \lambda \theta).

    Parameters are perturbed where they are, and noise is regenerated slice by slice, so beyond a
    forward pass under `no_grad` a step takes no memory to speak of: no gradient, no second copy,
    no graph. Perturbing and restoring rounds, by about one unit in the last place per step.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate :math:`\eta`. Default: 1e-6.
        sigma: The scale of the perturbation. Default: 1e-3.
        weight_decay: :math:`\lambda`. Default: 0.0.
        generator: Draws the seed of each step. Default: torch's CPU generator.
        workers: If given, workers share the seed and average :math:`s`, each over its own data, so
            their parameters stay equal; see :class:`Workers`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> from torchopt_zero import MeZO
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = MeZO([w], lr=0.1)
        >>> before = float(optimizer.step(lambda: w.square().sum()))
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: w.square().sum())
        >>> float(loss) < before / 10
        True

    References:
        S. Malladi et al. Fine-tuning language models with just forward passes. NeurIPS (2023),
        algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-6,
        sigma: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        generator: torch.Generator | None = None,
        workers: Workers | None = None,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"`lr` must be non-negative, got {lr}")
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive, got {sigma}")
        if not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must be non-negative, got {weight_decay}")
        super().__init__(params, {"lr": lr, "sigma": sigma, "weight_decay": weight_decay})
        self.generator = generator
        self.workers = workers

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Evaluates the loss, a scalar. It is called twice, without gradients.

        Returns:
            The mean of the two values.

        Raises:
            FloatingPointError: If a value is not finite; the parameters are as before.
        """
        seed = draw_seed(self.generator)
        if self.workers is not None:
            seed = self.workers.agree(seed)
        at = 0.0  # where the parameters are, in units of sigma
        values = []
        try:
            for sign in (1.0, -1.0):
                self._move(seed, sign - at)
                at = sign
                values.append(closure())
            # along sigma * z, whatever the sigma of each group
            slope = float(values[0] - values[1]) / 2
            if self.workers is not None:
                table = self.workers.reduce(torch.tensor([slope], dtype=torch.float64))
                slope = float(table) / self.workers.size
            if slope - slope != 0:
                raise FloatingPointError(
                    f"the loss is not finite: {float(values[0])} and {float(values[1])}; reduce "
                    f"`sigma` or `lr`"
                )
        except BaseException:
            self._move(seed, -at)
            raise
        self._move(seed, -at, slope)
        return (values[0] + values[1]) / 2

    def _move(self, seed: int, distance: float, slope: float | None = None) -> None:
        """Add ``distance * sigma * z`` to the parameters, and take the step of a slope."""
        counter = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    continue
                scale = distance * group["sigma"]
                if slope is not None:
                    kept = 1 - group["lr"] * group["weight_decay"]
                    scale = kept * scale - group["lr"] * slope / group["sigma"]
                    if kept != 1:
                        parameter.mul_(kept)
                counter = _add_noise(parameter, seed, counter, scale)


def _add_noise(parameter: Tensor, seed: int, counter: int, scale: float) -> int:
    """Add scaled noise, slice by slice; return the counter after the last slice."""
    generator = torch.Generator(parameter.device)
    whole = parameter.view(-1) if parameter.is_contiguous() else parameter
    slices = torch.split(whole, _SLICE) if parameter.is_contiguous() else (whole,)
    buffer = torch.empty_like(slices[0])
    for part in slices:
        noise = buffer if part.shape == buffer.shape else torch.empty_like(part)
        noise.normal_(generator=generator.manual_seed(counter_seed(seed, counter)))
        part.add_(noise, alpha=scale)
        counter += 1
    return counter
