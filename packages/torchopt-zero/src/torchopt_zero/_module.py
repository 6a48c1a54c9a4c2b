"""Modules whose backward is an estimate."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torchopt_zero._decorator import Method, Settings
from torchopt_zero._eagerly import eagerly
from torchopt_zero._estimator import Estimator
from torchopt_zero._evaluator import Evaluator
from torchopt_zero._leaves import may_be_asked_for
from torchopt_zero._noise import as_noise
from torchopt_zero._problem import Objective, OnNonFinite
from torchopt_zero._random_numbers import Randomness
from torchopt_zero._workers import Workers


class ZeroOrderGradientModule(nn.Module, abc.ABC):
    r"""A module whose scalar loss has an estimated gradient.

    Subclasses define ``forward``, which returns a scalar loss, and ``sample``, which returns noise
    of the shape of a parameter. Parameters that require a gradient are perturbed; gradients reach
    these only. The class arguments are those of :func:`zero_order`:

    Args:
        method: The name of an estimator, or an :class:`Estimator`. Default: ``"naive"``.
        num_samples: How many perturbations are averaged. Default: 1.
        sigma: The scale of the perturbations. Default: 1.0.
        chunk_size, vectorize, generator, on_non_finite, workers, randomness: As there.

    Raises:
        TypeError: When a class is defined, if it inherits a ``forward`` that has been enabled
            already and defines none; when it is made, if ``forward`` or ``sample`` is missing.
        RuntimeError: When called, if the module has no parameters, or the loss is not a scalar.

    Example:
        >>> import torch, torchopt
        >>> class Net(
        ...     torchopt.nn.ZeroOrderGradientModule, method="forward", num_samples=100, sigma=0.01
        ... ):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.linear = torch.nn.Linear(3, 1)
        ...
        ...     def forward(self, x, y):
        ...         return (self.linear(x) - y).abs().mean().round(decimals=2)
        ...
        ...     def sample(self, sample_shape=torch.Size()):
        ...         return torch.randn(sample_shape)
        >>> net = Net()
        >>> net(torch.randn(8, 3), torch.randn(8, 1)).backward()
        >>> net.linear.weight.grad.shape
        torch.Size([1, 3])
    """

    def __init_subclass__(
        cls,
        method: Method | Estimator = "naive",
        num_samples: int = 1,
        sigma: float | Tensor = 1.0,
        *,
        chunk_size: int | None = None,
        vectorize: bool | None = None,
        generator: torch.Generator | None = None,
        on_non_finite: OnNonFinite = "propagate",
        workers: Workers | None = None,
        randomness: Randomness = "same",
    ) -> None:
        super().__init_subclass__()
        enable_zero_order_gradients(
            cls,
            method=method,
            num_samples=num_samples,
            sigma=sigma,
            chunk_size=chunk_size,
            vectorize=vectorize,
            generator=generator,
            on_non_finite=on_non_finite,
            workers=workers,
            randomness=randomness,
        )

    @abc.abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, a scalar."""
        raise NotImplementedError

    @abc.abstractmethod
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Return noise of zero mean and unit variance.

        Args:
            sample_shape: The shape of the parameter that is to be perturbed.
        """
        raise NotImplementedError


def enable_zero_order_gradients(
    cls: type[ZeroOrderGradientModule],
    method: Method | Estimator = "naive",
    num_samples: int = 1,
    sigma: float | Tensor = 1.0,
    *,
    chunk_size: int | None = None,
    vectorize: bool | None = None,
    generator: torch.Generator | None = None,
    on_non_finite: OnNonFinite = "propagate",
    workers: Workers | None = None,
    randomness: Randomness = "same",
) -> type[ZeroOrderGradientModule]:
    """Replace the ``forward`` of a class by one with an estimated gradient, and return the class.

    Raises:
        TypeError: If that has been done.
    """
    forward = cls.forward
    if getattr(forward, "__zero_order_gradients_enabled__", False):
        raise TypeError(
            "Zero-order gradient estimation is already enabled for the `forward` method. Define "
            f"`forward` in {cls.__name__}, whose class arguments then apply to it"
        )
    if getattr(forward, "__isabstractmethod__", False):
        return cls
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
    evaluator = Evaluator(vectorize, randomness)

    def call(self: ZeroOrderGradientModule, *args: Any, **kwargs: Any) -> Tensor:
        if next(self.parameters(), None) is None:
            raise RuntimeError("The module has no parameters.")
        parameters = [p for p in self.parameters() if may_be_asked_for(p)]
        if not parameters and settings.learns_sigma:
            parameters = [*self.parameters()]
        slots = _Slots(self, parameters)

        def function(leaves: list[Tensor]) -> Tensor:
            with slots.holding(leaves):
                return forward(self, *args, **kwargs)

        objective = Objective(function, evaluator)
        return settings.call(objective, list(parameters), (args, kwargs), as_noise(self.sample))

    @functools.wraps(forward)
    def wrapped(self: ZeroOrderGradientModule, *args: Any, **kwargs: Any) -> Tensor:
        return eagerly(call, self, *args, **kwargs)

    wrapped.__zero_order_gradients_enabled__ = True  # type: ignore[attr-defined]
    cls.forward = wrapped  # type: ignore[method-assign]
    return cls


class _Slots:
    """What the tables of a module held at a call, to be had again whenever it is evaluated.

    Until then a module may be given other tensors, as `torch.func.functional_call`, a recovered
    state and `load_state_dict(assign=True)` do.

    Args:
        module: The module.
        parameters: Those that are perturbed, wherever they occur.
    """

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        number = {id(parameter): i for i, parameter in enumerate(parameters)}
        self._slots: list[tuple[dict[str, Any], str, Any, int | None]] = [
            (table, name, held, number.get(id(held)))
            for owner in module.modules()
            for table in (owner._parameters, owner._buffers, owner._modules)
            for name, held in table.items()
        ]

    @contextmanager
    def holding(self, leaves: list[Tensor]) -> Iterator[None]:
        """Put tensors in the place of the parameters, and what there was in all other slots."""
        found = []
        try:
            for table, name, held, i in self._slots:
                one = held if i is None else leaves[i]
                if table.get(name, _MISSING) is not one:
                    found.append((table, name, table.get(name, _MISSING)))
                    table[name] = one
            yield
        finally:
            # What the module itself writes to other slots stays, as without an estimate.
            for table, name, one in found:
                if one is _MISSING:
                    del table[name]
                else:
                    table[name] = one


_MISSING = object()
