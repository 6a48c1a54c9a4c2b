"""What one update works with: the shape of the trees, the active leaves, and the arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import optree
import torch

from torchopt._arithmetic import (
    FOREACH,
    FOREACH_NO_GRAD,
    LOOP,
    Functional,
    InPlace,
    Leaves,
    Operand,
    PerLeaf,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torchopt.typing import OptionalTensorTree, Scalar, TensorTree

__all__ = [
    "Workspace",
    "beside_steps",
    "bias_correction",
    "counts_like",
    "filled_like",
    "is_eager",
    "is_transforming",
    "zeros_like",
]

_State = TypeVar("_State", bound=NamedTuple)

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


def zeros_like(tree: OptionalTensorTree, requires_grad: bool = False) -> TensorTree:
    """Return zeros shaped like ``tree``; ``None`` stays ``None``."""
    return optree.tree_map(
        lambda x: None if x is None else torch.zeros_like(x, requires_grad=requires_grad),
        tree,
        none_is_leaf=True,
    )


def filled_like(tree: OptionalTensorTree, value: Scalar) -> TensorTree:
    """Return tensors shaped like ``tree`` that hold ``value``; ``None`` stays ``None``."""

    def fill(x: torch.Tensor | None) -> torch.Tensor | None:
        if x is None:
            return None
        if x.is_complex():
            return torch.view_as_complex(torch.zeros_like(torch.view_as_real(x)) + value)
        return torch.zeros_like(x) + value

    return optree.tree_map(fill, tree, none_is_leaf=True)


def counts_like(tree: OptionalTensorTree) -> TensorTree:
    """Return a step count of zero (0-dim int64, on the CPU) for each leaf of ``tree``."""
    return optree.tree_map(
        lambda x: None if x is None else torch.zeros((), dtype=torch.int64),
        tree,
        none_is_leaf=True,
    )


class Workspace(NamedTuple):
    """Flattens trees that must match the updates, and carries the arithmetic.

    A leaf whose update is ``None`` is inactive: rules never see it, and its state stays.
    Complex leaves are seen as real ones with a last dimension of 2, as in ``torch.optim``.
    """

    spec: optree.PyTreeSpec
    # positions of the leaves that have an update; None: all of them
    active: list[int] | None
    # positions of the leaves whose update is complex
    complex: frozenset[int]
    # makes new tensors
    fresh: Functional
    # may overwrite its first operand, which must belong to the state or to this update
    reuse: Functional | InPlace
    # the active updates, whose shapes the moments must have; None: these are known to be right
    updates: Leaves | None = None
    # the tree of all parameters, if they are given
    params: Any = None

    @property
    def inplace(self) -> bool:
        """Whether state and parameters are overwritten."""
        return isinstance(self.reuse, InPlace)

    @staticmethod
    def over(
        leaves: Sequence[torch.Tensor | None],
        spec: optree.PyTreeSpec,
        inplace: bool,
        params: Any = None,
        *,
        checked: bool = False,
    ) -> Workspace:
        """Return the workspace for updates with these leaves.

        Args:
            leaves: The updates.
            spec: The structure of their tree.
            inplace: Whether to overwrite the state.
            params: The tree of all parameters, if they are given.
            checked: Whether shapes are known to be right.
        """
        active: list[int] | None = None
        if [x for x in leaves if x is None]:
            active = [i for i, x in enumerate(leaves) if x is not None]
        complex_leaves = _NOTHING
        if True in [x is not None and x.is_complex() for x in leaves]:
            complex_leaves = frozenset(
                [i for i, x in enumerate(leaves) if x is not None and x.is_complex()]
            )
        fresh = _DIFFERENTIABLE
        reuse: Functional | InPlace = _DIFFERENTIABLE
        if is_transforming():
            fresh, reuse = _TRANSFORMED, _TRANSFORMED
        elif inplace:
            fresh, reuse = _TEMPORARY, _OVERWRITE
        work = Workspace(spec, active, complex_leaves, fresh, reuse, None, params)
        return work if checked else work._replace(updates=work.select(leaves))

    def select(self, leaves: Sequence[torch.Tensor | None]) -> Leaves:
        """Return the active ones among all leaves, complex ones seen as real."""
        if self.active is None and not self.complex:
            return list(leaves)  # type: ignore[arg-type]
        chosen: Any = leaves if self.active is None else [leaves[i] for i in self.active]
        if self.complex:
            return [
                torch.view_as_real(x) if x is not None and x.is_complex() else x for x in chosen
            ]
        return list(chosen)

    def merge(
        self, leaves: Leaves, others: Sequence[Any] | None = None, like: Sequence[Any] | None = None
    ) -> list[Any]:
        """Return all leaves: ``leaves`` where active, ``others`` or ``None`` elsewhere.

        What was seen as real becomes complex again where the updates, or the leaves of ``like``,
        are complex.
        """
        if self.active is None and not self.complex:
            return list(leaves)
        merged: list[Any] = [None] * self.spec.num_leaves if others is None else list(others)
        indices = range(len(merged)) if self.active is None else self.active
        for i, x in zip(indices, leaves, strict=True):
            was_complex = i in self.complex if like is None else like[i].is_complex()
            seen_as_real = bool(self.complex) and was_complex and not x.is_complex()
            merged[i] = torch.view_as_complex(x) if seen_as_real else x
        return merged

    def flatten(self, tree: Any, *names: str) -> list[Any]:
        """Return all leaves of a tree that must be shaped like the updates."""
        leaves: list[Any]
        leaves, spec = optree.tree_flatten(tree, none_is_leaf=True)
        if spec != self.spec:
            # kinds of dicts may differ
            try:
                leaves = self.spec.flatten_up_to(tree)
                matches = all(isinstance(x, (torch.Tensor, type(None))) for x in leaves)
            except (ValueError, TypeError):
                matches = False
            if not matches:
                name = ".".join(names)
                raise ValueError(
                    f"the structure of `{name}` differs from that of the updates: "
                    f"`{name}` is {spec}, the updates are {self.spec}"
                )
        return leaves

    def leaves(self, tree: Any, name: str) -> Leaves:
        """Return the active leaves of a tree that must be shaped like the updates."""
        return self.select(self.flatten(tree, name))

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Return the tree of these leaves, one for each leaf of the updates."""
        return optree.tree_unflatten(self.spec, leaves)

    def read(self, state: Any, kind: type[NamedTuple], checked: bool = True) -> list[Leaves]:
        """Return the active leaves of each field of a state record, with their shapes checked."""
        if not isinstance(state, kind):
            raise TypeError(
                f"the state belongs to another transformation: expected {kind.__name__}, "
                f"got {type(state).__name__}"
            )
        fields = [
            self.select(self.flatten(tree, "state", name))
            for name, tree in zip(kind._fields, state, strict=True)
        ]
        if checked and self.updates is not None:
            for name, leaves in zip(kind._fields, fields, strict=True):
                if name != "count":
                    self.check_shapes(leaves, f"state.{name}")
        return fields

    def check_shapes(self, leaves: Leaves, name: str) -> None:
        """Raise unless the leaves are shaped like the updates."""
        shapes = [getattr(x, "shape", None) for x in leaves]
        expected = [x.shape for x in self.updates or ()]
        if shapes == expected:
            return
        for i, (wanted, found) in enumerate(zip(expected, shapes, strict=True)):
            if found != wanted:
                what = "is None" if found is None else f"has shape {tuple(found)}"
                raise ValueError(
                    f"leaf {i} of `{name}` {what}, "
                    f"but that of the updates has shape {tuple(wanted)}"
                )

    def write(self, state: _State, *fields: Leaves) -> _State:
        """Return the state record with new active leaves; inactive leaves stay as they are.

        In place the new leaves are the old ones, overwritten by :attr:`reuse`.
        """
        if self.inplace:
            return state
        if self.active is None and not self.complex:
            return type(state)(*map(self.unflatten, fields))
        trees = []
        for name, old, new in zip(state._fields, state, fields, strict=True):
            leaves = self.flatten(old, "state", name)
            trees.append(self.unflatten(self.merge(new, leaves, like=leaves)))
        return type(state)(*trees)

    def restrict(self, chosen: Sequence[int]) -> Workspace:
        """Return the workspace of fewer active leaves, given their positions among the active."""
        every = range(self.spec.num_leaves) if self.active is None else self.active
        updates = None if self.updates is None else [self.updates[k] for k in chosen]
        return self._replace(active=[every[k] for k in chosen], updates=updates)

    def factors(self, tree: Any, name: str, like: Leaves) -> Leaves:
        """Return the active leaves of a tree of factors for the leaves ``like``.

        Raises:
            ValueError: If a factor is neither 0-dim nor shaped like its leaf.
        """
        every = self.flatten(tree, name)
        positions = range(len(every)) if self.active is None else self.active
        factors = []
        for i, x in zip(positions, like, strict=True):
            factor = every[i]
            shape = x.shape[:-1] if i in self.complex else x.shape
            if factor is None or (factor.ndim and factor.shape != shape):
                found = "None" if factor is None else f"shape {tuple(factor.shape)}"
                raise ValueError(
                    f"leaf {i} of `{name}` must be 0-dim or have the shape {tuple(shape)} of its "
                    f"parameter, got {found}"
                )
            factors.append(factor.unsqueeze(-1) if i in self.complex and factor.ndim else factor)
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
    """Return ``1 - decay**t`` for a step count ``t`` as in :meth:`Workspace.per_step`."""
    if isinstance(t, torch.Tensor):
        return torch.rsub(torch.pow(beside_steps(decay), t), 1)
    return 1 - decay**t


def beside_steps(value: Scalar) -> Scalar:
    """Return a hyperparameter where the step counts are."""
    return value.cpu() if isinstance(value, torch.Tensor) else value
