"""The decorator: a function whose backward is an estimate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import optree
import torch
from torch import Tensor

from torchopt.typing import Samplable, SampleFunc
from torchopt_zero._eagerly import eagerly
from torchopt_zero._estimate import Estimate, attach
from torchopt_zero._estimator import Estimator
from torchopt_zero._evaluator import Evaluator
from torchopt_zero._functorch import is_differentiated, is_wrapped
from torchopt_zero._leaves import Arguments, check_argnums, check_constants
from torchopt_zero._noise import Noise, as_noise
from torchopt_zero._problem import (
    Objective,
    OnNonFinite,
    Problem,
    check_count,
    check_differentiable,
)
from torchopt_zero._random_numbers import (
    GENERATORS,
    Randomness,
    RandomNumbers,
    check_randomness,
)
from torchopt_zero._reads import Reads, Replaced
from torchopt_zero._seed import draw_seed
from torchopt_zero._surroundings import Surroundings
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
        sigma: float | Tensor,
        chunk_size: int | None,
        generator: torch.Generator | None,
        on_non_finite: OnNonFinite,
        workers: Workers | None,
        randomness: Randomness,
    ) -> None:
        self.estimator = as_estimator(method)
        check_count("num_samples", num_samples)
        if chunk_size is not None:
            check_count("chunk_size", chunk_size)
        _check_sigma(sigma, self.estimator)
        if on_non_finite not in ("propagate", "ignore", "raise"):
            raise ValueError(
                f"`on_non_finite` must be 'propagate', 'ignore' or 'raise', got {on_non_finite!r}"
            )
        check_randomness(randomness)
        self.num_samples = num_samples
        self.sigma = sigma
        self.chunk_size = chunk_size
        self.generator = generator
        self.on_non_finite: OnNonFinite = on_non_finite
        self.workers = workers
        self.randomness: Randomness = randomness

    @property
    def learns_sigma(self) -> bool:
        """Whether a derivative with respect to sigma may be asked for."""
        return isinstance(self.sigma, Tensor) and is_differentiated(self.sigma)

    def call(self, objective: Objective, leaves: list[Tensor], args: Any, noise: Noise) -> Tensor:
        """Evaluate an objective, so that its derivative is an estimate.

        Args:
            objective: The function.
            leaves: Where to evaluate it.
            args: A tree of all that it is given besides.
            noise: Where perturbations come from.
        """
        sigma = self.sigma
        perturbed = [*leaves]
        if isinstance(sigma, Tensor) and self.learns_sigma:
            perturbed.append(sigma)
        sampled = any(map(is_differentiated, perturbed))
        if not sampled and not torch.is_grad_enabled():
            return objective(leaves)
        plain = [leaf.detach() for leaf in leaves]
        reads = Reads(plain)
        random = RandomNumbers(leaves)
        with GENERATORS:
            state = random.state()
            with torch.no_grad(), reads:
                value = objective(plain).detach()
            objective.evaluator.draws |= random.drawn_since(state)
        for tensor in optree.tree_leaves(args):
            if isinstance(tensor, Tensor):
                reads.add(tensor)
        constants = reads.tensors()
        check_constants(constants)
        if not sampled:
            return value
        check_differentiable(value)
        if isinstance(sigma, Tensor) and len(perturbed) == len(leaves):
            constants.append(sigma)
        estimate = _Sampling(self, objective, noise, perturbed, constants, reads.largest)
        tensors = [*perturbed, *(constant.detach() for constant in constants)]
        return attach(estimate, value, draw_seed(self.generator), tensors)


class _Sampling(Estimate):
    """The gradient of an objective at leaves, as settings say."""

    def __init__(
        self,
        settings: Settings,
        objective: Objective,
        noise: Noise,
        perturbed: list[Tensor],
        constants: list[Tensor],
        largest: int,
    ) -> None:
        super().__init__(len(perturbed))
        self.settings = settings
        self.objective = objective
        self.noise = noise
        self.largest = largest
        sigma = settings.sigma
        self.learns_sigma = any(tensor is sigma for tensor in perturbed)
        # Tensors of a transform do not outlive it: torch is given what they held in their place.
        self.constants = constants
        self.wrapped = [constant for constant in constants if is_wrapped(constant)]
        self.places = [i for i, constant in enumerate(constants) if is_wrapped(constant)]
        self.surroundings = Surroundings([*perturbed, *constants])

    def gradient(self, value: Tensor, seed: Tensor, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        settings = self.settings
        leaves = list(tensors[: self.count - self.learns_sigma])
        sigma = settings.sigma
        if isinstance(sigma, Tensor):
            sigma = float(tensors[self.count - 1 if self.learns_sigma else -1])
            _check_sigma(sigma, settings.estimator)
        key = int(seed)
        problem = Problem(
            objective=self.objective,
            leaves=[leaf.detach() for leaf in leaves],
            value=float(value),
            noise=self.noise,
            num_samples=settings.num_samples,
            sigma=sigma,
            seed=key if settings.workers is None else settings.workers.agree(key),
            chunk_size=settings.chunk_size,
            on_non_finite=settings.on_non_finite,
            workers=settings.workers,
            learns_sigma=self.learns_sigma,
            largest=self.largest,
            constants=self.constants,
        )
        with ExitStack() as stack:
            stack.enter_context(self.surroundings.restored())
            if self.wrapped:
                held = [tensors[self.count + i] for i in self.places]
                stack.enter_context(Replaced(self.wrapped, held))
            return settings.estimator.estimate(problem)


def _check_sigma(sigma: Any, estimator: Estimator) -> None:
    if isinstance(sigma, Tensor):
        if sigma.ndim != 0 or not sigma.is_floating_point():
            raise ValueError(
                f"`sigma` must be a positive number, or a 0-dim floating-point tensor, got shape "
                f"{tuple(sigma.shape)} of {sigma.dtype}"
            )
        if sigma.requires_grad and not estimator.learns_sigma:
            raise ValueError(
                f"{type(estimator).__name__} does not estimate the gradient with respect to "
                f"`sigma`; use 'naive', 'forward', 'antithetic' or 'leave-one-out', or a `sigma` "
                f"that does not require a gradient"
            )
        if is_wrapped(sigma):
            return  # checked when it is used
        sigma = float(sigma.detach())
    if not isinstance(sigma, (int, float)) or not 0 < sigma < float("inf"):
        raise ValueError(f"`sigma` must be a positive number, got {sigma!r}")


def zero_order(
    distribution: Samplable | SampleFunc | Noise,
    method: Method | Estimator = "naive",
    argnums: int | tuple[int, ...] = (0,),
    num_samples: int = 1,
    sigma: float | Tensor = 1.0,
    *,
    chunk_size: int | None = None,
    vectorize: bool | None = None,
    generator: torch.Generator | None = None,
    on_non_finite: OnNonFinite = "propagate",
    workers: Workers | None = None,
    randomness: Randomness = "same",
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    r"""Return a decorator that gives a scalar function an estimated gradient.

    The function is only ever evaluated: it may branch, sort, or leave torch. Calling the decorated
    function evaluates it once; the backward pass evaluates it at perturbed arguments
    :math:`x \pm \sigma z_i` and multiplies the estimate by the incoming cotangent. The same holds
    for tangents in forward mode, and under the transforms of `torch.func`; under `vmap` each member
    of the batch has an estimate of its own, and its ``randomness`` says whether they share noise.
    `torch.compile` breaks its graph at the call.

    The backward pass has the autocast and the default device of the forward pass. Whatever else the
    function reads is a constant, tensors that it closes over included: one that is changed in place
    before the backward pass raises there, and so does, at the call, one that requires a gradient,
    which would be lost; at the backward pass, if it is used at perturbed arguments only. Parameters
    of a module (`torch.nn.Parameter`) may be used as they are.

    For half precision, noise is drawn and summed up in float32; take a `sigma` well above the
    spacing of the numbers that are perturbed.

    Args:
        distribution: Where :math:`z` comes from: a `torch.distributions.Distribution`, a function
            from the shape of a tensor to noise of that shape, or :class:`Orthogonal`,
            :class:`Sobol`, :class:`LowRank`, :class:`Gaussian`, :class:`Rademacher`. Zero mean and
            unit variance make the estimate that of the gradient; a variance scales it.
            Distributions and functions must draw from torch's global generators, which are seeded
            for them.
        method: The name of an estimator, or an :class:`Estimator`. Default: ``"naive"``.
        argnums: Which positional arguments are differentiated, each a tree of tensors. Those of
            their tensors that require a gradient are perturbed. Default: ``(0,)``.
        num_samples: How many perturbations are averaged. Default: 1.
        sigma: The scale of the perturbations, a number or a 0-dim tensor, read at each call. One
            that requires a gradient is learned: it gets the gradient of the smoothed function,

            .. math::
                \frac{\partial}{\partial \sigma} \mathbb{E}\, f(x + \sigma z) = \mathbb{E}
                \left[ \frac{f(x + \sigma z) - f(x)}{\sigma} (|z|^2 - d) \right],

            for normal noise and the methods ``"naive"``, ``"forward"``, ``"antithetic"``,
            ``"leave-one-out"``; if no tensor of the arguments requires a gradient, all are
            perturbed then. Default: 1.0.
        chunk_size: How many samples are evaluated at once, at most. Results do not depend on it.
            Default: what a cache holds of the largest tensor that the function computes.
        vectorize: ``True`` to evaluate a chunk in one `torch.func.vmap`, ``False`` for a loop,
            ``None`` (default) for `vmap` until it fails on this function.
        generator: Draws the seed of each call. Default: torch's CPU generator.
        on_non_finite: What samples do whose value is NaN or infinite: ``"propagate"`` (default)
            into the gradient, ``"ignore"`` leaves them out, ``"raise"`` raises.
        workers: Which share of the samples to evaluate here; see :class:`Workers`.
        randomness: What random numbers the function draws by itself, as for dropout, on every
            device in use: ``"same"`` (default) for the evaluations that are subtracted from each
            other, different ones for different samples; ``"different"`` for all. They come from the
            seed of the call, and leave torch's generators as they were.

    Returns:
        A decorator. The decorated function returns the value of the original.

    Raises:
        TypeError: If an argument is of a wrong type; when called, if a differentiated argument
            has no tensors or one that is not floating-point; when differentiated, if noise is not,
            or not normal where `sigma` is learned.
        ValueError: If `method` is unknown, `num_samples` or `chunk_size` less than 1, `sigma` not
            positive; when differentiated, if noise has a wrong shape, or is other noise the second
            time where a method draws it twice (`workers`, ``"leave-one-out"``,
            ``"rank-shaped"``).
        IndexError: When called, if `argnums` is out of range.
        RuntimeError: When called, if the function does not return a scalar tensor, or one that is
            not floating-point where a derivative may be asked for, or uses a tensor that
            derivatives are asked for and that is not perturbed; when differentiated, if a tensor
            has been changed in place; when differentiated twice.
        FloatingPointError: When differentiated, if values are not finite, where asked to raise, or
            at every sample, or at the arguments themselves where these are not to be propagated and
            the method subtracts that value.

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

    References:
        S. Mohamed, M. Rosca, M. Figurnov, A. Mnih. Monte Carlo gradient estimation in machine
        learning. JMLR 21 (2020), section 4, for both gradients.
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
        randomness,
    )

    noise = as_noise(distribution)

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        evaluator = Evaluator(vectorize, randomness)

        def call(*args: Any, **kwargs: Any) -> Tensor:
            arguments = Arguments(args, numbers, settings.learns_sigma)

            def at(leaves: list[Tensor]) -> Tensor:
                return function(*arguments.replaced(leaves), **kwargs)

            leaves = arguments.leaves
            rest = arguments.replaced([None] * len(leaves)), kwargs
            return settings.call(Objective(at, evaluator), leaves, rest, noise)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            return eagerly(call, *args, **kwargs)

        return wrapper

    return decorate


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
