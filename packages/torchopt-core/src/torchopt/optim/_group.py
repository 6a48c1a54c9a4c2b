"""One parameter group of a stateful optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import optree
import torch

from torchopt.optim._faces import list_structure

if TYPE_CHECKING:
    from torchopt._rule import Rule
    from torchopt.typing import OptState

__all__ = ["Group"]


class Group:
    """The rule of a parameter group, the hyperparameters it was made with, and its state."""

    def __init__(self, params: Sequence[torch.Tensor], rule: Rule, values: dict[str, Any]) -> None:
        """Make the state before the first step."""
        self.rule, self.values, self.may_raise = rule, values, rule.may_raise
        self.state: OptState = rule.init(list(params))
        self.spec = list_structure(len(params))
        self._shapes = [p.shape for p in params]
        self._dtypes = [p.dtype for p in params]

    def change(self, rule: Rule, values: dict[str, Any], params: Sequence[torch.Tensor]) -> None:
        """Go on with other hyperparameters."""
        self.state = rule.adopt(self.state, list(params))
        self.rule, self.values, self.may_raise = rule, values, rule.may_raise

    def check(self, params: Sequence[torch.Tensor]) -> None:
        """Raise if parameters have changed their shape or dtype, which the state does not fit."""
        shapes, dtypes = [p.shape for p in params], [p.dtype for p in params]
        if shapes == self._shapes and dtypes == self._dtypes:
            return
        old = zip(self._shapes, self._dtypes, strict=True)
        new = zip(shapes, dtypes, strict=True)
        for i, (before, now) in enumerate(zip(old, new, strict=True)):
            if before != now:
                raise ValueError(
                    f"parameter {i} of a group has changed from shape {tuple(before[0])}, "
                    f"{before[1]}, to shape {tuple(now[0])}, {now[1]}: make the optimizer after "
                    "such changes"
                )

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.spec.num_leaves

    def holds(self, options: dict[str, Any]) -> bool:
        """Return whether the rule was made with the hyperparameters in these options."""
        for name, value in self.values.items():
            now = options[name]
            if now is not value and (isinstance(now, torch.Tensor) or now != value):
                return False
        return True

    def _is_part(self, node: Any) -> bool:
        return isinstance(node, list) and len(node) == self.size

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Yield the parts of the state by name: lists with an entry for each parameter, or else."""
        accessors, leaves, _ = optree.tree_flatten_with_accessor(self.state, is_leaf=self._is_part)
        for accessor, leaf in zip(accessors, leaves, strict=True):
            names = (getattr(entry, "field", entry.entry) for entry in accessor)
            yield ".".join(map(str, names)), leaf

    def with_parts(self, parts: list[Any]) -> OptState:
        """Return the state with other parts, in the order of :meth:`entries`."""
        spec = optree.tree_structure(self.state, is_leaf=self._is_part)
        return optree.tree_unflatten(spec, parts)

    def by_parameter(self) -> list[dict[str, Any]]:
        """Return the state of each parameter by name."""
        states: list[dict[str, Any]] = [{} for _ in range(self.size)]
        for name, part in self.entries():
            if isinstance(part, list):
                for state, x in zip(states, part, strict=True):
                    if x is not None:
                        state[name] = x
        return states

    def shared(self) -> dict[str, Any]:
        """Return by name what the parameters share, such as the count of a schedule."""
        return {name: part for name, part in self.entries() if not isinstance(part, list)}
