"""The stateful face: any transformation as a :class:`torch.optim.Optimizer`."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar, cast, overload

import optree
import torch
from torch._C._autograd import _profiler_enabled
from torch.optim.optimizer import (
    ParamsT,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)
from typing_extensions import ParamSpec

from torchopt._driver import Extras, Step, check_params, run
from torchopt._factory import Binder
from torchopt._types import OptState
from torchopt.base import GradientTransformation, check_transformation
from torchopt.optim._checkpoint import (
    check_owner,
    loaded_options,
    loaded_rows,
    plain_options,
    plain_rows,
)
from torchopt.optim._docs import derived_docstring
from torchopt.optim._hyperparameters import Hyperparameters, find_partition, name_of
from torchopt.optim._signature import TORCH_OPTIONS, check_torch_options, derived_signature
from torchopt.optim._unit import Unit, evaluation, split

__all__ = ["DerivedOptimizer", "Optimizer"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
# torch's words
_UNORDERED = (
    "optimizer parameters need to be organized in ordered collections, but the ordering of tensors "
    "in sets will change between runs. Please use a list instead"
)


class Optimizer(torch.optim.Optimizer):
    """A :class:`torch.optim.Optimizer` that steps by a gradient transformation.

    Learning rate schedulers, parameter groups, ``GradScaler``, step hooks and ``state_dict`` work
    as for torch's own optimizers; the state of a parameter is made in its first step, and state
    dicts of `torch.optim` go both ways. A step that fails leaves parameters and state as they were;
    ``.grad`` is never written to.

    Parameters may be results of other tensors, as a differentiable step leaves them in a module.
    Their values are overwritten, with no trace in the graph that they came by. To them `backward`
    gives a gradient only after ``retain_grad()``; a step warns of those that it could not move.

    Args:
        params: Parameters, named parameters, or dicts that define parameter groups. If there is one
            optimizer in ``impl``, however it is composed, a group may override its hyperparameters;
            other keys of a group are kept. With :func:`torchopt.partition` a group becomes one for
            each label.
        impl: The transformation, for example ``torchopt.adam(1e-3)`` or a chain.

    Raises:
        ValueError: If there are no parameters, or some are not floating point or complex.

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
        """Take the parameters; their state is made in the first step."""
        check_transformation(impl, "`impl`")
        _check_iterable(params, type(self).__name__)
        if isinstance(params, set):  # as torch does from 2.15 on
            warnings.warn(f"{_UNORDERED}. This will be an error.", FutureWarning, stacklevel=2)
        if not isinstance(params, torch.Tensor):
            found: list[Any] = list(params.values() if isinstance(params, dict) else params)
            is_grouped = any(isinstance(x, dict) and "params" in x for x in found)
            params = found if is_grouped else _flat(found)
        self.impl = impl
        self._units: list[Unit] = []
        # whether some parameters were no leaves when they were added
        self._has_results = False
        values = {} if find_partition(impl) is not None else Hyperparameters(impl).values
        super().__init__(params, dict(values))
        if len(self._units[0].groups) > 1:  # of a partition; schedulers look at the defaults
            first, *others = self.param_groups
            own = {"params", "param_names", "label", "initial_lr"}
            common = {k: v for k, v in first.items() if all(k in group for group in others)}
            self.defaults.update({k: v for k, v in common.items() if k not in own})

    def add_param_group(self, param_group: dict[str, Any] | Iterable[torch.Tensor]) -> None:
        """Add a parameter group, as in :meth:`torch.optim.Optimizer.add_param_group`.

        Parameters by themselves are a group whose hyperparameters are the constructor's.
        """
        if not isinstance(param_group, dict):
            if not isinstance(param_group, Iterable):
                raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
            param_group = {"params": param_group}
        elif "params" not in param_group:
            param_group = {"params": list(param_group.values())}
        if self._units and self._units[0].is_joint:
            raise ValueError(
                f"{type(self).__name__} doesn't support per-parameter options (parameter groups)"
            )
        params = param_group["params"]
        if isinstance(params, torch.Tensor):
            params = [params]
        elif isinstance(params, dict):
            params = list(params.values())
        elif isinstance(params, set):
            raise TypeError(f"{_UNORDERED}.")
        before = len(self.param_groups)
        try:
            for group in split(self.impl, {**param_group, "params": _flat(params)}):
                self._add_any(group)
                check_params(self.param_groups[-1]["params"])
            positions = list(range(before, len(self.param_groups)))
            unit = Unit(self.impl, positions)
            unit.refresh(self.param_groups)
        except Exception:
            del self.param_groups[before:]
            raise
        for group in self.param_groups[before:]:
            if unit.averages:
                group.setdefault("train_mode", True)
            self._has_results |= not all(p.is_leaf for p in group["params"])
        self._units.append(unit)

    def _add_any(self, group: dict[str, Any]) -> None:
        """Add a group as torch does, but for its refusal of what is no leaf."""
        defaults = self.defaults
        group = {**defaults, **group}
        is_set = "differentiable" in group
        self.defaults = {"differentiable": True}  # its one exception
        try:
            super().add_param_group(group)
        finally:
            self.defaults = defaults
        if not is_set:
            del group["differentiable"]

    @staticmethod
    def profile_hook_step(func: Callable[_P, _T]) -> Callable[_P, _T]:
        """Return a step that runs hooks and shows in profiles, at no cost where there are none."""
        hooked = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            own: Any = args[0]
            if (
                torch.compiler.is_compiling()
                or _profiler_enabled()
                or own._optimizer_step_pre_hooks
                or own._optimizer_step_post_hooks
                or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks
            ):
                return hooked(*args, **kwargs)
            return func(*args, **kwargs)

        return step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as :meth:`torch.optim.Optimizer.zero_grad` does."""
        if not set_to_none or _profiler_enabled():
            super().zero_grad(set_to_none)
            return
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], _T]) -> _T: ...

    def step(self, closure: Callable[[], _T] | None = None) -> _T | None:
        """Update the parameters by their ``.grad``.

        Args:
            closure: Evaluates the model again and returns the loss. Some transformations (`sam`,
                `lbfgs`) need it, and call it several times.

        Returns:
            What ``closure`` returned when it was first called.

        Raises:
            ValueError: If there is no closure and the transformation needs one.
            RuntimeError: If the parameters are those to evaluate at; see :meth:`eval`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step(loss, closure)
        return loss

    def _step(self, loss: Any, closure: Callable[[], Any] | None) -> None:
        value = loss.detach() if isinstance(loss, torch.Tensor) else loss
        pending: list[tuple[Unit, list[torch.Tensor], Step, list[Any]]] = []
        for unit in self._units:
            params = unit.params(self.param_groups)
            grads = _found_gradients(params) if self._has_results else [p.grad for p in params]
            found = [g for g in grads if g is not None]
            if True in [g.is_sparse for g in found]:
                raise ValueError("sparse gradients are not supported: pass `sparse=False`")
            unit.refresh(self.param_groups)
            if not found:
                continue
            if unit.averages and not self._is_training(unit):
                raise RuntimeError(
                    "the parameters are those to evaluate at: call `train()` on the optimizer "
                    "before `step`, and `eval()` before evaluating"
                )
            extras = Extras(value=value)
            if unit.reevaluates:
                if closure is None:
                    raise ValueError(
                        f"{name_of(self.impl)} evaluates the loss again in a step: pass a closure "
                        "to `step` that clears the gradients, computes the loss, calls "
                        "`backward()` and returns the loss"
                    )
                # the closure overwrites them
                grads = [None if g is None else g.clone() for g in grads]
                extras = extras._replace(value_and_grad=evaluation(params, closure))
            pending.append((unit, params, *unit.open(params, grads, self.state, extras)))
        results = run([step for _, _, step, _ in pending], inplace=True, stepping=True)
        for (unit, params, step, columns), (news, state) in zip(pending, results, strict=True):
            for p, new in zip(params, news, strict=True):
                if new is not p and new is not None:
                    p.copy_(new)
            unit.close(params, columns, step.every_state, state, self.state)

    def _is_training(self, unit: Unit) -> bool:
        return all(self.param_groups[k].get("train_mode", True) for k in unit.groups)

    @torch.no_grad()
    def eval(self) -> None:
        """Put the parameters to evaluate at in the place of those that are trained.

        They differ for averaging methods (:func:`torchopt.schedule_free`); for all others nothing
        happens. :meth:`train` goes back.
        """
        self._swap(evaluate=True)

    @torch.no_grad()
    def train(self) -> None:
        """Put the parameters that are trained back, after :meth:`eval`."""
        self._swap(evaluate=False)

    def _swap(self, evaluate: bool) -> None:
        for unit in self._units:
            unit.refresh(self.param_groups)
            if not unit.averages or self._is_training(unit) is not evaluate:
                continue
            params = unit.params(self.param_groups)
            swapped = unit.swapped(params, self.state, evaluate)
            for p, x in zip(params, swapped or params, strict=True):
                if x is not p:
                    p.copy_(x)
            for k in unit.groups:
                self.param_groups[k]["train_mode"] = not evaluate

    def state_dict(self) -> dict[str, Any]:
        """Return state and hyperparameters as plain data, for ``torch.save``.

        The entries are those of `torch.optim`, whose optimizer of the same kind can load them.
        Hyperparameters that are not plain data (schedules, masks) are left out; loading keeps the
        present ones.
        """
        packed = super().state_dict()
        packed["state"] = plain_rows(packed["state"])
        packed["param_groups"] = list(map(plain_options, packed["param_groups"]))
        packed["transformation"] = name_of(self.impl)
        return packed

    def load_state_dict(self, state_dict: dict[str, Any] | Sequence[OptState]) -> None:
        """Resume from what :meth:`state_dict` returned, here or of `torch.optim`'s optimizer.

        So it does from a tuple of functional states, one for each call of :meth:`add_param_group`
        (the first is the constructor's), which is what TorchOpt 0.7 saved. Nothing changes if it
        does not fit.

        Raises:
            ValueError: If it was made by another optimizer or for other parameters, is damaged, or
                has hyperparameters that are out of range.
        """
        if not isinstance(state_dict, dict):
            state_dict = self._as_state_dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        check_owner(name_of(self.impl), state_dict, self.param_groups)
        pairs = zip(self.param_groups, state_dict["param_groups"], strict=True)
        groups = [loaded_options(mine, theirs) for mine, theirs in pairs]
        rows = dict(state_dict["state"])
        state: defaultdict[Any, Any] = defaultdict(dict)
        for unit in map(copy.copy, self._units):
            unit.refresh(groups)
            params = unit.params(groups)
            keys = [key for k in unit.groups for key in state_dict["param_groups"][k]["params"]]
            mine = [rows.pop(key, {}) for key in keys]
            where = f"group {unit.groups[0]}"
            found = loaded_rows(unit.layout(params), params, mine, where)
            state.update((p, row) for p, row in zip(params, found, strict=True) if row)
        if any(rows.values()):
            raise ValueError(
                "the state dict belongs to another optimizer: it has state beyond that of this "
                f"one, for {sorted(map(str, rows))}"
            )
        for options, new in zip(self.param_groups, groups, strict=True):
            options.update(new)
        self.state = state
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    @property
    def state_groups(self) -> tuple[OptState, ...]:
        """The state as the functional face has it, by reference, to look things up in.

        There is one for each call of :meth:`add_param_group`, the first of which is the
        constructor's, with a list of its parameters' values for each field.
        """
        states = []
        for unit in self._units:
            unit.refresh(self.param_groups)
            states.append(unit.functional_state(unit.params(self.param_groups), self.state))
        return tuple(states)

    def _as_state_dict(self, states: Sequence[OptState]) -> dict[str, Any]:
        """Return functional states as a state dict, which says nothing of the options."""
        if not isinstance(states, (tuple, list)):
            raise ValueError("a state dict has the entries `state` and `param_groups`")
        if len(states) != len(self._units):
            raise ValueError(
                "the state must have one entry for each call of `add_param_group`, the "
                f"constructor's included: it has {len(states)}, the optimizer {len(self._units)}"
            )
        sizes = [len(group["params"]) for group in self.param_groups]
        ends = list(itertools.accumulate(sizes))
        keys = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
        rows: dict[int, dict[str, Any]] = {}
        for unit, state in zip(map(copy.copy, self._units), states, strict=True):
            unit.refresh(self.param_groups)
            mine = [key for k in unit.groups for key in keys[k]]
            found = unit.rows(unit.params(self.param_groups), state)
            rows.update(zip(mine, found, strict=True))
        return {"state": rows, "param_groups": [{"params": own} for own in keys]}

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying keep."""
        names = self.__dict__.keys() & {"impl", "_units", "_has_results", "_torch_options"}
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in names}}


def _check_iterable(params: Any, name: str) -> None:
    """Raise for what is given where the parameters were forgotten; all else is up to torch."""
    try:
        iter(params)
    except TypeError:
        if isinstance(params, torch.Tensor):
            return
        remedy = "module.parameters()" if isinstance(params, torch.nn.Module) else "params"
        raise TypeError(
            "`params` must be an iterable of tensors or dicts, got "
            f"{type(params).__name__}: call it as `{name}({remedy}, ...)`"
        ) from None


def _flat(params: Iterable[Any]) -> list[Any]:
    """Return parameters, or pairs of a name and one, from trees of parameters among them."""
    flat: list[Any] = []
    for x in params:
        is_named = isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], str)
        if is_named or not isinstance(x, (tuple, list, dict)):
            flat.append(x)
        else:
            flat.extend(optree.tree_leaves(cast(Any, x)))
    return flat


def _found_gradients(params: Sequence[torch.Tensor]) -> list[Any]:
    """Return the gradients; warn of parameters that none can have reached."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, which names no parameter
        grads = [p.grad for p in params]
    pairs = enumerate(zip(params, grads, strict=True))
    lost = [i for i, (p, g) in pairs if g is None and not (p.is_leaf or p.retains_grad)]
    if lost:
        warnings.warn(
            f"`backward` leaves no gradient at parameters {lost}, which are results of other "
            "tensors (of a differentiable step, say), so this step does not move them: call "
            "`retain_grad()` on them before `backward`, or make them leaves by "
            "`torchopt.stop_gradient(module)`",
            UserWarning,
            stacklevel=5,  # the line that calls `step`, which torch has wrapped
        )
    return grads


class DerivedOptimizer(Optimizer):
    """A stateful class with the signature of an optimizer's functional form.

    Args:
        params: Parameters, named parameters, or dicts that define parameter groups; a group may
            override hyperparameters.
        foreach: Accepted as by `torch.optim`; results do not depend on it.
        capturable: Likewise.
        differentiable: Likewise, but for True, which is refused: the differentiable form of the
            optimizer is a class of its own.
        fused: Likewise; for fused steps install `torchopt-accel`.
    """

    _functional: ClassVar[Callable[..., GradientTransformation]]
    __signature__: ClassVar[inspect.Signature]
    _bind: ClassVar[Binder]

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
                functional,
                "params",
                positional,
                drop=("moment_requires_grad",),
                options=TORCH_OPTIONS,
            )
            cls._bind = Binder(cls.__signature__, cls.__name__)
            cls.__doc__ = derived_docstring(
                cls.__doc__,
                functional.__doc__,
                DerivedOptimizer.__doc__,
                cls.__signature__.parameters,
            )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the parameters, and the hyperparameters of the functional form."""
        arguments = self._bind(args, kwargs)
        params = arguments.pop("params")
        options = {option.name: arguments.pop(option.name) for option in TORCH_OPTIONS}
        check_torch_options(arguments, options)
        self._torch_options = options
        super().__init__(params, self._functional(**arguments))
        self.defaults.update(options)

    def add_param_group(self, param_group: dict[str, Any] | Iterable[torch.Tensor]) -> None:
        if isinstance(param_group, dict) and "params" in param_group:
            param_group = {**self._torch_options, **param_group}
        super().add_param_group(param_group)
