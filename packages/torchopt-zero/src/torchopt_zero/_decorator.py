"""The decorator: a function whose backward is an estimate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from torchopt.typing import Samplable, SampleFunc
from torchopt_zero._cotangent import scale_gradient
from torchopt_zero._estimator import Estimator
from torchopt_zero._leaves import Arguments, check_argnums
from torchopt_zero._noise import Noise, as_noise
from torchopt_zero._problem import Batching, Objective, OnNonFinite, Problem
from torchopt_zero._seed import draw_seed
from torchopt_zero._workers import Workers
from torchopt_zero.estimators import METHODS

Method = Literal[
    "naive",
    "forward",
    "antithetic",
    "spsa",
    "finite-difference",
    "rank-shaped",
    "leave-one-out",
    "guided",
]


class Settings:
    """The checked arguments of :func:`zero_order` that do not concern one function."""

    def __init__(
        self,
        method: Method | Estimator,
        num_samples: int,
        sigma: float,
        chunk_size: int | None,
        generator: torch.Generator | None,
        on_non_finite: OnNonFinite,
        workers: Workers | None,
    ) -> None:
        self.estimator = as_estimator(method)
        _check_count("num_samples", num_samples)
        if chunk_size is not None:
            _check_count("chunk_size", chunk_size)
        if not isinstance(sigma, (int, float)) or not 0 < sigma < float("inf"):
            raise ValueError(f"`sigma` must be a positive number, got {sigma!r}")
        if on_non_finite not in ("propagate", "ignore", "raise"):
            raise ValueError(
                f"`on_non_finite` must be 'propagate', 'ignore' or 'raise', got {on_non_finite!r}"
            )
        self.num_samples = num_samples
        self.sigma = float(sigma)
        self.chunk_size = chunk_size
        self.generator = generator
        self.on_non_finite: OnNonFinite = on_non_finite
        self.workers = workers

    def call(self, objective: Objective, leaves: list[Tensor], noise: Noise) -> Tensor:
        """Evaluate an objective, so that its backward is an estimate."""
        if not torch.is_grad_enabled() or not leaves:
            with torch.no_grad():
                return objective(leaves)
        seed = draw_seed(self.generator)
        if self.workers is not None:
            seed = self.workers.agree(seed)
        output: Tensor = _Estimate.apply(  # type: ignore[no-untyped-call]
            self, objective, noise, seed, *leaves
        )
        return output


def zero_order(
    distribution: Samplable | SampleFunc | Noise,
    method: Method | Estimator = "naive",
    argnums: int | tuple[int, ...] = (0,),
    num_samples: int = 1,
    sigma: float = 1.0,
    *,
    chunk_size: int | None = None,
    vectorize: bool | None = None,
    generator: torch.Generator | None = None,
    on_non_finite: OnNonFinite = "propagate",
    workers: Workers | None = None,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    r"""Return a decorator that gives a scalar function an estimated gradient.

    The function is only ever evaluated: it may branch, sort, or leave torch. Calling the decorated
    function evaluates it once; the backward pass evaluates it at perturbed arguments
    :math:`x \pm \sigma z_i` and multiplies the estimate by the incoming cotangent.

    Args:
        distribution: Where :math:`z` comes from: a `torch.distributions.Distribution`, a function
            from the shape of a tensor to noise of that shape, or :class:`LowRank`,
            :class:`Gaussian`, :class:`Rademacher`. Zero mean and unit variance make the estimate
            that of the gradient; a variance scales it. Distributions and functions must draw from
            torch's global generators, which are seeded for them.
        method: The name of an estimator, or an :class:`Estimator`. Default: ``"naive"``.
        argnums: Which positional arguments are differentiated, each a tree of tensors. Those of
            their tensors that require a gradient are perturbed. Default: ``(0,)``.
        num_samples: How many perturbations are averaged. Default: 1.
        sigma: The scale of the perturbations. Default: 1.0.
        chunk_size: How many samples are in memory at once. Results do not depend on it. Default:
            what a cache holds.
        vectorize: ``True`` to evaluate a chunk in one `torch.func.vmap`, ``False`` for a loop,
            ``None`` (default) for `vmap` until it fails on this function.
        generator: Draws the seed of each call. Default: torch's CPU generator.
        on_non_finite: What samples do whose value is NaN or infinite: ``"propagate"`` (default)
            into the gradient, ``"ignore"`` leaves them out, ``"raise"`` raises.
        workers: Which share of the samples to evaluate here; see :class:`Workers`.

    Returns:
        A decorator. The decorated function returns the value of the original.

    Raises:
        TypeError: If an argument is of a wrong type; when called, if a differentiated argument
            has no tensors or one that is not floating-point, or noise is not.
        ValueError: If `method` is unknown, `num_samples` or `chunk_size` less than 1, `sigma` not
            positive; when differentiated, if noise has a wrong shape.
        IndexError: When called, if `argnums` is out of range.
        RuntimeError: When called, if the function does not return a scalar tensor.
        FloatingPointError: When differentiated, if values are not finite, where asked to raise, or
            at every sample.

    Example:
        >>> import torch, torchopt
        >>> normal = torch.distributions.Normal(0, 1)
        >>> @torchopt.diff.zero_order(normal, "antithetic", num_samples=1000, sigma=0.5)
        ... def errors(x):
        ...     return torch.sign(x).sum()
        >>> x = torch.tensor([0.1, 3.0], requires_grad=True)
        >>> errors(x).backward()  # of the smoothed function: 2 N(x; 0, 0.25)
        >>> bool((x.grad - torch.tensor([1.56, 0.0])).abs().max() < 0.3)
        True
    """
    numbers = check_argnums(argnums)
    settings = Settings(
        method,
        num_samples,
        sigma,
        chunk_size,
        generator,
        on_non_finite,
        workers,
    )

    noise = as_noise(distribution)

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        batching = Batching(vectorize)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            arguments = Arguments(args, numbers)

            def at(leaves: list[Tensor]) -> Tensor:
                return function(*arguments.replaced(leaves), **kwargs)

            return settings.call(Objective(at, batching), arguments.leaves, noise)

        return wrapper

    return decorate


class _Estimate(torch.autograd.Function):
    """The objective; its backward is the estimate times the cotangent."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        objective: Objective,
        noise: Noise,
        seed: int,
        *leaves: Tensor,
    ) -> Tensor:
        output = objective([leaf.detach() for leaf in leaves]).detach().clone()
        ctx.settings, ctx.objective, ctx.noise, ctx.seed = settings, objective, noise, seed
        ctx.value = output.clone()  # the output itself would be a cycle
        ctx.save_for_backward(*leaves)
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        settings: Settings = ctx.settings
        leaves = ctx.saved_tensors
        problem = Problem(
            objective=ctx.objective,
            leaves=[leaf.detach() for leaf in leaves],
            value=float(ctx.value),
            noise=ctx.noise,
            num_samples=settings.num_samples,
            sigma=settings.sigma,
            seed=ctx.seed,
            chunk_size=settings.chunk_size,
            on_non_finite=settings.on_non_finite,
            workers=settings.workers,
        )
        with torch.no_grad():
            gradient = settings.estimator.estimate(problem)
        return None, None, None, None, *scale_gradient(cotangent, gradient, leaves)


def as_estimator(method: Any) -> Estimator:
    """Return the estimator that a `method` argument stands for."""
    if isinstance(method, Estimator):
        return method
    if method not in METHODS:
        raise ValueError(
            f"`method` must be an Estimator or one of {', '.join(map(repr, METHODS))}, got "
            f"{method!r}"
        )
    return METHODS[method]()


def _check_count(name: str, count: Any) -> None:
    if type(count) is not int:
        raise TypeError(f"`{name}` must be an integer, got {count!r}")
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}")
