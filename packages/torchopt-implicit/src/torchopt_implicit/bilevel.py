r"""Bilevel training over batches, without solving the inner problem to the end.

.. math::
    \min_x \; \Phi(x) = \mathbb{E}[F(x, y^\star(x); \xi)] \quad \text{with} \quad
    y^\star(x) = \arg\min_y \mathbb{E}[G(x, y; \zeta)]

The gradient of :math:`\Phi` is

.. math::
    \nabla \Phi = \nabla_x F + \nabla^2_{xy} G \, v^\star, \qquad
    \nabla^2_{yy} G \, v^\star = -\nabla_y F

The methods here keep :math:`y`, and two of them :math:`v`, from one step to the next, and improve
them by a few steps, each on a batch of its own. They share what :class:`BilevelMethod` documents.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import optree
import torch

import torchopt
from torchopt.base import GradientTransformation

__all__ = ["SOBA", "AmIGO", "BilevelMethod", "BilevelState", "StocBiO", "amigo", "soba", "stocbio"]

#: ``(x, y, batch) -> 0-dim tensor``
Objective = Callable[[Any, Any, Any], torch.Tensor]


class BilevelState(NamedTuple):
    """Where a bilevel method is: a tree that can be saved, loaded, and gone on from."""

    #: the outer variables, a tree
    x: Any
    #: the inner variables, a tree
    y: Any
    #: the solution of the linear system so far, a tree like ``y``
    v: Any
    #: of the optimizer of the outer variables, and of that of the inner ones
    outer_state: Any
    inner_state: Any
    #: the estimate of the hypergradient that the last step took, a tree like ``x``
    hypergradient: Any
    #: steps done
    iterations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelMethod(abc.ABC):
    r"""A stochastic method for bilevel problems, as two pure functions of a state.

    ``method.init_state(x, y)`` starts it, ``method.update(state, inner, outer)`` takes a step with
    the next batches of two iterators, and ``method.run(x, y, inner, outer, steps)`` takes many.
    Variables are trees of tensors; a batch is anything that the two functions understand. Nothing
    is recorded: a step costs the memory of one gradient, and its result carries no graph. A state
    is not written to, so that it may be kept.

    A module's parameters become variables by `torch.func.functional_call`.
    """

    #: ``inner(x, y, batch)``, the function :math:`G` that :math:`y` minimizes
    inner: Objective
    #: ``outer(x, y, batch)``, the function :math:`F` that :math:`x` is to minimize
    outer: Objective
    #: steps of :math:`y`, fed by gradients of ``inner``
    inner_optimizer: GradientTransformation
    #: steps of :math:`x`, fed by the estimates of the hypergradient
    outer_optimizer: GradientTransformation

    def __post_init__(self) -> None:
        for name in ("inner", "outer"):
            function = getattr(self, name)
            if not callable(function):
                raise TypeError(
                    f"`{name}` must be callable as {name}(x, y, batch), got "
                    f"{type(function).__name__}"
                )
        for name in ("inner_optimizer", "outer_optimizer"):
            optimizer = getattr(self, name)
            if not isinstance(optimizer, GradientTransformation):
                raise TypeError(
                    f"`{name}` must be a gradient transformation such as torchopt.sgd(0.1), got "
                    f"{type(optimizer).__name__}"
                )

    def init_state(self, x: Any, y: Any) -> BilevelState:
        """Return the state before the first step.

        Args:
            x: The outer variables to start from, a tree of floating point tensors.
            y: The inner ones.
        """
        x, y = _detach(x), _detach(y)
        zeros = optree.tree_map(torch.zeros_like, x)
        return BilevelState(
            x=x,
            y=y,
            v=optree.tree_map(torch.zeros_like, y),
            outer_state=self.outer_optimizer.init(x),
            inner_state=self.inner_optimizer.init(y),
            hypergradient=zeros,
            iterations=0,
        )

    @torch.no_grad()
    def update(
        self, state: BilevelState, inner_batches: Iterator[Any], outer_batches: Iterator[Any]
    ) -> BilevelState:
        """Return the state after one step.

        Args:
            state: The state before, which stays as it is.
            inner_batches: An iterator, as of `iter`, over batches for ``inner``.
            outer_batches: Likewise for ``outer``.

        Raises:
            StopIteration: If an iterator ends before the step has all batches it needs.
            ValueError: If a function does not return a 0-dim tensor.
        """
        y, v, hypergradient, inner_state = self._estimate(state, inner_batches, outer_batches)
        x, outer_state = _apply(self.outer_optimizer, hypergradient, state.outer_state, state.x)
        return BilevelState(x, y, v, outer_state, inner_state, hypergradient, state.iterations + 1)

    def run(
        self,
        x: Any,
        y: Any,
        inner_batches: Iterable[Any],
        outer_batches: Iterable[Any],
        *,
        steps: int | None = None,
    ) -> BilevelState:
        """Take ``steps`` steps, or as many as there are batches for.

        Args:
            x: The outer variables to start from, a tree.
            y: The inner ones.
            inner_batches: Batches for ``inner``, for instance a data loader. Repeat a finite one
                with ``itertools.cycle``, or a generator over epochs, to take more steps.
            outer_batches: Batches for ``outer``.
            steps: The most steps; no limit by default.

        Returns:
            The last state. ``state.iterations`` says how many steps were taken.

        Raises:
            ValueError: If ``steps`` is negative, or a function does not return a 0-dim tensor.
        """
        if steps is not None and steps < 0:
            raise ValueError(f"`steps` must be non-negative, or None, got {steps}")
        state = self.init_state(x, y)
        inner, outer = iter(inner_batches), iter(outer_batches)
        while steps is None or state.iterations < steps:
            try:
                state = self.update(state, inner, outer)
            except StopIteration:
                break
        return state

    @abc.abstractmethod
    def _estimate(
        self, state: BilevelState, inner_batches: Iterator[Any], outer_batches: Iterator[Any]
    ) -> tuple[Any, Any, Any, Any]:
        """Return ``y``, ``v``, the estimate of the hypergradient, and the inner optimizer's state.

        It is called without gradients recorded, and draws the batches it needs.
        """

    def _descend(self, state: BilevelState, batches: Iterator[Any], steps: int) -> tuple[Any, Any]:
        """Return the inner variables and their optimizer's state after some steps."""
        y, inner_state = state.y, state.inner_state
        for _ in range(steps):
            gradient = _gradient(self.inner, "inner", state.x, y, next(batches))
            y, inner_state = _apply(self.inner_optimizer, gradient, inner_state, y)
        return y, inner_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class StocBiO(BilevelMethod):
    """The method that :func:`stocbio` returns, which documents its options."""

    inner_steps: int
    neumann_terms: int
    neumann_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("inner_steps", self.inner_steps)
        _check_count("neumann_terms", self.neumann_terms)
        _check_rate("neumann_lr", self.neumann_lr)

    def _estimate(
        self, state: BilevelState, inner_batches: Iterator[Any], outer_batches: Iterator[Any]
    ) -> tuple[Any, Any, Any, Any]:
        y, inner_state = self._descend(state, inner_batches, self.inner_steps)
        by_x, term = _gradients(self.outer, "outer", state.x, y, next(outer_batches))
        total = term
        for _ in range(self.neumann_terms):
            _, _, curved = _products(self.inner, state.x, y, next(inner_batches), term)
            term = _add(term, -self.neumann_lr, curved)
            total = _add(total, 1.0, term)
        v = optree.tree_map(lambda one: -self.neumann_lr * one, total)
        _, cross, _ = _products(self.inner, state.x, y, next(inner_batches), v)
        return y, v, _add(by_x, 1.0, cross), inner_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmIGO(BilevelMethod):
    """The method that :func:`amigo` returns, which documents its options."""

    inner_steps: int
    linear_steps: int
    linear_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_count("inner_steps", self.inner_steps)
        _check_count("linear_steps", self.linear_steps)
        _check_rate("linear_lr", self.linear_lr)

    def _estimate(
        self, state: BilevelState, inner_batches: Iterator[Any], outer_batches: Iterator[Any]
    ) -> tuple[Any, Any, Any, Any]:
        y, inner_state = self._descend(state, inner_batches, self.inner_steps)
        by_x, by_y = _gradients(self.outer, "outer", state.x, y, next(outer_batches))
        v = state.v
        for _ in range(self.linear_steps):
            _, _, curved = _products(self.inner, state.x, y, next(inner_batches), v)
            v = _add(v, -self.linear_lr, _add(curved, 1.0, by_y))
        _, cross, _ = _products(self.inner, state.x, y, next(inner_batches), v)
        return y, v, _add(by_x, 1.0, cross), inner_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class SOBA(BilevelMethod):
    """The method that :func:`soba` returns, which documents its options."""

    linear_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rate("linear_lr", self.linear_lr)

    def _estimate(
        self, state: BilevelState, inner_batches: Iterator[Any], outer_batches: Iterator[Any]
    ) -> tuple[Any, Any, Any, Any]:
        batch = next(inner_batches)
        by_x, by_y = _gradients(self.outer, "outer", state.x, state.y, next(outer_batches))
        gradient, cross, curved = _products(self.inner, state.x, state.y, batch, state.v)
        y, inner_state = _apply(self.inner_optimizer, gradient, state.inner_state, state.y)
        v = _add(state.v, -self.linear_lr, _add(curved, 1.0, by_y))
        return y, v, _add(by_x, 1.0, cross), inner_state


def stocbio(
    inner: Objective,
    outer: Objective,
    *,
    inner_optimizer: GradientTransformation,
    outer_optimizer: GradientTransformation,
    inner_steps: int = 10,
    neumann_terms: int = 10,
    neumann_lr: float = 0.1,
) -> StocBiO:
    r"""Return stocBiO: warm-started inner steps, and a truncated Neumann series.

    .. math::
        v = -\eta \sum_{q=0}^{Q} \prod_{j=1}^{q} (I - \eta \nabla^2_{yy} G(x, y; \zeta_j))
        \nabla_y F(x, y; \xi)

    A step draws ``inner_steps + neumann_terms + 1`` inner batches and one outer batch.

    Args:
        inner: :math:`G`, called as ``inner(x, y, batch)``; strongly convex in ``y``.
        outer: :math:`F`, called as ``outer(x, y, batch)``.
        inner_optimizer: Takes the steps of ``y``, such as ``torchopt.sgd(0.1)``.
        outer_optimizer: Takes the steps of ``x``.
        inner_steps: Steps of ``y`` for one of ``x``.
        neumann_terms: :math:`Q`, Hessian-vector products in the series.
        neumann_lr: :math:`\eta`, at most one over the largest eigenvalue of the inner Hessian.

    Returns:
        A :class:`StocBiO`, see :class:`BilevelMethod`.

    Raises:
        TypeError: If a function is not callable, or an optimizer is not a transformation.
        ValueError: If a number is out of its range.

    Example:
        >>> import itertools, torch, torchopt
        >>> from torchopt_implicit.bilevel import stocbio
        >>> method = stocbio(
        ...     lambda x, y, batch: ((y - x * batch) ** 2).sum() / 2,  # y = x on average
        ...     lambda x, y, batch: ((y - 3.0) ** 2).sum() / 2,
        ...     inner_optimizer=torchopt.sgd(0.5),
        ...     outer_optimizer=torchopt.sgd(0.5),
        ...     neumann_lr=0.5,
        ... )
        >>> batches = itertools.cycle([torch.tensor(0.5), torch.tensor(1.5)])
        >>> state = method.run(
        ...     torch.zeros(2), torch.zeros(2), batches, itertools.repeat(None), steps=100
        ... )
        >>> bool((state.y - 3.0).abs().max() < 1.0)
        True

    References:
        K. Ji, J. Yang, Y. Liang: Bilevel optimization: convergence analysis and enhanced design
        (2021), algorithm 2.
    """
    return StocBiO(
        inner=inner,
        outer=outer,
        inner_optimizer=inner_optimizer,
        outer_optimizer=outer_optimizer,
        inner_steps=inner_steps,
        neumann_terms=neumann_terms,
        neumann_lr=neumann_lr,
    )


def amigo(
    inner: Objective,
    outer: Objective,
    *,
    inner_optimizer: GradientTransformation,
    outer_optimizer: GradientTransformation,
    inner_steps: int = 10,
    linear_steps: int = 10,
    linear_lr: float = 0.1,
) -> AmIGO:
    r"""Return AmIGO: warm-started inner steps, and warm-started steps of the linear system.

    .. math::
        v \leftarrow v - \eta (\nabla^2_{yy} G(x, y; \zeta)\, v + \nabla_y F(x, y; \xi))

    Both solutions are kept, so that a constant number of steps is enough. A step draws
    ``inner_steps + linear_steps + 1`` inner batches and one outer batch.

    Args:
        inner: As for :func:`stocbio`.
        outer: As for :func:`stocbio`.
        inner_optimizer: As for :func:`stocbio`.
        outer_optimizer: As for :func:`stocbio`.
        inner_steps: Steps of ``y`` for one of ``x``.
        linear_steps: Steps of :math:`v` for one of ``x``.
        linear_lr: :math:`\eta`, at most one over the largest eigenvalue of the inner Hessian.

    Returns:
        An :class:`AmIGO`, see :class:`BilevelMethod`.

    Raises:
        TypeError: If a function is not callable, or an optimizer is not a transformation.
        ValueError: If a number is out of its range.

    Example:
        >>> import itertools, torch, torchopt
        >>> from torchopt_implicit.bilevel import amigo
        >>> method = amigo(
        ...     lambda x, y, batch: ((y - x) ** 2).sum() / 2,
        ...     lambda x, y, batch: ((y - 3.0) ** 2).sum() / 2,
        ...     inner_optimizer=torchopt.sgd(0.5),
        ...     outer_optimizer=torchopt.sgd(0.5),
        ...     linear_lr=0.5,
        ... )
        >>> never = itertools.repeat(None)
        >>> method.run(torch.zeros(2), torch.zeros(2), never, never, steps=50).y.round(decimals=3)
        tensor([3., 3.])

    References:
        M. Arbel, J. Mairal: Amortized implicit differentiation for stochastic bilevel optimization
        (2022), algorithm 1.
    """
    return AmIGO(
        inner=inner,
        outer=outer,
        inner_optimizer=inner_optimizer,
        outer_optimizer=outer_optimizer,
        inner_steps=inner_steps,
        linear_steps=linear_steps,
        linear_lr=linear_lr,
    )


def soba(
    inner: Objective,
    outer: Objective,
    *,
    inner_optimizer: GradientTransformation,
    outer_optimizer: GradientTransformation,
    linear_lr: float = 0.1,
) -> SOBA:
    r"""Return SOBA: one step of everything at once, each linear in the batches.

    .. math::
        y &\leftarrow y - \rho \nabla_y G(x, y; \zeta) \\
        v &\leftarrow v - \eta (\nabla^2_{yy} G(x, y; \zeta)\, v + \nabla_y F(x, y; \xi)) \\
        x &\leftarrow x - \gamma (\nabla^2_{xy} G(x, y; \zeta)\, v + \nabla_x F(x, y; \xi))

    all from the same point. A step draws one inner and one outer batch. The outer steps have to be
    small beside the other two.

    Args:
        inner: As for :func:`stocbio`.
        outer: As for :func:`stocbio`.
        inner_optimizer: As for :func:`stocbio`; :math:`\rho` is its learning rate.
        outer_optimizer: As for :func:`stocbio`; :math:`\gamma` is its learning rate.
        linear_lr: :math:`\eta`, at most one over the largest eigenvalue of the inner Hessian.

    Returns:
        A :class:`SOBA`, see :class:`BilevelMethod`.

    Raises:
        TypeError: If a function is not callable, or an optimizer is not a transformation.
        ValueError: If a number is out of its range.

    Example:
        >>> import itertools, torch, torchopt
        >>> from torchopt_implicit.bilevel import soba
        >>> method = soba(
        ...     lambda x, y, batch: ((y - x) ** 2).sum() / 2,
        ...     lambda x, y, batch: ((y - 3.0) ** 2).sum() / 2,
        ...     inner_optimizer=torchopt.sgd(0.5),
        ...     outer_optimizer=torchopt.sgd(0.1),
        ...     linear_lr=0.5,
        ... )
        >>> never = itertools.repeat(None)
        >>> method.run(torch.zeros(2), torch.zeros(2), never, never, steps=300).y.round(decimals=3)
        tensor([3., 3.])

    References:
        M. Dagréou, P. Ablin, S. Vaiter, T. Moreau: A framework for bilevel optimization that
        enables stochastic and global variance reduction algorithms (2022), algorithm 1.
    """
    return SOBA(
        inner=inner,
        outer=outer,
        inner_optimizer=inner_optimizer,
        outer_optimizer=outer_optimizer,
        linear_lr=linear_lr,
    )


def _value(function: Objective, name: str, batch: Any, x: Any, y: Any) -> torch.Tensor:
    value = function(x, y, batch)
    if not isinstance(value, torch.Tensor) or value.shape != ():
        got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(
            f"`{name}` must return a 0-dim tensor, got {got}; sum or average it over the batch"
        )
    return value


def _gradient(function: Objective, name: str, x: Any, y: Any, batch: Any) -> Any:
    """Return the gradient in ``y``."""
    with torch.enable_grad():
        y = _leaves(y)
        return _pull(_value(function, name, batch, x, y), y)


def _gradients(function: Objective, name: str, x: Any, y: Any, batch: Any) -> tuple[Any, Any]:
    """Return the gradients in both variables."""
    with torch.enable_grad():
        both = _leaves((x, y))
        gradients: tuple[Any, Any] = _pull(_value(function, name, batch, *both), both)
    return gradients


def _products(inner: Objective, x: Any, y: Any, batch: Any, v: Any) -> tuple[Any, Any, Any]:
    r"""Return :math:`\nabla_y G`, :math:`\nabla^2_{xy} G\, v` and :math:`\nabla^2_{yy} G\, v`."""
    with torch.enable_grad():
        both = _leaves((x, y))
        gradient = _pull(_value(inner, "inner", batch, *both), both[1], create_graph=True)
        pairs = zip(optree.tree_leaves(gradient), optree.tree_leaves(v), strict=True)
        slope = sum((one * other).sum() for one, other in pairs)
        by_x, by_y = _pull(slope, both)
    return _detach(gradient), by_x, by_y


def _leaves(tree: Any) -> Any:
    return optree.tree_map(lambda leaf: leaf.detach().requires_grad_(), tree)


def _pull(value: Any, variables: Any, *, create_graph: bool = False) -> Any:
    """Return the gradient of a number in a tree of tensors; zero where it does not depend on it."""
    leaves, spec = optree.tree_flatten(variables)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return optree.tree_unflatten(spec, [torch.zeros_like(leaf) for leaf in leaves])
    gradients = torch.autograd.grad(
        value, leaves, create_graph=create_graph, materialize_grads=True
    )
    return optree.tree_unflatten(spec, gradients)


def _apply(
    optimizer: GradientTransformation, gradient: Any, state: Any, variables: Any
) -> tuple[Any, Any]:
    updates, state = optimizer.update(gradient, state, params=variables, inplace=False)
    return torchopt.apply_updates(variables, updates, inplace=False), state


def _add(x: Any, scale: float, y: Any) -> Any:
    return optree.tree_map(lambda a, b: a + scale * b, x, y)


def _detach(tree: Any) -> Any:
    return optree.tree_map(torch.Tensor.detach, tree)


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"`{name}` must be a non-negative integer, got {value!r}")


def _check_rate(name: str, value: Any) -> None:
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value!r}")
