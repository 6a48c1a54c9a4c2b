"""The stateful face: any transformation as a :class:`torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import torch

from torchopt._workspace import Workspace
from torchopt.base import GradientTransformation, check_params
from torchopt.optim._checkpoint import check_owner, loaded_options, loaded_states, plain_options
from torchopt.optim._docs import derived_docstring
from torchopt.optim._faces import Implementation, derived_signature
from torchopt.optim._group import Group

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

__all__ = ["DerivedOptimizer", "Optimizer"]

_T = TypeVar("_T")
# what a parameter group may hold beside hyperparameters
_GROUP_KEYS = {"params", "param_names", "name", "initial_lr"}


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

    def __init__(self, params: ParamsT, impl: GradientTransformation) -> None:
        """Make the state for the parameters."""
        self.impl = impl
        self._implementation = Implementation(impl)
        self._groups: list[Group] = []
        super().__init__(params, dict(self._implementation.hyperparameters))

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
            self._groups.append(Group(group["params"], self._implementation.rule(values), values))
        except Exception:
            self.param_groups.pop()
            raise

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        return {name: group[name] for name in self._implementation.hyperparameters}

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
            params = options["params"]
            if not group.holds(options):
                values = self._values(options)
                group.change(self._implementation.rule(values), values, params)
            group.check(params)
            grads = [p.grad for p in params]
            found = [g for g in grads if g is not None]
            if True in [g.is_sparse for g in found]:
                raise ValueError("sparse gradients are not supported: pass `sparse=False`")
            if found:
                pending.append((group, params, grads))

        # a rule that can fail midway works on copies, which are committed when all have succeeded
        inplace = not any(group.may_raise for group, _, _ in pending)
        results = []
        for group, params, grads in pending:
            work = Workspace.over(grads, group.spec, inplace, params, checked=True)
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
        """The live state: by parameter and name, and what a group shares. Read-only."""
        state: defaultdict[Any, Any] = defaultdict(dict)
        for k, (group, options) in enumerate(zip(self._groups, self.param_groups, strict=True)):
            by_parameter = zip(options["params"], group.by_parameter(), strict=True)
            state.update((param, entries) for param, entries in by_parameter if entries)
            if shared := group.shared():
                state[f"group {k}"] = shared
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
        packed["param_groups"] = list(map(plain_options, packed["param_groups"]))
        packed["transformation"] = self._implementation.name
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned; nothing changes if it does not fit.

        Raises:
            ValueError: If it was made by another optimizer or for other parameters, is damaged, or
                has hyperparameters that are out of range.
        """
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        check_owner(self._implementation.name, state_dict, self._groups)
        pairs = zip(self.param_groups, state_dict["param_groups"], strict=True)
        loaded = [loaded_options(mine, theirs) for mine, theirs in pairs]
        groups = []
        for options, group in zip(loaded, self._groups, strict=True):
            values = self._values(options)
            groups.append(copy.copy(group))
            groups[-1].change(self._implementation.rule(values), values, options["params"])
        for group, state in zip(groups, loaded_states(state_dict, groups), strict=True):
            group.state = state

        self._groups = groups
        for options, new in zip(self.param_groups, loaded, strict=True):
            options.update(new)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying keep."""
        names = ("impl", "_implementation", "_groups", "defaults", "param_groups")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({name: x for name, x in state.items() if name != "state"})


class DerivedOptimizer(Optimizer):
    """A stateful class with the signature of an optimizer's functional form.

    Args:
        params: Parameters, named parameters, or dicts that define parameter groups; a group may
            override hyperparameters.
    """

    _functional: ClassVar[Callable[..., GradientTransformation]]
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(
        cls,
        functional: Callable[..., GradientTransformation] | None = None,
        positional: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take the functional form, and the names of what is positional where it differs."""
        super().__init_subclass__(**kwargs)
        if functional is not None:
            cls._functional = staticmethod(functional)
            cls.__signature__ = derived_signature(
                functional, "params", positional, drop=("moment_requires_grad",)
            )
            cls.__doc__ = derived_docstring(
                cls.__doc__,
                functional.__doc__,
                DerivedOptimizer.__doc__,
                cls.__signature__.parameters,
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the parameters, and the hyperparameters of the functional form."""
        arguments = self.__signature__.bind(*args, **kwargs).arguments
        super().__init__(arguments.pop("params"), self._functional(**arguments))
