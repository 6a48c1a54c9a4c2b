"""Training with the memory of inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchopt_zero._leaf_vector import wide
from torchopt_zero._problem import check_scalar
from torchopt_zero._random_numbers import Randomness, RandomNumbers, check_randomness
from torchopt_zero._rounding import Lost, added, perturb, restore
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
    forward pass under `no_grad` a step takes little memory: no gradient, no second copy, no graph.
    What it perturbed, a step restores to the last bit, also when it fails: it keeps what rounding
    takes away, about two bits a parameter, and whole those entries that the noise is much larger
    than. Then it rounds once, to what the formula gives in float32 (float64 for that): in half
    precision, a step of less than half a unit in the last place does not move a parameter.

    Both evaluations draw the same random numbers, as for dropout, unless `randomness` says
    otherwise; a step leaves torch's generators as one evaluation does.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate :math:`\eta`. Default: 1e-6.
        sigma: The scale of the perturbation. Default: 1e-3.
        weight_decay: :math:`\lambda`. Default: 0.0.
        generator: Draws the seed of each step. Default: torch's CPU generator.
        workers: If given, workers share the seed and average :math:`s`, each over its own data, so
            their parameters stay equal; see :class:`Workers`.
        randomness: Whether the two evaluations draw the same random numbers, on every device in
            use (``"same"``, the default), or ``"different"`` ones.

    Raises:
        ValueError: If a number is out of range, or `randomness` none of its words.

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
        randomness: Randomness = "same",
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"`lr` must be non-negative, got {lr}")
        if not sigma > 0:
            raise ValueError(f"`sigma` must be positive, got {sigma}")
        if not weight_decay >= 0:
            raise ValueError(f"`weight_decay` must be non-negative, got {weight_decay}")
        check_randomness(randomness)
        super().__init__(params, {"lr": lr, "sigma": sigma, "weight_decay": weight_decay})
        self.generator = generator
        self.workers = workers
        self.randomness: Randomness = randomness

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Evaluates the loss, a scalar. It is called twice, without gradients.

        Returns:
            The mean of the two values.

        Raises:
            FloatingPointError: If a value is not finite; the parameters are as before.
            RuntimeError: If the closure does not return a scalar tensor; likewise.
        """
        seed = int(draw_seed(self.generator))
        if self.workers is not None:
            seed = self.workers.agree(seed)
        at, lost = 0.0, list[Lost]()
        values = []
        random = RandomNumbers(parameter for _, parameter in self._parameters())
        state = random.state()
        try:
            for sign in (1.0, -1.0):
                lost = self._move(seed, at, lost, sign)
                at = sign
                if self.randomness == "same":
                    random.restore(state)
                values.append(check_scalar(closure()))
            # along sigma * z, whatever the sigma of each group
            slope = (float(values[0]) - float(values[1])) / 2
            if self.workers is not None:
                table = torch.tensor([slope], dtype=torch.float64, device="cpu")
                slope = float(self.workers.reduce(table)) / self.workers.size
            if slope - slope != 0:
                raise FloatingPointError(
                    f"the loss is not finite: {float(values[0])} and {float(values[1])}; reduce "
                    f"`sigma` or `lr`"
                )
        except BaseException:
            self._move(seed, at, lost)
            raise
        self._move(seed, at, lost, slope=slope)
        return (values[0] + values[1]) / 2

    def _parameters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield group, parameter

    def _move(
        self, seed: int, at: float, lost: list[Lost], to: float = 0.0, slope: float | None = None
    ) -> list[Lost]:
        """Restore the parameters, from where they are, and move them.

        Args:
            seed: That of the step.
            at: Where they are, in units of ``sigma * z``.
            lost: What restoring takes, slice by slice.
            to: Where to move them.
            slope: If given, take the step instead.

        Returns:
            What it takes to restore them from there.
        """
        found = []
        counter = 0
        for group, parameter in self._parameters():
            sigma, lr = float(group["sigma"]), float(group["lr"])
            for part, noise in _slices(parameter, seed, counter):
                if at:
                    restore(part, noise, at * sigma, lost[counter])
                if to:
                    found.append(perturb(part, noise, to * sigma))
                elif slope is not None and lr:
                    part.copy_(
                        added(
                            part.to(noise.dtype) * (1 - lr * group["weight_decay"]),
                            noise,
                            -lr * slope / sigma,
                        )
                    )
                counter += 1
        return found


def _slices(parameter: Tensor, seed: int, counter: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the slices of a parameter, to be changed in place, each with its noise."""
    real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
    flat = real.reshape(-1)  # a copy, if it has to be
    generator = torch.Generator(parameter.device)
    buffer = torch.empty(min(_SLICE, len(flat)), dtype=wide(flat.dtype), device=parameter.device)
    for part in torch.split(flat, _SLICE):
        noise = buffer[: len(part)]
        noise.normal_(generator=generator.manual_seed(counter_seed(seed, counter)))
        yield part, noise
        counter += 1
    if not real.is_contiguous():
        real.copy_(flat.view_as(real))
