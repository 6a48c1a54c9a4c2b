"""The stateful face: any transformation as a :class:`torch.optim.Optimizer`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, overload

import optree
import torch

from torchopt._workspace import Workspace
from torchopt.base import GradientTransformation, check_params
from torchopt.optim._faces import Implementation, derived_signature, list_structure

if TYPE_CHECKING:
    from torchopt._rule import Rule
    from torchopt.typing import OptState

__all__ = ["Optimizer"]

_T = TypeVar("_T")
# what a parameter group may hold beside hyperparameters
_GROUP_KEYS = {"params", "param_names", "name", "initial_lr"}
_PLAIN = (int, float, str, bool, torch.Tensor, type(None))


class _Group:
    """The rule and the state of one parameter group."""

    def __init__(self, params: Sequence[torch.Tensor], rule: Rule, values: dict[str, Any]) -> None:
        self.rule = rule
        self.values = values
        self.state: OptState = rule.init(list(params))
        self.spec = list_structure(len(params))

    def holds(self, values: dict[str, Any]) -> bool:
        """Return whether the rule was made with these hyperparameters."""
        return all(
            value is self.values[name]
            or (not isinstance(value, torch.Tensor) and value == self.values[name])
            for name, value in values.items()
        )

    def is_part(self, node: Any) -> bool:
        """Return whether a node of the state is a list with one entry for each parameter."""
        return isinstance(node, list) and len(node) == self.spec.num_leaves

    def entries(self) -> Iterator[tuple[str, Any]]:
        """Yield the parts of the state, and what is beside them, by name."""
        accessors, leaves, _ = optree.tree_flatten_with_accessor(self.state, is_leaf=self.is_part)
        for accessor, leaf in zip(accessors, leaves, strict=True):
            names = (getattr(entry, "field", entry.entry) for entry in accessor)
            yield ".".join(map(str, names)), leaf


class Optimizer(torch.optim.Optimizer):
    """A :class:`torch.optim.Optimizer` that steps by a gradient transformation.

    Learning rate schedulers, parameter groups, ``GradScaler``, step hooks and ``state_dict`` work
    as for torch's own optimizers. A step that fails leaves parameters and state as they were;
    ``.grad`` is never written to.

    Args:
        params: Parameters, named parameters, or dicts that define parameter groups. If ``impl`` is
            an optimizer, or a chain with one optimizer, a group may override its hyperparameters.
        impl: The transformation, for example ``torchopt.adam(1e-3)`` or a chain.

    Raises:
        ValueError: If there are no parameters, or some are not floating point or complex, or a
            group sets a hyperparameter that ``impl`` does not have.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> impl = torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(1e-2))
        >>> optim = torchopt.Optimizer(net.parameters(), impl)
        >>> optim.zero_grad()
        >>> net(torch.ones(4, 2)).square().mean().backward()
        >>> optim.step()
        >>> optim.param_groups[0]["lr"]
        0.01
    """

    def __init_subclass__(
        cls,
        functional: Callable[..., GradientTransformation] | None = None,
        positional: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Derive the constructor from an optimizer's functional form."""
        super().__init_subclass__(**kwargs)
        if functional is None:
            return
        signature = derived_signature(
            functional, "params", positional, drop=("moment_requires_grad",)
        )

        def __init__(self: Optimizer, *args: Any, **kwargs: Any) -> None:
            arguments = signature.bind(*args, **kwargs).arguments
            Optimizer.__init__(self, arguments.pop("params"), functional(**arguments))

        __init__.__doc__ = (
            f"Take the parameters, and the hyperparameters of :func:`{functional.__name__}`."
        )
        cls.__init__ = __init__  # type: ignore[method-assign]
        cls.__signature__ = signature  # type: ignore[attr-defined]

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        impl: GradientTransformation,
    ) -> None:
        """Make the state for the parameters."""
        self.impl = impl
        self._implementation = Implementation(impl)
        self._groups: list[_Group] = []
        super().__init__(params, self._implementation.hyperparameters)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in :meth:`torch.optim.Optimizer.add_param_group`."""
        known = self._implementation.hyperparameters
        unknown = set() if not isinstance(param_group, dict) else set(param_group) - set(known)
        if unknown - _GROUP_KEYS:
            raise ValueError(
                f"a parameter group sets {sorted(unknown - _GROUP_KEYS)}, but the optimizer's "
                f"hyperparameters are {sorted(known)}"
            )
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_params(group["params"])
            values = self._values(group)
            self._groups.append(_Group(group["params"], self._implementation.rule(values), values))
        except Exception:
            self.param_groups.pop()
            raise

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in self.defaults}

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], _T]) -> _T: ...

    def step(self, closure: Callable[[], _T] | None = None) -> _T | None:
        """Update the parameters by their ``.grad``.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        return loss

    def _step(self) -> None:
        pending = []
        for group, options in zip(self._groups, self.param_groups, strict=True):
            values = self._values(options)
            if not group.holds(values):
                group.rule, group.values = self._implementation.rule(values), values
            grads = [p.grad for p in options["params"]]
            if any(g is not None and g.is_sparse for g in grads):
                raise ValueError("sparse gradients are not supported: pass `sparse=False`")
            if any(g is not None for g in grads):
                pending.append((group, options["params"], grads))

        # a rule that can fail midway works on copies, which are committed when all have succeeded
        inplace = not any(group.rule.may_raise for group, _, _ in pending)
        results = []
        for group, params, grads in pending:
            work = Workspace.over(grads, group.spec, inplace)
            targets = work.select(params)
            news, state = group.rule.step(work.select(grads), group.state, targets, work)
            if inplace:
                group.state = state
            else:
                results.append((group, targets, news, state))
        for group, targets, news, state in results:
            torch._foreach_copy_(targets, news)
            group.state = state

    @property
    def state(self) -> defaultdict[Any, Any]:
        """The live state: tensors by parameter and name, and what is shared by a whole group."""
        state: defaultdict[Any, Any] = defaultdict(dict)
        for k, (group, options) in enumerate(zip(self._groups, self.param_groups, strict=False)):
            for name, part in group.entries():
                if isinstance(part, list):
                    for param, tensor in zip(options["params"], part, strict=True):
                        if tensor is not None:
                            state[param][name] = tensor
                else:
                    state[f"group {k}"][name] = part
        return state

    @state.setter
    def state(self, value: Any) -> None:
        if value:
            raise AttributeError("`state` is read-only: use `load_state_dict`")

    def state_dict(self) -> dict[str, Any]:
        """Return state and hyperparameters as plain data, for ``torch.save``.

        Hyperparameters that are not plain data (schedules, masks) are left out; loading keeps the
        present ones.
        """
        packed = super().state_dict()
        for group in packed["param_groups"]:
            for name in list(group):
                leaves = optree.tree_leaves(group[name], none_is_leaf=True)
                if not all(isinstance(x, _PLAIN) for x in leaves):
                    del group[name]
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned; nothing changes if it does not fit.

        Raises:
            ValueError: If it was made by another optimizer or for other parameters.
        """
        current = super().state_dict()
        states, groups = state_dict["state"], state_dict["param_groups"]
        self._check_groups(current["param_groups"], groups)
        # parameters are numbered anew, in order
        position: dict[Any, Any] = {}
        for mine, theirs in zip(current["param_groups"], groups, strict=True):
            position.update(zip(mine["params"], theirs["params"], strict=True))
        loaded: dict[Any, dict[str, Any]] = {}
        for key, mine in current["state"].items():
            theirs = states.get(position.get(key, key), {})
            self._check_state(key, mine, theirs)
            loaded[key] = {
                name: theirs[name].to(value.device, value.dtype, copy=True)
                if isinstance(value, torch.Tensor)
                else theirs[name]
                for name, value in mine.items()
            }
        extra = set(states) - {position.get(key, key) for key in current["state"]}
        if any(states[key] for key in extra):
            raise ValueError(
                "the state dict belongs to another optimizer: it has state for "
                f"{sorted(map(str, extra))}, where {self.__class__.__name__} keeps none"
            )

        kept = [dict(group) for group in self.param_groups]
        super().load_state_dict({"state": {}, "param_groups": groups})
        for group, old in zip(self.param_groups, kept, strict=True):
            for name, value in old.items():
                group.setdefault(name, value)
        self._assign(loaded)

    def _check_groups(self, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
        sizes = [len(group["params"]) for group in mine]
        if sizes != [len(group["params"]) for group in theirs]:
            raise ValueError(
                "the state dict has parameter groups of sizes "
                f"{[len(group['params']) for group in theirs]}, the optimizer has {sizes}"
            )
        known = set(self._implementation.hyperparameters)
        for group in theirs:
            unknown = set(group) - known - _GROUP_KEYS
            if unknown:
                raise ValueError(
                    f"the state dict belongs to another optimizer: its hyperparameters "
                    f"{sorted(unknown)} are not among {sorted(known)} of {self.__class__.__name__}"
                )

    def _check_state(self, key: Any, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        where = key if isinstance(key, str) else f"parameter {key}"
        if set(mine) != set(theirs):
            raise ValueError(
                f"the state dict belongs to another optimizer: for {where} it has "
                f"{sorted(theirs)}, {self.__class__.__name__} keeps {sorted(mine)}"
            )
        for name, value in mine.items():
            if isinstance(value, torch.Tensor) and value.shape != theirs[name].shape:
                raise ValueError(
                    f"the state dict belongs to other parameters: `{name}` of {where} has shape "
                    f"{tuple(theirs[name].shape)}, here it has {tuple(value.shape)}"
                )

    def _assign(self, loaded: dict[Any, dict[str, Any]]) -> None:
        start = 0
        for k, group in enumerate(self._groups):
            parts: list[Any] = []
            for name, part in group.entries():
                if isinstance(part, list):
                    parts.append(
                        [None if x is None else loaded[start + i][name] for i, x in enumerate(part)]
                    )
                else:
                    parts.append(loaded[f"group {k}"][name])
            spec = optree.tree_structure(group.state, is_leaf=group.is_part)
            group.state = optree.tree_unflatten(spec, parts)
            start += group.spec.num_leaves

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying keep."""
        names = ("impl", "_implementation", "_groups", "defaults", "param_groups")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({k: v for k, v in state.items() if k != "state"})
