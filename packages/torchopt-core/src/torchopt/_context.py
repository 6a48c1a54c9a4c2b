"""What a rule knows of the step beside updates and state, and the arithmetic it computes in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch

from torchopt._arithmetic import (
    FOREACH,
    FOREACH_NO_GRAD,
    LOOP,
    Functional,
    InPlace,
    Operand,
    PerLeaf,
)
from torchopt._structure import flatten_like
from torchopt._types import Leaves, Scalar

__all__ = [
    "Context",
    "beside_steps",
    "bias_correction",
    "counts_like",
    "filled_like",
    "is_eager",
    "is_transforming",
    "zeros_like",
]

#: From parameters, one for each leaf, to the loss there and its gradients.
Evaluate = Callable[[Leaves], tuple[torch.Tensor, Leaves]]

_DIFFERENTIABLE = Functional(FOREACH)
_TRANSFORMED = Functional(LOOP)
_TEMPORARY = Functional(FOREACH_NO_GRAD)
_OVERWRITE = InPlace()
_NOTHING: frozenset[int] = frozenset()


def is_transforming() -> bool:
    """Return whether a ``torch.func`` transform (``grad``, ``vmap``, ``jvp``...) is running."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def is_eager(x: torch.Tensor) -> bool:
    """Return whether no transform, tracer or dispatch mode has to see what is done with ``x``."""
    return not (
        torch.compiler.is_compiling()
        or type(x) is not torch.Tensor
        or is_transforming()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
    )


def zeros_like(params: Sequence[torch.Tensor], requires_grad: bool = False) -> Leaves:
    """Return zeros shaped like some leaves."""
    return [torch.zeros_like(x, requires_grad=requires_grad) for x in params]


def filled_like(params: Sequence[torch.Tensor], value: Scalar) -> Leaves:
    """Return tensors shaped like some leaves that hold ``value``, in both parts if complex."""

    def fill(x: torch.Tensor) -> torch.Tensor:
        if x.is_complex():
            return torch.view_as_complex(torch.zeros_like(torch.view_as_real(x)) + value)
        return torch.zeros_like(x) + value

    return [fill(x) for x in params]


def counts_like(params: Sequence[torch.Tensor]) -> Leaves:
    """Return a step count of zero (0-dim int64, on the CPU) for each of some leaves."""
    return [torch.zeros((), dtype=torch.int64, device="cpu") for _ in params]


class Context(NamedTuple):
    """What a step knows beside updates and state.

    *Leaves.* A rule sees the leaves that have an update, as lists; those without one are not among
    them, and their state stays. Rules that are elementwise see complex leaves as real ones with a
    last dimension of 2, as in ``torch.optim``; all others see them as they are.

    *Arithmetic.* A rule computes by :attr:`fresh`, which makes new tensors, and by :attr:`reuse`,
    which may overwrite its first operand. Both have the operations of
    :class:`~torchopt._arithmetic.Functional`. So the rule is written once, for ordinary training
    and for differentiable steps.
    """

    #: The structure of the tree of all leaves.
    spec: optree.PyTreeSpec
    #: Positions of the leaves that have an update; None: all of them.
    active: list[int] | None = None
    #: Positions, among these, of leaves that are complex and seen as they are.
    complex: frozenset[int] = _NOTHING
    #: Positions, among these, of leaves that are complex and seen as real.
    viewed: frozenset[int] = _NOTHING
    #: The updates as the step was given them: what the moments are shaped like.
    like: Leaves | None = None
    #: The parameters before the step; None if they are not given.
    params: Leaves | None = None
    #: The tree of all parameters, if they are given.
    tree: Any = None
    #: The loss at the parameters, if it is given.
    value: torch.Tensor | None = None
    #: Evaluates loss and gradients at other parameters, if that is given.
    value_and_grad: Evaluate | None = None
    #: Makes new tensors.
    fresh: Functional = _DIFFERENTIABLE
    #: May overwrite its first operand, which must belong to the state or to this step.
    reuse: Functional | InPlace = _DIFFERENTIABLE
    #: The learning rate in force: that of the optimizer around the rule, or the one given.
    lr: Operand | None = None
    #: What the rule's `prepare` returned.
    plan: Any = None

    @property
    def inplace(self) -> bool:
        """Whether state and parameters are overwritten."""
        return isinstance(self.reuse, InPlace)

    @property
    def differentiable(self) -> bool:
        """Whether what is computed may be differentiated, in reverse or in forward mode."""
        return self.fresh is not _TEMPORARY

    @property
    def size(self) -> int:
        """The number of leaves that have an update."""
        return self.spec.num_leaves if self.active is None else len(self.active)

    @property
    def positions(self) -> Sequence[int]:
        """The positions, in the tree, of the leaves that have an update."""
        return range(self.spec.num_leaves) if self.active is None else self.active

    def computing(self, inplace: bool) -> Context:
        """Return the context with the arithmetic of a step in place, or of a differentiable one."""
        fresh: Functional = _DIFFERENTIABLE
        reuse: Functional | InPlace = _DIFFERENTIABLE
        if is_transforming():
            fresh = reuse = _TRANSFORMED
        elif inplace:
            fresh, reuse = _TEMPORARY, _OVERWRITE
        return Context._make((*self[:-4], fresh, reuse, self.lr, self.plan))

    def planned(self, plan: Any) -> Context:
        """Return the context with the plan of one rule."""
        return Context._make((*self[:-1], plan))

    def at_rate(self, lr: Operand, plan: Any) -> Context:
        """Return the context of a direction: with the learning rate around it, and its plan."""
        return Context._make((*self[:-2], lr, plan))

    def part(self, restricted: Context, plan: Any) -> Context:
        """Return the context of fewer leaves as restricted before, with the arithmetic of now."""
        return Context._make((*restricted[:-4], self.fresh, self.reuse, self.lr, plan))

    @property
    def safe(self) -> Context:
        """The context of a step of which nothing may be overwritten."""
        return self._replace(reuse=self.fresh) if self.inplace else self

    def restrict(self, chosen: Sequence[int]) -> Context:
        """Return the context of fewer leaves, given their positions among those with an update."""
        positions, evaluate = self.positions, self.value_and_grad
        params = None if self.params is None else [self.params[k] for k in chosen]

        def evaluate_chosen(moved: Leaves) -> tuple[torch.Tensor, Leaves]:
            assert evaluate is not None
            if self.params is None:
                raise ValueError("`value_and_grad` needs the parameters: pass `params=`, too")
            every = list(self.params)
            for k, x in zip(chosen, moved, strict=True):
                every[k] = x
            value, grads = evaluate(every)
            return value, [grads[k] for k in chosen]

        return self._replace(
            active=[positions[k] for k in chosen],
            complex=frozenset([j for j, k in enumerate(chosen) if k in self.complex]),
            viewed=frozenset([j for j, k in enumerate(chosen) if k in self.viewed]),
            like=None if self.like is None else [self.like[k] for k in chosen],
            params=params,
            value_and_grad=None if evaluate is None else evaluate_chosen,
        )

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the tree with these leaves where there is an update, and None elsewhere."""
        every: list[Any] = [None] * self.spec.num_leaves
        for k, (i, x) in enumerate(zip(self.positions, leaves, strict=True)):
            every[i] = torch.view_as_complex(x) if k in self.viewed else x
        return optree.tree_unflatten(self.spec, every)

    def flatten(self, tree: Any, name: str) -> list[Any]:
        """Return, for each leaf with an update, its entry in a tree shaped like the parameters.

        Raises:
            ValueError: If the tree is not shaped like the parameters.
        """
        leaves = flatten_like(self.spec, tree, name)
        chosen = leaves if self.active is None else [leaves[i] for i in self.active]
        return [torch.view_as_real(x) if k in self.viewed else x for k, x in enumerate(chosen)]

    def factors(self, tree: Any, name: str, like: Leaves) -> Leaves:
        """Return a factor for each of the leaves ``like``, from a tree of factors.

        Raises:
            ValueError: If the tree is not shaped like the parameters, or a factor is neither 0-dim
                nor shaped like its leaf.
        """
        every = flatten_like(self.spec, tree, name)
        factors = []
        for k, (i, x) in enumerate(zip(self.positions, like, strict=True)):
            factor = every[i]
            if isinstance(factor, (int, float)):
                factor = torch.tensor(float(factor), dtype=torch.float64, device="cpu")
            shape = x.shape[:-1] if k in self.viewed else x.shape
            if factor is None or (factor.ndim and factor.shape != shape):
                found = "None" if factor is None else f"shape {tuple(factor.shape)}"
                raise ValueError(
                    f"leaf {i} of `{name}` must be 0-dim or have the shape {tuple(shape)} of its "
                    f"parameter, got {found}"
                )
            factors.append(factor.unsqueeze(-1) if k in self.viewed and factor.ndim else factor)
        return factors

    def per_step(
        self, counts: Leaves, function: Callable[[Any], tuple[Any, ...]]
    ) -> tuple[Operand, ...]:
        """Return what depends on the step alone, such as bias corrections.

        Args:
            counts: The step counts.
            function: From ``t`` to some values, in plain arithmetic: ``t`` is a float64 vector on
                the CPU with an entry for each leaf, so each value is computed in double precision
                and once for all leaves; or, outside of every tracer and transform and where all
                leaves have made the same number of steps, that number.
        """
        t = torch.stack(counts)
        if is_eager(t):
            distinct = set(t.tolist())
            if len(distinct) == 1:
                return function(distinct.pop())
        values = function(t.to(torch.float64))
        return tuple(PerLeaf(x) if isinstance(x, torch.Tensor) else x for x in values)


def bias_correction(decay: Scalar, t: Any) -> Any:
    """Return ``1 - decay**t`` for a step count ``t`` as in :meth:`Context.per_step`."""
    if isinstance(t, torch.Tensor):
        return torch.rsub(torch.pow(beside_steps(decay), t), 1)
    return 1 - decay**t


def beside_steps(value: Scalar) -> Scalar:
    """Return a hyperparameter where the step counts are."""
    return value.cpu() if isinstance(value, torch.Tensor) else value
